"""Nodes that the broker hears well and that no client gets to, and nodes that do not stay up."""

import os
import signal

import pytest
from fleet.crowd import owners, wait_for_connections
from fleet.raw import raw_member
from harness.ask import ask
from harness.fleet import at, free_address
from harness.patience import eventually_now, throughout
from watch import held, now, wait_until_held

JSON = {"Accept": "application/json"}
# A few seconds in which nobody arrives, and a second each for counting, reporting and deciding.
SEEN_WITHIN_S = 30
# While it is tried again, so many new teams go there each time.
TRIAL = 2
# Pings come so often that a node without clients is one within seconds.
PING_S = 2
TEAMS, CONNECTIONS = 40, 80


def view(fleet, node):
    return fleet.view(f"/v1/nodes/{node}")


def is_kept_back(fleet, node, gate="unreachable"):
    distrust = view(fleet, node).get("distrust")
    return distrust is not None and distrust["gate"] == gate and distrust["again_in_ms"] > 0


class Newcomers:
    """Clients of new teams, one each, one after the other: who cannot get to its node gives up."""

    def __init__(self, fleet, prefix):
        self._fleet = fleet
        self._prefix = prefix
        self._count = 0
        self._streams = []

    def come(self):
        """The node that the next is sent to."""
        team = f"{self._prefix}-{self._count}"
        self._count += 1
        node = ask(self._fleet.clients, f"/connect/{team}", headers=JSON).json["node"]
        try:
            self._streams.append(raw_member(self._fleet, team))
        except OSError:
            pass
        return node

    def close(self):
        for stream in self._streams:
            stream.close()


@pytest.fixture
def newcomers():
    made = []

    def start(fleet, prefix):
        made.append(Newcomers(fleet, prefix))
        return made[-1]

    yield start
    for one in made:
        one.close()


def test_a_node_whose_url_leads_nowhere_is_no_sink_for_new_teams(start_fleet, newcomers, fault):
    fleet = start_fleet(2)
    fleet.nodes["node-3"] = fleet._place_node("node-3")
    fleet.start_node("node-3", "--url", f"ws://{at(free_address())}/teams/{{team}}")
    eventually_now("every node is ready", fleet.is_up)
    eventually_now("it is told that nothing answers", lambda: view(fleet, "node-3").get("url_answers") is False)
    assert "distrust" not in view(fleet, "node-3"), "that alone is no reason"
    clients = newcomers(fleet, "new")
    began, sent = now(), []

    def kept_back():
        sent.append(clients.come())
        return is_kept_back(fleet, "node-3")

    eventually_now("new teams go elsewhere", kept_back, within=SEEN_WITHIN_S)
    seen_s = now() - began
    after = [clients.come() for _ in range(60)]
    assert after.count("node-3") <= 2 * TRIAL, after
    told = view(fleet, "node-3")
    assert "unreachable" in told["gates"] and told["arrived"] == 0 and told["sent"] >= sent.count("node-3"), told
    assert "no client gets to this node although it is heard" in fleet.processes["broker"].text()
    fault(
        f"kept back within {SEEN_WITHIN_S} s; then at most {2 * TRIAL} of 60 new teams go there",
        f"after {seen_s:.1f} s, {sent.count('node-3')} of {len(sent)} new teams; then {after.count('node-3')} of 60",
    )


def test_who_only_asks_holds_no_node_back(fleet, fault):
    for number in range(150):
        assert ask(fleet.clients, f"/connect/look-{number % 50}", headers=JSON).status == 200
    throughout(8.0, "no node is held back", lambda: not any("distrust" in node for node in fleet.view("/v1/nodes")["nodes"]))
    fault("pages and checks that never dial are no evidence", "150 asks for 50 teams, nobody dialled: no node held back")


def test_two_nodes_with_one_url_are_told(fleet, fault):
    fleet.nodes["node-4"] = fleet._place_node("node-4")
    url = f"ws://{at(fleet.nodes['node-1'].address)}/teams/{{team}}"
    fleet.start_node("node-4", "--url", url)
    eventually_now("every node is ready", fleet.is_up)
    assert view(fleet, "node-4")["same_url"] == "node-1" and view(fleet, "node-1")["same_url"] == "node-4"
    assert "two live nodes announce one URL" in fleet.processes["broker"].text()
    metrics = ask(fleet.admin, "/metrics").body.decode()
    assert 'usher_node_url_shared{node="node-1"} 1' in metrics and 'usher_node_url_shared{node="node-2"} 0' in metrics
    fault("told in nodes, log and metric; nothing is decided by it", "both name each other")


def test_a_node_that_its_clients_lose_while_its_link_is_well_loses_its_teams_to_them(scatter, load, fault):
    fleet = scatter(4, "--ping", f"{PING_S}s")
    clients = load(fleet, CONNECTIONS, TEAMS, "crowd-")
    wait_for_connections(fleet, CONNECTIONS)
    before = owners(fleet)
    here = held(fleet, "node-1")
    hit = {team for team, (node, _) in before.items() if node == "node-1"}
    assert len(hit) >= 3, before
    began = now()
    fleet.network.cut_both_ways("node-1", "clients")
    wait_until_held(fleet, CONNECTIONS, ["node-2", "node-3", "node-4"], within=90)
    back_s = now() - began
    assert is_kept_back(fleet, "node-1") or fleet.states()["node-1"] == "ready", view(fleet, "node-1")
    assert "no client gets to this node although it is heard" in fleet.processes["broker"].text()
    after = owners(fleet)
    assert {team for team in before if after[team] != before[team]} == hit
    with fleet.among_clients():
        new = [ask(fleet.clients, f"/connect/late-{number}", headers=JSON).json["node"] for number in range(20)]
    assert new.count("node-1") <= TRIAL, new
    fleet.network.heal()

    def trusted():
        # Trust comes back with clients: somebody has to try.
        with fleet.among_clients():
            try:
                raw_member(fleet, f"try-{now():.3f}").close()
            except OSError:
                pass
        return "distrust" not in view(fleet, "node-1")

    eventually_now("it is trusted again", trusted, within=120)
    trusted_s = now() - began
    report = clients.report()
    assert report["connected"] == CONNECTIONS and report["gave_up"] == 0, report
    fault(
        f"its clients come back with their tickets and take their teams along; at most {TRIAL} of 20 new teams go there;"
        " trusted again once clients arrive",
        f"{here} clients of {len(hit)} teams back after {back_s:.1f} s; {new.count('node-1')} of 20 new teams;"
        f" trusted again {trusted_s:.0f} s after the cut began",
    )


def test_a_node_that_dies_again_and_again_is_no_sink_for_new_teams(fleet, newcomers, fault):
    for death in range(1, 4):
        worker = fleet.worker("node-1")
        os.kill(worker, signal.SIGKILL)
        eventually_now(
            "another process has its name",
            lambda worker=worker: fleet.worker("node-1") not in (None, worker) and fleet.states()["node-1"] == "ready",
        )
    eventually_now("it is held back", lambda: is_kept_back(fleet, "node-1", "crashing"))
    told = view(fleet, "node-1")["distrust"]
    assert 20_000 < told["again_in_ms"] <= 40_000 and "died 3 times" in told["why"], told
    clients = newcomers(fleet, "new")
    sent = [clients.come() for _ in range(30)]
    assert "node-1" not in sent, sent
    # Alone it takes them all the same.
    for other in ("node-2", "node-3"):
        assert fleet.rest("POST", f"/v1/nodes/{other}/cordon").status == 200
    assert clients.come() == "node-1"
    fault(
        "after three deaths no new team for 40 s, unless nothing else is left",
        f"0 of 30 new teams, {told['again_in_ms'] / 1000:.0f} s to go; with the others cordoned it takes them",
    )

"""Names, addresses and deaths that are claimed: what a process says of itself or of another is proven, or waited for."""

import signal
import time

import pytest
from harness.ask import ask
from harness.cluster import Node
from harness.fleet import Process, at, free_address
from harness.patience import eventually_now
from members import Member
from watch import DEAD_AFTER_S, held, metric, node_metric, now

# Longer than two heartbeats, so that the name is free, and far below a lease.
STANDS_STILL_S = 2.5
TEAMS = 12
ACTING = "usher_node_acting_teams"


def place(fleet, count=TEAMS):
    with fleet.among_clients():
        for number in range(count):
            answer = ask(fleet.clients, f"/connect/named-{number}", headers={"Accept": "application/json"})
            assert answer.status == 200, answer


def acting(fleet, nodes, more=()):
    """For how many teams processes act just now; one that does not answer acts for none that could be seen."""
    total = 0
    for look in [*(lambda node=node: node_metric(fleet, node, ACTING) for node in nodes), *more]:
        try:
            total += look()
        except OSError:
            pass
    return int(total)


def refused(fleet, code):
    with fleet.network.members["broker"].inside():
        return metric(fleet.admin, f'usher_nodes_refused_total{{code="{code}"}}')


def test_a_second_process_of_a_name_does_not_start_on_the_same_machine(start_fleet, fault):
    fleet = start_fleet(2, "--no-parent")
    before = fleet.view("/v1/nodes")["nodes"][0]["incarnation"]
    more = ["--listen", at(free_address()), "--admin", at(free_address()), "--broker", f"ws://{at(fleet.node_link)}"]
    for how in ([], ["--no-parent"]):
        twin = Process(fleet.folder, "twin", "node", "--name", "node-1", *more, *how)
        assert twin.ended() == 2, twin.text()
        assert "another process on this machine is node node-1" in twin.text(), twin.text()
    assert fleet.view("/v1/nodes")["nodes"][0]["incarnation"] == before
    # Its end sets the name free at once, and proves itself: nobody waits for a lease.
    place(fleet)
    fleet.processes["node-1"].kill()
    began = now()
    fleet.start_node("node-1", "--no-parent")
    eventually_now("every team is acted for", lambda: acting(fleet, fleet.nodes) == TEAMS)
    after = now() - began
    assert after < DEAD_AFTER_S - 1, f"{after:.2f} s"
    fault("the second ends with a remedy; after a kill effects go on at once", f"exit 2; acted for again after {after:.2f} s")


@pytest.mark.parametrize("on_lapse", ["hold", "fence"])
def test_a_second_process_of_a_name_on_another_machine_acts_for_nothing_before_the_first_has_stopped(
    scatter, fault, on_lapse
):
    fleet = scatter(2, "--no-parent", "--on-lapse", on_lapse)
    place(fleet)
    members = [Member(fleet, f"named-{number}") for number in range(TEAMS)]
    first = fleet.processes["node-1"]
    first.signal(signal.SIGSTOP)
    time.sleep(STANDS_STILL_S)  # The fault itself.
    twin = fleet.start_twin("node-1", "clients", "--on-lapse", on_lapse)
    eventually_now("the twin has the name", lambda: "linked to the broker" in twin.text())
    first.signal(signal.SIGCONT)

    def of_twin():
        with fleet.among_clients():
            return metric(("127.0.0.1", 7510), ACTING)

    began, worst, least = now(), 0, TEAMS
    while now() - began < DEAD_AFTER_S + 2:
        total = acting(fleet, ("node-1", "node-2"), [of_twin])
        worst, least = max(worst, total), min(least, total)
        time.sleep(0.02)
    assert worst <= TEAMS, f"{worst} of {TEAMS} teams were acted for"
    assert acting(fleet, ("node-1", "node-2"), [of_twin]) == TEAMS, "and each is again, in the end"
    # The one that lost its name is told, tells, and gives its clients up.
    assert refused(fleet, "name_taken") > 0
    assert fleet.view("/v1/nodes/node-1")["rival"]["refused"] > 0
    eventually_now("the first has given its clients up", lambda: held(fleet, "node-1") == 0)
    lost = sum(not member.lives() for member in members)
    fault(
        "never two that act; the first is refused and gives its clients up",
        f"at most {worst} and at least {least} of {TEAMS} acted for; {lost} connections closed",
    )


def test_a_container_that_is_restarted_in_place_serves_at_once(start_fleet, fault):
    fleet = start_fleet(2, "--no-parent")
    place(fleet)
    box = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "--")
    fleet.processes["node-1"].kill()
    fleet.start_node("node-1", "--no-parent", before=box)
    eventually_now("it is ready", fleet.is_up)
    eventually_now("every team is acted for", lambda: acting(fleet, fleet.nodes) == TEAMS)
    fleet.processes["node-1"].kill()
    began = now()
    fleet.start_node("node-1", "--no-parent", before=box)
    place(fleet)
    served = now() - began
    eventually_now("every team is acted for", lambda: acting(fleet, fleet.nodes) == TEAMS)
    acted = now() - began
    assert served < 2, f"{served:.2f} s"
    assert acted < DEAD_AFTER_S + 2, f"{acted:.2f} s"
    fault(
        "answered at once, acted for after the lease at the latest",
        f"{TEAMS} teams answered after {served:.2f} s, acted for after {acted:.2f} s",
    )


def behind_a_proxy(fleet, *arguments):
    """Starts node-1 anew where it listens on its own loopback alone, as behind a TLS proxy of its machine."""
    fleet.processes["node-1"].kill()
    fleet.nodes["node-1"] = Node("node-1", ("127.0.0.1", 7410), ("127.0.0.1", 7510))
    fleet.start_node("node-1", "--no-parent", *arguments)
    eventually_now("it is ready", fleet.is_up)
    for number in range(TEAMS):
        assert fleet.rest("PUT", f"/v1/teams/named-{number}", {}).status in (200, 201)


def test_the_brokers_own_loopback_says_nothing_of_a_node(scatter, fault):
    fleet = scatter(2, "--no-parent")
    behind_a_proxy(fleet)
    assert "leads back to whoever dials it" in fleet.processes["node-1"].text()
    eventually_now("the broker has asked", lambda: fleet.view("/v1/nodes/node-1")["probe_state"] == "silent")
    before = {team: view["node"] for team, view in fleet.teams().items()}
    assert "node-1" in before.values()
    # The link is reset, and nothing gets through for a while that a lease bears.
    fleet.network.refuse("broker", "node-1")
    eventually_now("the link is closed", lambda: fleet.states()["node-1"] == "silent")
    time.sleep(1.5)  # The fault itself.
    fleet.network.heal()
    eventually_now("the node is back", lambda: fleet.states()["node-1"] == "ready")
    assert {team: view["node"] for team, view in fleet.teams().items()} == before
    assert fleet.view("/v1/operations")["operations"] == []
    # With an address that leads to it, the same refusal is a hint again.
    probe = f"{fleet.network.host('node-1')}:7411"
    behind_a_proxy(fleet, "--probe-listen", probe)
    eventually_now("the broker has asked", lambda: fleet.view("/v1/nodes/node-1")["probe_state"] == "proven")
    began = now()
    fleet.processes["node-1"].kill()
    del fleet.processes["node-1"]
    eventually_now("its teams have new owners", lambda: "node-1" not in {v["node"] for v in fleet.teams().values()})
    moved = now() - began
    assert moved < 3, f"{moved:.2f} s"
    fault("nothing moves; with --probe-listen a kill is noticed at once", f"0 teams moved; new owners {moved:.2f} s after a kill")


def test_a_report_of_an_exit_that_shows_no_nonce_moves_nothing(start_fleet, fault):
    fleet = start_fleet(2)
    place(fleet)
    before = {team: view["epoch"] for team, view in fleet.teams().items()}
    # What any client can see: the name, and the incarnation in its ticket.
    node = fleet.view("/v1/nodes/node-1")
    told = {"node": "node-1", "incarnation": node["incarnation"]}
    for claim in (told, {**told, "nonce": "00" * 16}):
        answer = ask(fleet.node_link, "/v1/node-exited", method="POST", body=claim)
        assert answer.status == 403 and answer.json["code"] == "unproven", answer
    assert metric(fleet.admin, "usher_node_exits_disbelieved_total") == 2
    # The true one still is believed: the parent's.
    assert {team: view["epoch"] for team, view in fleet.teams().items()} == before
    began = now()
    fleet.kill_worker("node-1")
    eventually_now(
        "its teams have new owners",
        lambda: any(view["epoch"] != before[team] for team, view in fleet.teams().items()),
    )
    moved = now() - began
    assert metric(fleet.admin, "usher_node_exits_disbelieved_total") == 2
    fault("refused, counted, nothing moves", f"403 twice, 0 teams moved; a true one after {moved:.2f} s")

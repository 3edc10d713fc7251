"""A broker that is away for long, and a pool that comes back to it all at once."""

import contextlib
import http.client
import signal
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest
from fleet.crowd import owners, wait_for_connections
from harness.ask import ask
from harness.patience import BACK_WITHIN_S, eventually_now, throughout
from watch import DEAD_AFTER_S, held, node_metric, now
from websockets.protocol import State
from websockets.sync.client import connect

# A ticket lives for 30 s and is taken for 5 s more.
TICKET_S = 35.0


class Member:
    """A client that knows the URL of its node and dials just that again, for there is no broker to ask."""

    def __init__(self, fleet, team):
        self.team = team
        way = ask(fleet.clients, f"/connect/{team}", headers={"Accept": "application/json"}).json
        self.node, self._url = way["node"], way["url"]
        self._open = contextlib.ExitStack()
        self.dial()

    def dial(self):
        self.close()
        self._socket = self._open.enter_context(connect(self._url, open_timeout=BACK_WITHIN_S, ping_interval=None))

    def cut(self):
        """Ends it without a Close, as a network does."""
        self._socket.socket.shutdown(socket.SHUT_RDWR)

    def is_open(self):
        return self._socket.state is State.OPEN

    def close(self):
        self._open.close()


def settled(fleet):
    return fleet.is_up() and fleet.view("/v1/status")["state"] == "ready"


@pytest.mark.parametrize(
    ("away_s", "connections", "teams"),
    [(20.0, 500, 250), pytest.param(240.0, 5_000, 2_500, marks=[pytest.mark.long, pytest.mark.timeout(600)])],
    ids=["20 s", "4 min"],
)
def test_a_broker_that_is_away_costs_no_connection_and_who_is_cut_comes_back_to_its_node(
    fleet, load, fault, away_s, connections, teams
):
    clients = load(fleet, connections, teams, "crowd-", "--message-rate", 0.1)
    wait_for_connections(fleet, connections)
    members = [Member(fleet, f"member-{number}") for number in range(50)]
    before = owners(fleet)
    began = now()
    fleet.processes["broker"].signal(signal.SIGKILL)
    assert fleet.processes["broker"].ended() == -signal.SIGKILL

    def lapsed():
        return all(node_metric(fleet, node, "usher_lease_remaining_seconds") == 0 for node in fleet.nodes)

    eventually_now("every node has lost the broker", lapsed)
    everybody = connections + len(members)

    def all_here():
        return sum(held(fleet, node) for node in fleet.nodes) == everybody

    throughout(max(0.0, began + away_s / 2 - now()), "everybody is connected", all_here)
    for member in members:
        member.cut()
    eventually_now("they are gone", lambda: sum(held(fleet, node) for node in fleet.nodes) == connections)
    for member in members:
        member.dial()
    eventually_now("everybody is connected again", all_here)
    age_s = now() - began
    throughout(max(0.0, began + away_s - now()), "everybody is connected", all_here)
    back = now()
    fleet.start_broker()
    eventually_now("the broker has settled", lambda: settled(fleet), within=60)
    settled_s = now() - back
    after = owners(fleet)
    assert after == before
    assert all(member.is_open() and after[member.team][0] == member.node for member in members)
    report = clients.report()
    assert report.is_undisturbed(), report
    for member in members:
        member.close()
    ticket = "expired" if age_s > TICKET_S else "used"
    fault(
        "no connection drops; who is cut comes back to its node with the ticket that it has; all are adopted",
        f"away {away_s:.0f} s: 0 of {connections} dropped; {len(members)} were cut and came back with {ticket} tickets"
        f" of {age_s:.0f} s; {len(after)} teams adopted {settled_s:.2f} s after the start",
    )


def test_twenty_nodes_that_register_at_once_are_reconciled_well_within_the_grace(start_fleet, fault):
    nodes, teams = 20, 10_000
    fleet = start_fleet(nodes, "--no-parent")
    put_all(fleet, [f"team-{number:05}" for number in range(teams)])
    before = owners(fleet)
    assert len(before) == teams
    counts = [sum(node == name for node, _ in before.values()) for name in fleet.nodes]
    fleet.processes["broker"].signal(signal.SIGKILL)
    assert fleet.processes["broker"].ended() == -signal.SIGKILL
    began = now()
    fleet.start_broker()
    eventually_now("all are reconciled", lambda: settled(fleet))
    took_s = now() - began
    text = fleet.processes["broker"].text()
    assert f"grace is over reported={nodes} known={nodes}" in text, text[-2_000:]
    assert owners(fleet) == before
    assert "is dead" not in text
    assert took_s < DEAD_AFTER_S / 2, f"{took_s:.2f} s"
    fault(
        f"all reconciled in less than half of the grace of {DEAD_AFTER_S} s",
        f"{nodes} nodes with {min(counts)} to {max(counts)} teams each: all ready {took_s:.2f} s after the start of the"
        f" broker",
    )


def put_all(fleet, teams):
    """Makes teams, many requests at a time: the broker writes them to its disk in batches."""

    def put(part):
        connection = http.client.HTTPConnection(*fleet.admin, timeout=60)
        for team in part:
            connection.request("PUT", f"/v1/teams/{team}", "{}", {"Content-Type": "application/json"})
            answer = connection.getresponse()
            body = answer.read()
            assert answer.status == 201, (team, body)
        connection.close()

    lanes = 64
    with ThreadPoolExecutor(lanes) as pool:
        list(pool.map(put, (teams[lane::lanes] for lane in range(lanes))))

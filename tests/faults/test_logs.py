"""Whoever reads the logs stands still, goes away, or has a full disk. Nobody else may notice."""

import fcntl
import os
import re
import signal

import pytest
from harness.ask import ask, ticket_of
from harness.patience import eventually_now, throughout
from members import Member
from watch import metric, node_metric

DROPPED = "usher_log_lines_dropped_total"
LEASE_LEFT = "usher_lease_remaining_seconds"
PAGE = 4_096


class Reader:
    """A pipe of one page for a log, and its reader."""

    def __init__(self):
        self._reads, self.writes = os.pipe()
        fcntl.fcntl(self.writes, fcntl.F_SETPIPE_SZ, PAGE)
        os.set_blocking(self._reads, False)

    def fill(self):
        """Nobody finds room in it, as if its reader stood still for long."""
        os.write(self.writes, b"-" * (PAGE - 1) + b"\n")

    def read(self):
        try:
            return os.read(self._reads, 1 << 20).decode(errors="replace")
        except BlockingIOError:
            return ""

    def leave(self):
        os.close(self._reads)
        self._reads = None

    def close(self):
        for end in filter(None, (self._reads, self.writes)):
            os.close(end)


@pytest.fixture
def reader():
    reader = Reader()
    yield reader
    reader.close()


def restart_all(fleet, **how):
    """The same pool with another output for each process."""
    for process in fleet.processes.values():
        process.kill()
    fleet.start_broker(**how)
    for node in fleet.nodes:
        fleet.start_node(node, **how)
    eventually_now("every node is ready", fleet.is_up)


def works(fleet, serial):
    """Whether operators are answered, a new team gets a node, and each node has its lease."""
    team = f"new-{serial}"
    placed = ask(fleet.clients, f"/connect/{team}", headers={"Accept": "application/json"}).status == 200
    leases = all(node_metric(fleet, node, LEASE_LEFT) > 0 for node in fleet.nodes)
    return placed and leases and fleet.rest("GET", "/v1/status").status == 200


def make_noise(fleet, times):
    """Lines in every log: nodes that come and go, and links that are refused."""
    for serial in range(times):
        fleet.processes["broker"].signal(signal.SIGHUP)
        for node in fleet.nodes:
            os.kill(fleet.worker(node), signal.SIGHUP)
        ask(fleet.node_link, "/v1/node-link", headers={"Origin": f"http://x{serial}"})


def test_a_log_reader_that_stands_still_holds_up_nothing(start_fleet, reader, fault):
    fleet = start_fleet(2)
    reader.fill()
    restart_all(fleet, output=reader.writes)
    member = Member(fleet, "T1")
    make_noise(fleet, 30)
    throughout(8.0, "broker and nodes work", lambda: works(fleet, 1))
    assert member.lives()
    dropped = metric(fleet.admin, DROPPED)
    # As soon as somebody reads again, everything comes that was kept.
    seen = []
    eventually_now("the lines come", lambda: seen.append(reader.read()) or "broker started" in "".join(seen))
    fault("the broker decides and leases run on", f"8 s behind a full pipe: {dropped:.0f} lines lost, all leases ran on")


def test_a_log_reader_that_is_gone_ends_nothing(start_fleet, reader, fault):
    fleet = start_fleet(2)
    restart_all(fleet, output=reader.writes)
    member = Member(fleet, "T1")
    owner = fleet.owner("T1")
    other = next(node for node in fleet.nodes if node != owner)
    workers = {node: fleet.worker(node) for node in fleet.nodes}
    reader.leave()
    make_noise(fleet, 10)
    throughout(3.0, "broker and nodes work", lambda: works(fleet, 1))
    # The small parent has words of its own to say, and must live to start its child again.
    fleet.kill_worker(other)
    eventually_now("the parent started another", lambda: fleet.is_up() and fleet.worker(other) != workers[other])
    eventually_now("lost lines are counted", lambda: metric(fleet.admin, DROPPED) > 0)
    assert fleet.worker(owner) == workers[owner] and fleet.processes["broker"].runs()
    assert member.lives()
    fault("the processes go on", f"{metric(fleet.admin, DROPPED):.0f} lines of the broker lost and counted, nobody ended")


def test_a_full_disk_behind_the_log_ends_nothing(start_fleet, fault):
    fleet = start_fleet(1)
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        restart_all(fleet, output=full)
        make_noise(fleet, 5)
        throughout(2.0, "broker and node work", lambda: works(fleet, 1))
        lost = metric(fleet.admin, DROPPED), node_metric(fleet, "node-1", DROPPED)
        assert all(lost), lost
    finally:
        os.close(full)
    fault("the processes go on", f"lines lost and counted: broker {lost[0]:.0f}, node {lost[1]:.0f}")


def test_no_log_holds_a_secret_at_any_level(start_fleet):
    token = "node-token-of-this-test-0123456789"
    variables = {"USHER_LOG": "trace", "USHER_NODE_TOKEN": token}
    fleet = start_fleet(0)
    restart_all(fleet, variables=variables)
    for name in ("node-1", "node-2"):
        fleet.add_node(name, variables=variables)
    eventually_now("the nodes are ready", fleet.is_up)
    member = Member(fleet, "T1")
    secrets = {"the node token": token, "a ticket": ticket_of(member.url), "any ticket": "eyJhbGciOi"}
    # A refused ticket, a foreign link and a wrong token leave words of their own.
    ask(fleet.nodes["node-1"].address, "/teams/T1?ticket=" + secrets["a ticket"] + "x")
    ask(fleet.node_link, "/v1/node-link", headers={"Authorization": f"Bearer {token}x"})
    eventually_now("the node is empty", lambda operation=fleet.drain(fleet.owner("T1")): fleet.finished(operation))
    assert "DEBUG" in fleet.processes["broker"].text(), "nothing was logged below info"
    for process in fleet.processes.values():
        text = process.text()
        for what, secret in secrets.items():
            assert secret not in text, f"{what} in the log of {process.name}"
        assert not re.search(r"[A-Za-z0-9_-]{43}", text), f"something like a key in the log of {process.name}"

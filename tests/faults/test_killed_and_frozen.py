"""Processes that are killed, and processes that stand still."""

import os
import signal
from contextlib import contextmanager

import pytest
from fleet.crowd import owners, wait_for_connections
from harness.cluster import children
from harness.patience import eventually_now, throughout
from watch import DEAD_AFTER_S, LEASE_S, OwnerWatch, held, now, wait_until_held
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

TEAMS = 60
CONNECTIONS = 120
# Close codes that send a client back to the broker: moved, elsewhere.
COME_BACK = (4312, 4309)
# What the broker promises for a death that was seen.
SEEN_WITHIN_S = 1.0


@contextmanager
def frozen(process_id):
    """SIGSTOP meanwhile, and SIGCONT in any case."""
    os.kill(process_id, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process_id, signal.SIGCONT)


def crowd(fleet, load, prefix="crowd-"):
    """Clients on all nodes, and who owns their teams."""
    clients = load(fleet, CONNECTIONS, TEAMS, prefix, "--usher-v1", "50%")
    wait_for_connections(fleet, CONNECTIONS)
    before = owners(fleet)
    assert {node for node, _ in before.values()} == set(fleet.nodes), before
    return clients, before


def settled(fleet):
    return fleet.is_up() and fleet.view("/v1/status")["state"] == "ready"


def kill_worker(fleet):
    fleet.kill_worker("node-1")


def kill_worker_and_parent(fleet):
    worker, parent = fleet.worker("node-1"), fleet.parent("node-1")
    # Stopped first, so that the one that is left for a moment cannot report the death of the other.
    os.kill(parent, signal.SIGSTOP)
    os.kill(worker, signal.SIGKILL)
    os.kill(parent, signal.SIGKILL)


def kill_worker_of_a_frozen_parent(fleet):
    fleet.kill_for_good("node-1")


@pytest.mark.parametrize("kill", [kill_worker, kill_worker_and_parent, kill_worker_of_a_frozen_parent])
def test_the_teams_of_a_killed_node_have_new_owners_within_a_second(fleet, load, fault, kill):
    clients, before = crowd(fleet, load)
    hit = {team for team, (node, _) in before.items() if node == "node-1"}
    with OwnerWatch(fleet, "node-1") as watch:
        began = now()
        kill(fleet)
        took_s = watch.moved() - began
    after = owners(fleet)
    assert {team for team in before if after[team] != before[team]} == hit
    assert all(after[team][1] > before[team][1] for team in hit)
    assert took_s < SEEN_WITHIN_S, f"{took_s:.3f} s"
    wait_until_held(fleet, CONNECTIONS, ["node-2", "node-3"])
    report = clients.report()
    assert report.is_sound(), report
    fault(
        f"new owners in < {SEEN_WITHIN_S:.0f} s; every client back; no message lost",
        f"{len(hit)} teams after {took_s * 1000:.0f} ms; {report.gaps()}",
    )


def test_a_worker_dies_with_its_parent_and_its_teams_go_to_others(fleet, load, fault):
    clients, before = crowd(fleet, load)
    worker = fleet.worker("node-1")
    hit = {team for team, (node, _) in before.items() if node == "node-1"}
    with OwnerWatch(fleet, "node-1") as watch:
        began = now()
        os.kill(fleet.parent("node-1"), signal.SIGKILL)
        took_s = watch.moved() - began
    eventually_now("the worker is gone", lambda: not os.path.exists(f"/proc/{worker}"))
    assert took_s < SEEN_WITHIN_S, f"{took_s:.3f} s"
    wait_until_held(fleet, CONNECTIONS, ["node-2", "node-3"])
    report = clients.report()
    assert report.is_sound(), report
    fault(
        f"the worker goes too; new owners in < {SEEN_WITHIN_S:.0f} s",
        f"{len(hit)} teams after {took_s * 1000:.0f} ms; {report.gaps()}",
    )


def test_a_parent_that_stands_still_is_missed_by_nobody(fleet, load, fault):
    clients, before = crowd(fleet, load)
    freeze_s = LEASE_S + 2
    with frozen(fleet.parent("node-1")):
        throughout(freeze_s, "every node is ready", fleet.all_ready)
    assert owners(fleet) == before
    report = clients.report()
    assert report.is_undisturbed(), report
    fault("no owner changes, no connection closes", f"{freeze_s:.0f} s frozen: no change, no interruption")


def test_a_node_that_stands_still_for_less_than_its_lease_keeps_its_teams_and_its_connections(fleet, load, fault):
    clients, before = crowd(fleet, load)
    freeze_s = 4.0
    silent = []
    with frozen(fleet.worker("node-1")):

        def unchanged():
            silent.append(fleet.states()["node-1"] == "silent")
            return owners(fleet) == before

        throughout(freeze_s, "every team has its owner", unchanged)
    assert any(silent), "the broker never noticed"
    eventually_now("it is heard again", fleet.all_ready)
    assert owners(fleet) == before
    report = clients.report()
    assert report.is_undisturbed(), report
    fault("no owner changes, no connection closes", f"{freeze_s:.0f} s frozen: seen as silent, no change, no interruption")


@pytest.mark.parametrize("freeze_s", [12.0, pytest.param(30.0, marks=pytest.mark.long)])
def test_a_node_that_wakes_after_its_lease_serves_nothing_stale(fleet, load, fault, freeze_s):
    clients, before = crowd(fleet, load)
    hit = [team for team, (node, _) in before.items() if node == "node-1"]
    # One member sits on the node all the time; the other comes while it is frozen, and finds the new owner.
    team = hit[0]
    with connect(fleet.door(team)) as stale:
        assert stale.remote_address[1] == fleet.nodes["node-1"].address[1]
        with frozen(fleet.worker("node-1")), OwnerWatch(fleet, "node-1") as watch:
            began = now()
            took_s = watch.moved() - began
            assert took_s >= LEASE_S - 1.2, f"{took_s:.3f} s: it was heard less than 1.2 s before it was frozen"
            moved = owners(fleet)
            with connect(fleet.door(team)) as fresh:
                assert fresh.remote_address[1] != fleet.nodes["node-1"].address[1]
                throughout(max(0.0, began + freeze_s - now()), "no team goes anywhere else", lambda: owners(fleet) == moved)
        woke = now()
        eventually_now("it holds no connection of what it lost", lambda: held(fleet, "node-1") == 0)
        emptied_s = now() - woke
        with pytest.raises(ConnectionClosed):
            # What its team mates said comes first.
            while True:
                stale.recv(timeout=30)
        code = stale.close_code
        assert code in COME_BACK, code
    eventually_now("every node is ready", fleet.all_ready)
    assert owners(fleet) == moved, "an owner changed when it woke"
    assert set(hit) <= {name for name in moved if moved[name][0] != "node-1" and moved[name][1] > before[name][1]}
    wait_until_held(fleet, CONNECTIONS, ["node-2", "node-3"])
    # Both ends of a team are at one node: they hear each other.
    with connect(fleet.door(team)) as one, connect(fleet.door(team)) as mate:
        one.send("here")
        while mate.recv(timeout=30) != "here":
            pass
    report = clients.report()
    assert report["connected"] == CONNECTIONS and report["gave_up"] == 0, report
    assert "node-1" not in report["nodes"], report
    fault(
        f"new owners after {DEAD_AFTER_S} s of silence; on waking it closes what it lost; one node serves a team",
        f"frozen {freeze_s:.0f} s: {len(hit)} teams moved after {took_s:.2f} s; empty {emptied_s:.2f} s after waking;"
        f" its members got Close {code}",
    )


def test_a_broker_that_stood_still_trusts_no_silence_that_it_slept_through(fleet, load, fault):
    clients, before = crowd(fleet, load)
    freeze_s = 10.0
    broker = fleet.processes["broker"]
    with frozen(broker.pid):
        throughout(freeze_s, "every node runs", lambda: all(fleet.processes[node].runs() for node in fleet.nodes))
    eventually_now("every node is ready and the grace is over", lambda: settled(fleet))
    assert owners(fleet) == before
    assert "grace is over" in broker.text(), broker.text()
    assert "is dead" not in broker.text(), broker.text()
    report = clients.report()
    assert report.is_undisturbed(), report
    fault(
        "it enters its grace; no owner changes, no connection closes",
        f"{freeze_s:.0f} s frozen: grace, {TEAMS} teams unchanged, {CONNECTIONS} connections undisturbed",
    )


def test_a_killed_broker_that_returns_changes_no_owner_and_drops_no_connection(fleet, load, fault):
    clients, before = crowd(fleet, load)
    term = fleet.view("/v1/status")["term"]
    broker = fleet.processes["broker"]
    broker.signal(signal.SIGKILL)
    assert broker.ended() == -signal.SIGKILL
    away_s = 3.0
    throughout(away_s, "every node runs", lambda: all(children(fleet.parent(node)) for node in fleet.nodes))
    began = now()
    fleet.start_broker()
    eventually_now("it has settled", lambda: settled(fleet))
    took_s = now() - began
    assert fleet.view("/v1/status")["term"] > term
    assert owners(fleet) == before
    report = clients.report()
    assert report.is_undisturbed(), report
    fault(
        "a new term; no owner changes, no connection closes",
        f"away {away_s:.0f} s: all nodes back and grace over {took_s:.2f} s after its start, 0 of {CONNECTIONS} connections lost",
    )

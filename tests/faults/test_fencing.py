"""Pools where two owners are worse than none: a node without a lease serves nobody."""

from pathlib import Path

from fleet.crowd import owners
from harness.ask import address_of, ask, target_of, upgrade
from harness.patience import eventually_now
from harness.threads import frozen_but
from members import Member
from watch import DEAD_AFTER_S, LAPSES_AFTER_S, LeaseWatch, OwnerWatch, held, now

# What stopping may take, and then the broker may count the node as dead.
FENCING_S = 0.5
HEARTBEAT_S = 1.1
FENCES = ("--on-lapse", "fence")


def members_of(fleet, node, count):
    """So many connections to a node, each of a team of its own."""
    found, number = [], 0
    while len(found) < count:
        member = Member(fleet, f"fenced-{number}")
        number += 1
        if fleet.owner(member.team) == node:
            found.append(member)
        else:
            member.close()
    return found


def test_a_fencing_node_that_is_cut_off_closes_everything_before_its_teams_have_new_owners(scatter, fault):
    fleet = scatter(3, *FENCES)
    members = members_of(fleet, "node-1", 8)
    with LeaseWatch(fleet, "node-1") as lease, OwnerWatch(fleet, "node-1") as owner:
        began = now()
        fleet.network.cut_both_ways("node-1", "broker")
        _, over = lease.over()
        eventually_now("every connection is closed", lambda: held(fleet, "node-1") == 0)
        closed = now()
        moved = owner.moved()
    assert not any(member.lives() for member in members)
    assert closed <= over + FENCING_S, f"{closed - over:.3f} s after the lease"
    assert moved > closed, f"{closed - moved:.3f} s too early"
    with fleet.among_clients():
        url = members[0].url
        again = ask(address_of(url), target_of(url), headers=upgrade())
    assert again.status == 302, "nobody comes in without a lease"
    fleet.network.heal()
    eventually_now("the node is back", lambda: fleet.is_up() and fleet.view("/v1/status")["state"] == "ready")
    fault(
        f"closed within {FENCING_S} s of the end of the lease, and before any new owner",
        f"lease over {over - began:.2f} s after the cut, {len(members)} connections closed after {closed - began:.2f} s,"
        f" new owners after {moved - began:.2f} s",
    )


def test_a_fencing_node_whose_runtime_stands_still_is_ended_by_its_watchdog_before_its_teams_have_new_owners(
    start_fleet, fault
):
    fleet = start_fleet(3, *FENCES)
    members = members_of(fleet, "node-1", 8)
    before = owners(fleet)
    hit = {team for team, (node, _) in before.items() if node == "node-1"}
    worker = fleet.worker("node-1")
    with OwnerWatch(fleet, "node-1") as owner:
        began = now()
        with frozen_but(worker, "watchdog", "last-words"):
            # The process is gone for the kernel, and its sockets with it; its parent cannot say so while
            # somebody else holds its threads.
            eventually_now("the process ended", lambda: is_over(worker))
            ended = now()
        moved = owner.moved()
    assert ended - began <= LAPSES_AFTER_S + FENCING_S + 0.5, f"{ended - began:.3f} s"
    assert ended - began >= LAPSES_AFTER_S + FENCING_S - HEARTBEAT_S, f"{ended - began:.3f} s"
    assert moved >= ended, f"{ended - moved:.3f} s too early"
    assert moved - began <= DEAD_AFTER_S + 1, f"{moved - began:.3f} s"
    assert not any(member.lives() for member in members)
    assert "aborting" in fleet.processes["node-1"].text()
    eventually_now("its parent has started it again", lambda: fleet.is_up() and fleet.worker("node-1") != worker)
    after = owners(fleet)
    assert {team for team in before if after[team] != before[team]} == hit
    fault(
        f"aborted {LAPSES_AFTER_S + FENCING_S:.1f} s after its last answered heartbeat, then new owners",
        f"process ended {ended - began:.2f} s after it froze, {len(hit)} teams had new owners after {moved - began:.2f} s",
    )


def is_over(process_id):
    """Whether a process has ended, taken by its parent or not."""
    try:
        stat = Path(f"/proc/{process_id}/stat").read_text()
    except FileNotFoundError:
        return True
    return stat.rpartition(")")[2].split()[0] in ("Z", "X")

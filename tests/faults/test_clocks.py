"""Clocks that run wrong, on a node and on the broker."""

import pytest
from fleet.crowd import owners, wait_for_connections
from harness.ask import address_of, ask, target_of, upgrade
from harness.clock import bend
from harness.patience import eventually_now, throughout
from watch import LAPSES_AFTER_S, LeaseWatch, OwnerWatch, metric, node_metric, now, wait_until_held

TEAMS = 30
CONNECTIONS = 60
HOUR_S = 3_600
# A lease that went by the wrong clock would be over at once; some heartbeats more.
UNDISTURBED_S = 4.0


def crowd(fleet, load, prefix="crowd-"):
    clients = load(fleet, CONNECTIONS, TEAMS, prefix, "--usher-v1", "50%")
    wait_for_connections(fleet, CONNECTIONS)
    return clients, owners(fleet)


def lease_left(fleet):
    return node_metric(fleet, "node-1", "usher_lease_remaining_seconds")


@pytest.mark.parametrize(
    "rate",
    [(3, 2), *(pytest.param(rate, marks=pytest.mark.long) for rate in ((99, 100), (101, 100), (1, 2)))],
    ids=lambda rate: f"x{rate[0] / rate[1]:g}",
)
def test_a_node_whose_clock_runs_at_another_rate_is_cut_off(scatter, load, fault, rate):
    fleet = scatter(3)
    clients, before = crowd(fleet, load)
    speed = rate[0] / rate[1]
    bend(fleet.worker("node-1"), rate=rate)
    # While nothing else is wrong: it must be heard, by its own clock and by the broker's.
    left, silent = [], []

    def unchanged():
        left.append(lease_left(fleet))
        silent.append(fleet.states()["node-1"] != "ready")
        return owners(fleet) == before and left[-1] > 0

    throughout(UNDISTURBED_S, "nobody is given another owner, and its lease runs", unchanged)
    with LeaseWatch(fleet, "node-1") as lease, OwnerWatch(fleet, "node-1") as owner:
        began = now()
        fleet.network.cut_both_ways("node-1", "broker")
        moved = owner.moved()
        lease.over()
        # What its lease had left was said in its own seconds: what counts is when it was seen to be over.
        alive, over = lease.last_alive, lease.first_over
    fleet.network.heal()
    eventually_now("the node is back", fleet.all_ready)
    wait_until_held(fleet, CONNECTIONS, ["node-2", "node-3"])
    after = owners(fleet)
    assert all(node != "node-1" for node, _ in after.values())
    report = clients.report()
    assert report["connected"] == CONNECTIONS and report["gave_up"] == 0, report
    within = abs(rate[0] - rate[1]) * 100 <= rate[1]
    if speed >= 1 or within:
        assert moved > alive, f"a new owner {alive - moved:.3f} s before the lease was over"
    # A heartbeat, which is longer by a slow clock, and what a busy machine takes.
    assert (LAPSES_AFTER_S - 1.2) / speed - 0.3 <= over - began <= LAPSES_AFTER_S / speed + 0.5, over - began
    if within:
        expected = "within the bound: nothing happens; cut off, it fences before its teams have new owners"
    elif speed > 1:
        expected = "fences early; never two owners"
    else:
        expected = "beyond the bound of 1 %: the lease outlasts the broker's patience, only epochs guard effects"
    fault(
        expected,
        f"{UNDISTURBED_S:.0f} s without a change (lease never below {min(left):.2f} s of its own, not ready in"
        f" {sum(silent)} of {len(silent)} looks); cut off: lease over after {over - began:.2f} s, new owners after"
        f" {moved - began:.2f} s: {moved - over:+.2f} s",
    )


def test_a_node_whose_machine_slept_longer_than_its_lease_asks_before_it_goes_on(fleet, load, fault):
    clients, before = crowd(fleet, load)
    links = fleet.processes["node-1"].text().count("linked to the broker")
    slept_s = 20
    with LeaseWatch(fleet, "node-1") as lease:
        eventually_now("it is watched", lambda: lease.last_alive)
        bend(fleet.worker("node-1"), slept_s=slept_s)
        lease.over()
        woke = lease.first_over
        eventually_now("its lease was renewed", lambda: lease_left(fleet) > LAPSES_AFTER_S - 1.5)
        renewed_s = now() - woke
    throughout(UNDISTURBED_S, "every team has its owner", lambda: owners(fleet) == before)
    again = fleet.processes["node-1"].text().count("linked to the broker") - links
    assert again >= 1, "what it held before the sleep was never confirmed again"
    report = clients.report()
    assert report.is_undisturbed(), report
    fault(
        "it has lapsed on waking, says hello again, and goes on once its teams are confirmed; no connection closes",
        f"CLOCK_BOOTTIME {slept_s} s ahead at once: lapsed, {again} new link, lease again {renewed_s:.2f} s later; no owner"
        f" changed, no connection closed",
    )


@pytest.mark.long
def test_nodes_whose_clocks_run_wrong_are_told_from_the_others_and_get_no_new_teams(fleet, load, fault):
    clients, before = crowd(fleet, load)
    began = now()
    wrong = {"node-1": ((3, 2), "fast"), "node-2": ((1, 2), "slow")}
    for node, (rate, _) in wrong.items():
        bend(fleet.worker(node), rate=rate)
    noticed = {}
    for _, pace in wrong.values():
        counter = f'usher_node_clock_pace_changes_total{{pace="{pace}"}}'
        eventually_now(f"the broker sees the {pace} one", lambda: metric(fleet.admin, counter) == 1, within=150)
        noticed[pace] = now() - began
    gates = {node["node"]: node["gates"] for node in fleet.view("/v1/nodes")["nodes"]}
    assert all("clock" in gates[node] for node in wrong) and "clock" not in gates["node-3"], gates
    for number in range(9):
        assert fleet.rest("PUT", f"/v1/teams/new-{number}", {}).json["node"] == "node-3"
    assert fleet.processes["broker"].text().count("runs at another pace than this broker's") == len(wrong)
    after = owners(fleet)
    assert {team: after[team] for team in before} == before
    report = clients.report()
    assert report.is_undisturbed(), report
    fault(
        "an alarm for each within two minutes, no new teams for them; no owner changes",
        ", ".join(f"the {pace} one seen after {seconds:.0f} s" for pace, seconds in noticed.items())
        + "; both gated by `clock`, 9 new teams went to the third; no connection closed",
    )


@pytest.mark.parametrize(("hours", "reason"), [(1, "expired"), (-1, "not_genuine")], ids=["ahead", "behind"])
def test_the_wall_clock_of_a_node_is_an_hour_off(fleet, load, fault, hours, reason):
    clients, before = crowd(fleet, load)
    bend(fleet.worker("node-1"), wall_s=hours * HOUR_S)
    left = []

    def unchanged():
        left.append(lease_left(fleet))
        return owners(fleet) == before and left[-1] > 0

    throughout(UNDISTURBED_S, "its lease runs and every team has its owner", unchanged)
    (gates,) = (node["gates"] for node in fleet.view("/v1/nodes")["nodes"] if node["node"] == "node-1")
    assert "clock" in gates, gates
    for number in range(6):
        assert fleet.rest("PUT", f"/v1/teams/new-{number}", {}).json["node"] != "node-1"
    # A new client of one of its teams follows where it is sent: its tickets do not fit there.
    team = next(team for team, (node, _) in before.items() if node == "node-1")
    trail = follow(fleet.door(team))
    refused = node_metric(fleet, "node-1", f'usher_tickets_refused_total{{reason="{reason}"}}')
    assert refused > 0
    assert trail[-1].status in (101, 503), trail
    ending = "is let in" if trail[-1].status == 101 else f"is told 503 {trail[-1].code}"
    report = clients.report()
    assert report.is_undisturbed(), report
    fault(
        "leases unaffected, connections stay; no new teams for it; a newcomer is not led in circles",
        f"{hours:+d} h: lease never below {min(left):.2f} s; gated by `clock`; a newcomer to one of its teams was sent on"
        f" {len(trail) - 1} times ({refused:.0f} tickets refused as {reason}) and {ending}; no connection closed",
    )


def follow(url):
    """What each station answers to a client that asks for a WebSocket and goes where it is sent."""
    trail = []
    while len(trail) < 20:
        trail.append(ask(address_of(url), target_of(url), headers=upgrade()))
        if trail[-1].status != 302:
            return trail
        url = trail[-1].location
    raise AssertionError(f"sent on and on: {trail}")


@pytest.mark.parametrize("hours", [1, -1], ids=["ahead", "behind"])
def test_the_wall_clock_of_the_broker_is_an_hour_off(fleet, load, fault, hours):
    clients, before = crowd(fleet, load)
    bend(fleet.processes["broker"].pid, wall_s=hours * HOUR_S)
    left = []

    def unchanged():
        left.append(lease_left(fleet))
        return owners(fleet) == before and left[-1] > 0

    throughout(UNDISTURBED_S, "leases run and every team has its owner", unchanged)
    gates = [node["gates"] for node in fleet.view("/v1/nodes")["nodes"]]
    assert all("clock" in each for each in gates), gates
    refused = fleet.rest("PUT", "/v1/teams/new", {})
    assert (refused.status, refused.code) == (503, "no_node"), refused
    report = clients.report()
    assert report.is_undisturbed(), report
    fault(
        "leases unaffected, no owner changes, connections stay; new teams are refused in clear words",
        f"{hours:+d} h: lease never below {min(left):.2f} s; a new team: 503 {refused.code} ({refused.json['detail']});"
        f" no connection closed",
    )

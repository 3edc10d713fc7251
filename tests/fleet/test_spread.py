"""Where new teams go: evenly to idle nodes, and elsewhere than to a busy one."""

import os
import subprocess
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from crowd import wait_for_connections
from flood import Flood
from harness.cluster import environment, executable
from harness.fleet import Fleet, at
from harness.patience import eventually_now

TEAMS = 300
# Of a node's cores, in its moving average.
CALM = 0.02
BUSY = 0.6
# Several half-lives of the moving average, which is 15 s; and a machine may be building.
CHANGED_WITHIN_S = 180.0


def cpu_share(pool):
    """The moving average of each node's CPU, as a part of what the node may use."""
    return {node["node"]: node["cpu_average"] / node["cores"] for node in pool.view("/v1/nodes")["nodes"]}


def share_a_fate(pool):
    """Whether all nodes say that their machine is under pressure, or none does: one that does not say so yet would
    be given every team."""
    return len({"pressure" in node["gates"] for node in pool.view("/v1/nodes")["nodes"]}) == 1


def wait_until_calm(pool):
    def calm():
        return max(cpu_share(pool).values()) < CALM and share_a_fate(pool)

    eventually_now("every node is calm", calm, within=CHANGED_WITHIN_S)


def put(pool, team):
    answer = pool.rest("PUT", f"/v1/teams/{team}", {})
    assert answer.status == 201, answer
    return answer.json["node"]


def put_many(pool, prefix):
    """Makes the teams, several at a time; how many each node got."""
    with ThreadPoolExecutor(8) as hands:
        return Counter(hands.map(lambda number: put(pool, f"{prefix}{number}"), range(TEAMS)))


def is_even(spread):
    return len(spread) == 3 and all(97 <= count <= 103 for count in spread.values())


def test_three_hundred_teams_that_an_operator_makes_are_spread_evenly_over_three_idle_nodes(fleet, figure):
    wait_until_calm(fleet)
    spread = put_many(fleet, "put-")
    assert is_even(spread), spread
    assert spread == Counter(team["node"] for team in fleet.teams().values())
    figure(f"{TEAMS} teams by PUT on three idle nodes: {told(spread)}")


def test_three_hundred_teams_that_clients_bring_are_spread_evenly_over_three_idle_nodes(fleet, load, figure):
    wait_until_calm(fleet)
    clients = load(fleet, TEAMS, TEAMS, "brought-", "--hold")
    wait_for_connections(fleet, TEAMS)
    spread = Counter(team["node"] for team in fleet.teams().values())
    assert is_even(spread), spread
    assert clients.report().is_undisturbed()
    figure(f"{TEAMS} teams by their first client on three idle nodes: {told(spread)}")


@pytest.fixture
def narrow_fleet():
    """Nodes that may use one core each and let one client keep them busy, on any machine."""
    unbounded = [word for what in ("frames", "bytes") for word in (f"--{what}-per-s", "1000000000")]
    fleet = Fleet(3, *unbounded, cores={min(os.sched_getaffinity(0))})
    yield fleet
    fleet.stop()


def test_with_one_node_busy_most_new_teams_go_elsewhere_and_why_says_so(narrow_fleet, figure):
    fleet = narrow_fleet
    wait_until_calm(fleet)
    first = put_many(fleet, "before-")
    assert is_even(first), first
    busy = fleet.owner("before-0")
    idle = fleet.nodes.keys() - {busy}
    flood = Flood(fleet, "before-0")
    try:
        eventually_now(
            f"{busy} is busy", lambda: cpu_share(fleet)[busy] > BUSY and share_a_fate(fleet), CHANGED_WITHIN_S
        )
        shares = cpu_share(fleet)
        second = put_many(fleet, "after-")
        assert flood.ended_by is None
    finally:
        flood.stop()
    # With all nodes idle it would be 100, in a spread of 97 to 103.
    assert second[busy] < 75 and second[busy] < min(second[node] for node in idle), (second, shares)

    last = next(f"after-{number}" for number in reversed(range(TEAMS)) if fleet.owner(f"after-{number}") != busy)
    text = usher_why(fleet, last)
    why = fleet.view(f"/v1/teams/{last}/why")["decisions"][0]
    if busy in why["gated_nodes"]:
        # Beyond the ceiling it is not even weighed.
        assert why["gated_nodes"][busy] == "cpu_ceiling" and f"{busy}: CPU" in text, text
    else:
        cpu = {score["node"]: score["cpu_ppm"] for score in why["best"]}
        assert all(cpu[busy] > 2 * cpu[node] for node in idle), why
        (row,) = [line.split() for line in text.splitlines() if line.split()[:1] == [busy]]
        assert abs(float(row[4]) - cpu[busy] / 1e6) < 0.01, text
    figure(f"{TEAMS} more with {busy} at {shares[busy]:.0%} CPU: {told(second)}; usher why {last} printed:")
    for line in text.splitlines():
        figure(f"    {line}")


def usher_why(pool, team):
    """What `usher why` prints."""
    command = [executable(), "why", team, "--admin", f"http://{at(pool.admin)}"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=30)
    assert done.returncode == 0, done
    return done.stdout


def told(spread):
    return ", ".join(f"{node} {spread[node]}" for node in sorted(spread))

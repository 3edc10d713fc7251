"""A node is killed under a thousand teams and two thousand connections."""

import time
from collections import Counter

from crowd import crowd_onto, owners, wait_for_connections
from harness.patience import BACK_WITHIN_S, eventually_now

TEAMS = 1_000
CONNECTIONS = 2_000
# Of the nodes that nobody touches.
OTHERS = 300


def live_through(fleet, load, kill):
    """Kills node-1 by `kill` and sees to everybody; seconds until its teams had new owners, and its clients' report."""
    crowd = crowd_onto(fleet, "node-1", load, CONNECTIONS, TEAMS, "crowd-", "--message-rate", 0.2, "--usher-v1", "50%")
    # New teams go to the two nodes that have none.
    others = load(fleet, OTHERS, OTHERS // 2, "others-")
    wait_for_connections(fleet, CONNECTIONS + OTHERS)
    before = owners(fleet)
    hit = {team for team, (node, _) in before.items() if node == "node-1"}
    assert len(hit) == TEAMS and not any(team.startswith("others-") for team in hit)

    began = time.monotonic()
    kill("node-1")
    until = began + BACK_WITHIN_S
    while fleet.view("/v1/teams?node=node-1&limit=1")["teams"]:
        assert time.monotonic() < until, f"node-1 still owns teams: {fleet.states()}"
    took_s = time.monotonic() - began

    after = owners(fleet)
    assert after.keys() == before.keys()
    for team, (node, epoch) in before.items():
        if team in hit:
            assert after[team][0] in ("node-2", "node-3") and after[team][1] > epoch, (team, before[team], after[team])
        else:
            assert after[team] == before[team], (team, before[team], after[team])
    wait_for_connections(fleet, CONNECTIONS + OTHERS, within=BACK_WITHIN_S)
    crowd, others = crowd.report(), others.report()
    assert crowd.is_sound(), crowd
    assert others.is_undisturbed(), others
    return took_s, crowd


def told(how, took_s, crowd):
    return (
        f"{how}: {TEAMS} teams had a new owner after {took_s:.3f} s; {CONNECTIONS} connections were back after"
        f" {crowd.back_after_s(CONNECTIONS):.1f} s ({crowd.gaps()}); messages: {crowd.said()}"
    )


def test_when_a_nodes_worker_is_killed_its_teams_have_new_owners_at_once_and_every_client_is_back(fleet, load, figure):
    figure(told("worker killed, its parent reports it", *live_through(fleet, load, fleet.kill_worker)))
    eventually_now("the killed node is back", fleet.all_ready)


def test_when_a_node_is_killed_with_its_parent_the_closed_link_and_a_refused_probe_are_enough(fleet, load, figure):
    took_s, crowd = live_through(fleet, load, fleet.kill_with_parent)
    figure(told("node and parent killed, a closed link and a refused probe", took_s, crowd))
    assert fleet.states()["node-1"] in ("silent", "dead")
    # A client that knocked before the probe was through has moved its team by that.
    causes = Counter(fleet.view(f"/v1/teams/crowd-{number}/why")["decisions"][0]["cause"] for number in range(TEAMS))
    assert causes.keys() <= {"failover", "knock"}, causes
    figure(f"    of these, {causes['knock']} moved because a client knocked first")

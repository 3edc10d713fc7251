"""A node is emptied: by an operator, and because it was told to stop."""

import signal
import subprocess
import time

from crowd import crowd_onto, gauge, owners, teams_of, wait_for_connections
from harness.cluster import environment, executable
from harness.fleet import at

TEAMS = 1_000
CONNECTIONS = 2_000
# The default of `usher node --stop-budget`; all that a stop takes is inside of it, but for the process's end.
STOP_BUDGET_S = 25.0
LAST_WORDS_S = 0.5


def test_a_drained_node_has_no_team_left_and_the_report_says_who_went_and_came(fleet, load, figure):
    crowd = crowd_onto(fleet, "node-1", load, CONNECTIONS, TEAMS, "crowd-", "--message-rate", 0.2, "--usher-v1", "50%")
    before = owners(fleet)
    drain = subprocess.run(
        [executable(), "drain", "node-1", "--wait", "--admin", f"http://{at(fleet.admin)}"],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=120,
    )
    assert drain.returncode == 0, drain
    assert teams_of(fleet, "node-1") == {}
    after = owners(fleet)
    assert after.keys() == before.keys()
    assert all(node != "node-1" and epoch > before[team][1] for team, (node, epoch) in after.items())
    assert fleet.states()["node-1"] == "drained"
    assert gauge(fleet.nodes["node-1"], 'usher_connections{direction="inbound"}') == 0
    (operation,) = fleet.view("/v1/operations")["operations"]
    assert (operation["kind"], operation["state"]) == ("drain", "done"), operation
    assert (operation["teams"], operation["teams_moved"]) == (TEAMS, TEAMS), operation
    assert (operation["connections"], operation["connections_moved"]) == (CONNECTIONS, CONNECTIONS), operation
    assert f"{TEAMS} of {TEAMS} moved" in drain.stdout, drain
    assert f"{CONNECTIONS} of {CONNECTIONS} moved" in drain.stdout, drain
    wait_for_connections(fleet, CONNECTIONS)
    report = crowd.report()
    assert report["connected"] == CONNECTIONS and report["gave_up"] == 0, report
    # Those that speak usher.v1 open the new connection before they close the old one.
    assert report["moves"] == CONNECTIONS // 2, report
    figure(f"drain of {CONNECTIONS} connections, half of them usher.v1; usher drain --wait printed:")
    for line in drain.stdout.splitlines():
        figure(f"    {line}")
    figure(f"    clients: {report['moves']} moved without a gap, the others: {report.gaps()}; {report.said()}")


def test_a_node_that_is_told_to_stop_is_emptied_within_its_budget_and_leaves_in_order(fleet, load, figure):
    teams, connections = 250, 500
    crowd = crowd_onto(fleet, "node-1", load, connections, teams, "crowd-", "--message-rate", 0.2, "--usher-v1", "50%")
    process = fleet.processes["node-1"]
    began = time.monotonic()
    process.signal(signal.SIGTERM)
    assert process.ended(within=STOP_BUDGET_S + LAST_WORDS_S) == 0, process.text()
    took_s = time.monotonic() - began
    assert teams_of(fleet, "node-1") == {}
    assert len(owners(fleet)) == teams
    wait_for_connections(fleet, connections)
    report = crowd.report()
    assert report["connected"] == connections and report["gave_up"] == 0, report
    assert set(report["nodes"]) == {"node-2", "node-3"}, report
    assert "the stop budget is over" not in process.text(), process.text()
    figure(f"SIGTERM of a node with {connections} connections: it left in order after {took_s:.1f} s; {report.gaps()}")

"""Getting thousands of connections to where a test wants them."""

import re

from harness.ask import ask
from harness.patience import eventually_now

# Opened at 500 a second and more; a machine that builds at the same time takes its time.
CONNECTED_WITHIN_S = 120.0


def wait_for_connections(pool, count, within=CONNECTED_WITHIN_S):
    """Waits until the living nodes report so many connections in all."""
    eventually_now(f"{count} connections", lambda: sum(pool.connections().values()) == count, within=within)


def crowd_onto(pool, node, load, connections, teams, prefix, *arguments):
    """Clients of new teams that all sit on one node: no other one takes new teams meanwhile."""
    others = [name for name in pool.nodes if name != node]
    before = sum(pool.connections().values())
    for other in others:
        assert pool.rest("POST", f"/v1/nodes/{other}/cordon").status == 200
    clients = load(pool, connections, teams, prefix, *arguments)
    wait_for_connections(pool, before + connections)
    for other in others:
        assert pool.rest("POST", f"/v1/nodes/{other}/uncordon").status == 200
    assert len(teams_of(pool, node)) >= teams
    return clients


def teams_of(pool, node):
    """The teams that a node owns: each with its epoch."""
    return {name: team["epoch"] for name, team in pool.teams().items() if team["node"] == node}


def owners(pool):
    """Every team with its owner and its epoch."""
    return {name: (team["node"], team["epoch"]) for name, team in pool.teams().items()}


def gauge(node, name):
    """A figure on a node's /metrics, named with its labels."""
    text = ask(node.admin, "/metrics").body.decode()
    return float(re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)[1])

"""Nodes that are full of connections, lopsided, or at the limit of their container's memory."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

from harness.ask import ask
from harness.patience import eventually_now
from members import Member

JSON = {"Accept": "application/json"}
CGROUPS = Path("/sys/fs/cgroup")
MEMORY = 100 << 20
# Several half-lives of the moving average, which is 15 s; and a machine may be building.
CALM_WITHIN_S = 180.0


def node_of(fleet, name):
    return fleet.view(f"/v1/nodes/{name}")


def reported(fleet, connections):
    """Each node's connections, once the broker has heard of so many."""

    def heard():
        nodes = {node["node"]: node["connections"] for node in fleet.view("/v1/nodes")["nodes"]}
        return sum(nodes.values()) == connections and nodes

    return eventually_now(f"the broker knows of {connections} connections", heard)


def test_a_node_with_nearly_all_connections_gets_few_of_the_next_teams(start_fleet, fault):
    fleet = start_fleet(3, "--capacity-connections", "330")
    members = [Member(fleet, "room") for _ in range(300)]
    connections = reported(fleet, 300)
    (crowded,) = [name for name, count in connections.items() if count == 300]
    asked = [ask(fleet.clients, f"/connect/new-{serial}", headers=JSON).json["node"] for serial in range(30)]
    got = Counter(asked)
    imbalance = fleet.view("/v1/status")["imbalance"]
    for member in members:
        member.close()
    assert got[crowded] <= 3, got
    assert imbalance["connections_ppm"] > 2_900_000, imbalance
    fault(
        "few of the next teams go there, and the imbalance shows it",
        f"{connections}; of 30 new teams {dict(got)}; imbalance of connections {imbalance['connections_ppm'] / 1e6:.2f}",
    )


def test_the_teams_of_a_full_node_move_and_nobody_is_refused_for_long(start_fleet, fault):
    fleet = start_fleet(1, "--capacity-connections", "60")
    members = [Member(fleet, f"T{serial % 6}") for serial in range(60)]
    for name in ("node-2", "node-3"):
        fleet.add_node(name, "--capacity-connections", "60")
    eventually_now("every node is ready", fleet.is_up)
    reported(fleet, 60)
    eventually_now("the broker knows that it is full", lambda: "full_connections" in node_of(fleet, "node-1")["gates"])
    refused = Counter()

    def seated(serial):
        answer = ask(fleet.clients, f"/connect/T{serial % 6}", headers=JSON)
        if answer.status != 200:
            refused[answer.code] += 1
            assert answer.json["retry_ms"] > 0 and answer.headers["retry-after"], answer
            return False
        member = Member(fleet, f"T{serial % 6}", patient=True)
        if member.answered() != 101:
            refused["by the node"] += 1
            return False
        members.append(member)
        return True

    for serial in range(60):
        eventually_now(f"newcomer {serial} comes in", lambda serial=serial: seated(serial))
    causes = {fleet.view(f"/v1/teams/T{team}/why")["decisions"][0]["cause"] for team in range(6)}
    reliefs = [one for one in fleet.view("/v1/operations")["operations"] if one["kind"] == "relief"]
    for member in members:
        member.close()
    assert "full" in causes and reliefs, (causes, reliefs)
    assert set(refused) <= {"node_full", "by the node"}, refused
    log = fleet.processes["broker"].text()
    assert "node is full" in log, log[-2000:]
    fault(
        "teams move to the nodes with room; until then 503 node_full with a time to come back",
        f"all 60 newcomers came in, after {dict(refused)} refusals; {len(reliefs)} reliefs",
    )


def test_a_node_near_the_limit_of_its_containers_memory_says_so_and_gets_no_new_teams(start_fleet, fault):
    v1 = (CGROUPS / "memory").is_dir()
    slice_ = (CGROUPS / "memory" if v1 else CGROUPS) / f"usher-test-{os.getpid()}"
    # The limit is that of a group above the node's own: a pod's binds its containers.
    group = slice_ / "node"
    if not v1:
        (CGROUPS / "cgroup.subtree_control").write_text("+memory")
    slice_.mkdir()
    fleet = hog = None
    try:
        if not v1:
            (slice_ / "cgroup.subtree_control").write_text("+memory")
        group.mkdir()
        (slice_ / ("memory.limit_in_bytes" if v1 else "memory.max")).write_text(str(MEMORY))
        use = slice_ / ("memory.usage_in_bytes" if v1 else "memory.current")
        fleet = start_fleet(2)
        fleet.add_node("node-3", before=("sh", "-c", f'echo $$ > {group}/cgroup.procs; exec "$@"', "sh"))
        eventually_now("every node is ready", fleet.is_up)
        # Whoever else is in the pod uses it up as well as the node itself.
        hog = Hog(slice_ / "hog", int(MEMORY * 0.92) - int(use.read_text()))
        eventually_now("the memory is used up", lambda: int(use.read_text()) > MEMORY * 0.9)
        near = "the container is near the limit of its memory"
        eventually_now("it says why", lambda: near in fleet.processes["node-3"].text())
        # A machine whose CPUs are all busy is under pressure, too, and then all of them are.
        def alone():
            gates = {node["node"]: node["gates"] for node in fleet.view("/v1/nodes")["nodes"]}
            return gates == {"node-1": [], "node-2": [], "node-3": ["pressure"]} and gates["node-3"]

        gates = eventually_now("it says so, and it alone", alone, within=CALM_WITHIN_S)
        asked = [ask(fleet.clients, f"/connect/new-{serial}", headers=JSON).json["node"] for serial in range(20)]
        memory = node_of(fleet, "node-3")["memory"]
        hog.end()
        assert gates == ["pressure"] and memory["limit_bytes"] == MEMORY, (gates, memory)
        assert asked.count("node-3") == 0, Counter(asked)
        eventually_now(
            "it has room again", lambda: not node_of(fleet, "node-3")["gates"], within=CALM_WITHIN_S
        )
        log = fleet.processes["broker"].text()
        assert "node is strained" in log and "strained no more" in log, log[-2000:]
        fault(
            "gate pressure; new teams go to the others; gone once the memory is free again",
            f"at {memory['used_bytes'] / memory['limit_bytes']:.0%} of {MEMORY >> 20} MB: {gates}, of 20 new teams"
            f" {dict(Counter(asked))}",
        )
    finally:
        if hog:
            hog.end()
        if fleet:
            fleet.stop()
        for folder in (group, slice_ / "hog", slice_):
            if folder.exists():
                eventually_now("its processes are gone", lambda folder=folder: not (folder / "cgroup.procs").read_text())
                folder.rmdir()


class Hog:
    """A process in a group of its own that holds so many bytes."""

    def __init__(self, group, length):
        group.mkdir()
        hold = f"held = bytearray(b'x') * {length}; input()"
        command = ["sh", "-c", f'echo $$ > {group}/cgroup.procs; exec "$@"', "sh", sys.executable, "-c", hold]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE)

    def end(self):
        if self._process.poll() is None:
            self._process.communicate(b"\n")

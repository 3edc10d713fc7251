#!/usr/bin/env python3
"""What an idle connection costs a node in memory: `tests/bench/idle_memory.py [CONNECTIONS] [usher.v1 SHARE]`.

One broker and one node, and as many `usher load --hold` as the connections need. Memory is the resident
set of the node's worker; what the kernel keeps for the sockets is not in it.
"""

import os
import sys
import time
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from harness.fleet import Fleet
from harness.load import Load
from harness.patience import eventually_now

CONNECTIONS = 15_000
PER_TEAM = 3
# A process may have 20,000 file descriptors in many containers.
PER_PROCESS = 5_000
# Two pings of 25 s have come and gone by then: an idle connection is one that is pinged, too.
IDLE_S = 60.0


def resident(pid):
    """Bytes of a process that are in memory."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def main():
    connections = int(sys.argv[1]) if len(sys.argv) > 1 else CONNECTIONS
    speaks = sys.argv[2] if len(sys.argv) > 2 else "on"
    os.environ.setdefault("USHER_BIN", str(Path(__file__).resolve().parents[2] / "target" / "release" / "usher"))
    with ExitStack() as stack:
        fleet = Fleet(1)
        stack.callback(fleet.stop)
        worker = fleet.worker("node-1")
        before = resident(worker)
        left = connections
        for number in range(-(-connections // PER_PROCESS)):
            share = min(left, PER_PROCESS)
            left -= share
            arguments = (share, -(-share // PER_TEAM), f"idle-{number}-", "--hold", "--usher-v1", speaks)
            stack.callback(Load(fleet, *arguments).stop)
        eventually_now("all are connected", lambda: sum(fleet.connections().values()) == connections, within=600)
        connected = resident(worker)
        time.sleep(IDLE_S)
        idle = resident(worker)
        assert sum(fleet.connections().values()) == connections, fleet.connections()
        print(f"node with {connections} connections in teams of {PER_TEAM}, usher.v1 {speaks}")
        for name, size in (
            ("before", before),
            ("all connected", connected),
            (f"idle for {IDLE_S:.0f} s", idle),
        ):
            each = (size - before) / connections
            print(f"  {name:<16} resident {size / 2**20:7.1f} MiB   {each:7.0f} bytes per connection")


if __name__ == "__main__":
    main()

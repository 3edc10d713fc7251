"""When something happened: by CLOCK_BOOTTIME, the clock of leases, which all processes of one machine share."""

import contextlib
import re
import threading
import time

from harness.ask import ask
from harness.patience import BACK_WITHIN_S, SOON_S, eventually_now

LEASE_S = 6.0
# A node stops exclusive effects so long after it SENT the last heartbeat that was answered: lease x 0.99 - 0.5 s.
LAPSES_AFTER_S = 5.44
# The broker counts a node as dead so long after it RECEIVED the last heartbeat: lease x 1.01 + 0.5 s.
DEAD_AFTER_S = 6.56
_EVERY_S = 0.02


def now():
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def metric(address, name):
    """A figure on a /metrics, named with its labels; 0 before it was first counted."""
    text = ask(address, "/metrics").body.decode()
    found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else 0.0




def node_metric(fleet, node, name):
    """A figure of a node, taken on its own machine."""
    with fleet.on(node):
        return metric(fleet.nodes[node].admin, name)


def held(fleet, node):
    """Connections that a node holds, by itself: the broker knows those of the last heartbeat."""
    return int(node_metric(fleet, node, 'usher_connections{direction="inbound"}'))


def wait_until_held(fleet, count, nodes, within=BACK_WITHIN_S):
    """Waits until the nodes hold so many connections between them."""
    eventually_now(f"{count} connections", lambda: sum(held(fleet, node) for node in nodes) == count, within=within)


class LeaseWatch:
    """Looks at a node's lease from the node's own machine until it was over."""

    def __init__(self, fleet, node):
        self._fleet = fleet
        self._node = node
        # Between which two moments it ended, by what it said to have left: a scrape takes its time.
        self.ended = None
        # When it was last seen to run, and first to be over, whatever it said.
        self.last_alive = self.first_over = None
        self._stop = threading.Event()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        while not self._stop.wait(_EVERY_S):
            before = now()
            remaining = node_metric(self._fleet, self._node, "usher_lease_remaining_seconds")
            after = now()
            if remaining > 0:
                self.ended = before + remaining, after + remaining
                self.last_alive = before
            elif self.ended:
                self.first_over = after
                self._over.set()
                return

    def over(self, within=SOON_S):
        """Waits for its end; the moments between which it came."""
        assert self._over.wait(within), f"the lease of {self._node} is not over after {within:.0f} s"
        return self.ended

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join(SOON_S)


class OwnerWatch:
    """Looks at who owns some teams until none of them is a node's any more."""

    def __init__(self, fleet, node):
        self._fleet = fleet
        self._node = node
        # When the node was last seen to own all, and when first to own none.
        self.last_old = self.first_none = None
        self._all = self._count()
        assert self._all, f"{node} owns no team"
        self._stop = threading.Event()
        self._moved = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _count(self):
        return self._fleet.view(f"/v1/teams?node={self._node}&limit=1")["total"]

    def _run(self):
        while not self._stop.wait(_EVERY_S):
            before = now()
            with contextlib.suppress(OSError):
                count = self._count()
                if count == self._all:
                    self.last_old = before
                if count == 0:
                    self.first_none = now()
                    self._moved.set()
                    return

    def moved(self, within=SOON_S):
        """Waits until the node owns none of them; when that was first seen."""
        assert self._moved.wait(within), f"{self._node} still owns {self._count()} of {self._all} teams after {within:.0f} s"
        return self.first_none

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join(SOON_S)

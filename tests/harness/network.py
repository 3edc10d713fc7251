"""Machines of a fleet as network namespaces on one router, so that what is between them can be cut.

A namespace here has no name: it lives as long as a process in it or the descriptor that this process
holds. Nothing is left behind when a test fails or the run is killed, and two runs never meet.
"""

import contextlib
import ctypes
import fcntl
import heapq
import os
import random
import select
import struct
import subprocess
import threading
import time
from pathlib import Path

from .cluster import Node
from .fleet import Fleet, Process, at

_CLONE_NEWNET = 0x4000_0000  # linux/sched.h
_TUNSETIFF = 0x4004_54CA  # linux/if_tun.h
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
_TOKEN = "0123456789abcdef0123456789abcdef"
_libc = ctypes.CDLL(None, use_errno=True)


def _must(outcome, what):
    if outcome != 0:
        error = ctypes.get_errno()
        raise RuntimeError(
            f"{what}: {os.strerror(error)}. These tests need network namespaces: run them as root, on a kernel that has them"
        )


class Namespace:
    """A network stack of its own."""

    def __init__(self):
        made = []

        def make():
            # Another namespace for this thread only; it ends with the thread unless it is held.
            _must(_libc.unshare(_CLONE_NEWNET), "a network namespace could not be made")
            made.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))

        failed = _in_a_thread(make)
        if failed:
            raise failed
        (self._held,) = made
        self.run("ip", "link", "set", "lo", "up")

    @property
    def path(self):
        """Where `ip` and `nsenter` find it."""
        return f"/proc/{os.getpid()}/fd/{self._held}"

    @property
    def before(self):
        """The words before a command that is to run in it."""
        return ("nsenter", f"--net={self.path}", "--")

    def run(self, *command, said=None):
        """Runs a command in it that must succeed; what it wrote."""
        done = subprocess.run(
            [*self.before, *map(str, command)], input=said, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, f"{' '.join(map(str, command))}: {done.stderr or done.stdout}"
        return done.stdout

    @contextlib.contextmanager
    def inside(self):
        """Sockets that this thread makes meanwhile are in it."""
        before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _must(_libc.setns(self._held, _CLONE_NEWNET), "a network namespace could not be entered")
            try:
                yield
            finally:
                _must(_libc.setns(before, _CLONE_NEWNET), "a network namespace could not be left")
        finally:
            os.close(before)

    def close(self):
        os.close(self._held)


def _in_a_thread(work):
    """Runs it to its end in a thread of its own; what it raised."""
    raised = []

    def guarded():
        try:
            work()
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=guarded, daemon=True)
    thread.start()
    thread.join()
    return raised[0] if raised else None


class Network:
    """A router with a namespace for each member: member number n is 10.77.n.2."""

    def __init__(self, members, slow=()):
        """Members in `slow` are behind a [`Line`], as `{name: (delay in seconds, share that is lost)}`."""
        self.router = Namespace()
        self.members = {}
        # Between which two members, and what holds there.
        self._broken = []
        self.lines = []
        with self.router.inside():
            Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        # Only what crosses the router is filtered: that is where a network breaks. A process sees its own
        # packets leave, as it does in life.
        self.router.run("nft", "add table ip faults")
        self.router.run("nft", "add chain ip faults between { type filter hook forward priority 0; }")
        slow = dict(slow)
        for number, name in enumerate(members, start=1):
            self._join(name, number, slow.get(name))

    def _join(self, name, number, line):
        member = self.members[name] = Namespace()
        near, far, port = f"10.77.{number}.2", f"10.77.{number}.1", f"to{number}"
        if line:
            self.lines.append(Line(member, "eth0", self.router, port, *line))
        else:
            self.router.run("ip", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", member.path)
        member.run("ip", "addr", "add", near, "peer", far, "dev", "eth0")
        member.run("ip", "link", "set", "eth0", "up")
        member.run("ip", "route", "add", "default", "via", far, "dev", "eth0")
        self.router.run("ip", "addr", "add", far, "peer", near, "dev", port)
        self.router.run("ip", "link", "set", port, "up")

    def host(self, name):
        """The address of a member."""
        return f"10.77.{list(self.members).index(name) + 1}.2"

    def cut(self, source, target):
        """What one member sends to the other disappears, without a word."""
        self._break(source, target, [f"{self._way(source, target)} drop"])

    def cut_both_ways(self, one, other):
        # In one step, or the two would not lose each other at one time.
        self._break(one, other, [f"{self._way(one, other)} drop", f"{self._way(other, one)} drop"])

    def refuse(self, one, other):
        """A firewall that wants to be helpful: whatever `one` sends to the other is answered with a reset, and so is
        what the other begins. (What the other sends on an old connection passes, or `one` would never send again.)"""
        everything, first = "meta l4proto tcp", "tcp flags & (syn | ack) == syn"
        ways = [f"{self._way(one, other)} {everything}", f"{self._way(other, one)} {first}"]
        self._break(one, other, [f"{way} reject with tcp reset" for way in ways])

    def heal(self, *between):
        """Everything passes again: between the two members that are named, or everywhere."""
        self._broken = [(pair, rules) for pair, rules in self._broken if between and pair != frozenset(between)]
        self._apply()

    def _way(self, source, target):
        return f"ip saddr {self.host(source)} ip daddr {self.host(target)}"

    def _break(self, one, other, rules):
        self._broken.append((frozenset((one, other)), rules))
        self._apply()

    def _apply(self):
        # One transaction: no packet meets half of it.
        rules = [f"add rule ip faults between {rule}" for _, rules in self._broken for rule in rules]
        self.router.run("nft", "-f", "-", said="\n".join(["flush chain ip faults between", *rules, ""]))

    def close(self):
        for line in self.lines:
            line.close()
        for namespace in (*self.members.values(), self.router):
            namespace.close()


class Line:
    """A long and bad line between two namespaces: every packet takes its time, and some are lost.

    Packets pass through this process, because few kernels bring a queue that delays.
    """

    def __init__(self, one, one_name, other, other_name, delay_s, loss):
        self._ends = [_tunnel(one, one_name), _tunnel(other, other_name)]
        self._delay_s = delay_s
        self._loss = loss
        self._random = random.Random(1)
        self.passed = self.lost = 0
        self._stop, self._stopper = os.pipe()
        self._thread = threading.Thread(target=self._carry, daemon=True)
        self._thread.start()

    def _carry(self):
        one, other = self._ends
        opposite = {one: other, other: one}
        on_their_way = []
        order = 0
        while True:
            now = time.monotonic()
            while on_their_way and on_their_way[0][0] <= now:
                _, _, end, packet = heapq.heappop(on_their_way)
                # An interface that is still down takes nothing, which is one more loss.
                with contextlib.suppress(OSError):
                    os.write(end, packet)
            wait = on_their_way[0][0] - now if on_their_way else None
            readable, _, _ = select.select([one, other, self._stop], [], [], wait)
            if self._stop in readable:
                return
            for end in readable:
                with contextlib.suppress(BlockingIOError):
                    while packet := os.read(end, 65_536):
                        if self._random.random() < self._loss:
                            self.lost += 1
                            continue
                        self.passed += 1
                        order += 1
                        due = time.monotonic() + self._delay_s
                        heapq.heappush(on_their_way, (due, order, opposite[end], packet))

    def close(self):
        os.close(self._stopper)
        self._thread.join(30)
        for end in (*self._ends, self._stop):
            os.close(end)


def _tunnel(namespace, name):
    """The descriptor behind a new interface of that name: what is written to it arrives there."""
    with namespace.inside():
        end = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            fcntl.ioctl(end, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI))
        except OSError:
            os.close(end)
            raise
    return end


class Scattered(Fleet):
    """A fleet whose broker, nodes and clients are machines of their own.

    Admin listeners are on each machine's loopback; all else is on its address.
    """

    def __init__(self, nodes=3, *node_arguments, slow=()):
        names = [f"node-{number}" for number in range(1, nodes + 1)]
        self.network = Network(["broker", "clients", *names], slow)
        self._where = {name: Node(name, (self.network.host(name), 7410), ("127.0.0.1", 7510)) for name in names}
        super().__init__(nodes, *node_arguments)

    def _place_listeners(self):
        host = self.network.host("broker")
        self.clients, self.admin, self.node_link = (host, 7400), ("127.0.0.1", 7401), (host, 7402)

    def _place_node(self, name):
        return self._where[name]

    def start_broker(self, *arguments, **how):
        more = ["--public-url", f"http://{at(self.clients)}", "--auto-create", "true"]
        self._start("broker", super().start_broker, *more, *arguments, **how)

    def start_node(self, name, *arguments, **how):
        self._start(name, lambda *rest, **more: super(Scattered, self).start_node(name, *rest, **more), *arguments, **how)

    def start_twin(self, name, member, *arguments):
        """Starts a second process of a node's name on another member, without a parent."""
        flags = ["--listen", f"{self.network.host(member)}:7410", "--admin", "127.0.0.1:7510"]
        self.processes["twin"] = Process(
            self.folder,
            "twin",
            *("node", "--name", name, "--no-parent", "--broker", f"ws://{at(self.node_link)}", *flags, *arguments),
            before=self.network.members[member].before,
            variables={"USHER_NODE_TOKEN": _TOKEN},
        )
        return self.processes["twin"]

    def _start(self, member, start, *arguments, before=(), variables=None, **how):
        tokens = {"USHER_NODE_TOKEN": _TOKEN, **(variables or {})}
        start(*arguments, before=(*self.network.members[member].before, *before), variables=tokens, **how)

    @property
    def before_clients(self):
        return self.network.members["clients"].before

    def rest(self, *arguments, **how):
        with self.network.members["broker"].inside():
            return super().rest(*arguments, **how)

    def on(self, node):
        return self.network.members[node].inside()

    def among_clients(self):
        return self.network.members["clients"].inside()

    def stop(self):
        try:
            super().stop()
        finally:
            self.network.close()

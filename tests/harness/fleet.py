"""A broker and nodes as single processes: `usher dev` would start again what a test wants dead, or away for a while."""

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path

from .cluster import START_WITHIN_S, STOP_WITHIN_S, Node, Pool, environment, executable, session_of
from .patience import eventually_now

# Below 32768, where Linux begins to take source ports from: a process that was killed under thousands
# of clients must find its own port free.
_PORTS = range(12_000, 32_000)


def free_address():
    """An address on loopback where nobody listens just now, and nobody dials from."""
    for port in random.sample(_PORTS, 1_000):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return "127.0.0.1", port
    raise RuntimeError("no free port was found")


def at(address):
    """`host:port`, as flags take it."""
    return "{}:{}".format(*address)


class Process:
    """One `usher` process, and what it wrote."""

    def __init__(self, folder, name, *arguments, variables=None, cores=None, before=(), output=None):
        """`cores` are the only ones it may run on; `before` is a command that ends in running the rest of its words.

        Its output goes to `<folder>/<name>.log`, after that of an earlier process of this name, or to `output`.
        """
        self.name = name
        self._out = folder / f"{name}.log"
        self._begins = self._out.stat().st_size if self._out.exists() else 0
        self._cores = cores
        with self._out.open("ab") as out:
            self._process = subprocess.Popen(
                [*map(str, before), str(executable()), *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=output or out,
                stderr=output or out,
                env={**environment(), **(variables or {})},
                cwd=folder,
                start_new_session=True,
                preexec_fn=self._settle if cores else None,
            )

    def _settle(self):
        os.sched_setaffinity(0, self._cores)

    @property
    def pid(self):
        return self._process.pid

    def text(self):
        """Everything it wrote to its output and its log."""
        return self._out.read_bytes()[self._begins :].decode(errors="replace")

    def runs(self):
        return self._process.poll() is None

    def signal(self, number):
        self._process.send_signal(number)

    def ended(self, within=STOP_WITHIN_S):
        """Its exit code, once it has ended by itself; negative for a signal."""
        try:
            return self._process.wait(within)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} still runs after {within:.0f} s:\n{self.text()}") from None

    def kill(self):
        """SIGKILL for all of it; nothing is left when this returns."""

        def gone():
            # Again until it holds: a parent may have been starting a child just then.
            for pid in session_of(self.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._process.poll()
            return not session_of(self.pid)

        eventually_now(f"nothing of {self.name} is left", gone)
        self._process.wait()


class Fleet(Pool):
    """A broker and nodes. Nobody starts them again but the test."""

    def __init__(self, nodes=3, *node_arguments, **how):
        self.folder = Path(tempfile.mkdtemp(prefix="usher-fleet-"))
        self.data = self.folder / "data"
        self.nodes = {}
        self.processes = {}
        self._place_listeners()
        try:
            self.start_broker()
            for number in range(1, nodes + 1):
                name = f"node-{number}"
                self.nodes[name] = self._place_node(name)
                self.start_node(name, *node_arguments, **how)
            eventually_now("every node is ready", self.is_up, within=START_WITHIN_S)
        except BaseException:
            self.stop()
            raise

    def _place_listeners(self):
        self.clients, self.admin, self.node_link = free_address(), free_address(), free_address()

    def _place_node(self, name):
        return Node(name, free_address(), free_address())

    def start_broker(self, *arguments, **how):
        """Starts the broker, again or for the first time: same folder, same ports."""
        self.processes["broker"] = Process(self.folder, "broker", *self.broker_arguments(), *arguments, **how)

    def broker_arguments(self):
        flags = ["--clients", at(self.clients), "--admin", at(self.admin), "--node-link", at(self.node_link)]
        return ["broker", *flags, "--data", self.data]

    def start_node(self, name, *arguments, **how):
        """Starts a node under its small parent."""
        node = self.nodes[name]
        flags = ["--listen", at(node.address), "--admin", at(node.admin)]
        if "--broker" not in arguments:
            flags += ["--broker", f"ws://{at(self.node_link)}"]
        command = ["node", "--name", name, *flags, *arguments]
        self.processes[name] = Process(self.folder, name, *command, **how)

    def add_node(self, name, *arguments, **how):
        """Starts one more node."""
        self.nodes[name] = self._place_node(name)
        self.start_node(name, *arguments, **how)

    def answers(self):
        """Whether the broker answers operators."""
        try:
            return self.rest("GET", "/v1/status").status == 200
        except OSError:
            return False

    def is_up(self):
        """Whether the broker answers and every node is ready; a process that ended is not waited for."""
        for process in self.processes.values():
            assert process.runs(), f"{process.name} ended:\n{process.text()}"
        try:
            return self.all_ready()
        except OSError:
            return False

    def log(self):
        logs = ((process.name, process.text()[-2000:]) for process in self.processes.values())
        return "\n".join(f"{name}:\n{text}" for name, text in logs)

    def parent(self, node):
        return self.processes[node].pid

    def stop(self):
        """SIGKILL for whatever is left: how processes end is a matter of the tests."""
        try:
            for process in self.processes.values():
                process.kill()
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)

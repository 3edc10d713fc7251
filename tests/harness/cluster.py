"""A broker and three nodes in real processes: `usher dev`, started, watched, hurt and stopped.

What holds for every broker with its nodes is in `Pool`; `fleet` has another one, of single processes.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

from .ask import address_of, ask
from .patience import eventually_now

ROOT = Path(__file__).resolve().parents[2]
# A cold start on a busy machine; on an idle one it is about a second.
START_WITHIN_S = 90.0
# More than a node's stop budget of 25 s, after which it goes whatever happens.
STOP_WITHIN_S = 45.0


def executable():
    """The `usher` under test: `USHER_BIN`, or what was built last here."""
    named = os.environ.get("USHER_BIN")
    found = [Path(named)] if named else [ROOT / "target" / kind / "usher" for kind in ("release", "debug")]
    for path in found:
        if path.is_file():
            return path
    raise RuntimeError(f"there is no {' or '.join(map(str, found))}: build it with `cargo build --release`")


def environment():
    """The environment without `USHER_*`: settings of the one who runs the tests must not leak into them."""
    return {key: value for key, value in os.environ.items() if not key.startswith("USHER_")}


@dataclass(frozen=True)
class Node:
    """A node, and where it listens."""

    name: str
    address: tuple
    admin: tuple


class Pool:
    """A broker and its nodes, however they were started: who started them says where they are and who runs them."""

    folder: Path
    clients: tuple
    admin: tuple
    node_link: tuple
    nodes: dict
    # The words before a command that is to run where clients are.
    before_clients = ()

    def on(self, node):
        """`with pool.on(node)`: sockets that this thread makes meanwhile are on the node's machine."""
        return contextlib.nullcontext()

    def among_clients(self):
        """`with pool.among_clients()`: the same on the machine of the clients."""
        return contextlib.nullcontext()

    def log(self):
        """The end of what each process logged."""
        raise NotImplementedError

    def parent(self, node):
        """The process id of a node's small parent."""
        raise NotImplementedError

    # Where clients go

    def door(self, team, scheme="ws"):
        """The broker's URL for a team."""
        host, port = self.clients
        return f"{scheme}://{host}:{port}/connect/{team}"

    def node_at(self, port):
        """The name of the node that listens for clients on `port`."""
        return next((node.name for node in self.nodes.values() if node.address[1] == port), None)

    # What operators do

    def rest(self, method, path, body=None):
        """One request to the admin listener."""
        return ask(self.admin, path, method=method, body=body)

    def view(self, path):
        """The JSON of a GET that must succeed."""
        answer = self.rest("GET", path)
        assert answer.status == 200, (path, answer)
        return answer.json

    def states(self):
        """What state each node is in."""
        return {node["node"]: node["state"] for node in self.view("/v1/nodes")["nodes"]}

    def owner(self, team):
        """The node that owns a team."""
        return self.view(f"/v1/teams/{team}")["node"]

    def drain(self, node):
        """Starts to empty a node; the operation's id."""
        answer = self.rest("POST", f"/v1/nodes/{node}/drain", {})
        assert answer.status in (200, 201, 202), answer
        return answer.json["operation"]

    def finished(self, operation):
        """The operation's report, once it is at its end."""
        view = self.view(f"/v1/operations/{operation}")
        return view if view["state"] != "running" else None

    def undrain(self, node):
        """Lets a node take teams again."""
        answer = self.rest("POST", f"/v1/nodes/{node}/undrain")
        assert answer.status == 200, answer

    def heal(self):
        """Every node ready again, whatever the test before did to them."""
        for node, state in self.states().items():
            if state in ("draining", "drained"):
                self.undrain(node)
        eventually_now("every node is ready", self.all_ready)

    def teams(self):
        """Every team, as the broker shows it, by its id."""
        teams, after = {}, ""
        while after is not None:
            page = self.view(f"/v1/teams?limit=1000{after and f'&after={after}'}")
            teams.update((team["team"], team) for team in page["teams"])
            after = page.get("next")
        return teams

    def connections(self):
        """Connections that each living node reports."""
        nodes = self.view("/v1/nodes")["nodes"]
        return {node["node"]: node["connections"] for node in nodes if node["state"] not in ("silent", "dead")}

    def all_ready(self):
        states = self.states()
        return set(states) >= set(self.nodes) and all(states[node] == "ready" for node in self.nodes)

    # What goes wrong

    def worker(self, node):
        """The process that does a node's work: the child of its small parent."""
        return eventually_now(f"{node} has a worker", lambda: next(iter(children(self.parent(node))), None))

    def kill_worker(self, node):
        """SIGKILL for the process that holds the connections; its parent starts another."""
        os.kill(self.worker(node), signal.SIGKILL)

    def kill_with_parent(self, node):
        """SIGKILL for the small parent, which takes its worker along. `usher dev` starts both again."""
        os.kill(self.parent(node), signal.SIGKILL)

    def kill_for_good(self, node):
        """SIGKILL for the worker of a parent that can neither report it nor start another."""
        worker = self.worker(node)
        os.kill(self.parent(node), signal.SIGSTOP)
        os.kill(worker, signal.SIGKILL)


class Cluster(Pool):
    """`usher dev --ports auto --json` and what it started."""

    def __init__(self, *arguments):
        self.folder = Path(tempfile.mkdtemp(prefix="usher-test-"))
        self._log = (self.folder / "dev.log").open("wb")
        self.data = self.folder / "data"
        command = [str(executable()), "dev", "--ports", "auto", "--json", "--data", str(self.data), *arguments]
        # A session of its own: whatever it leaves behind can be found again.
        self._dev = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=environment(),
            cwd=self.folder,
            start_new_session=True,
        )
        try:
            ready = json.loads(self._first_line())
        except BaseException:
            self._kill_session()
            raise
        # Nobody may be stopped by a full pipe.
        threading.Thread(target=self._drop_output, daemon=True).start()
        self.clients = address_of(ready["broker"]["clients"])
        self.admin = address_of(ready["broker"]["admin"])
        self.node_link = address_of(ready["broker"]["node_link"])
        self.broker_pid = ready["broker"]["pid"]
        assert Path(ready["data"]) == self.data, ready
        self.nodes = {
            node["node"]: Node(node["node"], address_of(node["url"]), address_of(node["admin"]))
            for node in ready["nodes"]
        }

    def _first_line(self):
        timer = threading.Timer(START_WITHIN_S, self._kill_session)
        timer.start()
        try:
            line = self._dev.stdout.readline()
        finally:
            timer.cancel()
        if not line:
            raise RuntimeError(f"usher dev was not ready within {START_WITHIN_S:.0f} s:\n{self.log()}")
        return line

    def _drop_output(self):
        for _ in self._dev.stdout:
            pass

    def log(self):
        """The end of what each process logged."""
        logs = [self.folder / "dev.log", *sorted((self.data / "logs").glob("*.log"))]
        return "\n".join(f"{log.stem}:\n{log.read_text(errors='replace')[-2000:]}" for log in logs)

    def parent(self, node):
        """The small parent of a node: a child of `usher dev` that was told the node's name."""
        return eventually_now(f"{node} runs", lambda: self._parents().get(node))

    def _parents(self):
        commands = {pid: command_of(pid) for pid in children(self._dev.pid)}
        return {command[command.index("--name") + 1]: pid for pid, command in commands.items() if "--name" in command}

    # The end

    def stop(self):
        """Ctrl-C. Fails when a process is left, or when one had to be forced."""
        try:
            self._dev.send_signal(signal.SIGINT)
            try:
                self._dev.wait(STOP_WITHIN_S)
            except subprocess.TimeoutExpired:
                raise AssertionError(f"usher dev did not stop on Ctrl-C:\n{self.log()}") from None
            eventually_now("no process of usher dev is left", lambda: not session_of(self._dev.pid))
        finally:
            self._kill_session()
            self._log.close()
            shutil.rmtree(self.folder, ignore_errors=True)

    def _kill_session(self):
        for pid in session_of(self._dev.pid):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self._dev.wait(10)


def _stat(pid):
    """State, parent and session of a process (proc(5)); the name before them may hold anything."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return fields[0], int(fields[1]), int(fields[3])


def _processes():
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def command_of(pid):
    """The command line of a process; empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except OSError:
        return []


def children(parent):
    """Living children of a process."""
    seen = ((pid, _stat(pid)) for pid in _processes())
    return [pid for pid, stat in seen if stat and stat[0] not in "ZX" and stat[1] == parent]


def session_of(leader):
    """Living processes of the session that `leader` began."""
    seen = ((pid, _stat(pid)) for pid in _processes())
    return [pid for pid, stat in seen if stat and stat[0] not in "ZX" and stat[2] == leader]

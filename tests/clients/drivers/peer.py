"""A program that runs clients of another language, spoken to in lines of JSON."""

import asyncio
import itertools
import json
import os
import signal
from pathlib import Path

from .driver import Driver

PEERS = Path(__file__).resolve().parents[1] / "peers"


class Peer:
    """The program: one process for all clients of its kind."""

    def __init__(self, process):
        self._process = process
        self._clients = {}
        self._numbers = itertools.count(1)
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def start(cls, runs_on, script):
        process = await asyncio.create_subprocess_exec(
            *runs_on,
            str(PEERS / script),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
            limit=1 << 20,
        )
        ready = await asyncio.wait_for(process.stdout.readline(), 60)
        assert ready and json.loads(ready)["event"] == "ready", f"{script} did not start: {ready!r}"
        return cls(process)

    def admit(self, client):
        number = next(self._numbers)
        self._clients[number] = client
        return number

    async def tell(self, **order):
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        await self._process.stdin.drain()

    async def _read(self):
        async for line in self._process.stdout:
            event = json.loads(line)
            client = self._clients.get(event["client"])
            if client:
                client.happened(event)

    async def stop(self):
        self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), 20)
        except TimeoutError:
            os.killpg(self._process.pid, signal.SIGKILL)
            await self._process.wait()
            raise AssertionError("the peer did not end with its input") from None
        finally:
            self._reading.cancel()


class PeerDriver(Driver):
    """A client that lives in a [`Peer`]."""

    # Set by the fixture that starts it.
    peer = None
    page = None
    # The command that runs its script.
    runs_on = ("node",)
    # The scheme of the broker's URL that it is given.
    door_scheme = "ws"

    def __init__(self, cluster, team):
        super().__init__(cluster, team)
        # How it was sent on by a broker that it could not follow by itself.
        self.redirects = []

    async def _run(self):
        self._number = self.peer.admit(self)
        door = self.cluster.door(self.team, self.door_scheme)
        await self.peer.tell(client=self._number, do="start", door=door, page=self.page)
        await asyncio.Event().wait()

    def happened(self, event):
        """What the program says of this client."""
        match event["event"]:
            case "arrived":
                self._arrived(event["port"])
            case "frame":
                self._frame(event["text"])
            case "left":
                self._left(event.get("code"), event.get("reason", ""))
            case "redirected":
                self.redirects.append(event)

    async def send(self, text):
        await self.peer.tell(client=self._number, do="send", text=text)

    async def _gone(self):
        await self.peer.tell(client=self._number, do="stop")

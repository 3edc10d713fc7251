"""What every driver has in common."""

import asyncio
import random
from dataclasses import dataclass

from harness.patience import BACK_WITHIN_S, SOON_S


@dataclass
class Visit:
    """A connection that was open, from the client's side."""

    port: int
    code: int | None = None
    reason: str = ""


class Driver:
    """A client that comes back by itself whenever its connection ends, as an application would write it.

    A subclass has `kind`, what the tests call it, and `_run`, its life in the idiom of its library:
    it calls `_arrived`, `_frame` and `_left` as things happen.
    """

    kind = ""

    def __init__(self, cluster, team):
        self.cluster = cluster
        self.team = team
        # Every connection it had, in order.
        self.visits = []
        self._open = False
        self._frames = asyncio.Queue()
        self._news = asyncio.Event()
        self._life = None

    async def __aenter__(self):
        self._life = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_):
        self._life.cancel()
        await asyncio.gather(self._life, return_exceptions=True)
        await self._gone()

    async def _run(self):
        raise NotImplementedError

    async def _gone(self):
        """For what `_run` leaves behind."""

    async def send(self, text):
        raise NotImplementedError

    # What `_run` tells

    def _arrived(self, port):
        self.visits.append(Visit(port))
        self._open = True
        self._news.set()

    def _frame(self, text):
        self._frames.put_nowait(text)

    def _left(self, code=None, reason=""):
        if self._open:
            self.visits[-1].code = code
            self.visits[-1].reason = reason
        self._open = False
        self._news.set()

    @staticmethod
    async def _pause():
        """Before the next try: short, and never the same for two clients."""
        await asyncio.sleep(random.uniform(0.1, 0.5))

    # What tests ask

    @property
    def node(self):
        """The node it is on; `None` while it is on none."""
        return self.cluster.node_at(self.visits[-1].port) if self._open else None

    async def on(self, *nodes, within=SOON_S):
        """Waits until it is on one of the nodes, and names it."""
        return await self._until(lambda: self.node in nodes and self.node, f"on one of {nodes}", within)

    async def connected(self, within=SOON_S):
        """Waits until it is on a node, and names it."""
        return await self._until(lambda: self.node, "connected", within)

    async def back(self, away_from, within=BACK_WITHIN_S):
        """Waits until it is on another node, and names it."""
        others = [node for node in self.cluster.nodes if node != away_from]
        return await self.on(*others, within=within)

    async def receive(self, within=SOON_S):
        """The next frame of the application."""
        try:
            return await asyncio.wait_for(self._frames.get(), within)
        except TimeoutError:
            raise AssertionError(f"{self} received nothing within {within:.0f} s") from None

    def received(self):
        """Frames that came and that no test has asked for."""
        return [self._frames.get_nowait() for _ in range(self._frames.qsize())]

    async def _until(self, condition, what, within):
        loop = asyncio.get_running_loop()
        end = loop.time() + within
        while not (value := condition()):
            if self._life.done():
                raise AssertionError(f"{self} gave up") from self._life.exception()
            if loop.time() > end:
                raise AssertionError(f"{self} was not {what} within {within:.0f} s; it had {self.visits}")
            self._news.clear()
            try:
                await asyncio.wait_for(self._news.wait(), 0.5)
            except TimeoutError:
                pass
        return value

    def __repr__(self):
        return f"{self.kind} of {self.team}"


async def exchange(one, other):
    """Each sends a message that the other receives, and no other message comes in between."""
    for sender, receiver in ((one, other), (other, one)):
        text = f"from {sender.kind}: {random.getrandbits(64):016x}"
        await sender.send(text)
        assert await receiver.receive() == text

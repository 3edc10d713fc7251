"""A client that speaks `usher.v1`: told to move, it opens its next connection before it closes the old one."""

import asyncio
import contextlib
import json

import websockets
from websockets.asyncio.client import connect

from .driver import Driver


class UsherV1(Driver):
    """The protocol in forty lines, over a library that knows nothing of it."""

    kind = "usher-v1"
    _socket = None

    async def _run(self):
        url = self.cluster.door(self.team)
        while True:
            try:
                async with contextlib.AsyncExitStack() as sockets:
                    while url:
                        url = await self._talk(await sockets.enter_async_context(self._dial(url)))
                        # The stack keeps the old connection open until the new one is welcome.
            except (OSError, EOFError, websockets.WebSocketException):
                pass
            url = self.cluster.door(self.team)
            await self._pause()

    def _dial(self, url):
        return connect(url, subprotocols=["usher.v1"])

    async def _talk(self, socket):
        """Until the connection ends, or until its slot to move: then where to."""
        welcome = json.loads(await socket.recv())
        assert welcome["usher"] == "welcome", welcome
        before, self._socket = self._socket, socket
        self._arrived(socket.remote_address[1])
        if before:
            await before.close()
        try:
            async for text in socket:
                control = json.loads(text) if text.startswith('{"usher":') else {}
                if control.get("usher") == "move":
                    await asyncio.sleep(control["after_ms"] / 1000)
                    return control["url"]
                if not control:
                    self._frame(text)
        except websockets.ConnectionClosed:
            pass
        self._socket = None
        self._left(socket.close_code, socket.close_reason or "")
        return None

    async def send(self, text):
        await self._socket.send(text)

"""Python `websockets`: it follows a redirect of the broker by itself."""

import websockets
from websockets.asyncio.client import connect

from .driver import Driver


class Websockets(Driver):
    """Asks the broker for every connection."""

    kind = "websockets"
    _socket = None

    async def _run(self):
        while True:
            try:
                async with connect(self.cluster.door(self.team)) as socket:
                    await self._talk(socket)
            except (OSError, EOFError, websockets.WebSocketException):
                pass
            await self._pause()

    async def _talk(self, socket):
        self._socket = socket
        self._arrived(socket.remote_address[1])
        try:
            async for text in socket:
                self._frame(text)
        except websockets.ConnectionClosed:
            pass
        finally:
            self._left(socket.close_code, socket.close_reason or "")

    async def send(self, text):
        await self._socket.send(text)


class WebsocketsLoop(Websockets):
    """Its own reconnect loop: from the second connection on it dials the node it was on, with the old ticket.

    So it meets the dead node's port until that node is back, and must be sent back to the broker then.
    """

    kind = "websockets-loop"

    async def _run(self):
        async for socket in connect(self.cluster.door(self.team)):
            await self._talk(socket)

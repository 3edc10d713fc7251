"""Python `aiohttp`: it follows http(s) and scheme-relative redirects, not ws(s) ones."""

import aiohttp

from .driver import Driver


class Aiohttp(Driver):
    """Asks the broker for every connection."""

    kind = "aiohttp"
    _socket = None

    async def _run(self):
        async with aiohttp.ClientSession() as session:
            while True:
                try:
                    async with session.ws_connect(self.cluster.door(self.team, "http")) as socket:
                        await self._talk(socket)
                except (aiohttp.ClientError, OSError):
                    pass
                await self._pause()

    async def _talk(self, socket):
        self._socket = socket
        self._arrived(socket.get_extra_info("peername")[1])
        try:
            async for message in socket:
                if message.type == aiohttp.WSMsgType.TEXT:
                    self._frame(message.data)
        finally:
            self._left(socket.close_code)

    async def send(self, text):
        await self._socket.send_str(text)

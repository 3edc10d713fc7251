"""Python `websocket-client`: blocking, so it lives in a thread; it follows absolute ws(s) redirects only."""

import asyncio
import socket as sockets
import threading

import websocket

from .driver import Driver


class WebsocketClient(Driver):
    """Asks the broker for every connection."""

    kind = "websocket-client"
    _socket = None

    async def _run(self):
        loop = asyncio.get_running_loop()
        self._leaving = threading.Event()
        self._thread = threading.Thread(target=self._live, args=(loop.call_soon_threadsafe,), daemon=True)
        self._thread.start()
        await asyncio.Event().wait()

    def _live(self, tell):
        while not self._leaving.is_set():
            try:
                # A time-out bounds the handshake; the connection itself may be silent.
                self._socket = websocket.create_connection(self.cluster.door(self.team), timeout=10)
                self._socket.settimeout(None)
                self._talk(tell)
            except (OSError, websocket.WebSocketException):
                pass
            self._leaving.wait(0.3)

    def _talk(self, tell):
        code = None
        tell(self._arrived, self._socket.sock.getpeername()[1])
        try:
            while True:
                opcode, data = self._socket.recv_data()
                if opcode == websocket.ABNF.OPCODE_CLOSE:
                    code = int.from_bytes(data[:2], "big") if data else None
                    break
                tell(self._frame, data.decode())
        finally:
            tell(self._left, code)
            self._socket.shutdown()

    async def send(self, text):
        await asyncio.to_thread(self._socket.send, text)

    async def _gone(self):
        self._leaving.set()
        try:
            # `close` of another thread would wait for an answer that the reader takes away.
            self._socket.sock.shutdown(sockets.SHUT_RDWR)
        except (AttributeError, OSError):
            pass
        await asyncio.to_thread(self._thread.join, 15)
        assert not self._thread.is_alive(), f"the thread of {self} is stuck"

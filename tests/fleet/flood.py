"""Keeping a node's process really busy, with as little work as possible on this side."""

import socket
import threading

from raw import raw_member

# A text frame without text, masked with zeros (RFC 6455 section 5.2): the least to send, and as much
# for the node to do as for any other frame.
_FRAME = b"\x81\x80\0\0\0\0"
_BLOCK = _FRAME * 20_000


class Flood:
    """A client that is alone in its team and sends frames as fast as the node takes them."""

    def __init__(self, pool, team):
        self._stream = raw_member(pool, team)
        # What ended it before it was stopped.
        self.ended_by = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        try:
            while not self._stopped.is_set():
                self._stream.sendall(_BLOCK)
        except OSError as error:
            self.ended_by = error

    def stop(self):
        self._stopped.set()
        self._stream.shutdown(socket.SHUT_RDWR)
        self._thread.join(30)
        self._stream.close()

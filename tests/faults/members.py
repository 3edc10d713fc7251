"""Clients that ask and wait, as no library lets them."""

import select
import socket

from harness.ask import address_of, ask, target_of, upgrade
from harness.patience import BACK_WITHIN_S


class Member:
    """A WebSocket of which only the handshake matters."""

    def __init__(self, fleet, team, patient=False):
        """`patient`: the answer to its handshake is waited for by [`Member.answered`] only."""
        self._fleet = fleet
        self.team = team
        with fleet.among_clients():
            self.url = ask(fleet.clients, f"/connect/{team}", headers={"Accept": "application/json"}).json["url"]
        self._stream = None
        self._ask()
        if not patient:
            status = self.answered()
            assert status == 101, (team, status)

    def _ask(self):
        address = address_of(self.url)
        fields = {"Host": "{}:{}".format(*address), **upgrade()}
        lines = [f"GET {target_of(self.url)} HTTP/1.1", *(f"{key}: {value}" for key, value in fields.items()), "", ""]
        with self._fleet.among_clients():
            self._stream = socket.create_connection(address, timeout=BACK_WITHIN_S)
        self._stream.sendall("\r\n".join(lines).encode())

    def answered(self):
        """The status of the answer to its handshake."""
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            byte = self._stream.recv(1)
            assert byte, f"cut within the handshake: {head!r}"
            head += byte
        return int(head.split()[1])

    def has_answer(self):
        """Whether the answer to its handshake has begun to arrive."""
        return bool(select.select([self._stream], [], [], 0)[0])

    def lives(self):
        """Whether its socket is open and nothing was said on it: not a Close, either."""
        try:
            self._stream.setblocking(False)
            self._stream.recv(1)
        except BlockingIOError:
            return True
        except OSError:
            pass
        return False

    def close(self):
        self._stream.close()

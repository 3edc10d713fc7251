"""A WebSocket as a bare socket, for clients that behave as no library would let them."""

import socket

from harness.ask import address_of, ask, target_of, upgrade


def raw_member(pool, team, receive_bytes=None):
    """A member of a team, its handshake done; the kernel holds `receive_bytes` for it, if that is said."""
    url = ask(pool.clients, f"/connect/{team}", headers={"Accept": "application/json"}).json["url"]
    address = address_of(url)
    stream = socket.socket()
    stream.settimeout(30)
    if receive_bytes:
        # Before it connects: the window is agreed on there.
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    stream.connect(address)
    fields = {"Host": "{}:{}".format(*address), **upgrade()}
    head = f"GET {target_of(url)} HTTP/1.1\r\n" + "".join(f"{key}: {value}\r\n" for key, value in fields.items())
    stream.sendall(head.encode() + b"\r\n")
    answer = b""
    while not answer.endswith(b"\r\n\r\n"):
        byte = stream.recv(1)
        assert byte, f"cut within the handshake: {answer!r}"
        answer += byte
    assert answer.startswith(b"HTTP/1.1 101 "), answer
    return stream

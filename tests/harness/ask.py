"""HTTP as bytes. Client libraries tidy a request up before they send it; bad input must arrive bad."""

import base64
import json
import os
import socket
from dataclasses import dataclass
from http.client import HTTPResponse
from urllib.parse import parse_qs, urlsplit

TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Answer:
    """What came back. Header names are in lower case."""

    status: int
    headers: dict
    body: bytes

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def code(self):
        """The stable code of a problem (RFC 9457); fails when the body is none."""
        kind = self.headers.get("content-type", "")
        assert kind.startswith("application/problem+json"), f"{self.status} {kind}: {self.body[:300]!r}"
        problem = self.json
        assert problem["status"] == self.status, problem
        assert problem["type"] == f"urn:usher:problem:{problem['code']}", problem
        assert problem["title"] and problem["detail"], problem
        return problem["code"]

    @property
    def location(self):
        return self.headers["location"]


def ask(address, path, method="GET", headers=None, body=None):
    """Sends exactly `path` to `address`, `(host, port)`, and reads one answer."""
    fields = {"Host": "{}:{}".format(*address), "Connection": "close"}
    if body is not None:
        if not isinstance(body, bytes):
            body = json.dumps(body).encode()
            fields["Content-Type"] = "application/json"
        fields["Content-Length"] = str(len(body))
    fields.update(headers or {})
    head = f"{method} {path} HTTP/1.1\r\n" + "".join(f"{key}: {value}\r\n" for key, value in fields.items())
    return exchange(address, head.encode() + b"\r\n" + (body or b""))


def exchange(address, request):
    """Sends the bytes and reads one answer; an upgraded socket is closed after its head."""
    with socket.create_connection(address, timeout=TIMEOUT_S) as stream:
        try:
            stream.sendall(request)
        except (BrokenPipeError, ConnectionResetError):
            pass  # The server may answer and close before it has read a body that is too large.
        answer = HTTPResponse(stream)
        answer.begin()
        body = b"" if answer.status == 101 else answer.read()
        headers = {key.lower(): value for key, value in answer.getheaders()}
        return Answer(answer.status, headers, body)


def upgrade(headers=None):
    """The headers that ask for a WebSocket, and more."""
    return {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": base64.b64encode(os.urandom(16)).decode(),
        **(headers or {}),
    }


def address_of(url):
    """`(host, port)` of a URL, or of `host:port`."""
    parts = urlsplit(url if "//" in url else f"//{url}")
    return parts.hostname, parts.port


def ticket_of(url):
    """The ticket that a node URL carries."""
    (ticket,) = parse_qs(urlsplit(url).query)["ticket"]
    return ticket


def target_of(url):
    """Path and query, as a request line has them."""
    parts = urlsplit(url)
    return f"{parts.path}?{parts.query}" if parts.query else parts.path

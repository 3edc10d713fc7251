"""Many at once, from one address: nobody else is shut out, and those who behave are served."""

import resource
import socket
import time

import pytest
from harness.ask import ask, target_of, upgrade

JSON = {"Accept": "application/json"}
PAGE = {"User-Agent": "Mozilla/5.0", "Sec-Fetch-Mode": "websocket", "Origin": "http://localhost"}
CROWD = "127.0.0.2"
"""More than a listener has places for, and than there are sockets that say where to go."""
PLACES = 4_096
FAREWELLS = 1_024
SOON_S = 5


@pytest.fixture(autouse=True, scope="module")
def enough_descriptors():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def crowd():
    """Opens connections from one address, and closes them in the end."""
    opened = []

    def opens(address, request=b""):
        stream = socket.create_connection(address, timeout=30, source_address=(CROWD, 0))
        opened.append(stream)
        stream.sendall(request)
        return stream

    yield opens
    for stream in opened:
        stream.close()


def request(path, headers):
    fields = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"GET {path} HTTP/1.1\r\nHost: a\r\n{fields}\r\n".encode()


def head(stream):
    """The head of the answer, or what came before the end."""
    text = b""
    try:
        while b"\r\n\r\n" not in text and (some := stream.recv(4096)):
            text += some
    except ConnectionResetError:
        pass
    return text


def soon(what, answer):
    began = time.monotonic()
    answer = answer()
    took = time.monotonic() - began
    assert took < SOON_S, f"{what} took {took:.1f} s"
    return answer


def test_connections_that_are_kept_open_shut_out_nobody(cluster, team, crowd):
    assert ask(cluster.clients, f"/connect/{team}", headers=JSON).status == 200
    slowest = 0
    for _ in range(PLACES + 200):
        began = time.monotonic()
        answer = head(crowd(cluster.clients, request(f"/connect/{team}", JSON)))
        slowest = max(slowest, time.monotonic() - began)
        assert answer.startswith(b"HTTP/1.1 200"), answer
    assert slowest < SOON_S, f"one waited {slowest:.1f} s"
    assert soon("another address", lambda: ask(cluster.clients, f"/connect/{team}", headers=JSON)).status == 200


@pytest.mark.parametrize("listener", ["clients", "admin", "node_link", "node"])
def test_silent_connections_shut_out_nobody_and_the_health_is_told(cluster, crowd, listener):
    address = cluster.nodes["node-1"].address if listener == "node" else getattr(cluster, listener)
    for _ in range(PLACES + 200):
        crowd(address)
    for path in ("/healthz", "/readyz"):
        assert soon(path, lambda path=path: ask(address, path)).status == 200


def test_a_crowd_of_pages_that_are_told_where_to_go_shuts_out_no_other_page(cluster, team, crowd):
    url = ask(cluster.clients, f"/connect/{team}", headers=JSON).json["url"]
    owner = cluster.nodes[cluster.owner(team)]
    stale = target_of(url).split("?")[0] + "?ticket=x"
    for address, path in ((cluster.clients, f"/connect/{team}"), (owner.address, stale)):
        told = [crowd(address, request(path, upgrade(PAGE))) for _ in range(FAREWELLS + 100)]
        assert head(told[0]).startswith(b"HTTP/1.1 101")
        assert ask(address, path, headers=upgrade(PAGE)).status == 101

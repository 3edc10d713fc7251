"""A ticket is a plain JWT, and opens one door, for one team, for a short time."""

import asyncio
import base64
import hashlib
import hmac
import json
import time
import uuid

import jwt
import pytest
import websockets
from harness.ask import address_of, ask, target_of, ticket_of, upgrade
from websockets.asyncio.client import connect

JSON = {"Accept": "application/json"}
# A client that follows redirects and says nothing of itself.
PLAIN = upgrade()
BROWSER = upgrade({"User-Agent": "Mozilla/5.0 (X11; Linux x86_64; rv:153.0) Gecko/20100101 Firefox/153.0"})


def passage(cluster, team):
    """What the broker answers to an SDK."""
    answer = ask(cluster.clients, f"/connect/{team}", headers=JSON)
    assert answer.status == 200, answer
    return answer.json


def ticket_key(cluster, kid, node):
    """The key of a node's tickets: HKDF-SHA256 (RFC 5869) of the master key, without salt, 32 bytes."""
    master = bytes.fromhex((cluster.data / "broker" / "master.key").read_text().split()[0])
    extracted = hmac.digest(b"\0" * 32, master, hashlib.sha256)
    info = b"usher ticket v1\0" + kid.encode() + b"\0" + node.encode()
    return hmac.digest(extracted, info + b"\x01", hashlib.sha256)


def unsigned(ticket):
    """Header and claims, unchecked."""
    return jwt.get_unverified_header(ticket), jwt.decode(ticket, options={"verify_signature": False})


@pytest.fixture
def mint(cluster, team):
    """Makes a ticket for the team like the broker's, but for the claims that are given."""
    ticket = ticket_of(passage(cluster, team)["url"])
    header, claims = unsigned(ticket)

    def make(key_of=None, header_of=None, **changes):
        changed = {**claims, "jti": uuid.uuid4().hex[:16], **changes}
        key = ticket_key(cluster, header["kid"], key_of or claims["aud"])
        return jwt.encode(changed, key, algorithm="HS256", headers={**header, **(header_of or {})})

    make.claims = claims
    make.node = cluster.nodes[claims["aud"]]
    return make


def knock(node, team, ticket, headers=PLAIN):
    """Asks a node for a WebSocket."""
    query = "" if ticket is None else f"?ticket={ticket}"
    return ask(node.address, f"/teams/{team}{query}", headers=headers)


def sent_back(cluster, team, answer, ticket):
    """Whether a client goes back to the broker, with the ticket that did not fit."""
    assert answer.status in (302, 307), answer
    assert address_of(answer.location) == cluster.clients, answer
    path, _, query = target_of(answer.location).partition("?")
    assert path == f"/connect/{team}", answer
    assert query == ("" if ticket is None else f"ticket={ticket}"), answer
    assert answer.headers["cache-control"] == "no-store", answer
    return True


def test_a_ticket_is_a_jwt_that_a_stock_library_reads(cluster, team):
    way = passage(cluster, team)
    header, claims = unsigned(ticket_of(way["url"]))
    assert header["alg"] == "HS256" and header["typ"] == "JWT" and header["kid"], header
    assert claims["sub"] == way["team"] == team
    assert claims["aud"] == way["node"] in cluster.nodes
    assert claims["epoch"] == way["epoch"] > 0
    assert 0 < claims["exp"] - claims["iat"] <= 60
    assert abs(claims["iat"] - time.time()) < 30
    assert 0 < way["expires_in"] <= claims["exp"] - claims["iat"]
    assert claims["hop"] == 0
    assert len(claims["inc"]) == 32 and len(claims["jti"]) == 16
    int(claims["inc"], 16), int(claims["jti"], 16)


def test_a_ticket_is_signed_with_the_key_of_its_node_and_no_other(cluster, team):
    ticket = ticket_of(passage(cluster, team)["url"])
    header, claims = unsigned(ticket)
    node = claims["aud"]
    for name in cluster.nodes:
        key = ticket_key(cluster, header["kid"], name)
        if name == node:
            assert jwt.decode(ticket, key, algorithms=["HS256"], audience=node)["sub"] == team
        else:
            with pytest.raises(jwt.InvalidSignatureError):
                jwt.decode(ticket, key, algorithms=["HS256"], audience=node)


def test_no_two_tickets_are_alike(cluster, team):
    tickets = {unsigned(ticket_of(passage(cluster, team)["url"]))[1]["jti"] for _ in range(50)}
    assert len(tickets) == 50


def test_a_ticket_made_by_a_stock_library_opens_the_door(mint, team):
    assert knock(mint.node, team, mint()).status == 101


def test_every_ticket_that_does_not_fit_goes_back_to_the_broker(cluster, mint, team):
    now = int(time.time())
    others = [name for name in cluster.nodes if name != mint.node.name]
    good = mint()
    part, claims, signature = good.split(".")
    none = base64.urlsafe_b64encode(json.dumps({"alg": "none", "kid": "1"}).encode()).rstrip(b"=").decode()
    tickets = {
        "none at all": None,
        "no JWT": "x",
        "a changed signature": f"{part}.{claims}.{'A' * len(signature)}",
        "no signature": f"{part}.{claims}.",
        "algorithm none": f"{none}.{claims}.",
        "signed with another node's key": mint(key_of=others[0]),
        "an unknown key id": mint(header_of={"kid": "99"}),
        "expired": mint(iat=now - 100, exp=now - 50),
        "a life of an hour": mint(exp=now + 3600),
        "born in the future": mint(iat=now + 600, exp=now + 630),
        "another team": mint(sub=f"{team}-other"),
        "another node": mint(aud=others[0]),
        "another process of the node": mint(inc="0" * 31 + "1"),
        "an epoch that is over": mint(epoch=mint.claims["epoch"] - 1),
        "an epoch that nobody gave": mint(epoch=mint.claims["epoch"] + 1_000_000),
        "for a post": mint(scope="post"),
    }
    for why, ticket in tickets.items():
        assert sent_back(cluster, team, knock(mint.node, team, ticket), ticket), why
    assert knock(mint.node, team, good).status == 101


def test_a_ticket_of_one_team_opens_no_other_team(cluster, mint, team):
    other = f"{team}-other"
    passage(cluster, other)
    ticket = mint()
    assert sent_back(cluster, other, knock(mint.node, other, ticket), ticket)


def test_a_ticket_of_one_node_opens_no_other_node(cluster, mint, team):
    ticket = mint()
    for node in cluster.nodes.values():
        answer = knock(node, team, ticket)
        assert answer.status == 101 if node == mint.node else sent_back(cluster, team, answer, ticket)


async def test_a_page_with_a_stale_ticket_is_sent_back_in_a_frame(cluster, mint, team):
    now = int(time.time())
    ticket = mint(iat=now - 100, exp=now - 50)
    host, port = mint.node.address
    url = f"ws://{host}:{port}/teams/{team}?ticket={ticket}"
    async with connect(url, user_agent_header=BROWSER["User-Agent"]) as socket:
        frame = json.loads(await asyncio.wait_for(socket.recv(), 30))
        with pytest.raises(websockets.ConnectionClosed):
            await asyncio.wait_for(socket.recv(), 30)
    assert frame["usher"] == "redirect"
    assert address_of(frame["url"]) == cluster.clients
    assert target_of(frame["url"]) == f"/connect/{team}?ticket={ticket}"
    assert socket.close_code == 4302


async def test_a_ticket_used_twice_replaces_the_connection_it_made(cluster, mint, team):
    host, port = mint.node.address
    url = f"ws://{host}:{port}/teams/{team}?ticket="
    # A connection is named after its ticket, so each one is another name to be found by.
    for ticket in [mint() for _ in range(10)]:
        async with connect(url + ticket) as first, connect(url + ticket) as second:
            with pytest.raises(websockets.ConnectionClosed):
                await asyncio.wait_for(first.recv(), 30)
            assert first.close_code == 4309
            async with connect(url + mint()) as mate:
                await mate.send("still here?")
                assert await asyncio.wait_for(second.recv(), 30) == "still here?"


def test_a_redirect_loop_is_cut_at_the_third_hop(cluster, team):
    ticket = ticket_of(passage(cluster, team)["url"])
    for hop in (1, 2):
        answer = ask(cluster.clients, f"/connect/{team}?ticket={ticket}", headers=PLAIN)
        assert answer.status == 302, answer
        ticket = ticket_of(answer.location)
        assert unsigned(ticket)[1]["hop"] == hop
    answer = ask(cluster.clients, f"/connect/{team}?ticket={ticket}", headers=PLAIN)
    while answer.status == 302 and unsigned(ticket_of(answer.location))[1]["hop"] == 3:
        ticket = ticket_of(answer.location)
        answer = ask(cluster.clients, f"/connect/{team}?ticket={ticket}", headers=PLAIN)
    assert answer.status == 503 and int(answer.headers["retry-after"]) >= 1, answer
    assert answer.code
    # Whoever comes without that ticket is served as ever.
    assert passage(cluster, team)["team"] == team


def test_a_ticket_that_is_not_ours_counts_for_nothing_at_the_broker(cluster, mint, team):
    forged = mint(key_of="node-99", hop=3)
    for ticket in ("x", "a.b.c", forged):
        answer = ask(cluster.clients, f"/connect/{team}?ticket={ticket}", headers=PLAIN)
        assert answer.status == 302, answer
        assert unsigned(ticket_of(answer.location))[1]["hop"] == 0

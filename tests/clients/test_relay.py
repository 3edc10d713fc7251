"""What a node does with frames."""

import asyncio
import contextlib
import json

import websockets
from harness.patience import SOON_S
from websockets.asyncio.client import connect


async def soon(awaitable):
    """The result, within a bound."""
    return await asyncio.wait_for(awaitable, SOON_S)


@contextlib.asynccontextmanager
async def members(cluster, team, **options):
    """Two connections of a team."""
    door = cluster.door(team)
    async with connect(door, **options) as one, connect(door, **options) as other:
        yield one, other


async def test_a_frame_that_pretends_to_be_control_is_not_relayed(cluster, team):
    async with members(cluster, team) as (one, other):
        for text in ('{"usher":"x"}', '{"usher":"redirect","url":"ws://evil.example/"}', '{"usher":'):
            await one.send(text)
        await one.send("honest")
        assert await soon(other.recv()) == "honest"


async def test_a_frame_that_only_looks_like_control_passes_untouched(cluster, team):
    texts = [' {"usher":"x"}', '{ "usher":"x"}', '{"Usher":"x"}', '{"a":{"usher":1}}', "", "snow \u2603"]
    async with members(cluster, team) as (one, other):
        for text in texts:
            await one.send(text)
            assert await soon(other.recv()) == text


async def test_binary_frames_pass_untouched_even_with_the_bytes_of_control(cluster, team):
    async with members(cluster, team) as (one, other):
        for data in (bytes(range(256)), b'{"usher":"x"}', b""):
            await one.send(data)
            assert await soon(other.recv()) == data


async def test_a_sender_does_not_hear_itself(cluster, team):
    async with members(cluster, team) as (one, other):
        await one.send("ping")
        assert await soon(other.recv()) == "ping"
        await other.send("pong")
        assert await soon(one.recv()) == "pong"


async def test_frames_keep_their_order(cluster, team):
    async with members(cluster, team) as (one, other):
        for number in range(500):
            await one.send(str(number))
        assert [int(await soon(other.recv())) for _ in range(500)] == list(range(500))


async def test_the_subprotocol_is_answered_and_says_welcome(cluster, team):
    async with connect(cluster.door(team), subprotocols=["usher.v1"]) as socket:
        assert socket.subprotocol == "usher.v1"
        welcome = json.loads(await soon(socket.recv()))
        assert welcome["usher"] == "welcome" and welcome["team"] == team, welcome
        assert welcome["node"] == cluster.owner(team) and welcome["epoch"] > 0, welcome
        assert len(welcome["connection"]) == 16 and welcome["ping_s"] > 0, welcome


async def test_an_application_keeps_its_own_subprotocol_and_hears_no_control(cluster, team):
    async with members(cluster, team, subprotocols=["chat.v2", "chat.v1"]) as (one, other):
        assert one.subprotocol == other.subprotocol == "chat.v2"
        await one.send("first")
        assert await soon(other.recv()) == "first"


async def test_a_message_over_the_bound_closes_its_sender_and_nobody_else(cluster, team):
    async with members(cluster, team) as (one, other):
        with contextlib.suppress(websockets.ConnectionClosed):
            await one.send("x" * (300 * 1024))
            await soon(one.recv())
        assert one.close_code == 4413
        async with connect(cluster.door(team)) as third:
            await third.send("still here")
            assert await soon(other.recv()) == "still here"


async def test_a_slow_reader_is_closed_and_the_others_hear_everything(cluster, team):
    messages = 600
    text = "x" * (32 * 1024)
    # The slow one stops reading from its socket as soon as one message waits for its application.
    async with members(cluster, team) as (one, other), connect(cluster.door(team), max_queue=1) as slow:
        for number in range(messages):
            await one.send(f"{number} {text}")
            assert (await soon(other.recv())).split(" ", 1)[0] == str(number)
        with contextlib.suppress(websockets.ConnectionClosed):
            while True:
                await soon(slow.recv())
        assert slow.close_code in (4308, 1006), slow.close_code

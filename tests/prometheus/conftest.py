"""A cluster with everything in it that the dashboard shows, watched by a real Prometheus."""

import asyncio
import contextlib
import json
import time

import pytest_asyncio
import websockets
from harness.ask import ask, ticket_of, upgrade
from harness.cluster import Cluster
from harness.patience import eventually
from harness.prometheus import Prometheus
from websockets.asyncio.client import connect


async def chat(cluster, team, members=2):
    """Members of a team that talk for as long as they live, and come back by themselves."""

    async def speak(socket):
        with contextlib.suppress(websockets.ConnectionClosed):
            while True:
                await socket.send(f"it is {time.time()}")
                await asyncio.sleep(0.2)

    async def member():
        async for socket in connect(cluster.door(team)):
            speaking = asyncio.create_task(speak(socket))
            try:
                async for _ in socket:
                    pass
            except websockets.ConnectionClosed:
                pass
            finally:
                speaking.cancel()

    await asyncio.gather(*(member() for _ in range(members)))


async def mover(cluster, team):
    """A client that speaks `usher.v1`: it opens its next connection before it closes the old one."""
    url = cluster.door(team)
    while True:
        with contextlib.suppress(OSError, websockets.WebSocketException):
            async with contextlib.AsyncExitStack() as old:
                socket = await connect(url, subprotocols=["usher.v1"])
                while True:
                    old.push_async_callback(socket.close)
                    url = await _told_to_move(socket)
                    following = await connect(url, subprotocols=["usher.v1"])
                    await old.aclose()
                    socket = following
        url = cluster.door(team)
        await asyncio.sleep(0.2)


async def _told_to_move(socket):
    async for text in socket:
        if text.startswith('{"usher":') and (frame := json.loads(text))["usher"] == "move":
            await asyncio.sleep(frame["after_ms"] / 1000)
            return frame["url"]
    raise OSError("the connection ended")


def offend(cluster):
    """What makes refusals: a malformed team, a stale ticket, a forged one."""
    assert ask(cluster.clients, "/connect/a%2fb").status == 400
    passage = ask(cluster.clients, "/connect/offended", headers={"Accept": "application/json"}).json
    ticket = ticket_of(passage["url"])
    for node in cluster.nodes.values():
        for team in ("offended", "other"):
            for shown in (ticket, "forged"):
                ask(node.address, f"/teams/{team}?ticket={shown}", headers=upgrade())
    ask(cluster.clients, "/connect/offended?ticket=forged")


async def pretend(cluster):
    """A frame that looks like control."""
    async with connect(cluster.door("offended")) as socket:
        await socket.send('{"usher":"x"}')


class Observed:
    """What the tests here look at."""

    def __init__(self, cluster, prometheus, since):
        self.cluster = cluster
        self.prometheus = prometheus
        self.since = since


@pytest_asyncio.fixture(scope="session")
async def observed():
    """A cluster that was watched while clients talked, a node died and another was drained."""
    cluster = await asyncio.to_thread(Cluster)
    prometheus = Prometheus(cluster)
    since = time.time()
    clients = []
    try:
        await eventually("Prometheus is ready", prometheus.is_ready)
        await eventually("every target is scraped", prometheus.scrapes_all)
        clients += [asyncio.create_task(chat(cluster, f"chat-{number}")) for number in range(24)]
        clients += [asyncio.create_task(mover(cluster, f"mover-{number}")) for number in range(6)]
        await eventually("the clients are on their nodes", lambda: _connections(prometheus) >= 54)
        await _live_through_something(cluster)
        await _scraped_again(prometheus)
        yield Observed(cluster, prometheus, since)
    finally:
        for client in clients:
            client.cancel()
        await asyncio.gather(*clients, return_exceptions=True)
        try:
            prometheus.stop()
        finally:
            await asyncio.to_thread(cluster.stop)


def _connections(prometheus):
    return sum(float(series["value"][1]) for series in prometheus.now("usher_node_connections"))


async def _live_through_something(cluster):
    offend(cluster)
    await pretend(cluster)
    before = cluster.view("/v1/nodes/node-3")["incarnation"]
    cluster.kill_worker("node-3")
    await eventually("another process came back", lambda: cluster.view("/v1/nodes/node-3")["incarnation"] != before)
    await eventually("the killed node is ready", cluster.all_ready)
    operation = cluster.drain("node-2")
    await eventually("the drain is done", lambda: cluster.finished(operation), within=60)
    cluster.undrain("node-2")
    await eventually("every node is ready", cluster.all_ready)


async def _scraped_again(prometheus):
    """Waits until everything that happened so far was scraped often enough for every rate to see it."""
    for _ in range(4):
        after = time.time()

        def scraped(after=after):
            return all(float(series["value"][1]) > after for series in prometheus.now("timestamp(up)"))

        await eventually("every target was scraped again", scraped)

"""What a client lives through, written once for every kind: it arrives, its node dies, its node is emptied.

A team mate of another kind is with it all the time, and both must hear each other before and after.
"""

import asyncio
import contextlib

import pytest
from drivers import Aiohttp, ChromiumBare, UsherV1, Websockets, WebsocketsLoop
from drivers.driver import exchange
from harness.ask import ask
from harness.patience import eventually


@contextlib.asynccontextmanager
async def met(cluster, team, kind, mate_kind):
    """Two clients of a team that hear each other, and the node they are on."""
    async with kind(cluster, team) as client, mate_kind(cluster, team) as mate:
        node = await client.connected()
        assert await mate.connected() == node == cluster.owner(team)
        await exchange(client, mate)
        yield client, mate, node


async def meet_again(cluster, client, mate, away_from):
    """Both are on the same other node in time, and hear each other there."""
    node = await client.back(away_from)
    assert await mate.back(away_from) == node == cluster.owner(client.team)
    client.received(), mate.received()
    await exchange(client, mate)


async def test_a_client_reaches_the_node_of_its_team_and_talks_to_a_team_mate(cluster, team, kind, mate_kind):
    async with met(cluster, team, kind, mate_kind) as (client, mate, _):
        await exchange(mate, client)
        assert len(client.visits) == len(mate.visits) == 1


async def test_a_client_is_back_on_another_node_after_its_node_was_killed(cluster, team, kind, mate_kind):
    async with met(cluster, team, kind, mate_kind) as (client, mate, node):
        cluster.kill_worker(node)
        await meet_again(cluster, client, mate, away_from=node)


async def reported(cluster, node, connections):
    """The broker knows of the connections: a node says how many it has with its heartbeats."""
    what = f"{node} has reported {connections} connections"
    await eventually(what, lambda: cluster.view(f"/v1/nodes/{node}")["connections"] >= connections)


async def test_a_client_is_back_on_another_node_after_its_node_was_drained(cluster, team, kind, mate_kind):
    async with met(cluster, team, kind, mate_kind) as (client, mate, node):
        await reported(cluster, node, 2)
        operation = cluster.drain(node)
        await meet_again(cluster, client, mate, away_from=node)
        report = await eventually("the drain is done", lambda: cluster.finished(operation))
        assert report["state"] == "done" and report["teams_to_go"] == report["teams_leaving"] == 0, report
        assert report["teams"] == report["teams_moved"] >= 1, report
        assert report["connections_moved"] >= 2, report
        for one in (client, mate):
            # Every library hands this code on as it is. Who speaks usher.v1 has left before it would be closed.
            moved = None if isinstance(one, UsherV1) else 4312
            assert one.visits[0].code == moved, (one, one.visits)


async def test_a_loop_that_dials_the_dead_node_is_sent_back_by_the_process_that_took_its_place(cluster, team, peers):
    async with WebsocketsLoop(cluster, team) as client:
        node = await client.connected()
        cluster.kill_worker(node)
        await client.back(away_from=node)
        # The new process has counted from 0: it was this client that came with a ticket of the dead one.
        figures = ask(cluster.nodes[node].admin, "/metrics").body.decode()
        assert 'usher_tickets_refused_total{reason="other_node"} 1\n' in figures, figures


# Not for every kind: `usher dev` gives up on a process that dies five times in a row.
@pytest.mark.parametrize("kind", [Aiohttp, WebsocketsLoop, ChromiumBare], ids=lambda kind: kind.kind)
async def test_a_client_is_back_after_its_node_was_killed_with_the_parent_that_would_report_it(
    cluster, team, peers, kind
):
    async with met(cluster, team, kind, Websockets) as (client, mate, node):
        cluster.kill_with_parent(node)
        await meet_again(cluster, client, mate, away_from=node)


# Its own loop has no other node to dial than the one that never returns, so it is not here.
@pytest.mark.parametrize("kind", [Websockets, ChromiumBare], ids=lambda kind: kind.kind)
async def test_a_client_is_back_although_its_node_never_returns(own_cluster, team, peers, kind):
    async with met(own_cluster, team, kind, Websockets) as (client, mate, node):
        own_cluster.kill_for_good(node)
        await meet_again(own_cluster, client, mate, away_from=node)
        await eventually("the broker knows that the node is gone", lambda: own_cluster.states()[node] == "dead")


# From the second connection on the loop dials the node it was on, so each drain sends it back to the broker; that took
# less than the 10 s in which redirects add up, for node after node.
async def test_a_rolling_restart_of_four_nodes_never_takes_a_client_for_one_that_goes_round_in_a_circle(four_nodes, team):
    cluster = four_nodes
    async with contextlib.AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(kind(cluster, f"{team}-{kind.kind}-{at}"))
            for kind in (WebsocketsLoop, Websockets)
            for at in range(6)
        ]
        for client in clients:
            await client.connected()
        for _ in range(2):
            for node in list(cluster.nodes):
                operation = cluster.drain(node)
                await eventually("the drain is done", lambda: cluster.finished(operation))  # noqa: B023
                others = [other for other in cluster.nodes if other != node]
                await asyncio.gather(*(client.on(*others) for client in clients))
                cluster.undrain(node)
        figures = cluster.rest("GET", "/metrics").body.decode().splitlines()
        refused = [line for line in figures if 'code="too_many_hops"' in line]
        assert all(line.endswith(" 0") for line in refused), refused
        moves = sum(len(client.visits) - 1 for client in clients)
        assert moves >= 2 * len(clients), moves


async def test_a_client_that_speaks_usher_v1_is_drained_without_a_moment_offline(cluster, team):
    async with UsherV1(cluster, team) as client:
        node = await client.connected()
        await reported(cluster, node, 1)
        operation = cluster.drain(node)
        await client.back(away_from=node)
        report = await eventually("the drain is done", lambda: cluster.finished(operation))
        # What it was offline for is a matter of the clock, but the broker must know that it is the same client.
        assert report["connections_moved"] == report["connections_back"] == report["connections_matched"], report
        assert [visit.code for visit in client.visits] == [None, None], client.visits


async def test_a_page_that_cannot_follow_is_told_where_to_go_in_a_frame_and_a_close_code(cluster, team, peers):
    async with ChromiumBare(cluster, team) as page:
        node = await page.connected()
        (redirect,) = page.redirects
        assert redirect["code"] == 4302, redirect
        assert redirect["reason"] and len(redirect["reason"].encode()) <= 123, redirect
        host, port = cluster.nodes[node].address
        assert redirect["url"].startswith(f"ws://{host}:{port}/teams/{team}?"), redirect


async def test_teams_of_many_clients_are_spread_over_the_nodes_and_do_not_hear_each_other(own_cluster, team):
    cluster = own_cluster
    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(Websockets(cluster, f"{team}-{at}")) for at in range(12)]
        nodes = [await client.connected() for client in clients]
        assert {nodes.count(node) for node in cluster.nodes} == {4}, nodes
        mate = await stack.enter_async_context(Websockets(cluster, clients[0].team))
        await mate.connected()
        await exchange(clients[0], mate)
        assert [client.received() for client in clients[1:]] == [[]] * 11

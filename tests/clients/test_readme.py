"""What README.md gives people to paste must work, and go on working."""

import asyncio
import contextlib
import socket

from drivers.readme import ReadmePage
from harness.patience import eventually


@contextlib.asynccontextmanager
async def a_door_that_is_still_shut(address):
    """An address that refuses connections until the function that comes with it is called; then it leads to `address`."""
    taken = socket.socket()
    taken.bind(("127.0.0.1", 0))
    servers = []

    async def carry(reader, writer):
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def through(reader, writer):
        there, back = await asyncio.open_connection(*address)
        await asyncio.gather(carry(reader, back), carry(there, writer))

    async def open_it():
        servers.append(await asyncio.start_server(through, sock=taken))

    try:
        yield taken.getsockname()[1], open_it
    finally:
        for server in servers:
            server.close()
        taken.close()


async def test_the_page_of_the_readme_comes_back_after_a_failed_fetch_and_after_a_loss(cluster, team, peers):
    ReadmePage.peer = peers[ReadmePage.script]
    async with contextlib.AsyncExitStack() as stack:
        port, open_it = await stack.enter_async_context(a_door_that_is_still_shut(cluster.clients))
        door = f"http://127.0.0.1:{port}/connect/{team}"
        pages = [await stack.enter_async_context(ReadmePage(cluster, team, door)) for _ in range(2)]
        await eventually("both have fetched in vain", lambda: all(page.failures for page in pages))
        await open_it()
        await eventually("both are there", lambda: sum(cluster.connections().values()) == 2)
        for speaker, listener in (pages, reversed(pages)):
            listener.received()
            await speaker.send("from one to the other")
            assert await listener.receive() == "from one to the other"
        cluster.kill_worker(cluster.owner(team))
        # Whoever is back first hears the greeting of the other.
        listening = [asyncio.create_task(page.receive()) for page in pages]
        heard, waiting = await asyncio.wait(listening, return_when=asyncio.FIRST_COMPLETED)
        for one in waiting:
            one.cancel()
        assert all(one.result().startswith("hello from ") for one in heard)

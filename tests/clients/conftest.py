"""Clients for the tests here."""

import pytest
import pytest_asyncio
from drivers import KINDS
from drivers.peer import Peer, PeerDriver

_MATES = {kind: KINDS[(at + 1) % len(KINDS)] for at, kind in enumerate(KINDS)}


@pytest_asyncio.fixture(scope="session")
async def peers():
    """A browser and a Node process, for the drivers that live in one."""
    drivers = [kind for kind in KINDS if issubclass(kind, PeerDriver)]
    running = {script: await Peer.start(script) for script in sorted({driver.script for driver in drivers})}
    for driver in drivers:
        driver.peer = running[driver.script]
    yield running
    for peer in running.values():
        await peer.stop()


@pytest.fixture(params=KINDS, ids=lambda kind: kind.kind)
def kind(request, peers):
    """Every kind of client in turn."""
    return request.param


@pytest.fixture
def mate_kind(kind):
    """Another kind of client, for the team mate."""
    return _MATES[kind]

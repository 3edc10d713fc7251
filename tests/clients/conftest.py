"""Clients for the tests here."""

import pytest
import pytest_asyncio
from drivers import KINDS
from drivers.peer import Peer, PeerDriver

_MATES = {kind: KINDS[(at + 1) % len(KINDS)] for at, kind in enumerate(KINDS)}


@pytest_asyncio.fixture(scope="session")
async def peers():
    """The programs of other languages that drivers live in: a browser, Node, Java and more."""
    drivers = [kind for kind in KINDS if issubclass(kind, PeerDriver)]
    programs = {driver.script: driver.runs_on for driver in drivers}
    running = {script: await Peer.start(runs_on, script) for script, runs_on in programs.items()}
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

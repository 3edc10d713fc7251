"""Fleets under load, and the figures that come of it."""

import pytest
from harness.fleet import Fleet
from harness.load import Load

_FIGURES = pytest.StashKey[list]()


def pytest_configure(config):
    config.stash[_FIGURES] = []


def pytest_terminal_summary(terminalreporter, config):
    if config.stash[_FIGURES]:
        terminalreporter.section("figures of this machine, just now")
        for figure in config.stash[_FIGURES]:
            terminalreporter.write_line(figure)


@pytest.fixture
def figure(request):
    """Shows what was measured, in the summary of the run; nothing is asserted on it."""
    return request.config.stash[_FIGURES].append


@pytest.fixture
def fleet():
    """A broker and three nodes as single processes."""
    fleet = Fleet()
    yield fleet
    fleet.stop()


@pytest.fixture
def load():
    """Starts clients: `load(pool, connections, teams, prefix, ...)`. They end with the test."""
    loads = []

    def start(*arguments):
        loads.append(Load(*arguments))
        return loads[-1]

    yield start
    for one in loads:
        one.stop()

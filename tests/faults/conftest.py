"""Faults with real processes, one test each, and a table of what was seen."""

import os

import pytest
from harness.fleet import Fleet
from harness.load import Load
from harness.network import Scattered

_SEEN = pytest.StashKey[dict]()


def pytest_addoption(parser):
    parser.addoption("--long", action="store_true", help="also run the tests that take minutes")


def pytest_configure(config):
    if os.geteuid() != 0:
        # Not skipped: a fault that nobody tried is not one that was survived.
        raise pytest.UsageError("the faults need root: they make network namespaces and mounts, and bend clocks")
    config.stash[_SEEN] = {}
    config.addinivalue_line("markers", "long: the test takes minutes; run with --long")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--long"):
        return
    long = [item for item in items if item.get_closest_marker("long")]
    items[:] = [item for item in items if item not in long]
    config.hook.pytest_deselected(items=long)


def _sentence(item):
    return item.name.removeprefix("test_").replace("_", " ")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    report = (yield).get_result()
    if report.failed:
        told = item.config.stash[_SEEN].get(_sentence(item))
        if told:
            told[1].append("FAILED")
        else:
            why = str(call.excinfo.value).partition("\n")[0] if call.excinfo else ""
            item.config.stash[_SEEN][_sentence(item)] = ["as its name says", [f"FAILED {why}"]]


def pytest_terminal_summary(terminalreporter, config):
    if not config.stash[_SEEN]:
        return
    terminalreporter.section("faults")
    terminalreporter.write_line("| fault | expected | observed |")
    terminalreporter.write_line("| --- | --- | --- |")
    for name, (expected, observed) in config.stash[_SEEN].items():
        cells = (text.replace("|", "\\|") for text in (name, expected, "; ".join(observed)))
        terminalreporter.write_line("| {} | {} | {} |".format(*cells))


@pytest.fixture
def fault(request):
    """`fault(expected, observed)`: a line with figures, now and in the table at the end of the run."""

    def tell(expected, observed):
        name = _sentence(request.node)
        request.config.stash[_SEEN][name] = [expected, [observed]]
        print(f"FAULT {name}: expected {expected}; observed {observed}")

    return tell


@pytest.fixture
def start_fleet():
    """Starts a broker and nodes as single processes on loopback: `start_fleet(nodes, ...)`. They end with the test."""
    yield from _starting(Fleet)


@pytest.fixture
def fleet(start_fleet):
    """A broker and three nodes on loopback."""
    return start_fleet(3)


@pytest.fixture
def scatter():
    """Starts a broker, nodes and room for clients as machines of one network: `scatter(nodes, ...)`."""
    yield from _starting(Scattered)


def _starting(kind):
    fleets = []

    def start(*arguments, **how):
        fleets.append(kind(*arguments, **how))
        return fleets[-1]

    yield start
    for fleet in fleets:
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

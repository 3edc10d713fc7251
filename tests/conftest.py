"""What both suites share."""

import itertools

import pytest
from harness.cluster import Cluster, Pool

_numbers = itertools.count(1)


def started(*arguments):
    """A cluster for as long as a fixture lives; its log is shown when it could not stop."""
    cluster = Cluster(*arguments)
    yield cluster
    cluster.stop()


@pytest.fixture(scope="session")
def shared_cluster():
    """One broker and three nodes for every test that leaves them as it found them."""
    yield from started()


@pytest.fixture
def cluster(shared_cluster):
    """The shared cluster, with every node ready."""
    shared_cluster.heal()
    return shared_cluster


@pytest.fixture
def own_cluster():
    """A broker and three nodes of the test's own, to break for good."""
    yield from started()


@pytest.fixture
def four_nodes():
    """A broker and four nodes of the test's own."""
    yield from started("--nodes", "4")


@pytest.fixture
def team():
    """A team that no other test uses."""
    return f"T{next(_numbers):04}"


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    report = outcome.get_result()
    if report.failed:
        for pool in {value for value in getattr(item, "funcargs", {}).values() if isinstance(value, Pool)}:
            report.sections.append(("what the processes logged", pool.log()))

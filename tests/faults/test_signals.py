"""Signals that people and their tools send to long-running processes."""

import os
import signal

import pytest
from harness.fleet import Process
from harness.patience import eventually_now, throughout
from members import Member

HARMLESS = ["SIGHUP", "SIGUSR1", "SIGUSR2", "SIGPIPE", "SIGALRM", "SIGVTALRM", "SIGPROF", "SIGIO", "SIGXFSZ", "SIGRTMIN"]


def test_no_signal_but_those_that_mean_a_stop_ends_a_process(start_fleet):
    fleet = start_fleet(1)
    member = Member(fleet, "T1")
    worker = fleet.worker("node-1")
    pids = [fleet.processes["broker"].pid, fleet.parent("node-1"), worker]
    for name in HARMLESS:
        for pid in pids:
            os.kill(pid, getattr(signal, name))
    throughout(1.5, "all are there", lambda: all(os.path.exists(f"/proc/{pid}") for pid in pids))
    assert fleet.worker("node-1") == worker and member.lives()
    assert fleet.states() == {"node-1": "ready"}


def test_sighup_changes_the_level_of_the_log_and_the_parent_passes_it_on(start_fleet):
    fleet = start_fleet(1)
    config = fleet.folder / "usher.toml"

    def write(level):
        config.write_text(f'[broker]\nlog = "{level}"\n[node]\nlog = "{level}"\n')

    for process in fleet.processes.values():
        process.kill()
    write("info")
    fleet.start_broker("--config", config)
    fleet.start_node("node-1", "--config", config)
    eventually_now("the node is ready", fleet.is_up)
    broker, node = fleet.processes["broker"], fleet.processes["node-1"]
    assert "DEBUG" not in broker.text() + node.text()
    write("debug")
    for process in (broker, node):
        process.signal(signal.SIGHUP)
    eventually_now("both say so", lambda: all("SIGHUP" in process.text() for process in (broker, node)))
    Member(fleet, "T1")
    eventually_now("the broker says more", lambda: "DEBUG" in broker.text())
    # What is of no use changes nothing, and is told.
    write("verbose")
    broker.signal(signal.SIGHUP)
    eventually_now("the mistake is named", lambda: "`verbose` is no level" in broker.text())
    before = broker.text().count("DEBUG")
    Member(fleet, "T2")
    eventually_now("the level stays", lambda: broker.text().count("DEBUG") > before)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGQUIT", "SIGINT"])
def test_a_parent_that_waits_to_start_its_child_again_stops_at_once(start_fleet, name):
    fleet = start_fleet(0)
    # A worker that cannot live, and a parent that waits longer and longer between two of them.
    fleet.add_node("node-1")
    eventually_now("the node is ready", fleet.is_up)
    node = fleet.processes["node-1"]
    for _ in range(5):
        fleet.kill_worker("node-1")
        eventually_now("another worker", lambda: fleet.worker("node-1"))
    worker = fleet.worker("node-1")
    os.kill(worker, signal.SIGKILL)
    eventually_now("the parent has buried it", lambda: not os.path.exists(f"/proc/{worker}"))
    node.signal(getattr(signal, name))
    assert node.ended(within=4.0) == 0, node.text()


def test_a_dev_whose_screen_is_gone_goes_on_and_one_whose_terminal_hangs_up_stops(tmp_path):
    reads, writes = os.pipe()
    os.close(reads)
    dev = Process(tmp_path, "dev", "dev", "--nodes", "1", "--ports", "auto", "--data", tmp_path / "data", output=writes)
    try:
        log = tmp_path / "data" / "logs" / "broker.log"
        eventually_now("it is up", lambda: log.exists() and "node is ready" in log.read_text())
        throughout(2.0, "it runs", dev.runs)
        dev.signal(signal.SIGHUP)
        assert dev.ended() == 0
    finally:
        os.close(writes)
        dev.kill()

"""A machine stops without a word: no Close, no reset, no answer to anything."""

import os
import signal
import subprocess
import time

import pytest
from harness.cluster import environment, executable
from harness.fleet import Fleet, at
from harness.patience import eventually_now

PING_S = 5
# A ping that is 1 s late is asked for, and 3 s are enough for an answer.
NOTICED_WITHIN_S = PING_S + 1 + 3
# The default lease, after which a silent node's teams move, and what a busy machine adds.
BACK_WITHIN_S = max(NOTICED_WITHIN_S, 6.6) + 10


@pytest.fixture
def fleet():
    fleet = Fleet(3, "--ping", f"{PING_S}s")
    yield fleet
    fleet.stop()


@pytest.mark.parametrize("speaks", [[], ["--plain"]], ids=["usher-v1", "plain"])
def test_a_client_of_a_machine_that_falls_silent_notices_by_the_pings_that_do_not_come(fleet, figure, tmp_path, speaks):
    said = tmp_path / "said"
    # One that does not know how often it is pinged takes the default.
    ping_s = PING_S if not speaks else 25
    with said.open("wb") as stderr:
        client = subprocess.Popen(
            [executable(), "connect", "T1", "--listen", "--broker", f"http://{at(fleet.clients)}", *speaks],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            env=environment(),
        )
    try:
        eventually_now("it is connected", lambda: "connected in" in said.read_text())
        worker = fleet.worker(fleet.owner("T1"))
        os.kill(worker, signal.SIGSTOP)
        began = time.monotonic()
        try:
            eventually_now("it is back", lambda: "back on" in said.read_text(), within=60)
            took_s = time.monotonic() - began
        finally:
            os.kill(worker, signal.SIGCONT)
        assert "nothing heard for too long" in said.read_text(), said.read_text()
        assert took_s < ping_s - PING_S + BACK_WITHIN_S, said.read_text()
        figure(f"{' '.join(speaks) or 'usher.v1'}: back {took_s:.1f} s after its node's process was stopped")
    finally:
        client.kill()
        client.wait()

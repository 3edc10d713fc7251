"""Names that come once cost the broker memory once: the next as many make use of what the first ones left."""

from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path

from harness.fleet import Fleet
from harness.patience import eventually_now

NAMES = 10_000
HANDS = 8
# A name is kept for longer than a busy machine takes to ask for all of them, so that each wave has the same height.
FORGET_AFTER = "20s"
# A node names 256 idle teams in a heartbeat; at the default of one a second a wave would take a minute to go.
HEARTBEAT = "200ms"
ANSWERED_WITHIN_S = 20.0
FORGOTTEN_WITHIN_S = 80.0


def resident_bytes(pid):
    (line,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024


def teams(pool):
    return pool.view("/v1/status")["teams"]


def ask_for(pool, names):
    """Every name's first connect, over one connection."""
    way = HTTPConnection(*pool.clients, timeout=ANSWERED_WITHIN_S)
    for name in names:
        way.request("GET", f"/connect/{name}")
        answer = way.getresponse()
        answer.read()
        assert answer.status == 302, (name, answer.status)
    way.close()


def wave(pool, prefix):
    """Asks for names that nobody stays on; what the broker holds once it has forgotten all of them."""
    names = [f"{prefix}{number}" for number in range(NAMES)]
    with ThreadPoolExecutor(HANDS) as hands:
        list(hands.map(lambda first: ask_for(pool, names[first::HANDS]), range(HANDS)))
    eventually_now("every name is forgotten", lambda: teams(pool) == 0, within=FORGOTTEN_WITHIN_S)
    return resident_bytes(pool.processes["broker"].pid)


def test_a_second_wave_of_names_that_come_once_costs_less_than_a_quarter_of_what_the_first_did(figure):
    fleet = Fleet(1)
    try:
        fleet.processes["broker"].kill()
        fleet.start_broker("--forget-after", FORGET_AFTER, "--heartbeat", HEARTBEAT)
        eventually_now("the broker has its node again", lambda: fleet.answers() and fleet.is_up())
        idle = resident_bytes(fleet.processes["broker"].pid)
        first = wave(fleet, "first-")
        second = wave(fleet, "second-")
    finally:
        fleet.stop()
    figure(f"broker's memory, waves of {NAMES} names: {idle >> 20} MiB idle, {first >> 20}, {second >> 20}")
    # With one decision kept of each name that is gone it was two fifths.
    assert second - first < (first - idle) / 4

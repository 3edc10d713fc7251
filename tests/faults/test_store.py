"""Disks that are full, that fail, that lost something, and stores that were copied."""

import contextlib
import os
import random
import shutil
import signal
import subprocess

import pytest
from fleet.crowd import owners, wait_for_connections
from harness.ask import ask
from harness.fleet import Process, at, free_address
from harness.patience import eventually_now, throughout
from watch import LEASE_S, metric, node_metric, now

TEAMS = 60
CONNECTIONS = 120
# `usher` ends with it when what it was told, or what it found, is nothing to start with.
REFUSED = 2
# What a broker says to a node of another one that claims its term.
FOLLOWS_ANOTHER = "follows another broker of term"
# More than a batch can need, so that it is not the test that decides which one fails.
TRIES = 2_000


def crowd(fleet, load, prefix="crowd-"):
    clients = load(fleet, CONNECTIONS, TEAMS, prefix, "--usher-v1", "50%")
    wait_for_connections(fleet, CONNECTIONS)
    return clients, owners(fleet)


def settled(fleet):
    return fleet.is_up() and fleet.view("/v1/status")["state"] == "ready"


def stop_broker(fleet, number=signal.SIGTERM):
    fleet.processes["broker"].signal(number)
    assert fleet.processes["broker"].ended() == (0 if number == signal.SIGTERM else -number)


def restart_settled(fleet, **how):
    fleet.start_broker(**how)
    eventually_now("the broker has settled", lambda: settled(fleet))


class Alone:
    """A broker on a folder, without nodes, on ports of its own."""

    def __init__(self, folder, data):
        self.admin = free_address()
        listeners = ["--clients", at(free_address()), "--admin", at(self.admin), "--node-link", at(free_address())]
        self.process = Process(folder, f"broker-{self.admin[1]}", "broker", *listeners, "--data", data)

    def started(self):
        """Whether it runs; `False` once it has refused to."""

        def known():
            if not self.process.runs():
                return "ended"
            with contextlib.suppress(OSError):
                return ask(self.admin, "/v1/status").status == 200 and "started"

        return eventually_now("the broker starts or says why not", known) == "started"

    def teams(self):
        found, after = {}, ""
        while after is not None:
            page = ask(self.admin, f"/v1/teams?limit=1000{after and f'&after={after}'}").json
            found.update((team["team"], team["epoch"]) for team in page["teams"])
            after = page.get("next")
        return found


def written(path):
    """Where the bytes of a file are that are not zero: the store keeps room at its end."""
    return [place for place, byte in enumerate(path.read_bytes()) if byte]


def test_a_store_with_a_flipped_bit_or_a_lost_tail_never_forgets_a_team_in_silence(start_fleet, fault):
    fleet = start_fleet(1)
    for number in range(TEAMS):
        assert fleet.rest("PUT", f"/v1/teams/t{number}", {}).status == 201
    whole = {team: epoch for team, (_, epoch) in owners(fleet).items()}
    # Killed: what is in the files now is all that it promised.
    stop_broker(fleet, signal.SIGKILL)
    log = fleet.data / "store" / "db"
    places = written(log)
    dice = random.Random(7)
    damages = [("flipped", place) for place in dice.sample(places, 14)]
    damages += [("cut", places[-1] - lost) for lost in (-1, 0, 100, 1_000, len(places) // 2)]
    outcomes = {"started with every team": 0, "refused to start": 0}
    content = log.read_bytes()
    for number, (how, place) in enumerate(damages):
        data = fleet.folder / f"damaged-{number}"
        shutil.copytree(fleet.data, data)
        damaged = bytearray(content)
        if how == "flipped":
            damaged[place] ^= 1 << dice.randrange(8)
        else:
            del damaged[place:]
        (data / "store" / "db").write_bytes(damaged)
        broker = Alone(fleet.folder, data)
        try:
            if broker.started():
                assert broker.teams() == whole, (how, place)
                outcomes["started with every team"] += 1
            else:
                text = broker.process.text()
                assert broker.process.ended() == REFUSED, text
                assert "damaged" in text or "older than its own marker" in text, text
                assert "put a copy of the" in text and "panicked" not in text, text
                outcomes["refused to start"] += 1
        finally:
            broker.process.kill()
    assert outcomes["refused to start"], "no damage was found"
    fault(
        "it starts with every team and epoch, or refuses with a remedy",
        f"{len(damages)} damages: " + ", ".join(f"{times} {what}" for what, times in outcomes.items()),
    )


def test_a_broker_on_an_old_copy_of_its_store_learns_from_its_nodes_and_costs_no_connection(fleet, load, fault):
    old, before = crowd(fleet, load, "old-")
    stop_broker(fleet)
    copy = fleet.folder / "copy"
    shutil.copytree(fleet.data, copy)
    restart_settled(fleet)
    # What the copy knows nothing of: teams, moves of known ones, two more terms, more blocks of epochs.
    new = load(fleet, CONNECTIONS, TEAMS, "new-")
    wait_for_connections(fleet, 2 * CONNECTIONS)
    moved = next(team for team, (node, _) in before.items() if node == "node-1")
    pin = {"pin": {"node": "node-2", "seconds": 600}}
    assert fleet.rest("PUT", f"/v1/teams/{moved}", pin).json["node"] == "node-2"
    eventually_now("the move is over", lambda: "moving_from" not in fleet.view(f"/v1/teams/{moved}"))
    stop_broker(fleet, signal.SIGKILL)
    restart_settled(fleet)
    known, term = owners(fleet), fleet.view("/v1/status")["term"]
    stop_broker(fleet, signal.SIGKILL)
    shutil.rmtree(fleet.data)
    shutil.copytree(copy, fleet.data)
    restart_settled(fleet)
    text = fleet.processes["broker"].text()
    assert "the store is older than what a node knows" in text, text
    alarms = metric(fleet.admin, "usher_store_regressed_total")
    assert alarms > 0
    assert fleet.view("/v1/status")["term"] > term
    after = owners(fleet)
    # What the copy did not know comes back where it is, under an epoch that was never given out.
    assert {team: node for team, (node, _) in after.items()} == {team: node for team, (node, _) in known.items()}
    assert all(after[team][1] >= epoch for team, (_, epoch) in known.items())
    answer = fleet.rest("PUT", "/v1/teams/after", {})
    highest = max(epoch for _, epoch in known.values())
    assert answer.status == 201 and answer.json["epoch"] > highest, (answer, highest)
    report = new.report()
    assert report.is_undisturbed(), report
    report = old.report()
    assert report.is_sound() and sum(cut["lost"] for cut in report["interruptions"]) <= CONNECTIONS // TEAMS, report
    fault(
        "the nodes' higher epochs and term win; an alarm; no connection lost",
        f"{len(known)} teams as the nodes know them, {len(known) - len(before)} of them unknown to the copy; term"
        f" {term} then {fleet.view('/v1/status')['term']}; an error in the log, usher_store_regressed_total {alarms:.0f};"
        f" 0 connections lost",
    )


def test_a_node_obeys_one_of_two_brokers_that_run_on_copies_of_one_store(fleet, load, fault):
    second_link = free_address()
    both = f"ws://{at(fleet.node_link)},ws://{at(second_link)}"
    fleet.nodes["node-4"] = fleet._place_node("node-4")
    fleet.start_node("node-4", "--broker", both)
    eventually_now("every node is ready", fleet.all_ready)
    clients, before = crowd(fleet, load)
    stop_broker(fleet)
    copy = fleet.folder / "copy"
    shutil.copytree(fleet.data, copy)
    restart_settled(fleet)
    listeners = ["--clients", at(free_address()), "--admin", at(free_address()), "--node-link", at(second_link)]
    second = fleet.processes["second"] = Process(fleet.folder, "second", "broker", *listeners, "--data", copy)
    eventually_now("the second listens", lambda: "started" in second.text())
    node = fleet.processes["node-4"]
    # Silence of the first makes the node try the second.
    fleet.processes["broker"].signal(signal.SIGSTOP)
    try:
        eventually_now("the second refused the node", lambda: FOLLOWS_ANOTHER in second.text())
    finally:
        fleet.processes["broker"].signal(signal.SIGCONT)
    eventually_now("all are with the first again", lambda: settled(fleet))
    assert owners(fleet) == before
    report = clients.report()
    assert report.is_undisturbed(), report
    assert FOLLOWS_ANOTHER in node.text()
    fault("the second refuses the node, in both logs; no connection lost", "refused: one of two brokers runs on a copy; 0 lost")


# Disks

DISK_EXPECTED = "nothing is granted that is not durable; it says so; leases and connections go on; it mends by itself"


def live_through(fleet, clients, before, name, mend, image):
    """What must hold while the store takes nothing, and after; the figures, and what did not hold."""
    broker = fleet.processes["broker"]
    acknowledged, broken = dict(before), []
    for number in range(TRIES):
        began = now()
        answer = fleet.rest("PUT", f"/v1/teams/{name}-{number}", {})
        if answer.status != 201:
            break
        acknowledged[f"{name}-{number}"] = (answer.json["node"], answer.json["epoch"])
    assert answer.status == 503, f"the store goes on taking writes: {answer}"
    figures = [f"{number} more grants fitted, then 503 {answer.code} after {now() - began:.1f} s"]

    def holds(what, condition):
        try:
            eventually_now(what, condition)
        except AssertionError:
            broken.append(what)

    holds("a metric says that the store fails", lambda: metric(fleet.admin, "usher_store_failing") == 1)
    holds("the log says that the store fails", lambda: "nothing is granted until it works" in broker.text())
    holds("/readyz is red", lambda: ask(fleet.admin, "/readyz").status == 503)
    # Longer than a lease: heartbeats must go on being answered. The broker's own answers may wait for the disk.
    shortest = []

    def leased():
        shortest.append(min(node_metric(fleet, node, "usher_lease_remaining_seconds") for node in fleet.nodes))
        return shortest[-1] > 0

    throughout(LEASE_S + 2, "every node has its lease", leased)
    known = next(iter(before))
    json = {"Accept": "application/json"}
    assert ask(fleet.clients, f"/connect/{known}", headers=json).status == 200, "a team that has a node is told of it"
    refused = ask(fleet.clients, f"/connect/{name}-new", headers=json)
    assert refused.status == 503, refused
    # What a crash at this moment would leave, on a disk that works again.
    broker.signal(signal.SIGSTOP)
    try:
        image()
    finally:
        broker.signal(signal.SIGCONT)
    after_crash = Alone(fleet.folder, fleet.folder / "image")
    try:
        if after_crash.started():
            left = after_crash.teams()
            assert {team: epoch for team, (_, epoch) in acknowledged.items()}.items() <= left.items()
            figures.append(f"all {len(acknowledged)} acknowledged teams are in what a crash leaves")
        else:
            said = [line for line in after_crash.process.text().splitlines() if line.startswith("error")]
            broken.append(f"a broker starts on what a crash leaves ({' '.join(said)[:160]})")
    finally:
        after_crash.process.kill()
    mend()
    began = now()
    holds("it works again by itself", lambda: fleet.rest("PUT", f"/v1/teams/{name}-again", {}).status in (200, 201))
    if not broken:
        figures.append(f"grants again after {now() - began:.1f} s")
        after = owners(fleet)
        assert {team: after[team] for team in acknowledged} == acknowledged
        assert after[f"{name}-again"][1] > max(epoch for _, epoch in acknowledged.values())
    report = clients.report()
    assert report.is_undisturbed(), report
    figures.append(f"{CONNECTIONS} connections undisturbed")
    return "; ".join([*figures, *(f"NOT: {what}" for what in broken)]), broken


def test_a_full_disk_stops_grants_and_nothing_else(fleet, load, fault):
    clients, before = crowd(fleet, load)
    stop_broker(fleet)
    # A disk of its own, which is gone with the process: no mount is left behind.
    script = 'cp -a "$0" "$0.whole" && mount -t tmpfs -o size=4m tmpfs "$0" && cp -a "$0.whole/." "$0" && exec "$@"'
    restart_settled(fleet, before=("unshare", "--mount", "sh", "-c", script, fleet.data))
    disk = f"/proc/{fleet.processes['broker'].pid}/root{fleet.data}"
    assert os.statvfs(disk).f_blocks * os.statvfs(disk).f_frsize == 4 << 20, "the small disk is not there"
    with open(f"{disk}/fill", "wb", buffering=0) as fill, contextlib.suppress(OSError):
        while True:
            fill.write(bytes(4_096))

    def image():
        shutil.copytree(disk, fleet.folder / "image", ignore=shutil.ignore_patterns("fill"))

    figures, broken = live_through(fleet, clients, before, "full", lambda: os.unlink(f"{disk}/fill"), image)
    fault(DISK_EXPECTED, figures)
    assert "is full; free some space there" in fleet.processes["broker"].text()
    assert not broken, fleet.processes["broker"].text()[-3_000:]


@pytest.mark.parametrize(
    ("point", "error"), [("posix/io/sync/fsync", 5), ("posix/io/rw/pwrite", 28)], ids=["fsync EIO", "pwrite ENOSPC"]
)
def test_a_failing_disk_stops_grants_and_nothing_else(fleet, load, fault, point, error):
    clients, before = crowd(fleet, load)
    stop_broker(fleet)
    pipes = fleet.folder / "fiu"
    restart_settled(fleet, before=("fiu-run", "-x", "-f", pipes))

    def disk(order):
        command = ["fiu-ctrl", "-f", pipes, "-c", order, fleet.processes["broker"].pid]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done

    disk(f"enable name={point},failinfo={error}")
    figures, broken = live_through(
        fleet,
        clients,
        before,
        "failing",
        lambda: disk(f"disable name={point}"),
        lambda: shutil.copytree(fleet.data, fleet.folder / "image"),
    )
    fault(DISK_EXPECTED, figures)
    assert not broken, fleet.processes["broker"].text()[-3_000:]

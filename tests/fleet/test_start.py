"""What a broker or a node does not start with, and how it says so."""

import contextlib
import os
import re
import shutil
import signal
import socket
import stat
import subprocess

import pytest
from crowd import owners, wait_for_connections
from harness.ask import ask
from harness.fleet import Fleet, Process, at, free_address
from harness.patience import eventually_now

TEAMS = 60
# `usher` ends with it when what it was told, or what it found, is nothing to start with.
REFUSED = 2
TOKEN = "0123456789abcdef0123456789abcdef"


@pytest.fixture
def start(tmp_path):
    """Starts one process of `usher`; whatever it is, it ends with the test."""
    processes = []

    def begin(*arguments, **how):
        processes.append(Process(tmp_path, f"usher-{len(processes)}", *arguments, **how))
        return processes[-1]

    yield begin
    for process in processes:
        process.kill()


def refusal(process):
    """The text with which it refused to start. It must be one for people: no crash, no trace."""
    code = process.ended(within=30)
    text = process.text()
    assert code == REFUSED, (code, text)
    assert "panicked" not in text and "RUST_BACKTRACE" not in text and "stack backtrace" not in text, text
    assert len(re.findall("^error: ", text, re.MULTILINE)) == 1, text
    return text


def broker(data, **flags):
    """The words for a broker on free ports."""
    words = {"clients": at(free_address()), "admin": at(free_address()), "node-link": at(free_address())}
    words |= {name.replace("_", "-"): value for name, value in flags.items()}
    return ["broker", "--data", data, *(part for name, value in words.items() for part in (f"--{name}", value))]


def node(**flags):
    """The words for a node whose broker is not there."""
    words = {"name": "node-1", "listen": at(free_address()), "admin": at(free_address())}
    words |= {"broker": f"ws://{at(free_address())}"} | flags
    return ["node", *(part for name, value in words.items() for part in (f"--{name}", value))]


# A store that is damaged


@pytest.fixture(scope="module")
def kept():
    """A broker's folder with teams in it, and what starts a broker there again."""
    fleet = Fleet(1)
    for number in range(TEAMS):
        assert fleet.rest("PUT", f"/v1/teams/t{number}", {}).status == 201
    fleet.processes["broker"].signal(signal.SIGTERM)
    assert fleet.processes["broker"].ended() == 0
    fleet.processes["node-1"].kill()
    whole = fleet.folder / "whole"
    shutil.copytree(fleet.data, whole)

    def damaged(damage, start=True):
        fleet.processes["broker"].kill()
        shutil.rmtree(fleet.data)
        shutil.copytree(whole, fleet.data)
        damage(fleet.data)
        if start:
            fleet.start_broker()
        return fleet

    yield damaged
    fleet.stop()


def written(path):
    """Where the bytes of a file are that are not zero: the store keeps room at its end."""
    return [at for at, byte in enumerate(path.read_bytes()) if byte]


def flip(part):
    def damage(data):
        path = data / "store" / "db"
        places = written(path)
        content = bytearray(path.read_bytes())
        content[places[int(part * (len(places) - 1))]] ^= 0xFF
        path.write_bytes(content)

    return damage


def cut(part):
    def damage(data):
        path = data / "store" / "db"
        os.truncate(path, int(part * written(path)[-1]))

    return damage


def overwrite(*names):
    def damage(data):
        path = data.joinpath(*names)
        path.write_bytes(b"\xa5" * path.stat().st_size)

    return damage


DAMAGES = {
    "its first byte flipped": flip(0.0),
    "a byte flipped near its beginning": flip(0.01),
    "a byte flipped in the middle": flip(0.5),
    "a byte flipped near its end": flip(0.95),
    "its last byte flipped": flip(1.0),
    "cut to nothing": cut(0.0),
    "cut in the middle": cut(0.5),
    "cut near its end": cut(0.99),
    "overwritten": overwrite("store", "db"),
    "gone": lambda data: (data / "store" / "db").unlink(),
    "gone with its folder": lambda data: shutil.rmtree(data / "store"),
    "and its marker overwritten": overwrite("store.marker"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_store_stops_the_start_and_says_what_to_do(kept, damage):
    fleet = kept(damage)
    # A second try must not get through where the first one did not.
    for again in (True, False):
        text = refusal(fleet.processes["broker"])
        assert str(fleet.data / "store") in text and "damaged" in text and "put a copy" in text, text
        if again:
            fleet.start_broker()


def test_a_store_that_was_not_damaged_has_every_team(kept):
    fleet = kept(lambda data: None)
    eventually_now("the broker answers", lambda: answers(fleet))
    assert len(fleet.teams()) == TEAMS


def answers(pool):
    with contextlib.suppress(OSError):
        return pool.rest("GET", "/healthz").status == 200


def test_a_damaged_master_key_stops_the_start_and_is_not_replaced(kept):
    fleet = kept(overwrite("master.key"))
    text = refusal(fleet.processes["broker"])
    assert "master.key does not hold a master key" in text, text
    assert (fleet.data / "master.key").read_bytes()[:1] == b"\xa5"


# A disk without room

MOUNT = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--mount"]
# On a disk of the process's own, gone with it: what is there already, and not a byte of room beside.
FULL_DISK = """
mount -t tmpfs -o size=1m full "$0" && cp -a "$1/." "$0" || exit 70
cat /dev/zero >"$0/filler" 2>&-
shift && exec "$@"
"""
# For a user who may mount nothing at all: no file may grow, but for what the pipe's other end writes.
NO_ROOM = """
cp -a "$1/." "$0" || exit 70
shift
(ulimit -f 0 && trap '' XFSZ && exec "$@" 2>&1) | cat
exit "${PIPESTATUS[0]}"
"""


def without_room(data, whole):
    """Words before a command that has no room to write in `data`, which then holds what `whole` holds."""
    data.mkdir()
    may_mount = subprocess.run([*MOUNT, "mount", "-t", "tmpfs", "probe", data], capture_output=True).returncode == 0
    return [*MOUNT, "sh", "-c", FULL_DISK, data, whole] if may_mount else ["bash", "-c", NO_ROOM, data, whole]


def names_a_full_disk(text):
    return "free some space" in text or "No space left on device" in text or "File too large" in text


def test_a_full_disk_stops_the_start_and_is_named_and_loses_nothing(kept, start, tmp_path):
    fleet = kept(lambda data: None, start=False)
    data = tmp_path / "data"
    text = refusal(start(*broker(data), before=without_room(data, fleet.data)))
    assert f"{data}/store" in text and names_a_full_disk(text), text
    # Where there is room it is all there.
    fleet.start_broker()
    eventually_now("the broker answers", lambda: answers(fleet))
    assert len(fleet.teams()) == TEAMS


def test_a_first_start_on_a_full_disk_is_refused_with_the_reason(start, tmp_path):
    nothing = tmp_path / "nothing"
    nothing.mkdir()
    data = tmp_path / "data"
    text = refusal(start(*broker(data), before=without_room(data, nothing)))
    assert str(data) in text and names_a_full_disk(text), text


# Ports, locks and keys


@pytest.mark.parametrize("flag", ["clients", "admin", "node-link"])
def test_a_broker_names_the_port_that_is_in_use_and_its_flag(start, tmp_path, flag):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = at(taken.getsockname())
        text = refusal(start(*broker(tmp_path, **{flag: address})))
    assert f"{address}: the port is in use" in text and f"--{flag}" in text, text


@pytest.mark.parametrize("flag", ["listen", "admin"])
def test_a_node_names_the_port_that_is_in_use_and_its_flag(start, flag):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = at(taken.getsockname())
        text = refusal(start(*node(**{flag: address})))
    assert f"{address}: the port is in use" in text and f"--{flag}" in text, text


def test_a_second_broker_does_not_open_the_store_of_the_first(start, fleet):
    text = refusal(start(*broker(fleet.data)))
    assert f"the store in {fleet.data}/store is in use by another broker" in text, text
    assert fleet.rest("PUT", "/v1/teams/unharmed", {}).status == 201


@pytest.mark.parametrize(
    ("flag", "remedy"),
    [("admin", "--operator-token-file"), ("node-link", "--node-token-file"), ("clients", "--public-url")],
)
def test_a_broker_beyond_loopback_needs_what_locks_it(start, tmp_path, flag, remedy):
    anywhere = f"0.0.0.0:{free_address()[1]}"
    text = refusal(start(*broker(tmp_path, **{flag: anywhere})))
    assert anywhere in text and remedy in text, text


@pytest.mark.parametrize("flag", ["listen", "admin"])
def test_a_node_beyond_loopback_needs_its_token(start, flag):
    anywhere = f"0.0.0.0:{free_address()[1]}"
    text = refusal(start(*node(**{flag: anywhere})))
    assert anywhere in text and "USHER_NODE_TOKEN" in text and "--node-token-file" in text, text


def test_a_broker_beyond_loopback_starts_with_its_locks(start, tmp_path):
    anywhere = ("127.0.0.1", free_address()[1])
    tokens = {"USHER_OPERATOR_TOKEN": TOKEN, "USHER_NODE_TOKEN": TOKEN}
    process = start(*broker(tmp_path, admin=f"0.0.0.0:{anywhere[1]}"), variables=tokens)

    def answered():
        assert process.runs(), process.text()
        with contextlib.suppress(OSError):
            return ask(anywhere, "/v1/status").status

    assert eventually_now("the broker answers", answered) == 401
    assert ask(anywhere, "/v1/status", headers={"Authorization": f"Bearer {TOKEN}"}).status == 200


def test_the_master_key_is_made_at_the_first_start_for_its_owner_alone_and_kept(fleet):
    key = fleet.data / "master.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    made = key.read_text()
    assert len(made.strip()) == 64 and made.strip() not in fleet.log()
    fleet.processes["broker"].signal(signal.SIGTERM)
    assert fleet.processes["broker"].ended() == 0
    fleet.start_broker()
    eventually_now("the broker is back", fleet.is_up)
    assert key.read_text() == made and stat.S_IMODE(key.stat().st_mode) == 0o600


def test_a_master_key_that_others_may_read_stops_the_start(kept):
    fleet = kept(lambda data: (data / "master.key").chmod(0o644))
    text = refusal(fleet.processes["broker"])
    assert "can be read by others" in text and "chmod 600" in text, text


# A name that is taken


def test_a_node_that_takes_the_name_of_a_live_one_on_its_machine_does_not_start_and_the_first_goes_on(fleet, load, start):
    clients = load(fleet, 60, 30, "served-")
    wait_for_connections(fleet, 60)
    before = owners(fleet), incarnations(fleet)
    claimant = start(*node(name="node-1", broker=f"ws://{at(fleet.node_link)}"))
    # Neither it nor its parent tries again, and its end is not the end of the first.
    assert claimant.ended() == 2, claimant.text()
    assert "another process on this machine is node node-1" in claimant.text()
    assert "give this one another --name" in claimant.text()
    assert fleet.all_ready()
    assert (owners(fleet), incarnations(fleet)) == before
    assert clients.report().is_undisturbed()


def incarnations(pool):
    return {node["node"]: node["incarnation"] for node in pool.view("/v1/nodes")["nodes"]}

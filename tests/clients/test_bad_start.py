"""A process that cannot or must not run says why and what to do, and harms nobody who runs."""

import os
import socket
import subprocess
import time

import pytest
from harness.cluster import environment, executable
from harness.patience import SOON_S, eventually_now

ANYWHERE = "127.0.0.1:0"


def broker(data, **flags):
    """The command of a broker on free ports, but for the flags that are given."""
    return command("broker", {"clients": ANYWHERE, "admin": ANYWHERE, "node_link": ANYWHERE, "data": data, **flags})


def node(**flags):
    """The command of a node on free ports, but for the flags that are given."""
    return command("node", {"name": "node-9", "listen": ANYWHERE, "admin": ANYWHERE, **flags}) + ["--no-parent"]


def command(verb, flags):
    words = ((f"--{name.replace('_', '-')}", str(value)) for name, value in flags.items())
    return [verb, *(word for pair in words for word in pair)]


def run(*arguments, **variables):
    """Runs `usher` until it gives up by itself; its exit code and what it said."""
    done = subprocess.run(
        [executable(), *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**environment(), **variables},
        timeout=SOON_S,
        text=True,
    )
    return done.returncode, done.stdout


def refused(*arguments, **variables):
    """What it said when it refused to start."""
    code, said = run(*arguments, **variables)
    assert code not in (0, 101) and "panicked" not in said, (code, said)
    assert "error: " in said, said
    return said


@pytest.fixture
def taken():
    """An address where somebody listens already."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield "{}:{}".format(*listener.getsockname())


@pytest.fixture
def store(tmp_path):
    """The data folder of a broker that ran and was stopped."""
    process = subprocess.Popen(
        [executable(), *broker(tmp_path)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment(),
    )
    try:
        eventually_now("the broker has its store", (tmp_path / "store.marker").exists)
        eventually_now("the store is written", (tmp_path / "store" / "db").exists)
    finally:
        process.terminate()
        process.wait(SOON_S)
    return tmp_path


@pytest.mark.parametrize("flag", ["clients", "admin", "node_link"])
def test_a_broker_names_the_port_that_is_in_use_and_its_flag(taken, tmp_path, flag):
    said = refused(*broker(tmp_path, **{flag: taken}))
    assert taken in said and "in use" in said and f"--{flag.replace('_', '-')}" in said, said


@pytest.mark.parametrize("flag", ["listen", "admin"])
def test_a_node_names_the_port_that_is_in_use_and_its_flag(taken, flag):
    said = refused(*node(**{flag: taken}))
    assert taken in said and "in use" in said and f"--{flag}" in said, said


@pytest.mark.parametrize(("flag", "variable"), [("admin", "USHER_OPERATOR_TOKEN"), ("node_link", "USHER_NODE_TOKEN")])
def test_a_broker_that_others_could_reach_needs_its_credentials(tmp_path, flag, variable):
    said = refused(*broker(tmp_path, **{flag: "0.0.0.0:0"}))
    assert "beyond loopback" in said and variable in said, said


@pytest.mark.parametrize("flag", ["listen", "admin"])
def test_a_node_that_others_could_reach_needs_its_credentials(flag):
    assert "USHER_NODE_TOKEN" in refused(*node(**{flag: "0.0.0.0:0"}))


@pytest.mark.parametrize(
    ("variable", "value"),
    [("USHER_OPERATOR_TOKEN", "short"), ("USHER_NODE_TOKEN", "with a space in it"), ("USHER_MASTER_KEY", "5a5a")],
)
def test_a_secret_that_is_none_is_refused_and_not_printed(tmp_path, variable, value):
    said = refused(*broker(tmp_path), **{variable: value})
    assert variable in said and value not in said, said


def test_a_store_that_is_garbage_stops_the_start(store):
    database = store / "store" / "db"
    database.write_bytes(os.urandom(300_000))
    said = refused(*broker(store))
    assert str(store) in said, said


def test_a_store_that_is_gone_while_its_marker_is_there_stops_the_start(store):
    for file in (store / "store").rglob("*"):
        if file.is_file():
            file.unlink()
    said = refused(*broker(store))
    assert "store.marker" in said and "copy" in said, said


def test_a_master_key_that_is_garbage_stops_the_start(store):
    (store / "master.key").write_text("not a key\n")
    said = refused(*broker(store))
    assert "master.key" in said and "not a key" not in said, said


def test_a_data_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    said = refused(*broker(tmp_path / "file" / "data"))
    assert str(tmp_path / "file") in said, said


NONSENSE = {
    "a node without a proper name": (node(name=".."), "--name"),
    "a node of no weight": (node(weight=0), "--weight"),
    "a broker's address that is none": (node(broker="http://127.0.0.1:1"), "node-link address"),
    "a node URL without the team": (node(url="ws://127.0.0.1/teams"), "{team}"),
    "a queue that is smaller than a message": (node(queue_bytes=10), "--queue-bytes"),
    "a lease of no time": (broker("unused", lease="0s"), "lease"),
    "a time that is none": (broker("unused", lease="soon"), "lease"),
    "no nodes": (["dev", "--nodes", "0"], "--nodes"),
    "a node that cannot be": (["drain", ".."], "node name"),
    "a team that cannot be": (["assign", "a/b"], "team id"),
    "a team of an emoji": (["connect", "\U0001f600"], "team id"),
}


@pytest.mark.parametrize(("arguments", "named"), NONSENSE.values(), ids=NONSENSE.keys())
def test_nonsense_on_the_command_line_is_refused_by_name(arguments, named, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert named in refused(*arguments)


def test_a_node_that_claims_the_name_of_another_is_not_let_in_and_takes_nothing(cluster):
    before = {node["node"]: node["incarnation"] for node in cluster.view("/v1/nodes")["nodes"]}
    link = "ws://{}:{}".format(*cluster.node_link)
    impostor = subprocess.Popen(
        [executable(), *node(name="node-1", broker=link)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment(),
        text=True,
    )
    try:
        said = next(line for line in impostor.stdout if "refused" in line)
        # It goes on asking; the live one is not disturbed by it.
        for _ in range(20):
            after = {node["node"]: node["incarnation"] for node in cluster.view("/v1/nodes")["nodes"]}
            assert after == before and cluster.all_ready()
            time.sleep(0.1)
    finally:
        impostor.terminate()
        impostor.wait(SOON_S)
        impostor.stdout.close()
    assert "node-1" in said and "--name" in said, said

"""A setting that cannot be: `usher` names it, says what to write, and starts nothing. Bad stores, busy ports and
missing locks are in `fleet`."""

import subprocess

import pytest
from harness.cluster import environment, executable
from harness.patience import SOON_S

ANYWHERE = "127.0.0.1:0"


def broker(data, **flags):
    """The command of a broker on free ports, but for the flags that are given."""
    return command("broker", {"clients": ANYWHERE, "admin": ANYWHERE, "node_link": ANYWHERE, "data": data, **flags})


def node(**flags):
    """The command of a node on free ports, but for the flags that are given."""
    return command("node", {"name": "node-9", "listen": ANYWHERE, "admin": ANYWHERE, **flags}) + ["--no-parent"]


def command(verb, flags):
    """A verb with its flags as words."""
    words = ((f"--{name.replace('_', '-')}", str(value)) for name, value in flags.items())
    return [verb, *(word for pair in words for word in pair)]


def refused(*arguments, **variables):
    """What `usher` said when it gave up by itself."""
    done = subprocess.run(
        [executable(), *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**environment(), **variables},
        timeout=SOON_S,
        text=True,
    )
    assert done.returncode not in (0, 101) and "panicked" not in done.stdout, done
    assert "error: " in done.stdout, done
    return done.stdout


@pytest.mark.parametrize(
    ("variable", "value"),
    [("USHER_OPERATOR_TOKEN", "short"), ("USHER_NODE_TOKEN", "with a space in it"), ("USHER_MASTER_KEY", "5a5a")],
)
def test_a_secret_that_is_none_is_refused_and_not_printed(tmp_path, variable, value):
    said = refused(*broker(tmp_path), **{variable: value})
    assert variable in said and value not in said, said


def test_a_data_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    said = refused(*broker(tmp_path / "file" / "data"))
    assert str(tmp_path / "file") in said, said


@pytest.mark.parametrize("word", ["warning", "verbose", "usher_brokr=debug", "info,tungstenite=trace"])
def test_a_level_that_is_none_is_refused_wherever_it_is_said(tmp_path, word):
    for command in (broker(tmp_path), node()):
        assert word.rpartition(",")[2] in refused(*command, "--log", word)
        assert word.rpartition(",")[2] in refused(*command, USHER_LOG=word)
    config = tmp_path / "usher.toml"
    config.write_text(f'[broker]\nlog = "{word}"\n')
    said = refused(*broker(tmp_path), "--config", config)
    assert "line 2" in said and word.rpartition(",")[2] in said, said


def test_an_empty_variable_is_as_good_as_none(tmp_path):
    names = ["NODE_REGION", "NODE_LISTEN", "NODE_WEIGHT", "NODE_STOP_BUDGET", "NODE_RELAY", "NODE_TOKEN", "LOG", "CONFIG"]
    empty = {f"USHER_{name}": "" for name in names}
    # It gets as far as the flag that is wrong indeed.
    said = refused(*node(broker="http://127.0.0.1:1"), **empty)
    assert "node-link address" in said, said
    names = ["BROKER_ADMIN", "BROKER_LEASE", "BROKER_PUBLIC_URL", "MASTER_KEY", "OPERATOR_TOKEN_FILE", "BROKER_AUTO_CREATE"]
    said = refused(*broker(tmp_path, lease="0s"), **{f"USHER_{name}": "" for name in names})
    assert "lease" in said and "USHER" not in said, said


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

"""The broker is killed and comes back: nobody who is connected may notice."""

import signal

import pytest
from crowd import gauge, owners, wait_for_connections
from harness.ask import ask
from harness.patience import eventually_now
from websockets.sync.client import connect

TEAMS = 300
CONNECTIONS = 600
# The restarted broker gives the nodes a lease to report in, before it trusts what it does not hear.
SETTLED_WITHIN_S = 60.0


def away_for_a_moment(fleet):
    """Nothing to wait for: the broker is started at once."""


def away_for_longer_than_a_lease(fleet):
    def lapsed():
        return all(gauge(node, "usher_lease_remaining_seconds") == 0 for node in fleet.nodes.values())

    eventually_now("every node's lease ran out", lapsed)


def settled(fleet):
    return fleet.is_up() and fleet.view("/v1/status")["state"] == "ready"


@pytest.mark.parametrize("away", [away_for_a_moment, away_for_longer_than_a_lease])
def test_a_killed_broker_comes_back_and_no_connection_drops_and_no_team_changes_its_owner(fleet, load, figure, away):
    crowd = load(fleet, CONNECTIONS, TEAMS, "crowd-", "--usher-v1", "50%")
    for number in range(50):
        assert fleet.rest("PUT", f"/v1/teams/kept-{number}", {}).status == 201
    wait_for_connections(fleet, CONNECTIONS)
    before = owners(fleet)
    assert len(before) == TEAMS + 50
    term = fleet.view("/v1/status")["term"]

    with connect(fleet.door("kept-0")) as one, connect(fleet.door("kept-0")) as mate:

        def talk(text):
            one.send(text)
            assert mate.recv(timeout=30) == text
            mate.send(text)
            assert one.recv(timeout=30) == text

        talk("before")
        fleet.processes["broker"].signal(signal.SIGKILL)
        assert fleet.processes["broker"].ended() == -signal.SIGKILL
        talk("the broker is gone")
        away(fleet)
        with pytest.raises(OSError):
            ask(fleet.admin, "/healthz")
        talk("it is still gone")
        fleet.start_broker()
        eventually_now("the restarted broker has settled", lambda: settled(fleet), within=SETTLED_WITHIN_S)
        talk("it is back")

    assert fleet.view("/v1/status")["term"] > term
    assert owners(fleet) == before
    highest = max(epoch for _, epoch in before.values())
    for number in range(50):
        answer = fleet.rest("PUT", f"/v1/teams/new-{number}", {})
        assert answer.status == 201 and answer.json["node"] and answer.json["epoch"] > highest, answer
    with connect(fleet.door("new-0")) as newcomer, connect(fleet.door("new-0")) as mate:
        newcomer.send("hello")
        assert mate.recv(timeout=30) == "hello"
    assert {team: owners(fleet)[team] for team in before} == before

    report = crowd.report()
    assert report.is_undisturbed(), report
    figure(f"broker killed, {away.__name__.replace('_', ' ')}: {CONNECTIONS} connections stayed; {report.said()}")

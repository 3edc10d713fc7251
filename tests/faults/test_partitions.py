"""Machines that cannot hear each other, or hear each other badly."""

import os
import signal
from itertools import pairwise

import pytest
from fleet.crowd import owners, wait_for_connections
from harness.ask import ask
from harness.cluster import session_of
from harness.patience import eventually_now, throughout
from watch import LAPSES_AFTER_S, LEASE_S, LeaseWatch, OwnerWatch, held, node_metric, now, wait_until_held

TEAMS = 30
CONNECTIONS = 60
# A silent node's teams have a new owner within this after the broker last heard it.
MOVED_WITHIN_S = LEASE_S + 2
# After half a lease without a word a node gives its link up.
GIVES_UP_AFTER_S = LEASE_S / 2
# For so long peers must hear the broker before a node takes it that it is cut off itself.
CUT_OFF_AFTER_S = 8.0
# Teams without a client.
IDLE = 9
# Of four nodes: too many at once to be dead.
SILENT = ("node-1", "node-2")
LEASE_REMAINING = "usher_lease_remaining_seconds"


def crowd(fleet, load, *arguments):
    clients = load(fleet, CONNECTIONS, TEAMS, "crowd-", *arguments)
    wait_for_connections(fleet, CONNECTIONS)
    before = owners(fleet)
    assert {node for node, _ in before.values()} == set(fleet.nodes), before
    return clients, before


def others_than(fleet, *nodes):
    return [node for node in fleet.nodes if node not in nodes]


def back_to_normal(fleet):
    return fleet.is_up() and fleet.view("/v1/status")["state"] == "ready"


def both_ways(network):
    network.cut_both_ways("node-1", "broker")


def from_the_node(network):
    network.cut("node-1", "broker")


def to_the_node(network):
    network.cut("broker", "node-1")


@pytest.mark.parametrize(
    ("cut", "heard_on_for_s"),
    # A node that hears nothing goes on to be heard until it gives its link up.
    [(both_ways, 0.0), (from_the_node, 0.0), (to_the_node, GIVES_UP_AFTER_S)],
    ids=["both ways", "from the node", "to the node"],
)
def test_no_team_of_a_node_that_is_cut_off_in_silence_has_a_new_owner_before_its_lease_is_over(
    scatter, load, fault, cut, heard_on_for_s
):
    fleet = scatter(3)
    clients, before = crowd(fleet, load)
    hit = {team for team, (node, _) in before.items() if node == "node-1"}
    with LeaseWatch(fleet, "node-1") as lease, OwnerWatch(fleet, "node-1") as owner:
        began = now()
        cut(fleet.network)
        moved = owner.moved()
        earliest, latest = lease.over()
    assert moved >= earliest, f"a new owner {earliest - moved:.3f} s before the lease was over"
    assert moved - began <= heard_on_for_s + MOVED_WITHIN_S, f"{moved - began:.3f} s"
    # It was answered within a heartbeat before the cut.
    assert LAPSES_AFTER_S - 1.5 <= latest - began <= LAPSES_AFTER_S + 0.5, f"{latest - began:.3f} s"
    after = owners(fleet)
    assert {team for team in before if after[team] != before[team]} == hit
    fleet.network.heal()
    eventually_now("the node is back", lambda: back_to_normal(fleet))
    assert owners(fleet) == after, "an owner changed when it came back"
    wait_until_held(fleet, CONNECTIONS, others_than(fleet, "node-1"))
    report = clients.report()
    assert report["connected"] == CONNECTIONS and report["gave_up"] == 0, report
    fault(
        f"a new owner after the old one's lease, within {heard_on_for_s + MOVED_WITHIN_S:.0f} s of the cut",
        f"lease over {latest - began:.2f} s after the cut, new owners of {len(hit)} teams after {moved - began:.2f} s:"
        f" {moved - latest:.2f} s apart",
    )


def test_a_node_that_only_its_clients_cannot_reach_closes_them(scatter, load, fault):
    ping_s = 2
    fleet = scatter(3, "--ping", f"{ping_s}s")
    clients, _ = crowd(fleet, load, "--hold")
    here = held(fleet, "node-1")
    assert here > 0
    began = now()
    fleet.network.cut_both_ways("node-1", "clients")
    eventually_now("the node has closed what does not answer", lambda: held(fleet, "node-1") == 0)
    took_s = now() - began
    assert node_metric(fleet, "node-1", 'usher_closes_total{code="silent"}') == here
    # Where they go is a matter of trust: test_trust.py.
    eventually_now("every client is back", lambda: sum(held(fleet, node) for node in fleet.nodes) == CONNECTIONS, within=90)
    report = clients.report()
    assert report["connected"] == CONNECTIONS and report["gave_up"] == 0, report
    fault(
        "two missed pings close them; they come back elsewhere, with their teams",
        f"{here} connections closed as silent after {took_s:.1f} s with pings every {ping_s} s; all back",
    )


def test_a_firewall_that_refuses_everything_moves_teams_at_once_though_the_node_lives(scatter, load, fault):
    fleet = scatter(3)
    clients, before = crowd(fleet, load)
    hit = {team for team, (node, _) in before.items() if node == "node-1"}
    with LeaseWatch(fleet, "node-1") as lease, OwnerWatch(fleet, "node-1") as owner:
        began = now()
        fleet.network.refuse("broker", "node-1")
        moved = owner.moved()
        # Clients still reach it, and it has its lease: what is exclusive must wait for the end of that.
        remaining = node_metric(fleet, "node-1", LEASE_REMAINING)
        _, over = lease.over()
    # The broker learns of it with its answer to the next heartbeat, and tries the address for 300 ms.
    assert moved - began < LAPSES_AFTER_S - 1.5 and remaining > 0, (moved - began, remaining)
    assert "its address refuses connections" in fleet.processes["broker"].text(), fleet.processes["broker"].text()
    fleet.network.heal()
    eventually_now("the node is back", lambda: back_to_normal(fleet))
    wait_until_held(fleet, CONNECTIONS, others_than(fleet, "node-1"))
    assert set(hit) == {team for team, now_owned in owners(fleet).items() if now_owned != before[team]}
    report = clients.report()
    assert report["connected"] == CONNECTIONS and report["gave_up"] == 0, report
    fault(
        "a hint: teams move before the lease is over; what is exclusive waits (no state of it is shown by REST)",
        f"{len(hit)} teams moved {moved - began:.2f} s after the reset, with {remaining:.2f} s of the lease left,"
        f" which was over after {over - began:.2f} s",
    )


def test_when_two_of_three_nodes_are_killed_every_team_is_on_the_third_within_seconds(scatter, load, fault):
    fleet = scatter(3)
    clients, before = crowd(fleet, load)
    for number in range(IDLE):
        pin = {"node": f"node-{number % 3 + 1}", "seconds": 600}
        assert fleet.rest("PUT", f"/v1/teams/idle-{number}", {"pin": pin}).status == 201
    killed = ("node-1", "node-2")
    assert {node for node, _ in owners(fleet).values()} == set(fleet.nodes)
    processes = [pid for node in killed for pid in session_of(fleet.parent(node))]
    began = now()
    for pid in processes:
        os.kill(pid, signal.SIGKILL)
    eventually_now(
        "every team with clients is on the third node",
        lambda: all(node == "node-3" for team, (node, _) in owners(fleet).items() if team in before),
    )
    crowd_s = now() - began
    wait_until_held(fleet, CONNECTIONS, ["node-3"])
    back_s = now() - began
    state = fleet.view("/v1/status")["state"]
    report = clients.report()
    assert report["connected"] == CONNECTIONS and report["gave_up"] == 0, report
    eventually_now("every team is on the third", lambda: {node for node, _ in owners(fleet).values()} == {"node-3"})
    fault(
        "every team is on the third node within seconds, those without clients too: two of three are too many to be"
        " believed by their silence, but their addresses refuse",
        f"{crowd_s:.2f} s, all clients back after {back_s:.2f} s ({state}); all {IDLE} teams without clients after"
        f" {now() - began:.2f} s",
    )


def test_a_node_that_is_cut_off_alone_learns_it_from_its_peers_and_sends_its_clients_to_their_new_nodes(
    scatter, load, fault
):
    fleet = scatter(3)
    clients, before = crowd(fleet, load)
    here = held(fleet, "node-1")
    with LeaseWatch(fleet, "node-1") as lease, OwnerWatch(fleet, "node-1") as owner:
        began = now()
        fleet.network.cut_both_ways("node-1", "broker")
        moved = owner.moved()
        _, over = lease.over()
    eventually_now("it begins to close", lambda: held(fleet, "node-1") < here)
    first = now()
    # It is cut off all the time: nobody but its peers can have told it.
    wait_until_held(fleet, CONNECTIONS, ["node-2", "node-3"], within=2 * LEASE_S)
    last = now()
    assert held(fleet, "node-1") == 0
    assert CUT_OFF_AFTER_S - 0.5 <= first - over <= CUT_OFF_AFTER_S + 2, f"{first - over:.3f} s"
    closed = node_metric(fleet, "node-1", 'usher_closes_total{code="4312"}')
    assert closed == here, closed
    after = owners(fleet)
    fleet.network.heal()
    eventually_now("the node is back", lambda: back_to_normal(fleet))
    assert owners(fleet) == after
    report = clients.report()
    assert report["connected"] == CONNECTIONS and report["gave_up"] == 0, report
    fault(
        f"peers hear the broker for {CUT_OFF_AFTER_S:.0f} s: it closes its connections, paced, with 4312",
        f"lease over {over - began:.1f} s after the cut, new owners after {moved - began:.1f} s; {here} connections closed"
        f" with 4312 between {first - began:.1f} s and {last - began:.1f} s, all back on the others; {report.gaps()}",
    )


def silence_half(fleet):
    """Cuts two of four nodes off; seconds until the broker said that it holds still."""
    began = now()
    for node in SILENT:
        fleet.network.cut_both_ways(node, "broker")
    eventually_now(
        "the broker is in self-preservation", lambda: fleet.view("/v1/status")["state"] == "self_preservation"
    )
    return now() - began


def test_half_of_a_pool_that_falls_silent_keeps_its_teams_until_their_clients_knock(scatter, load, fault):
    fleet = scatter(4)
    clients, before = crowd(fleet, load)
    noticed_s = silence_half(fleet)
    # Past the time at which silence alone would have been death, and before the silent nodes have heard from
    # their peers for long enough that it is they who are cut off.
    held_s = LEASE_S
    throughout(held_s, "every team has its owner", lambda: owners(fleet) == before)
    # Who comes from there in vain shows its ticket, and is helped.
    team = next(team for team, (node, _) in before.items() if node == "node-1")
    with fleet.among_clients():
        ticket = ticket_for(fleet, team)
        knocked = ask(fleet.clients, f"/connect/{team}?ticket={ticket}", headers={"Accept": "application/json"})
    assert knocked.status == 200 and knocked.json["node"] not in SILENT, knocked
    assert knocked.json["epoch"] > before[team][1], knocked
    assert {name for name, owned in owners(fleet).items() if owned != before[name]} == {team}
    report = clients.report()
    assert report["connected"] == CONNECTIONS and report["gave_up"] == 0, report
    fault(
        "self-preservation: nothing moves but the team whose client knocks with its ticket",
        f"noticed after {noticed_s:.1f} s; held for {held_s:.0f} s; 1 team moved by a knock",
    )


def test_half_of_a_pool_that_stays_silent_gives_its_teams_up_without_a_ticket_or_an_operator(scatter, load, fault):
    bound_s = 20
    fleet = scatter(4)
    fleet.processes["broker"].kill()
    fleet.start_broker("--self-preservation", f"{bound_s}s")
    eventually_now("every node is ready", fleet.is_up)
    for number in range(TEAMS):
        with fleet.among_clients():
            assert plain_ask(fleet, f"page-{number}").status == 200
    before = owners(fleet)
    began = now()
    for node in SILENT:
        fleet.network.cut_both_ways(node, "broker")
        fleet.network.cut_both_ways(node, "clients")
    eventually_now(
        "the broker is in self-preservation", lambda: fleet.view("/v1/status")["state"] == "self_preservation"
    )
    told = fleet.view("/v1/status")["self_preservation"]
    assert told["silent"] == 2 and told["nodes"] == 4 and told["ends_in_ms"] <= bound_s * 1000, told
    stuck = [team for team, (node, _) in before.items() if node in SILENT]
    asked, waiting = stuck[0], stuck[1:]
    assert waiting, before

    def moved():
        with fleet.among_clients():
            return plain_ask(fleet, asked).json["node"] not in SILENT

    eventually_now("a page that asks again and again is helped", moved)
    asked_s = now() - began
    assert asked_s < bound_s, f"that was the bound: {asked_s:.1f} s"
    assert all(owners(fleet)[team] == before[team] for team in waiting), "silence alone moved a team"
    eventually_now(
        "the rest has moved by the bound in time",
        lambda: not {node for node, _ in owners(fleet).values()} & set(SILENT),
        within=bound_s + 30,
    )
    over_s = now() - began
    assert over_s >= bound_s, f"{over_s:.1f} s"
    assert "over by its bound in time" in fleet.processes["broker"].text()
    fault(
        f"a team that is asked for again and again moves after its node's lease; the others after {bound_s} s",
        f"asked again: after {asked_s:.1f} s; {len(waiting)} others after {over_s:.1f} s",
    )


def plain_ask(fleet, team):
    """Asks as a page does: for JSON, without an old ticket."""
    return ask(fleet.clients, f"/connect/{team}", headers={"Accept": "application/json"})


def test_half_of_a_pool_that_comes_back_node_by_node_finds_its_teams_and_its_clients(scatter, load, fault):
    fleet = scatter(4)
    clients, before = crowd(fleet, load)
    silence_half(fleet)
    throughout(LEASE_S, "every team has its owner", lambda: owners(fleet) == before)
    # With the first one back, too few are silent to hold still for; the other has not been given up by that.
    first, last = SILENT
    fleet.network.heal(first, "broker")
    eventually_now("the first is back", lambda: fleet.states()[first] == "ready")
    fleet.network.heal(last, "broker")
    eventually_now("all are back", lambda: back_to_normal(fleet))
    wait_until_held(fleet, CONNECTIONS, fleet.nodes)
    moved = {team for team, owned in owners(fleet).items() if owned != before[team]}
    report = clients.report()
    lost = sum(interruption["lost"] for interruption in report["interruptions"])
    fault(
        "healed: no owner changes, no reconnects",
        f"{len(moved)} of {len(before)} teams moved, {lost} of {CONNECTIONS} connections interrupted",
    )
    assert not moved, fleet.processes["broker"].text()
    assert report.is_undisturbed(), report


def ticket_for(fleet, team):
    url = ask(fleet.clients, f"/connect/{team}", headers={"Accept": "application/json"}).json["url"]
    return url.partition("ticket=")[2]


@pytest.mark.parametrize("for_s", [30.0, pytest.param(360.0, marks=[pytest.mark.long, pytest.mark.timeout(600)])])
def test_a_long_and_bad_line_is_no_death(scatter, fault, for_s):
    delay_s, loss = 0.2, 0.05
    fleet = scatter(3, slow={"node-1": (delay_s, loss)})
    (line,) = fleet.network.lines
    for number in range(30):
        pin = {"node": "node-1", "seconds": 3_600}
        assert fleet.rest("PUT", f"/v1/teams/t{number}", {"pin": pin}).json["node"] == "node-1"
    before = owners(fleet)
    left = [eventually_now("it has a lease", lambda: node_metric(fleet, "node-1", LEASE_REMAINING))]

    def lives():
        left.append(node_metric(fleet, "node-1", LEASE_REMAINING))
        return owners(fleet) == before

    try:
        throughout(for_s, "every team has its owner", lives)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{fleet.log()}") from None
    said = fleet.processes["broker"].text()
    assert "is dead" not in said, said
    # A lease that is over for a moment costs a pause of exclusive effects, and no team.
    lapses = sum(before > 0 and after == 0 for before, after in pairwise(left))
    fault(
        "no false death",
        f"{for_s:.0f} s with {delay_s * 1000:.0f} ms each way and {loss:.0%} loss"
        f" ({line.lost} of {line.lost + line.passed} packets): shortest lease left {min(left):.2f} s, {lapses} lapses,"
        f" seen as silent {said.count('node fell silent')} times, no death",
    )

"""A node that runs out of file descriptors."""

import http.client
import os
import resource
from itertools import count

from fleet.crowd import wait_for_connections
from harness.ask import ask
from harness.patience import eventually_now, throughout
from members import Member

JSON = {"Accept": "application/json"}


def test_a_node_without_file_descriptors_refuses_newcomers_and_keeps_what_it_has(start_fleet, load, fault):
    fleet = start_fleet(1)
    connections = 60
    clients = load(fleet, connections, connections // 2, "crowd-")
    wait_for_connections(fleet, connections)
    member = Member(fleet, "newcomer")
    worker = fleet.worker("node-1")
    _, hard = resource.prlimit(worker, resource.RLIMIT_NOFILE)
    # The scrape of its metrics needs one, too: it keeps its connection from before.
    scrape = http.client.HTTPConnection(*fleet.nodes["node-1"].admin, timeout=30)

    def scraped(name):
        scrape.request("GET", "/metrics")
        text = scrape.getresponse().read().decode()
        return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name))

    assert scraped("usher_link_up") == 1
    used = max(map(int, os.listdir(f"/proc/{worker}/fd"))) + 1
    resource.prlimit(worker, resource.RLIMIT_NOFILE, (used, hard))
    waiting = []
    try:
        for _ in range(20):
            waiting.append(Member(fleet, "newcomer", patient=True))
        eventually_now("it cannot accept", lambda: scraped("usher_accept_errors_total") > 0)
        errors = scraped("usher_accept_errors_total")
        cpu = cpu_s(worker)
        throughout(3.0, "the node lives, with its lease", lambda: scraped("usher_lease_remaining_seconds") > 0)
        cpu = cpu_s(worker) - cpu
        errors = scraped("usher_accept_errors_total") - errors
        assert scraped('usher_connections{direction="inbound"}') == connections + 1
        assert cpu < 1.5, f"{cpu:.1f} s of CPU in 3 s: it spins"
        # A descriptor that was free below the limit lets the node take one of them in, only to refuse it.
        refused, waiting = parted(waiting, lambda one: one.has_answer())
        refusals = [one.answered() for one in refused]
        assert refusals == [503] * len(refused), refusals
    finally:
        resource.prlimit(worker, resource.RLIMIT_NOFILE, (hard, hard))
    answered = [one.answered() for one in waiting]
    assert answered == [101] * len(waiting), answered
    assert len(waiting) >= 10, f"only {len(waiting)} had to wait"
    assert member.lives()
    assert fleet.worker("node-1") == worker
    report = clients.report()
    assert report.is_undisturbed(), report
    fault(
        "newcomers wait or are refused, what is connected stays, and it recovers",
        f"with 0 descriptors left: {errors:.0f} failed accepts and {cpu:.2f} s of CPU in 3 s, {connections + 1} connections"
        f" stayed; {len(refused)} were refused; with descriptors again the {len(waiting)} that waited came in",
    )


def parted(members, holds):
    """Those of whom it holds, and the others."""
    yes = [one for one in members if holds(one)]
    return yes, [one for one in members if one not in yes]


def cpu_s(process):
    fields = open(f"/proc/{process}/stat").read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_a_node_with_few_file_descriptors_takes_as_many_connections_as_fit_and_says_so(start_fleet, fault):
    # It keeps hundreds for itself: for files, probes, admin.
    limit = 600
    fleet = start_fleet(1, before=("prlimit", f"--nofile={limit}:{limit}"))
    (node,) = fleet.view("/v1/nodes")["nodes"]
    capacity = node["capacity"]["connections"]
    assert 0 < capacity < limit, node
    members, numbers = [], count()
    while (asked := ask(fleet.clients, f"/connect/team-{len(members)}", headers=JSON)).status == 200:
        members.append(Member(fleet, f"team-{len(members)}", patient=True))
        if (status := members[-1].answered()) != 101:
            break
        assert len(members) < limit, "more connections than descriptors"
    # The broker knows by the last heartbeat that the node is full; until then the node itself refuses.
    said = f"the broker answered {asked.status} {asked.code}" if asked.status != 200 else f"the node answered {status}"
    assert asked.status == 503 or status in (302, 503), said
    if asked.status == 200:
        members.pop().close()

    def turned_away():
        # A new team each time: one that was placed already is sent to its node.
        answer = ask(fleet.clients, f"/connect/late-{next(numbers)}", headers=JSON)
        return answer.status == 503 and answer

    late = eventually_now("the broker knows", turned_away)
    descriptors = len(os.listdir(f"/proc/{fleet.worker('node-1')}/fd"))
    assert descriptors < limit
    assert all(member.lives() for member in members)
    assert fleet.all_ready()
    for member in members[:20]:
        member.close()
    eventually_now("there is room again", lambda: not turned_away())
    Member(fleet, f"late-{next(numbers) - 1}").close()
    for member in members[20:]:
        member.close()
    fault(
        "full before it runs out; a clear refusal; what is connected stays; room again when some leave",
        f"limit {limit}: room for {capacity} connections; after {len(members)} {said}, then 503 {late.code};"
        f" {limit - descriptors} descriptors left",
    )

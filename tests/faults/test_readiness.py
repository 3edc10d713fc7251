"""What load balancers are told."""

import signal

from harness.ask import ask
from harness.patience import eventually_now
from members import Member


def readyz(fleet, node):
    answer = ask(fleet.nodes[node].address, "/readyz")
    return answer.status, answer.body.decode()


def test_nodes_that_serve_stay_ready_without_their_broker(start_fleet):
    fleet = start_fleet(2)
    member = Member(fleet, "T1")
    fleet.processes["broker"].kill()
    eventually_now("they have noticed", lambda: all("without its broker" in readyz(fleet, node)[1] for node in fleet.nodes))
    assert [readyz(fleet, node)[0] for node in fleet.nodes] == [200, 200]
    assert member.lives()
    # One that never met a broker serves nobody, and one that stops is not to be sent anybody.
    fleet.add_node("node-3")
    eventually_now("the new one answers", lambda: answers(fleet, "node-3"))
    status, told = readyz(fleet, "node-3")
    assert status == 503 and "--broker" in told
    owner = fleet.node_at(int(member.url.split(":")[2].split("/")[0]))
    fleet.processes[owner].signal(signal.SIGTERM)
    eventually_now("it says so", lambda: readyz(fleet, owner)[0] == 503)
    assert "stopping" in readyz(fleet, owner)[1]


def answers(fleet, node):
    try:
        return readyz(fleet, node)
    except OSError:
        return None


def test_a_fencing_node_whose_lease_is_over_is_not_ready(start_fleet):
    fleet = start_fleet(1, "--on-lapse", "fence")
    fleet.processes["broker"].kill()
    eventually_now("it says so", lambda: readyz(fleet, "node-1")[0] == 503)
    assert "lease" in readyz(fleet, "node-1")[1]

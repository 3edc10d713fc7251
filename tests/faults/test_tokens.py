"""Credentials that change while everything runs, or that are not the ones of before."""

import shutil
import signal

from harness.ask import ask
from harness.patience import SOON_S, eventually_now, throughout
from members import Member
from watch import metric, node_metric

OLD = "old-node-token-0123456789"
NEW = "new-node-token-0123456789"
LEASE_LEFT = "usher_lease_remaining_seconds"
REFUSED = 'usher_nodes_refused_total{code="unauthorized"}'


def write(path, *tokens):
    path.write_text("".join(f"{token}\n" for token in tokens))
    path.chmod(0o600)


def guarded(start_fleet):
    """A pool whose broker and nodes have a token file each."""
    fleet = start_fleet(0)
    files = {name: fleet.folder / f"token-{name}" for name in ("broker", "node-1", "node-2")}
    for path in files.values():
        write(path, OLD)
    fleet.processes["broker"].kill()
    fleet.start_broker("--node-token-file", files["broker"])
    for name in ("node-1", "node-2"):
        fleet.add_node(name, "--node-token-file", files[name])
    eventually_now("every node is ready", fleet.is_up)
    return fleet, files


def restart_broker(fleet, files):
    fleet.processes["broker"].kill()
    fleet.start_broker("--node-token-file", files["broker"])
    eventually_now("the broker answers", fleet.answers)


def leases_run(fleet):
    return all(node_metric(fleet, node, LEASE_LEFT) > 0 for node in fleet.nodes)


def answers(fleet, name):
    try:
        return ask(fleet.nodes[name].address, "/readyz").status == 200
    except OSError:
        return False


def test_a_token_is_exchanged_without_an_outage(start_fleet, fault):
    fleet, files = guarded(start_fleet)
    member = Member(fleet, "T1")
    broker = fleet.processes["broker"]
    # Taken beside the old one, then shown, then alone. Links are cut between, so that each step is put to the test.
    write(files["broker"], OLD, NEW)
    eventually_now("the broker takes both", lambda: "tokens=2" in broker.text())
    for name in fleet.nodes:
        write(files[name], NEW)
        eventually_now(
            f"{name} has it", lambda name=name: "which are in force now" in fleet.processes[name].text(), within=SOON_S
        )
    before = fleet.worker("node-1")
    fleet.kill_worker("node-1")
    # Not by the broker's word alone: it may not have noticed yet.
    eventually_now("another process runs", lambda: fleet.worker("node-1") != before)
    eventually_now("it came back with the new one", lambda: answers(fleet, "node-1") and fleet.is_up())
    write(files["broker"], NEW)
    broker.signal(signal.SIGHUP)
    eventually_now("the old one is out", lambda: "tokens=1" in broker.text())
    throughout(3.0, "leases run", lambda: leases_run(fleet))
    assert metric(fleet.admin, REFUSED) == 0
    assert ask(fleet.node_link, "/v1/node-link", headers={"Authorization": f"Bearer {OLD}"}).status == 401
    assert member.lives() or fleet.owner("T1")
    fault("no link is refused", "0 links refused, every lease ran on")


def test_a_token_that_is_exchanged_at_once_is_read_again_by_those_who_are_refused(start_fleet):
    fleet, files = guarded(start_fleet)
    for path in files.values():
        write(path, NEW)
    restart_broker(fleet, files)
    eventually_now("every node is ready", fleet.is_up, within=10.0)
    eventually_now("leases run", lambda: leases_run(fleet))


def test_links_that_are_refused_for_their_token_are_counted_and_told(start_fleet):
    fleet, files = guarded(start_fleet)
    write(files["broker"], NEW)
    restart_broker(fleet, files)
    broker = fleet.processes["broker"]
    eventually_now("it is counted", lambda: metric(fleet.admin, REFUSED) > 5)
    assert broker.text().count("links are refused for their token") == 1, broker.text()
    assert fleet.view("/v1/status")["links_refused"]["unauthorized"] > 0
    # Nodes say it once each as well, and serve on.
    for name in fleet.nodes:
        assert fleet.processes[name].text().count("does not know this node's token") == 1
        assert ask(fleet.nodes[name].address, "/readyz").status == 200
    write(files["broker"], OLD)
    eventually_now("every node is ready", fleet.is_up)


def test_a_broker_on_another_folder_is_not_ready_and_asks_whether_it_is_the_right_one(start_fleet):
    fleet = start_fleet(2)
    member = Member(fleet, "T1")
    fleet.processes["broker"].kill()
    data, fleet.data = fleet.data, fleet.folder / "other"
    fleet.start_broker()
    broker = fleet.processes["broker"]
    eventually_now("it asks", lambda: "is --data the right folder?" in broker.text())
    answer = ask(fleet.clients, "/readyz")
    assert answer.status == 503 and b"--data" in answer.body, answer
    assert member.lives()
    broker.kill()
    fleet.data = data
    fleet.start_broker()
    eventually_now("every node is ready", fleet.is_up)
    assert member.lives()


def test_a_store_without_its_master_key_is_not_run(start_fleet):
    fleet = start_fleet(1)
    fleet.processes["broker"].kill()
    key = fleet.data / "master.key"
    kept = fleet.folder / "kept.key"
    shutil.move(key, kept)
    fleet.start_broker()
    broker = fleet.processes["broker"]
    assert broker.ended() == 2
    assert "master.key is missing" in broker.text() and "--new-master-key" in broker.text(), broker.text()
    assert not key.exists()
    fleet.start_broker("--new-master-key")
    eventually_now("the node is ready", fleet.is_up)
    assert key.read_text() != kept.read_text()

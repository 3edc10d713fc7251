"""No node can take the team: a clear answer, by every way, and no silent fallback."""

import json

import pytest
from harness.ask import ask, upgrade
from harness.patience import eventually_now
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

BROWSER = "Mozilla/5.0 (X11; Linux x86_64; rv:153.0) Gecko/20100101 Firefox/153.0"


@pytest.fixture
def shut(cluster):
    """The cluster with every node cordoned."""
    for node in cluster.nodes:
        assert cluster.rest("POST", f"/v1/nodes/{node}/cordon").status == 200
    eventually_now("no node takes teams", lambda: set(cluster.states().values()) == {"cordoned"})
    yield cluster
    for node in cluster.nodes:
        assert cluster.rest("POST", f"/v1/nodes/{node}/uncordon").status == 200
    eventually_now("every node takes teams", cluster.all_ready)


@pytest.mark.parametrize("headers", [{"Accept": "application/json"}, upgrade(), {}], ids=["JSON", "upgrade", "page"])
def test_whoever_reads_a_status_gets_503_and_when_to_come_back(shut, team, headers):
    answer = ask(shut.clients, f"/connect/{team}", headers=headers)
    assert (answer.status, answer.code) == (503, "no_node"), answer
    assert 1 <= int(answer.headers["retry-after"]) <= 60
    assert answer.json["retry_ms"] > 0


async def test_a_library_that_follows_redirects_sees_the_503(shut, team):
    with pytest.raises(InvalidStatus) as refused:
        await connect(shut.door(team))
    assert refused.value.response.status_code == 503
    assert refused.value.response.headers["Retry-After"]


async def test_a_browser_is_closed_with_4313_and_told_when_to_come_back(shut, team):
    socket = await connect(shut.door(team), user_agent_header=BROWSER)
    with pytest.raises(ConnectionClosed):
        await socket.recv()
    assert socket.close_code == 4313
    reason = json.loads(socket.close_reason)
    assert reason["code"] == "no_node" and reason["retry_ms"] > 0


def test_a_put_is_refused_too_and_says_what_kept_each_node_out(shut, team):
    answer = shut.rest("PUT", f"/v1/teams/{team}", {})
    assert (answer.status, answer.code) == (503, "no_node"), answer
    assert "cordoned" in answer.json["detail"], answer


def test_a_team_that_has_its_node_is_not_affected(cluster, team):
    node = ask(cluster.clients, f"/connect/{team}", headers={"Accept": "application/json"}).json["node"]
    for name in cluster.nodes:
        assert cluster.rest("POST", f"/v1/nodes/{name}/cordon").status == 200
    try:
        answer = ask(cluster.clients, f"/connect/{team}", headers={"Accept": "application/json"})
        assert (answer.status, answer.json["node"]) == (200, node), answer
    finally:
        for name in cluster.nodes:
            assert cluster.rest("POST", f"/v1/nodes/{name}/uncordon").status == 200

"""Whatever is thrown at a broker or a node: a clear error, no crash, nothing lost."""

import asyncio
import json

import aiohttp
import pytest
from harness.ask import address_of, ask, exchange, ticket_of, upgrade

JSON = {"Accept": "application/json"}
MALFORMED_TEAMS = {
    "a dot": ".",
    "two dots": "..",
    "nothing": "",
    "129 bytes": "x" * 129,
    "a slash": "a%2fb",
    "a slash, upper case": "a%2Fb",
    "a real slash": "a/b",
    "NUL": "%00",
    "NUL inside": "a%00b",
    "an emoji, encoded": "%F0%9F%98%80",
    "half a character": "%ff",
    "half an escape": "%2",
    "a space": "a%20b",
    "a leading dash": "-a",
    "a line break": "a%0d%0ab",
}


def unharmed(cluster):
    """The cluster works and nothing was added to it; call it before and after."""
    assert cluster.all_ready(), cluster.states()
    return cluster.view("/v1/teams")["total"]


@pytest.fixture(autouse=True)
def nothing_is_added(request, cluster):
    """No refused request leaves a team behind, and no process dies of one."""
    before = unharmed(cluster), {node: cluster.worker(node) for node in cluster.nodes}
    yield
    allowed = request.node.get_closest_marker("adds_teams")
    after = unharmed(cluster), {node: cluster.worker(node) for node in cluster.nodes}
    assert after[1] == before[1], "a worker died"
    assert allowed or after[0] == before[0], "a refused request made a team"


@pytest.fixture(params=MALFORMED_TEAMS.values(), ids=MALFORMED_TEAMS.keys())
def malformed(request):
    """Every malformed team id in turn."""
    return request.param


@pytest.mark.parametrize("headers", [JSON, upgrade(), {}], ids=["as JSON", "as an upgrade", "as a page"])
def test_the_broker_refuses_to_connect_a_malformed_team(cluster, malformed, headers):
    answer = ask(cluster.clients, f"/connect/{malformed}", headers=headers)
    assert answer.status in (400, 404) and answer.code, answer
    assert "location" not in answer.headers


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_the_broker_refuses_to_manage_a_malformed_team(cluster, malformed, method):
    answer = ask(cluster.admin, f"/v1/teams/{malformed}", method=method)
    assert answer.status in (400, 404, 405) and answer.code, answer


def test_the_broker_does_not_explain_a_malformed_team(cluster, malformed):
    answer = ask(cluster.admin, f"/v1/teams/{malformed}/why")
    assert answer.status in (400, 404) and answer.code, answer


def test_a_node_refuses_a_malformed_team(cluster, malformed):
    for node in cluster.nodes.values():
        answer = ask(node.address, f"/teams/{malformed}?ticket=x", headers=upgrade())
        assert answer.status in (400, 404) and answer.code, answer


@pytest.mark.parametrize("where", ["clients", "admin"])
def test_bytes_that_are_no_path_are_refused(cluster, where):
    address = getattr(cluster, where)
    for path in ("/connect/\U0001f600", "/connect/a\x00b", "/connect/a b"):
        answer = ask(address, path, headers=JSON)
        assert answer.status == 400 or (answer.status == 404 and where == "admin"), (path, answer)


def test_bytes_that_are_no_http_are_refused(cluster):
    for address in (cluster.clients, cluster.admin, cluster.node_link, cluster.nodes["node-1"].address):
        answer = exchange(address, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 not TLS here\r\n\r\n")
        assert answer.status == 400, (address, answer)


def test_an_endless_header_is_refused(cluster):
    for address in (cluster.clients, cluster.admin, cluster.node_link, cluster.nodes["node-1"].address):
        answer = ask(address, "/healthz", headers={"X-Long": "x" * 1_000_000})
        assert 400 <= answer.status < 500, (address, answer)


BAD_PUTS = {
    "not JSON": b"{",
    "no object": b"[]",
    "not text": b"\xff\xfe",
    "twice the same": b'{"weight":1,"weight":2}',
    "an unknown field": {"wieght": 1},
    "weight 0": {"weight": 0},
    "weight over the bound": {"weight": 10_001},
    "weight below 0": {"weight": -1},
    "half a weight": {"weight": 1.5},
    "weight as text": {"weight": "1"},
    "a weight of 100 digits": b'{"weight":' + b"9" * 100 + b"}",
    "a region that is no label": {"region": "a b"},
    "17 labels": {"labels": {f"key{at}": "v" for at in range(17)}},
    "a label's value that is no label": {"labels": {"a": ""}},
    "a pin to no node": {"pin": {"seconds": 10}},
    "a pin to a malformed node": {"pin": {"node": "..", "seconds": 10}},
    "a pin for ever": {"pin": {"node": "node-1", "seconds": 30 * 86_400 + 1}},
    "a pin for no time": {"pin": {"node": "node-1", "seconds": 0}},
    "a pin of unknown strength": {"pin": {"node": "node-1", "seconds": 10, "strength": "iron"}},
    "an unknown field in a pin": {"pin": {"node": "node-1", "seconds": 10, "hard": True}},
    "arrays without end": b"[" * 20_000,
}


@pytest.mark.parametrize("body", BAD_PUTS.values(), ids=BAD_PUTS.keys())
def test_a_bad_body_makes_no_team(cluster, team, body):
    headers = {"Content-Type": "application/json"}
    answer = ask(cluster.admin, f"/v1/teams/{team}", method="PUT", headers=headers, body=body)
    assert answer.status in (400, 422) and answer.code, answer
    assert ask(cluster.admin, f"/v1/teams/{team}").status == 404


BAD_ORDERS = {
    "drain at rate 0": ("drain", {"rate_per_s": 0}),
    "drain above the highest rate": ("drain", {"rate_per_s": 10_001}),
    "drain by a deadline of 0": ("drain", {"deadline_s": 0}),
    "drain by a deadline past a day": ("drain", {"deadline_s": 86_401}),
    "drain with an unknown field": ("drain", {"rate": 5}),
    "drain with text for a number": ("drain", {"rate_per_s": "5"}),
    "drain with text for a truth": ("drain", {"force": "yes"}),
    "drain with half a body": ("drain", b'{"force":'),
    "shed nothing said": ("shed", {}),
    "shed both": ("shed", {"teams": 1, "percent": 1}),
    "shed no team": ("shed", {"teams": 0}),
    "shed 0 percent": ("shed", {"percent": 0}),
    "shed 101 percent": ("shed", {"percent": 101}),
    "shed below 0": ("shed", {"teams": -1}),
    "shed at rate 0": ("shed", {"teams": 1, "rate_per_s": 0}),
}


@pytest.mark.parametrize(("verb", "body"), BAD_ORDERS.values(), ids=BAD_ORDERS.keys())
def test_a_bad_order_moves_nothing(cluster, verb, body):
    headers = {"Content-Type": "application/json"}
    before = len(cluster.view("/v1/operations")["operations"])
    answer = ask(cluster.admin, f"/v1/nodes/node-1/{verb}", method="POST", headers=headers, body=body)
    assert answer.status in (400, 422) and answer.code, answer
    assert len(cluster.view("/v1/operations")["operations"]) == before


def test_a_body_that_is_too_large_is_refused(cluster, team):
    body = json.dumps({"region": "x" * 4_000_000}).encode()
    for method, path in (("PUT", f"/v1/teams/{team}"), ("POST", "/v1/nodes/node-1/drain")):
        answer = ask(cluster.admin, path, method=method, headers={"Content-Type": "application/json"}, body=body)
        assert answer.status == 413 and answer.code, answer


def test_a_body_that_says_to_be_too_large_is_refused_before_it_comes(cluster, team):
    headers = {"Content-Type": "application/json", "Content-Length": str(1 << 40)}
    answer = ask(cluster.admin, f"/v1/teams/{team}", method="PUT", headers=headers)
    assert answer.status == 413, answer


UNKNOWN = {
    "a team": ("GET", "/v1/teams/nobody", "unknown_team"),
    "a team's reasons": ("GET", "/v1/teams/nobody/why", "unknown_team"),
    "a team to forget": ("DELETE", "/v1/teams/nobody", "unknown_team"),
    "a node": ("GET", "/v1/nodes/nobody", "unknown_node"),
    "a node to drain": ("POST", "/v1/nodes/nobody/drain", "unknown_node"),
    "a node to take back": ("POST", "/v1/nodes/nobody/undrain", "unknown_node"),
    "a node to cordon": ("POST", "/v1/nodes/nobody/cordon", "unknown_node"),
    "a node to uncordon": ("POST", "/v1/nodes/nobody/uncordon", "unknown_node"),
    "an operation": ("GET", "/v1/operations/nothing", "unknown_operation"),
}


@pytest.mark.parametrize(("method", "path", "code"), UNKNOWN.values(), ids=UNKNOWN.keys())
def test_what_is_unknown_is_said_to_be_unknown(cluster, method, path, code):
    answer = ask(cluster.admin, path, method=method)
    assert (answer.status, answer.code) == (404, code), answer


def test_a_page_of_teams_out_of_range_is_refused(cluster):
    for query in ("limit=0", "limit=-1", "limit=1000001", "limit=x", "node=..", "after=..", "nodes=node-1"):
        answer = ask(cluster.admin, f"/v1/teams?{query}")
        assert answer.status == 400 and answer.code, (query, answer)


def test_a_path_or_method_that_does_not_exist_is_refused(cluster):
    for address, path in ((cluster.clients, "/v1/teams"), (cluster.clients, "/metrics"), (cluster.admin, "/v2/teams")):
        answer = ask(address, path)
        assert answer.status == 404 and answer.code, (path, answer)
    answer = ask(cluster.admin, "/v1/nodes/node-1/drain", method="GET")
    assert answer.status == 405 and answer.code, answer


@pytest.mark.adds_teams
async def test_a_hundred_puts_at_once_for_one_new_team_make_one_assignment(cluster, team):
    url = "http://{}:{}".format(*cluster.admin) + f"/v1/teams/{team}"
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def put():
            async with session.put(url, json={}) as answer:
                body = await answer.json()
                return answer.status, body["node"], body["epoch"]

        answers = await asyncio.gather(*(put() for _ in range(100)))
    assert sorted(status for status, _, _ in answers) == [200] * 99 + [201]
    assert len({(node, epoch) for _, node, epoch in answers}) == 1, answers
    assert cluster.view(f"/v1/teams/{team}/why")["decisions"][0]["cause"] == "put"


@pytest.mark.adds_teams
async def test_a_hundred_clients_at_once_for_one_new_team_make_one_assignment(cluster, team):
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, headers=JSON) as session:

        async def knock():
            async with session.get(cluster.door(team, "http")) as answer:
                body = await answer.json()
                return answer.status, body["node"], body["epoch"]

        assert len(set(await asyncio.gather(*(knock() for _ in range(100))))) == 1


EVIL_HEADERS = {
    "Host": "evil.example",
    "X-Forwarded-Host": "evil.example",
    "X-Forwarded-Proto": "https",
    "X-Forwarded-Port": "1",
    "X-Forwarded-Prefix": "/evil",
    "Forwarded": "host=evil.example;proto=https",
    "X-Original-URL": "http://evil.example/",
}


@pytest.mark.adds_teams
def test_no_header_of_the_client_changes_where_it_is_sent(cluster, team):
    owner = ask(cluster.clients, f"/connect/{team}", headers=JSON).json["node"]
    address = cluster.nodes[owner].address
    answer = ask(cluster.clients, f"/connect/{team}", headers={**EVIL_HEADERS, **JSON})
    assert address_of(answer.json["url"]) == address and "evil" not in answer.body.decode(), answer
    for query in ("", "?location=ws", "?location=http", "?location=net"):
        answer = ask(cluster.clients, f"/connect/{team}{query}", headers={**EVIL_HEADERS, **upgrade()})
        assert answer.status == 302 and address_of(answer.location) == address, answer
        assert "evil" not in str(answer.headers), answer
    # The node sends whoever has no ticket back to the broker it knows.
    answer = ask(address, f"/teams/{team}", headers={**EVIL_HEADERS, **upgrade()})
    assert address_of(answer.location) == cluster.clients and "evil" not in str(answer.headers), answer


@pytest.mark.adds_teams
def test_nothing_in_a_query_changes_where_a_client_is_sent_or_adds_a_header(cluster, team):
    owner = ask(cluster.clients, f"/connect/{team}", headers=JSON).json["node"]
    address = cluster.nodes[owner].address
    for query in (
        "x=%0d%0aSet-Cookie:%20evil=1",
        "%0d%0aLocation:%20http://evil.example",
        "node=evil",
        "url=ws://evil.example/",
        "host=evil.example",
        "ticket=evil&ticket=evil",
        "location=//evil.example",
        "@evil.example/",
        "#@evil.example/",
    ):
        answer = ask(cluster.clients, f"/connect/{team}?{query}", headers=upgrade())
        assert answer.status in (302, 400), (query, answer)
        if answer.status == 302:
            assert address_of(answer.location) == address, (query, answer)
            assert answer.location.startswith("ws://") and "set-cookie" not in answer.headers, (query, answer)
            assert not set("\r\n") & set(answer.location), (query, answer)


@pytest.mark.adds_teams
def test_parameters_that_are_not_ours_reach_the_node_and_a_client_cannot_bring_its_own_ticket(cluster, team):
    answer = ask(cluster.clients, f"/connect/{team}?theme=dark&ticket=mine&page=%2Fa%26b", headers=JSON)
    url = answer.json["url"]
    assert "theme=dark" in url and "page=%2Fa%26b" in url, url
    assert ticket_of(url) != "mine"


@pytest.mark.adds_teams
def test_a_redirected_post_stays_a_post(cluster, team):
    ask(cluster.clients, f"/connect/{team}", headers=JSON)
    for method in ("POST", "PUT", "DELETE"):
        answer = ask(cluster.clients, f"/connect/{team}", method=method, headers={"Content-Length": "0"})
        assert answer.status in (307, 405), (method, answer)


@pytest.mark.adds_teams
def test_only_pages_of_an_allowed_origin_may_read_the_answer(cluster, team):
    origin = "http://127.0.0.1:12345"
    answer = ask(cluster.clients, f"/connect/{team}", headers={**JSON, "Origin": origin})
    assert answer.headers["access-control-allow-origin"] == origin
    assert "origin" in answer.headers["vary"].lower()
    assert answer.headers["cache-control"] == "no-store"
    for foreign in ("http://evil.example", "null", "http://127.0.0.1.evil.example", "http://localhost@evil.example"):
        answer = ask(cluster.clients, f"/connect/{team}", headers={**JSON, "Origin": foreign})
        assert (answer.status, answer.code) == (403, "foreign_origin"), (foreign, answer)
        assert "access-control-allow-origin" not in answer.headers, (foreign, answer)

"""No panel of the dashboard is empty, no query fails, and an alert comes when it should and not before."""

import asyncio
import json
import subprocess
from pathlib import Path

import pytest
from harness.patience import BACK_WITHIN_S, eventually
from harness.prometheus import DASHBOARD, RULES, filled_in, panel_queries, rules, tool


def promtool(*arguments):
    """Runs a check; what it printed."""
    done = subprocess.run([tool("promtool"), *map(str, arguments)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def alerting(prometheus, name):
    """The labels for which an alert's expression is true just now."""
    return [series["metric"] for series in prometheus.now(dict(rules())[name])]


def test_promtool_finds_no_fault_with_the_rules():
    promtool("check", "rules", "--lint-fatal", RULES)


async def test_promtool_finds_no_fault_with_the_configuration(observed):
    assert "SUCCESS" in await asyncio.to_thread(promtool, "check", "config", observed.prometheus.config)


def test_every_alert_fires_when_it_should_and_not_before():
    promtool("test", "rules", Path(__file__).with_name("alerts_test.yml"))


def test_every_panel_says_what_it_shows_and_asks_something():
    dashboard = json.loads(DASHBOARD.read_text())
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    assert len(panels) > 10
    assert [panel["title"] for panel in panels if not panel.get("description") or not panel.get("targets")] == []
    sources = {json.dumps(part["datasource"]) for panel in panels for part in (panel, *panel["targets"])}
    assert sources == {json.dumps({"type": "prometheus", "uid": "${datasource}"})}
    assert [variable["type"] for variable in dashboard["templating"]["list"]] == ["datasource"]
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize(
    "expression",
    [pytest.param(expression, id=f"{title}: {expression}") for title, expression in panel_queries()],
)
async def test_no_query_of_a_panel_is_empty(observed, expression):
    query = filled_in(expression)
    assert await asyncio.to_thread(observed.prometheus.over, query, observed.since)


@pytest.mark.parametrize("name", [name for name, _ in rules()])
async def test_every_rule_can_be_evaluated(observed, name):
    await asyncio.to_thread(observed.prometheus.now, filled_in(dict(rules())[name]))


async def test_prometheus_itself_finds_every_rule_healthy(observed):
    def healthy():
        groups = observed.prometheus.get("rules")["groups"]
        found = {rule["name"]: rule["health"] for group in groups for rule in group["rules"]}
        assert set(found) == {name for name, _ in rules()}
        assert "err" not in found.values(), groups
        return set(found.values()) == {"ok"}

    await eventually("every rule was evaluated", healthy)


async def test_every_metric_says_what_it_is(observed):
    described = await asyncio.to_thread(observed.prometheus.get, "metadata")
    ours = {name: entry for name, entry in described.items() if name.startswith("usher_")}
    assert len(ours) > 20
    assert sorted(name for name, entry in ours.items() if not all(text["help"] for text in entry)) == []


async def test_no_metric_has_a_label_per_team(observed):
    assert await asyncio.to_thread(observed.prometheus.get, "label/team/values") == []


async def test_a_node_that_is_killed_for_good_is_alerted_and_the_others_are_not(observed):
    cluster, prometheus = observed.cluster, observed.prometheus
    await eventually("no node is missed", lambda: not alerting(prometheus, "UsherNodeGone"))
    for name, _ in rules():
        assert await asyncio.to_thread(alerting, prometheus, name) == []
    cluster.kill_for_good("node-1")
    gone = await eventually("node-1 is missed", lambda: alerting(prometheus, "UsherNodeGone"), within=BACK_WITHIN_S)
    assert gone == [{"node": "node-1"}]
    others = [name for name, _ in rules() if name != "UsherNodeGone"]
    assert [name for name in others if await asyncio.to_thread(alerting, prometheus, name)] == []

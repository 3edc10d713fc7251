"""A real Prometheus with our configuration, and every query that we ship."""

import json
import math
import re
import shutil
import signal
import subprocess
import time
from urllib.parse import urlencode

import yaml

from .ask import ask
from .cluster import ROOT

GRAFANA = ROOT / "grafana"
CONFIG = GRAFANA / "prometheus" / "prometheus.yml"
RULES = GRAFANA / "prometheus" / "alerts.yml"
DASHBOARD = GRAFANA / "dashboards" / "usher.json"
# Scrapes come every second here, so a rate over this span has enough of them.
RATE_INTERVAL = "10s"
_LISTENING = re.compile(r'msg="Listening on".* address=(\S+)')


def tool(name):
    """A program of Debian's package `prometheus`."""
    path = shutil.which(name)
    assert path, f"{name} is not installed: apt-get install prometheus"
    return path


class Prometheus:
    """The process, with our configuration pointed at one cluster."""

    def __init__(self, cluster):
        self._folder = cluster.folder / "prometheus"
        self._folder.mkdir()
        config = self._folder / "prometheus.yml"
        config.write_text(yaml.safe_dump(pointed_at(cluster)))
        self._log = self._folder / "log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    tool("prometheus"),
                    f"--config.file={config}",
                    f"--storage.tsdb.path={self._folder / 'data'}",
                    "--web.listen-address=127.0.0.1:0",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.config = config
        self._address = None

    def address(self):
        """Where it listens; `None` until it says so."""
        assert self._process.poll() is None, self._log.read_text()
        if not self._address and (found := _LISTENING.search(self._log.read_text())):
            host, port = found[1].rsplit(":", 1)
            self._address = host, int(port)
        return self._address

    def is_ready(self):
        """Whether it listens and has read its store."""
        return self.address() and ask(self.address(), "/-/ready").status == 200

    def get(self, path, **parameters):
        """The data of an API call that must succeed."""
        answer = ask(self.address(), f"/api/v1/{path}?{urlencode(parameters)}")
        body = answer.json
        assert body["status"] == "success", (parameters, body)
        return body["data"]

    def now(self, query):
        """The result of a query at this moment."""
        return self.get("query", query=query)["result"]

    def over(self, query, since):
        """Every finite value of a query since then, a second apart."""
        data = self.get("query_range", query=query, start=since, end=time.time(), step=1)
        values = (float(value) for series in data["result"] for _, value in series["values"])
        return [value for value in values if math.isfinite(value)]

    def scrapes_all(self):
        """Whether every target has been scraped with success."""
        targets = self.get("targets", state="active")["activeTargets"]
        return targets and all(target["health"] == "up" for target in targets)

    def stop(self):
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise


def pointed_at(cluster):
    """Our configuration with the ports of `cluster` in place of the default ones, and no long intervals."""
    config = yaml.safe_load(CONFIG.read_text())
    ports = {7401: cluster.admin[1]}
    ports |= {7510 + at: cluster.nodes[f"node-{at + 1}"].admin[1] for at in range(3)}
    config["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(RULES)]
    seen = set()
    for job in config["scrape_configs"]:
        for group in job["static_configs"]:
            defaults = [int(target.rsplit(":", 1)[1]) for target in group["targets"]]
            seen |= set(defaults)
            group["targets"] = [f"127.0.0.1:{ports[port]}" for port in defaults]
    assert seen == set(ports), "the configuration must name every listener of `usher dev`, and no other"
    return config


def panel_queries():
    """Every query of the dashboard: the panel's title and the expression."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    flat = [inner for panel in panels for inner in (panel, *panel.get("panels", []))]
    return [(panel["title"], target["expr"]) for panel in flat for target in panel.get("targets", [])]


def rules():
    """Every rule: its name and its expression."""
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [(rule.get("alert") or rule["record"], rule["expr"]) for group in groups for rule in group["rules"]]


def filled_in(expression):
    """The expression as Grafana would send it."""
    expression = expression.replace("$__rate_interval", RATE_INTERVAL)
    assert "$" not in expression, expression
    return expression

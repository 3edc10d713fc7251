"""The page of README.md, as it is written there, but for the broker's address."""

import re

from harness.cluster import ROOT

from .peer import PeerDriver

BROKER = "http://127.0.0.1:7400/connect/T1"


def readme_page(door):
    """README's first page, for another broker and team."""
    (page,) = re.findall(r"```html\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert page.count(BROKER) == 1, page
    return page.replace(BROKER, door)


class ReadmePage(PeerDriver):
    """It tells nothing but what it logs, so a test reads its console as frames."""

    kind = "readme-page"
    script = "chromium.js"

    def __init__(self, cluster, team, door):
        super().__init__(cluster, team)
        self.page = {"html": readme_page(door)}
        # Requests of it that failed.
        self.failures = 0

    def happened(self, event):
        if event["event"] == "failed":
            self.failures += 1
        super().happened(event)

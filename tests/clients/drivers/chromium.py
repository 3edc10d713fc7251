"""Pages in headless Chromium, which follows no redirect of a WebSocket."""

from .peer import PeerDriver


class ChromiumFetch(PeerDriver):
    """A page of another origin that fetches the node's URL as JSON and connects to it."""

    kind = "chromium-fetch"
    script = "chromium.js"
    page = "fetch"
    door_scheme = "http"


class ChromiumBare(PeerDriver):
    """A page that knows nothing but `new WebSocket(broker)`, and reads the first frame."""

    kind = "chromium-bare"
    script = "chromium.js"
    page = "bare"

"""npm `ws` with `followRedirects`."""

from .peer import PeerDriver


class NpmWs(PeerDriver):
    """Asks the broker for every connection."""

    kind = "npm-ws"
    script = "ws.js"

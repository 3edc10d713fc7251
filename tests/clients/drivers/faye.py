"""npm `faye-websocket`, which knows of close codes only what RFC 6455 knew, and follows no redirect."""

from .peer import PeerDriver


class Faye(PeerDriver):
    """Asks the broker for every connection, the JSON way."""

    kind = "faye-websocket"
    script = "faye.js"
    door_scheme = "http"

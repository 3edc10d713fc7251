"""libsoup 3, which takes a close code that RFC 6455 did not know for an error."""

from .peer import PeerDriver


class Soup(PeerDriver):
    """Asks the broker for every connection."""

    kind = "libsoup"
    script = "soup.py"
    # Debian's own Python has the bindings.
    runs_on = ("/usr/bin/python3",)

"""Python `websocket-client` 1.2.3, which ends with an exception on a close code that RFC 6455 did not know."""

import sys
from pathlib import Path

from .peer import PeerDriver

# Beside the new one, which it would hide: `tests/run` puts it there.
OLD = Path(__file__).resolve().parents[2] / ".venv" / "old"


class OldWebsocketClient(PeerDriver):
    """Asks the broker for every connection."""

    kind = "websocket-client-1.2.3"
    script = "websocket_client.py"
    runs_on = ("env", f"PYTHONPATH={OLD}", sys.executable)

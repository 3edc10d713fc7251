"""Orders come in as lines of JSON on standard input, events go out the same way. The program ends with its input."""

import json
import sys
import threading

_lock = threading.Lock()


def say(**event):
    with _lock:
        print(json.dumps(event), flush=True)


def orders():
    """Each order, until the input ends."""
    for line in sys.stdin:
        yield json.loads(line)

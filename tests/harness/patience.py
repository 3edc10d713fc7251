"""Waiting for a condition, with a bound and a reason. No test sleeps for luck."""

import asyncio
import time

# The bound for a client to be back after its node was killed.
BACK_WITHIN_S = 30.0
# For what takes milliseconds on an idle machine: generous, because the machine may be building.
SOON_S = 30.0
_POLL_S = 0.05


async def eventually(what, condition, within=SOON_S):
    """The first true value of `condition()`, called in a thread; fails after `within` seconds, saying `what`."""
    end = time.monotonic() + within
    while True:
        value = await asyncio.to_thread(condition)
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"after {within:.0f} s still not: {what}")
        await asyncio.sleep(_POLL_S)


def eventually_now(what, condition, within=SOON_S):
    """`eventually` for code that has no event loop."""
    end = time.monotonic() + within
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"after {within:.0f} s still not: {what}")
        time.sleep(_POLL_S)


def throughout(seconds, what, condition):
    """Lets `seconds` go by, as long as the fault of a test lasts; fails as soon as `condition()` is false, saying `what`."""
    end = time.monotonic() + seconds
    while True:
        if not condition():
            raise AssertionError(f"no longer, {end - time.monotonic():.1f} s before the end of {seconds:.0f} s: {what}")
        left = end - time.monotonic()
        if left <= 0:
            return
        time.sleep(min(_POLL_S, left))

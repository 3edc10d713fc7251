"""`usher load`: thousands of real clients that talk, check, come back, and report."""

import json
import signal
import subprocess

from .cluster import environment, executable
from .fleet import at
from .patience import BACK_WITHIN_S

# It settles for 5 s and closes for 5 s at the most.
_REPORT_WITHIN_S = 60.0


class Load:
    """One `usher load` against a pool. It goes on until its report is asked for."""

    def __init__(self, pool, connections, teams, prefix, *arguments):
        self.connections = connections
        command = [*pool.before_clients, executable(), "load", "--json", "--duration", "1h", "--broker", "http://" + at(pool.clients)]
        command += ["--connections", connections, "--teams", teams, "--team-prefix", prefix, *arguments]
        self._errors = pool.folder / f"load-{prefix}.log"
        with self._errors.open("wb") as errors:
            self._process = subprocess.Popen(
                list(map(str, command)),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment(),
                start_new_session=True,
            )

    def report(self):
        """Ends it; what its clients lived through."""
        self._process.send_signal(signal.SIGINT)
        try:
            out, _ = self._process.communicate(timeout=_REPORT_WITHIN_S)
        finally:
            self.stop()
        assert out, f"usher load ended with {self._process.returncode}:\n{self._errors.read_text()}"
        return Report(json.loads(out))

    def stop(self):
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()


class Report:
    """A report of `usher load`, and what a test may ask of it."""

    def __init__(self, fields):
        self.fields = fields

    def __getitem__(self, name):
        return self.fields[name]

    def __repr__(self):
        return json.dumps(self.fields, indent=2)

    def is_sound(self):
        """Everybody is connected, and no message was lost, doubled, or led into another team."""
        messages = self["messages"]
        spoilt = messages["lost"] + messages["doubled"] + messages["crossed"] + self["gave_up"]
        return self["connected"] == self["connections"] and spoilt == 0

    def is_undisturbed(self):
        """Nobody was ever without a connection, either."""
        return self.is_sound() and not self["interruptions"] and not self["errors"]

    def back_after_s(self, lost):
        """How long until all of the `lost` connections were back, by one interruption that the report must have."""
        (interruption,) = self["interruptions"]
        assert interruption["lost"] == lost and interruption["all_back_ms"] is not None, self
        seconds = interruption["all_back_ms"] / 1000
        assert seconds <= BACK_WITHIN_S, self
        return seconds

    def gaps(self):
        """Times without a connection, for people."""
        gap = self["gap_ms"]
        return f"gap p50 {gap['p50']:.0f} ms, p99 {gap['p99']:.0f} ms, max {gap['max']:.0f} ms"

    def said(self):
        """What became of the messages, for people."""
        messages = self["messages"]
        return ", ".join(f"{messages[what]} {what}" for what in ("sent", "received", "lost", "doubled", "missed"))

"""OkHttp 3.13, which fails a connection on a close code that RFC 6455 did not know."""

from .peer import PeerDriver

_JARS = ":".join(f"/usr/share/java/{name}.jar" for name in ("okhttp", "okio"))


class OkHttp(PeerDriver):
    """Asks the broker for every connection."""

    kind = "okhttp"
    script = "OkHttp.java"
    runs_on = ("java", "-XX:TieredStopAtLevel=1", "-Xmx256m", "-cp", _JARS)

"""A client that does not read is closed, and nobody else notices."""

import struct

from crowd import gauge
from harness.patience import eventually_now
from raw import raw_member
from websockets.sync.client import connect

# Beyond what a node lets wait for one reader (1 MiB) and what the kernel holds on loopback (some MiB).
FLOOD_BYTES = 32 << 20
MESSAGE_BYTES = 64 << 10
TOO_SLOW = 4308


def close_code(stream):
    """Reads frames to the Close that must come at the end (RFC 6455 section 5.2); its code."""
    with stream.makefile("rb") as frames:
        while True:
            first, second = frames.read(2)
            length = second & 0x7F
            if length >= 126:
                form = ">H" if length == 126 else ">Q"
                (length,) = struct.unpack(form, frames.read(struct.calcsize(form)))
            payload = frames.read(length)
            assert len(payload) == length, "cut within a frame"
            if first & 0x0F == 8:
                return struct.unpack(">H", payload[:2])[0]


def test_a_slow_reader_is_closed_with_4308_while_its_team_mates_get_every_message(cluster, team, figure):
    sleeper = raw_member(cluster, team, receive_bytes=4096)
    node = cluster.nodes[cluster.owner(team)]
    closed_before = gauge(node, "usher_slow_readers_total")
    with (
        connect(cluster.door(team), max_size=None) as sender,
        connect(cluster.door(team), max_size=None) as mate,
        connect(cluster.door(f"{team}-others")) as other,
        connect(cluster.door(f"{team}-others")) as others_mate,
    ):
        for number in range(FLOOD_BYTES // MESSAGE_BYTES):
            message = f"{number} ".encode().ljust(MESSAGE_BYTES, b".")
            sender.send(message)
            # The mate keeps up, so nothing waits for it; the sleeper never reads a byte.
            assert mate.recv(timeout=30) == message
        other.send("how are you?")
        assert others_mate.recv(timeout=30) == "how are you?"
        eventually_now(
            "the slow reader was noticed", lambda: gauge(node, "usher_slow_readers_total") == closed_before + 1
        )
        sender.send("still here")
        assert mate.recv(timeout=30) == "still here"
    with sleeper:
        assert close_code(sleeper) == TOO_SLOW
    figure(f"a reader that slept through {FLOOD_BYTES >> 20} MiB was closed with {TOO_SLOW}; its mate got all of it")

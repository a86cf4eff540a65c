"""A power cut, as far as the log can tell: its last messages never reached the disk."""

from __future__ import annotations

import struct

from broker_policy.embedded.layout import Layout
from mas_nats.wire.subjects import INBOX_STREAM

_HEAD = struct.Struct("<IQ")
_HEADERS = 1 << 31
"""Set in a record's length where the message has headers."""
_GONE = 3 << 62
"""Set in a sequence: the message was erased, or this says that one was removed."""


def cut_after(layout: Layout, sequence: int) -> None:
    """Take everything behind ``sequence`` from the log of the one namespace that has any.

    The server must have been killed. Of the block only whole messages are left, as after a synced write: what
    is written in part the server removes by itself. Its index of the blocks is older than they are.
    """
    [stream] = [
        stream
        for stream in layout.node(1, 1).glob(f"jetstream/*/streams/{INBOX_STREAM}")
        if any(block.stat().st_size for block in stream.glob("msgs/*.blk"))
    ]
    (stream / "msgs" / "index.db").unlink(missing_ok=True)
    for block in stream.glob("msgs/*.blk"):
        data, at = block.read_bytes(), 0
        while at < len(data):
            length, number = _HEAD.unpack_from(data, at)
            if number & ~_GONE > sequence:
                break
            at += length & ~_HEADERS
        with block.open("r+b") as file:
            file.truncate(at)

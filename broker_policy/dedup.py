"""Deduplication: the id under which a message is stored once, and what a worker remembers of ids.

Dedup ids are stream-wide in JetStream, so the sender is part of the digest: nobody can occupy an id
that somebody else will use. The content is *not* part of it; a known id with other content is told by
comparing commitments (ADR 0006).
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict

from mas_nats.policy.call import Call
from mas_nats.wire.base64url import base64url


def dedup_id(namespace: str, sender: str, message_id: str) -> str:
    """The ``Nats-Msg-Id`` of a message in the inbox stream."""
    raw = hashlib.sha256(f"{namespace}\0{sender}\0{message_id}".encode()).digest()
    return base64url(raw)[:32]


def redrive_dedup_id(namespace: str, sender: str, message_id: str, letter: str) -> str:
    """The same for a message made from a dead letter (``Errand.reference``): one message for each.

    A message id holds no blank and no NUL, so no message that was sent can have it.
    """
    return dedup_id(namespace, sender, f"{message_id}\0redrive {letter}")


def dedup_of(namespace: str, call: Call) -> str:
    """The dedup id of the message that ``call`` makes."""
    if call.errand is not None:
        return redrive_dedup_id(namespace, call.sender, call.message_id, call.errand.reference)
    return dedup_id(namespace, call.sender, call.message_id)


class RecentIds:
    """The commitments of the last ``capacity`` messages that this worker knows to be stored.

    A worker that knows an id answers a repetition by itself; it never reaches the stream, where one
    duplicate would reject the whole batch. 290 bytes each.
    """

    def __init__(self, capacity: int = 50_000) -> None:
        self._capacity = capacity
        self._known: OrderedDict[str, str] = OrderedDict()

    def get(self, dedup: str) -> str | None:
        """The commitment stored under ``dedup``, when this worker knows it."""
        return self._known.get(dedup)

    def add(self, dedup: str, commitment: str) -> None:
        """Remember a stored message; the oldest is forgotten first."""
        self._known[dedup] = commitment
        if len(self._known) > self._capacity:
            self._known.popitem(last=False)

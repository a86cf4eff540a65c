"""The checkpoint stream in the CONTROL account: append and read."""

from __future__ import annotations

from collections.abc import AsyncIterator
from collections.abc import Set as AbstractSet

import orjson
from nats.aio.client import Client

from broker_policy.audit.checkpoint import Loss, SignedCheckpoint
from broker_policy.audit.key_history import CheckpointKeys
from broker_policy.jetstream import Unsettled, direct_get_page, get_last, last_by_subject, publish
from mas_nats.wire import headers, subjects
from mas_nats.wire.identity import is_id


class CheckpointStream:
    """The checkpoints of one namespace. ``nc`` is a connection inside CONTROL."""

    def __init__(self, nc: Client, namespace: str) -> None:
        self._nc = nc
        self._subject = subjects.checkpoint(namespace)

    async def last(self) -> tuple[SignedCheckpoint | None, int]:
        """The last checkpoint and its sequence in the stream; None and 0 when there is none.

        Raises:
            ValueError: what is there is no checkpoint.
            JetStreamError, nats.errors.Error: the stream does not answer.

        """
        stored = await last_by_subject(self._nc, subjects.CHECKPOINTS_STREAM, self._subject)
        if stored is None:
            return None, 0
        return SignedCheckpoint.decode(stored.data), stored.sequence

    async def append(self, signed: SignedCheckpoint, after: int) -> int:
        """Append to a stream whose last checkpoint is at ``after``; returns the new sequence.

        Raises:
            JetStreamError: another signer was faster, or the stream is full.
            nats.errors.Error: no answer; it may be there.

        """
        fields = {headers.EXPECTED_LAST_SUBJECT_SEQUENCE: str(after)}
        return (await publish(self._nc, self._subject, signed.encode(), fields)).sequence

    async def all(self) -> AsyncIterator[SignedCheckpoint]:
        """Every checkpoint in order, read in pages; takes full rights in CONTROL. Errors as ``last``."""
        newest = await get_last(self._nc, subjects.CHECKPOINTS_STREAM, self._subject)
        sequence = 1
        while newest is not None and sequence <= newest.sequence:
            page = await direct_get_page(self._nc, subjects.CHECKPOINTS_STREAM, self._subject, sequence)
            if not page:
                raise Unsettled("a copy of the checkpoints is behind the others")
            for stored in page:
                yield SignedCheckpoint.decode(stored.data)
            sequence = page[-1].sequence + 1

    async def standing(self, keys: CheckpointKeys) -> AsyncIterator[SignedCheckpoint]:
        """Those that the chain must still hold, in the order of its entries: all but what was given up.

        Errors as ``last``.
        """
        losses: list[tuple[int, Loss]] = []
        place = 0
        async for signed in self.all():
            place += 1
            if (lost := signed.checkpoint.lost) is not None and keys.accepted(signed):
                losses.append((place, lost))
        place = 0
        async for signed in self.all():
            place += 1
            index = signed.checkpoint.index
            if not any(place < at and lost.first <= index <= lost.last for at, lost in losses):
                yield signed


class SignedNamespaces:
    """Which namespaces have checkpoints, kept beside them: the signer may not ask the stream what it holds.

    So whoever writes Redis cannot take a namespace away from the signer. ``nc`` as above.
    """

    def __init__(self, nc: Client) -> None:
        self._nc = nc
        self._names: frozenset[str] | None = None  # what is kept, once it is known
        self._sequence = 0

    async def names(self) -> frozenset[str]:
        """Those that are kept; none where what is there cannot be read.

        Raises:
            JetStreamError, nats.errors.Error: the stream does not answer.

        """
        if self._names is None:
            stored = await last_by_subject(self._nc, subjects.CHECKPOINTS_STREAM, subjects.SIGNED_NAMESPACES)
            self._sequence = 0 if stored is None else stored.sequence
            self._names = frozenset() if stored is None else _names(stored.data)
        return self._names

    async def add(self, names: AbstractSet[str]) -> None:
        """Keep ``names`` too. Errors as ``CheckpointStream.append``."""
        kept = await self.names()
        if names <= kept:
            return
        self._names = None  # as long as it is not known what was written
        body = orjson.dumps({"namespaces": sorted(kept | names)})
        fields = {headers.EXPECTED_LAST_SUBJECT_SEQUENCE: str(self._sequence)}
        self._sequence = (await publish(self._nc, subjects.SIGNED_NAMESPACES, body, fields)).sequence
        self._names = kept | names


def _names(raw: bytes) -> frozenset[str]:
    try:
        return frozenset(name for name in orjson.loads(raw)["namespaces"] if is_id(name))
    except (ValueError, TypeError, KeyError):
        return frozenset()

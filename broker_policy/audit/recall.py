"""What the audit knows of a message id: the commitment to the content that was accepted under it."""

from __future__ import annotations

from typing import Protocol

from redis.exceptions import RedisError

from broker_policy.audit.entry import refuses
from broker_policy.audit.layout import id_place
from broker_policy.audit.record import Outcome
from broker_policy.audit.store import Store
from mas_nats.wire.subjects import RELEASE, AdminOp, Op

_NEVER_STORED = (Outcome.NOT_COMMITTED, Outcome.DUPLICATE, Outcome.REFUSED)
_STORED = (Outcome.COMMITTED, Outcome.REDELIVERED, Outcome.HANDLED, Outcome.DEAD, Outcome.EXPIRED)


class Memory(Protocol):
    """What outlives the stream's own memory of ids."""

    async def __call__(self, sender: str, message_id: str) -> str | None:
        """The commitment of the first message that ``sender`` got stored under ``message_id``."""

    async def redriven(self, sender: str, message_id: str, letter: int) -> bool | None:
        """Whether a message was made of dead letter ``letter``; None when that cannot be told."""


class Recall:
    """Looks message ids up in the audit of one namespace."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def __call__(self, sender: str, message_id: str) -> str | None:
        """The commitment of the first message that ``sender`` got stored under ``message_id``.

        None when the audit has none (yet), or does not answer.
        """
        try:
            indexes = await self._indexes(message_id)
            entries = await self._store.entries_at(indexes)
            outcomes = await self._store.outcomes_at(indexes)
        except (RedisError, OSError):
            return None
        for index, outcome in zip(indexes, outcomes, strict=True):
            if index not in entries or outcome in _NEVER_STORED:
                continue
            entry = entries[index].entry()
            if entry["o"] not in (Op.SEND, Op.REQUEST, RELEASE):
                continue  # the ids of other calls are no message ids, and may be equal to one
            if entry.get("f") == sender and entry.get("id") == message_id and not refuses(entry):
                commitment: str | None = entry.get("c")
                return commitment
        return None

    async def redriven(self, sender: str, message_id: str, letter: int) -> bool | None:
        """Whether a message was made of dead letter ``letter``, which was ``sender``'s ``message_id``.

        None when the audit does not answer. Without an outcome yet the answer is no: so young a decision the
        stream itself remembers.
        """
        try:
            indexes = await self._indexes(message_id)
            entries = await self._store.entries_at(indexes)
            outcomes = await self._store.outcomes_at(indexes)
        except (RedisError, OSError):
            return None
        for index, outcome in zip(indexes, outcomes, strict=True):
            if index not in entries or outcome not in _STORED:
                continue
            entry = entries[index].entry()
            if entry["o"] != AdminOp.REDRIVE or entry.get("f") != sender or entry.get("id") != message_id:
                continue
            if entry.get("l", "").partition(".")[0] == str(letter):
                return True
        return False

    async def _indexes(self, message_id: str) -> list[int]:
        shard, fragment = id_place(message_id)
        found = await self._store.redis.hgetall(self._store.layout.shard(shard))
        return sorted(int(index) for index, digest in found.items() if digest.decode() == fragment)

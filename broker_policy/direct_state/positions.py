"""Up to which revision each agent's direct state is audited, and which worker audits it: a bucket.

An entry is an obligation: whatever policy says by now, the state is followed as long as there is one.
"""

from __future__ import annotations

from dataclasses import dataclass

import orjson
from nats.aio.client import Client

from broker_policy.jetstream import (
    JetStreamError,
    get_last,
    get_last_of_each,
    publish,
)
from mas_nats.wire import headers, subjects
from mas_nats.wire.stored import WRONG_LAST_SEQUENCE


@dataclass(frozen=True, slots=True)
class Position:
    """One entry. ``entry`` is its revision in this bucket, for compare-and-set; 0 when it is not known."""

    revision: int
    worker: str = ""  # "": nobody, whoever comes first may take it
    entry: int = 0

    def encode(self) -> bytes:
        """As it lies in the bucket."""
        return orjson.dumps({"revision": self.revision, "worker": self.worker})

    @classmethod
    def decode(cls, body: bytes, entry: int = 0) -> Position | None:
        """As it came from the bucket; None where it was removed."""
        if not body:
            return None
        raw = orjson.loads(body)
        return cls(raw["revision"], raw["worker"], entry)


class Positions:
    """The entries of one namespace. Every call raises JetStreamError or nats.errors.Error when unanswered."""

    def __init__(self, nc: Client) -> None:
        self._nc = nc

    async def all(self) -> dict[str, Position]:
        """Every agent's."""
        stream = subjects.kv_stream(subjects.AUDITED_BUCKET)
        stored = await get_last_of_each(self._nc, stream, subjects.kv_key(subjects.AUDITED_BUCKET, "*"))
        found = {
            each.subject.rpartition(".")[2]: Position.decode(each.data, each.sequence) for each in stored
        }
        return {agent: position for agent, position in found.items() if position is not None}

    async def get(self, agent: str) -> tuple[Position | None, int]:
        """One agent's, and its revision in this bucket also where it was removed."""
        stream = subjects.kv_stream(subjects.AUDITED_BUCKET)
        stored = await get_last(self._nc, stream, _key(agent))
        if stored is None:
            return None, 0
        return Position.decode(stored.data, stored.sequence), stored.sequence

    async def write(self, agent: str, position: Position | None, expected: int) -> int:
        """Write, or remove, over the entry ``expected``; the new entry, 0 when another worker was faster."""
        fields = {headers.EXPECTED_LAST_SUBJECT_SEQUENCE: str(expected)}
        try:
            body = position.encode() if position else b""
            return (await publish(self._nc, _key(agent), body, fields)).sequence
        except JetStreamError as error:
            if error.code in WRONG_LAST_SEQUENCE:
                return 0
            raise


def _key(agent: str) -> str:
    return subjects.kv_key(subjects.AUDITED_BUCKET, agent)

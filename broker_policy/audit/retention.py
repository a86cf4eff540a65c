"""Retention: what lies behind a checkpoint is sealed into files, and may leave Redis then (ADR 26).

Any step may be the last before a crash: a file without a seal is written again, a seal that Redis does not
know counts for nothing, and removal goes page by page, each page whole or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from broker_policy.audit import chain
from broker_policy.audit.checkpoint import Checkpoint
from broker_policy.audit.checkpoint_stream import CheckpointStream
from broker_policy.audit.entry import index_names
from broker_policy.audit.key_history import CheckpointKeys
from broker_policy.audit.layout import id_place
from broker_policy.audit.projection import Pending
from broker_policy.audit.seal import Seal, SignedSeal, trusted
from broker_policy.audit.segments import Segments
from broker_policy.audit.signer import ChainAltered
from broker_policy.audit.store import PAGE, Store, StoredEntry
from mas_nats.errors import MasError

AT_ONCE = 50_000
"""Entries in one segment: some 17 MB of JSON, a few MB as a file."""

# Removes the entries up to ARGV[2] with their places in all indexes, when those up to ARGV[1] are removed and
# ARGV[2] is not the last. Outcomes stay: one byte an entry, and they may still change.
_REMOVE = """
local removed = tonumber(redis.call('HGET', KEYS[1], 'i') or '0')
local last = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)[1]
if removed ~= tonumber(ARGV[1]) or not last then return 0 end
if tonumber(string.match(last[1], '^%d+')) <= tonumber(ARGV[2]) then return 0 end
redis.call('XTRIM', KEYS[2], 'MINID', string.format('%.0f-0', tonumber(ARGV[2]) + 1))
for place = 3, #KEYS do
  while true do
    local first = redis.call('LINDEX', KEYS[place], 0)
    if not first or (tonumber(first) or 0) > tonumber(ARGV[2]) then break end
    redis.call('LPOP', KEYS[place])
  end
end
for _, ids in ipairs(cjson.decode(ARGV[4])) do redis.call('HDEL', unpack(ids)) end
redis.call('HSET', KEYS[1], 'i', ARGV[2], 'h', ARGV[3])
return 1
"""


class NothingToSeal(MasError):
    """No checkpoint lies behind what shall be sealed, or all of it is sealed already."""


class OtherSegments(MasError):
    """The folder holds segments of another chain under the same names. Choose another folder."""


@dataclass(frozen=True, slots=True)
class Sealed:
    """What was sealed now, and up to which entry Redis is empty."""

    seals: tuple[Seal, ...]
    removed: int


class Retention:
    """Seals and removes the entries of one namespace. ``key`` is the checkpoint key, current in ``keys``."""

    def __init__(
        self,
        store: Store,
        stream: CheckpointStream,
        keys: CheckpointKeys,
        key: Ed25519PrivateKey,
        segments: Segments,
        *,
        at_once: int = AT_ONCE,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._store = store
        self._stream = stream
        self._keys = keys
        self._key = key
        self._segments = segments
        self._at_once = at_once
        self._tell = tell

    async def sealed(self) -> list[Seal]:
        """The segments that Redis knows of, in order. Raises RedisError, OSError."""
        return trusted(self._store.layout.namespace, await self._store.seals(), self._keys)

    async def seal(self, last: int) -> list[Seal]:
        """Seal everything up to ``last`` that a checkpoint covers and that is not sealed; the new segments.

        Raises:
            ChainAltered: the chain does not lead from the last seal to the checkpoint.
            OtherSegments: see there.
            SegmentBroken: what was written is not what was read.
            RedisError, nats.errors.Error, JetStreamError, OSError: a store or the folder cannot be used.

        """
        earlier = await self.sealed()
        index, previous = _end(self._store, earlier)
        checkpoint = await self._checkpoint()
        last = min(last, checkpoint.index - 1)  # whose entry the signer goes on from, so it stays
        made: list[Seal] = []
        if last <= index:
            return made
        ends = await self._verified(index, previous, last, checkpoint)
        for end, digest in ends:
            rows = [stored async for stored in self._entries(index + 1, end)]
            if rows[-1].hash != digest:
                raise ChainAltered(f"entry {end} changed while it was being sealed")
            self._require_free(index + 1, end, digest)
            seal = self._segments.write(self._store.layout.namespace, index + 1, previous, rows)
            signed = SignedSeal.sign(seal, self._key)
            self._segments.write_seal(signed)
            await self._store.add_seal(signed)
            self._tell(f"sealed {seal.name}")
            made.append(seal)
            index, previous = end, bytes.fromhex(digest)
        return made

    async def remove(self, last: int) -> int:
        """Remove from Redis what is sealed up to ``last``; up to which entry it is gone then.

        Only whole segments, which are checked in the folder first; nothing that still waits for its outcome.

        Raises:
            SegmentBroken: a segment is missing from the folder, or altered. Nothing of it is removed.
            RedisError, OSError: Redis or the folder cannot be used; call again.

        """
        bound = min(last, await self._needed() - 1)
        removed = (await self._store.removed()).index
        for seal in await self.sealed():
            if seal.last <= removed:
                continue
            if seal.last > bound:
                break
            rows = self._segments.read(seal)
            for first in range(0, len(rows), PAGE):
                page = [row for row in rows[first : first + PAGE] if row.index > removed]
                if page and not await self._remove(removed, page):
                    return (await self._store.removed()).index
                removed = page[-1].index if page else removed
            self._tell(f"removed from Redis: {seal.name}")
        return removed

    async def _remove(self, removed: int, page: Sequence[StoredEntry]) -> bool:
        layout = self._store.layout
        lists: dict[str, None] = {}
        ids: dict[str, list[str]] = {}
        for stored in page:
            entry = stored.entry()
            if entry["k"] == "d":
                lists.update(dict.fromkeys(layout.by(name) for name in index_names(entry)))
                ids.setdefault(layout.shard(id_place(entry["id"])[0]), []).append(str(stored.index))
        script: Any = self._store.redis.register_script(_REMOVE)
        done = await script(
            keys=[layout.removed, layout.chain, *lists],
            args=[
                removed,
                page[-1].index,
                page[-1].hash,
                orjson.dumps([[key, *fields] for key, fields in ids.items()]) if ids else b"[]",
            ],
        )
        return bool(done)

    async def _needed(self) -> int:
        """The first entry that the projector still reads: a decision whose outcome has not come."""
        store, layout = self._store, self._store.layout
        indexes = [(await store.head()).index]
        for writer in await store.redis.smembers(layout.unsettled):
            waiting = await store.redis.hvals(layout.pending(writer.decode()))
            indexes += [Pending.decode(raw).index for raw in waiting]
        return min(indexes)

    async def _checkpoint(self) -> Checkpoint:
        last: Checkpoint | None = None
        async for signed in self._stream.standing(self._keys):
            if self._keys.signed(signed):
                last = signed.checkpoint
        if last is None:
            raise NothingToSeal("nothing was signed yet: only what a checkpoint covers can be sealed")
        return last

    async def _verified(
        self, index: int, previous: bytes, last: int, checkpoint: Checkpoint
    ) -> list[tuple[int, str]]:
        """Follow the chain to the checkpoint; where the segments end, with the hashes there."""
        ends: list[tuple[int, str]] = []
        start = index
        async for stored in self._entries(index + 1, checkpoint.index):
            index, previous = index + 1, chain.link(previous, stored.body)
            if stored.index != index or stored.hash != previous.hex():
                raise ChainAltered(f"entry {index} does not follow the one before it: run mas audit verify")
            if index <= last and ((index - start) % self._at_once == 0 or index == last):
                ends.append((index, stored.hash))
        if (index, previous.hex()) != (checkpoint.index, checkpoint.hash):
            raise ChainAltered(f"the chain does not lead to what was signed (entry {checkpoint.index})")
        return ends

    async def _entries(self, first: int, last: int) -> Any:
        async for stored in self._store.entries(first):
            if stored.index > last:
                return
            yield stored

    def _require_free(self, first: int, last: int, digest: str) -> None:
        for signed in self._segments.seals(self._store.layout.namespace):
            seal = signed.seal
            overlaps = seal.first <= last and first <= seal.last
            if overlaps and (seal.last != last or seal.hash != digest) and signed.holds(self._keys):
                raise OtherSegments(
                    f"{self._segments.folder} holds {seal.name}, which Redis does not know: a segment of "
                    "another chain, or one that Redis has lost. Choose another folder"
                )


def _end(store: Store, seals: Sequence[Seal]) -> tuple[int, bytes]:
    if not seals:
        return 0, chain.genesis(store.layout.namespace)
    return seals[-1].last, bytes.fromhex(seals[-1].hash)

"""The chain in Redis: conditional appends, and reading in pages.

The key layout is in ``layout.py``. Redis 6.2 suffices.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import orjson
from redis.asyncio import Redis

from broker_policy.audit import chain
from broker_policy.audit.draft import Draft, Head
from broker_policy.audit.entry import Entry
from broker_policy.audit.layout import BLOCK, NAMESPACES, Layout
from broker_policy.audit.seal import SignedSeal
from mas_nats.wire.identity import is_id

PAGE = 1000
"""Entries read at once."""
_HEAD = ("i", "h", "s")
"""What says where a chain ends."""
_HEAD_AND_LOG = (*_HEAD, "m")
NO_HEAD = (None,) * len(_HEAD)
"""What ``heads`` gives for a namespace without a chain."""

# Appends when the chain still ends where the caller believes, and says so; otherwise changes nothing. So
# however many projectors there are, each record enters once. All commands are in one script: Redis writes
# their effects to its append-only file as one transaction. Entries and hashes come as one text each: a client
# packs every argument by itself.
_APPEND = """
local head = redis.call('HMGET', KEYS[1], 'i', 's')
if (head[1] or '0') ~= ARGV[1] or (head[2] or '0') ~= ARGV[2] then return 0 end
local base, plan = tonumber(ARGV[1]), cjson.decode(ARGV[3])
local bodies, hashes, first = ARGV[4], ARGV[5], 1
for place, length in ipairs(plan.lengths) do
  redis.call(
    'XADD', KEYS[2], string.format('%.0f-0', base + place),
    'e', bodies:sub(first, first + length - 1), 'h', hashes:sub(64 * place - 63, 64 * place)
  )
  first = first + length
end
local ids = plan.ids
for place = 1, #ids, 3 do redis.call('HSET', ARGV[6] .. ids[place], ids[place + 1], ids[place + 2]) end
for _, command in ipairs(plan.commands) do redis.call(unpack(command)) end
return 1
"""


@dataclass(frozen=True, slots=True)
class StoredEntry:
    """One entry as it lies in Redis."""

    identifier: str  # the stream id, <index>-0
    body: bytes  # canonical
    hash: str  # hexadecimal

    @property
    def index(self) -> int:
        """The index by the stream id."""
        return int(self.identifier.partition("-")[0])

    def entry(self) -> Entry:
        """The entry itself.

        Raises:
            ValueError: it was damaged.

        """
        return cast("Entry", orjson.loads(self.body))


@dataclass(frozen=True, slots=True)
class Removed:
    """Entries up to ``index`` left Redis; ``hash`` is what the last of them had, genesis for none."""

    index: int
    hash: bytes


@dataclass(frozen=True, slots=True)
class End:
    """How a chain ends, all read at one moment."""

    head: Head
    last: int  # index of the last entry
    highest: int  # the highest index that the stream ever had; Redis keeps it when entries are deleted


class Store:
    """The audit of one namespace in Redis.

    ``redis`` must not decode responses (else ValueError). ``clock`` returns unix seconds.
    """

    def __init__(self, redis: Redis, namespace: str, *, clock: Callable[[], float] = time.time) -> None:
        if redis.connection_pool.connection_kwargs.get("decode_responses"):
            raise ValueError("the audit needs a Redis client that does not decode responses")
        self.redis: Any = redis  # redis-py types every command as sync or async at once
        self.layout = Layout(namespace)
        self._append = redis.register_script(_APPEND)
        self._clock = clock

    async def head(self) -> Head:
        """Where the chain ends.

        Raises:
            redis.exceptions.RedisError: Redis does not answer.

        """
        return self._head(await self.redis.hmget(self.layout.head, *_HEAD_AND_LOG))

    async def end(self) -> End:
        """How the chain ends. Errors as ``head``."""
        while True:
            # No transaction: Redis without memory refuses whatever is in one.
            async with self.redis.pipeline(transaction=False) as pipe:
                pipe.hmget(self.layout.head, *_HEAD_AND_LOG)
                pipe.xrevrange(self.layout.chain, count=1)
                pipe.xinfo_stream(self.layout.chain)  # an error where there is no chain
                pipe.hmget(self.layout.head, *_HEAD_AND_LOG)
                head, last, info, after = await pipe.execute(raise_on_error=False)
            for answer in (head, last, after):
                if isinstance(answer, Exception):
                    raise answer
            if head == after:  # else somebody appended between these questions
                break
        at = _stored(last[0]).index if last else 0
        highest = 0
        if not isinstance(info, Exception):
            highest = int(info["last-generated-id"].partition(b"-")[0])
        return End(self._head(head), at, highest)

    async def removed(self) -> Removed:
        """How much of the chain is in sealed segments only. Errors as ``head``."""
        index, digest = await self.redis.hmget(self.layout.removed, "i", "h")
        if index is None or not index.isdigit():
            return Removed(0, chain.genesis(self.layout.namespace))
        try:
            return Removed(int(index), bytes.fromhex((digest or b"").decode()))
        except ValueError:
            return Removed(int(index), b"")

    async def seals(self) -> list[SignedSeal]:
        """The seals of segments, those that can be read, none of them checked. Errors as ``head``."""
        found: list[SignedSeal] = []
        for raw in await self.redis.hvals(self.layout.seals):
            with contextlib.suppress(ValueError):
                found.append(SignedSeal.decode(raw))
        return found

    async def add_seal(self, signed: SignedSeal) -> None:
        """Remember a segment. Errors as ``head``."""
        await self.redis.hset(self.layout.seals, str(signed.seal.last), signed.encode())

    def _head(self, fields: tuple[bytes | None, bytes | None, bytes | None, bytes | None]) -> Head:
        index, digest, sequence, made = fields
        if index is None:
            return Head(0, chain.genesis(self.layout.namespace), 0)
        return Head(int(index), bytes.fromhex((digest or b"").decode()), int(sequence or 0), int(made or 0))

    async def append(self, draft: Draft) -> bool:
        """Append ``draft``; False, and nothing changed, when the chain no longer ends where it began.

        When it returns, Redis has synced it (``appendfsync always``).
        """
        now = int(self._clock() * 1000)
        plan = {
            "lengths": [len(body) for body in draft.bodies],
            "ids": draft.ids,
            "commands": list(draft.commands(now)),
        }
        base = draft.base
        done = await self._append(
            keys=[self.layout.head, self.layout.chain],
            args=[
                str(base.index),
                str(base.sequence),
                orjson.dumps(plan),
                b"".join(draft.bodies),
                b"".join(draft.hashes).hex(),
                self.layout.ids,
            ],
        )
        return bool(done)

    async def page(self, first: int, count: int = PAGE) -> list[StoredEntry]:
        """Up to ``count`` entries from ``first`` on."""
        return await self.between(f"{first}-0", "+", count)

    async def between(self, low: str, high: str, count: int) -> list[StoredEntry]:
        """Up to ``count`` entries between two stream ids."""
        raw = await self.redis.xrange(self.layout.chain, low, high, count=count)
        return [_stored(item) for item in raw]

    async def entries(self, first: int = 1) -> AsyncIterator[StoredEntry]:
        """Every entry from ``first`` on, read in pages."""
        low = f"{first}-0"
        while page := await self.between(low, "+", PAGE):
            for stored in page:
                yield stored
            low = f"({page[-1].identifier}"

    async def links(self, first: int) -> AsyncIterator[tuple[bytes, bytes, bytes]]:
        """Stream id, body and hash of every entry from ``first`` on, as Redis says them."""
        low = f"{first}-0"
        while page := await self.redis.xrange(self.layout.chain, low, "+", count=PAGE):
            for identifier, fields in page:
                yield identifier, fields.get(b"e", b""), fields.get(b"h", b"")
            low = f"({page[-1][0].decode()}"

    async def entries_at(self, indexes: Sequence[int]) -> dict[int, StoredEntry]:
        """The entries at ``indexes``, those that exist."""
        found: dict[int, StoredEntry] = {}
        if indexes and (spread := max(indexes) - min(indexes) + 1) <= min(2 * len(indexes), PAGE):
            wanted = set(indexes)
            page = await self.between(f"{min(indexes)}-0", f"{max(indexes)}-0", 2 * spread)
            return {stored.index: stored for stored in page if stored.index in wanted}
        for first in range(0, len(indexes), PAGE):
            portion = indexes[first : first + PAGE]
            async with self.redis.pipeline(transaction=False) as pipe:
                for index in portion:
                    pipe.xrange(self.layout.chain, f"{index}-0", f"{index}-0", count=1)
                for items in await pipe.execute():
                    for item in items:
                        stored = _stored(item)
                        found[stored.index] = stored
        return found

    async def outcomes_at(self, indexes: Iterable[int]) -> list[str]:
        """The letters of the outcomes at ``indexes``; "" where there is none."""
        async with self.redis.pipeline(transaction=False) as pipe:
            for index in indexes:
                place = index % BLOCK
                pipe.getrange(self.layout.outcomes(index // BLOCK), place, place)
            return [letter.decode() for letter in await pipe.execute()]


async def namespaces(redis: Redis) -> tuple[list[str], list[str]]:
    """The namespaces that have an audit in ``redis``, and what is said to be one and cannot be; both sorted.

    Errors as ``Store.head``.
    """
    said: Any = await cast("Any", redis).smembers(NAMESPACES)
    names = sorted(name.decode(errors="backslashreplace") for name in said)
    return [name for name in names if is_id(name)], [name for name in names if not is_id(name)]


async def heads(redis: Redis, names: Sequence[str]) -> list[object]:
    """What Redis says of where the chain of each namespace ends: equal to what it said before, or not.

    Errors as ``Store.head``, but for what concerns one namespace only: that is in its place.
    """
    async with redis.pipeline(transaction=False) as pipe:
        for name in names:
            cast("Any", pipe).hmget(Layout(name).head, *_HEAD)
        said = await pipe.execute(raise_on_error=False)
    return [tuple(fields) if isinstance(fields, list) else fields for fields in said]


def _stored(item: tuple[bytes, dict[bytes, bytes]]) -> StoredEntry:
    identifier, fields = item
    return StoredEntry(identifier.decode(), fields.get(b"e", b""), fields.get(b"h", b"").decode())

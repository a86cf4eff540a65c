"""Which entries a question is about, found in the indexes: nothing is read that no answer can come of.

Several indexes are read side by side, and each skips what another does not list. The order of answers is a
sign: places are compared as ``sign * index``, so that newest first (-1) and oldest first (+1) are one walk.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from broker_policy.audit.layout import BLOCK, id_place
from broker_policy.audit.store import Store

NEWEST_FIRST, OLDEST_FIRST = -1, 1
_PAGES = (128, 4096)
"""Places of an index read at once, at first and at most."""
_LETTERS = 1 << 16
"""Outcomes read at once."""
_LETTERS_KEPT = 1 << 18
"""Outcomes read at once to look at some of them: one command is cheaper than many."""

# Up to ARGV[3] numbers of an ascending list between ARGV[1] and ARGV[2], from its end when ARGV[4] is -1.
_SLICE = """
local size = redis.call('LLEN', KEYS[1])
local function before(bound)
  local low, high = 0, size
  while low < high do
    local middle = math.floor((low + high) / 2)
    if (tonumber(redis.call('LINDEX', KEYS[1], middle)) or 0) < bound then low = middle + 1
    else high = middle end
  end
  return low
end
local first, last = before(tonumber(ARGV[1])), before(tonumber(ARGV[2]) + 1) - 1
if first > last then return {} end
if ARGV[4] == '-1' then first = math.max(first, last - ARGV[3] + 1)
else last = math.min(last, first + ARGV[3] - 1) end
return redis.call('LRANGE', KEYS[1], first, last)
"""


@dataclass(frozen=True, slots=True)
class Span:
    """The entries ``first`` to ``last``."""

    first: int
    last: int

    def beyond(self, place: int, sign: int) -> Span:
        """What comes after ``place`` in the order of ``sign``."""
        if sign == OLDEST_FIRST:
            return Span(max(self.first, place + 1), self.last)
        return Span(self.first, min(self.last, place - 1))

    def from_(self, place: int, sign: int) -> Span:
        """``place`` and what comes after it in the order of ``sign``."""
        return self.beyond(place - sign, sign)

    def before(self, sign: int) -> int:
        """The place right before its first in the order of ``sign``."""
        return self.first - 1 if sign == OLDEST_FIRST else self.last + 1

    def end(self, sign: int) -> int:
        """Its last place in the order of ``sign``."""
        return self.last if sign == OLDEST_FIRST else self.first


@dataclass(frozen=True, slots=True)
class Page:
    """Some candidates, in order: with those of the pages before, all up to the place ``reached``."""

    indexes: list[int]
    reached: int


async def by_message_id(store: Store, message_id: str, span: Span, sign: int) -> Page:
    """The entries that may be about ``message_id``: one page."""
    shard, fragment = id_place(message_id)
    row: dict[bytes, bytes] = await store.redis.hgetall(store.layout.shard(shard))
    found = (int(index) for index, of in row.items() if of.decode() == fragment)
    fitting = sorted(
        (each for each in found if span.first <= each <= span.last), key=lambda each: sign * each
    )
    return Page(fitting, span.end(sign))


async def listed(store: Store, names: Sequence[str], span: Span, sign: int) -> AsyncIterator[Page]:
    """Pages of the entries that every index in ``names`` lists; empty ones where they list none in common."""
    count = _PAGES[0]
    while span.first <= span.last:
        slices = await _slices(store, names, span, sign, count)
        if not all(slices):
            return
        # Up to here every index was read; behind its last place an index that is not exhausted may go on.
        ends = [sign * each[-1] for each in slices if len(each) == count]
        reached = min(ends, default=None)
        common = set(slices[0]).intersection(*slices[1:])
        page = sorted(sign * each for each in common if reached is None or sign * each <= reached)
        indexes = [sign * each for each in page]
        if reached is None:
            yield Page(indexes, span.end(sign))
            return
        span = span.beyond(sign * reached, sign)
        span = span.from_(sign * max(sign * each[0] for each in slices), sign)
        yield Page(indexes, span.before(sign))
        count = min(2 * count, _PAGES[1])


async def _slices(store: Store, names: Sequence[str], span: Span, sign: int, count: int) -> list[list[int]]:
    script: Any = store.redis.register_script(_SLICE)
    async with store.redis.pipeline(transaction=False) as pipe:
        for name in names:
            await script(keys=[store.layout.by(name)], args=[span.first, span.last, count, sign], client=pipe)
        rows = await pipe.execute()
    return [sorted(map(int, row), reverse=sign == NEWEST_FIRST) for row in rows]  # in order, but for an edit


async def everything(span: Span, sign: int) -> AsyncIterator[Page]:
    """Pages of all entries."""
    count = _PAGES[0]
    while span.first <= span.last:
        if sign == OLDEST_FIRST:
            page = list(range(span.first, min(span.first + count - 1, span.last) + 1))
        else:
            page = list(range(span.last, max(span.last - count + 1, span.first) - 1, -1))
        yield Page(page, page[-1])
        span = span.beyond(page[-1], sign)
        count = min(2 * count, _PAGES[1])


async def with_outcome(store: Store, letter: str, span: Span, sign: int) -> AsyncIterator[Page]:
    """Pages of the entries whose outcome is ``letter``, also empty ones: one byte is read of each entry."""
    wanted = ord(letter)
    while span.first <= span.last:
        if sign == OLDEST_FIRST:
            first = span.first
            last = min(span.last, first - first % _LETTERS + _LETTERS - 1)
        else:
            last = span.last
            first = max(span.first, last - last % _LETTERS)
        letters = await outcomes(store, first, last)
        page = [first + place for place, each in enumerate(letters) if each == wanted]
        reached = last if sign == OLDEST_FIRST else first
        yield Page(page[::sign], reached)
        span = span.beyond(reached, sign)


async def keep_outcome(store: Store, letter: str, page: Page) -> Page:
    """Those of ``page`` whose outcome is ``letter``."""
    return replace(page, indexes=await _with_outcome(store, letter, page.indexes)) if page.indexes else page


async def _with_outcome(store: Store, letter: str, indexes: list[int]) -> list[int]:
    first, last = min(indexes), max(indexes)
    if last - first < _LETTERS_KEPT and first // BLOCK == last // BLOCK:
        letters = await outcomes(store, first, last)
        letters = letters.ljust(last - first + 1, b"\0")
        return [index for index in indexes if letters[index - first] == ord(letter)]
    found = await store.outcomes_at(indexes)
    return [index for index, each in zip(indexes, found, strict=True) if each == letter]


async def outcomes(store: Store, first: int, last: int) -> bytes:
    """The outcomes of entries in one block, as letters."""
    raw: bytes = await store.redis.getrange(
        store.layout.outcomes(first // BLOCK), first % BLOCK, last % BLOCK
    )
    return raw

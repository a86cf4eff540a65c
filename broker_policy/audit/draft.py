"""What one append will add to the chain, with all index updates that belong to it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from broker_policy.audit import chain
from broker_policy.audit.entry import NOT_A_DECISION, Entry, first_outcome, index_names
from broker_policy.audit.layout import BLOCK, NAMESPACES, Layout, id_place

_VALUES = 1000
"""Values in one Redis command: Lua cannot unpack many more."""


@dataclass(frozen=True, slots=True)
class Head:
    """Where a chain ends, and up to which log sequence it holds the log."""

    index: int
    hash: bytes
    sequence: int
    made: int = 0  # when that log was made, unix milliseconds; 0: not known


class Draft:
    """Entries and Redis commands that take effect together or not at all."""

    def __init__(self, layout: Layout, head: Head) -> None:
        self.layout = layout
        self.base = head
        self.sequence = head.sequence
        self.made = head.made
        self.bodies: list[bytes] = []  # canonical entries
        self.hashes: list[bytes] = []  # of each
        self._hash = head.hash
        self._index = head.index
        self._letters: list[str] = []
        self._changed: dict[int, str] = {}
        self._lists: defaultdict[str, list[str]] = defaultdict(list)
        self._listed: dict[tuple[str, str, str, str], list[list[str]]] = {}
        self.ids: list[str] = []  # shard, index, fragment, shard, index, fragment …
        self._commands: list[list[str]] = []

    @property
    def next_index(self) -> int:
        """The index that the next entry gets."""
        return self._index + 1

    @property
    def head(self) -> Head:
        """The head after this append."""
        return Head(self._index, self._hash, self.sequence, self.made)

    def add(self, entry: Entry) -> int:
        """Add an entry that is not a decision; returns its index."""
        return self._link(entry, NOT_A_DECISION)

    def add_decision(self, entry: Entry) -> int:
        """Add a decision with its place in all indexes; returns its index."""
        index = self._link(entry, first_outcome(entry))
        text = str(index)
        named = entry["d"], entry["r"], entry["f"], entry["t"]
        lists = self._listed.get(named)
        if lists is None:
            lists = self._listed[named] = [self._lists[name] for name in index_names(entry)]
        for each in lists:
            each.append(text)
        shard, fragment = id_place(entry["id"])
        self.ids += (f"{shard:x}", text, fragment)
        return index

    def _link(self, entry: Entry, letter: str) -> int:
        body = chain.canonical(entry)
        self._hash = chain.link(self._hash, body)
        self.bodies.append(body)
        self.hashes.append(self._hash)
        self._letters.append(letter)
        self._index += 1
        return self._index

    def set_outcome(self, index: int, letter: str) -> None:
        """Give an entry, of this append or an earlier one, another outcome."""
        if index > self.base.index:
            self._letters[index - self.base.index - 1] = letter
        else:
            self._changed[index] = letter

    def set_outcomes(self, indexes: Sequence[int], letter: str) -> None:
        """Give entries, ascending, another outcome."""
        if indexes and indexes[-1] <= self.base.index:
            self._changed.update(dict.fromkeys(indexes, letter))
            return
        for index in indexes:
            self.set_outcome(index, letter)

    def command(self, *words: str) -> None:
        """Add a Redis command."""
        self._commands.append(list(words))

    def command_on_many(self, name: str, key: str, words: Sequence[str]) -> None:
        """Add a Redis command with any even number of arguments, in portions."""
        for first in range(0, len(words), _VALUES):
            self._commands.append([name, key, *words[first : first + _VALUES]])

    @property
    def changes_something(self) -> bool:
        """Whether there is anything to append."""
        return bool(self.bodies or self._commands or self._changed or self.sequence != self.base.sequence)

    def commands(self, now: int) -> Iterator[list[str]]:
        """Every command of this append, except those that add to the chain itself and to the ids.

        ``now`` is the time in unix milliseconds.
        """
        layout = self.layout
        for key, offset, text in self._outcomes():
            yield ["SETRANGE", key, str(offset), text]
        for name, indexes in self._lists.items():
            for first in range(0, len(indexes), _VALUES):
                yield ["RPUSH", layout.by(name), *indexes[first : first + _VALUES]]
        yield from self._commands
        head = ["i", str(self._index), "h", self._hash.hex(), "s", str(self.sequence), "t", str(now)]
        if self.made:
            head += ("m", str(self.made))
        yield ["HSET", layout.head, *head]
        yield ["SADD", NAMESPACES, layout.namespace]

    def _outcomes(self) -> Iterator[tuple[str, int, str]]:
        for index, text in _runs(sorted(self._changed.items())):
            yield self.layout.outcomes(index // BLOCK), index % BLOCK, text
        index = self.base.index + 1
        letters = "".join(self._letters)
        while letters:
            room = BLOCK - index % BLOCK
            yield self.layout.outcomes(index // BLOCK), index % BLOCK, letters[:room]
            index, letters = index + room, letters[room:]


def _runs(pairs: Iterable[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """Join neighbours within a block."""
    start, text = -1, ""
    for index, letter in pairs:
        if text and index == start + len(text) and index % BLOCK:
            text += letter
            continue
        if text:
            yield start, text
        start, text = index, letter
    if text:
        yield start, text

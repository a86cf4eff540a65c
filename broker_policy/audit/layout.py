"""Where the audit of a namespace lies in Redis.

mas:audit:namespaces               set: the namespaces that have an audit
mas:audit:<ns>:chain               stream, ids <index>-0: e canonical entry, h hash
mas:audit:<ns>:head                hash: i index, h hash, t time, s last projected sequence of the log,
                                   m when that log was made
mas:audit:<ns>:writers             hash: writer -> its state
mas:audit:<ns>:batches             hash: writer -> its last batch's number, and index of the first decision
mas:audit:<ns>:outcomes:<block>    string: one letter an entry
mas:audit:<ns>:by:<index name>     list: entry indexes, ascending
mas:audit:<ns>:id:<shard>          hash, small: entry index -> fragment of the message id's digest
mas:audit:<ns>:pending:<writer>    hash: <record>.<position> -> a decision without an outcome
mas:audit:<ns>:unsettled           set: writers that have such
mas:audit:<ns>:open:<agent>        sorted set: entry index by sequence of a message in the inbox
mas:audit:<ns>:opened              set: agents that have such
mas:audit:<ns>:early               hash: <agent>.<sequence> -> reports that came before their decision
mas:audit:<ns>:states              hash: agent -> newest revision of its direct state that is in the chain
mas:audit:<ns>:seals               hash: last index of a sealed segment -> its signed seal
mas:audit:<ns>:removed             hash: i up to which index entries are in segments only, h hash of that one
mas:audit:<ns>:lease               who projects now
"""

from __future__ import annotations

import hashlib
from binascii import b2a_base64
from dataclasses import dataclass
from functools import cached_property

EVERY_KEY = "mas:audit:*"
"""A pattern that fits the keys of all namespaces, and no others."""
NAMESPACES = "mas:audit:namespaces"
BLOCK = 1 << 20
"""Entries in one string of outcomes."""
SHARDS = 1 << 14
"""Hashes of message ids: they stay in Redis's compact encoding up to some eight million decisions."""


@dataclass(frozen=True)
class Layout:
    """The names of the keys of one namespace."""

    namespace: str

    @cached_property
    def prefix(self) -> str:
        """What every key begins with."""
        return f"mas:audit:{self.namespace}:"

    @cached_property
    def chain(self) -> str:
        """The entries."""
        return f"{self.prefix}chain"

    @cached_property
    def head(self) -> str:
        """Where the chain ends and what of the log is in it."""
        return f"{self.prefix}head"

    @cached_property
    def writers(self) -> str:
        """What is known of each writer."""
        return f"{self.prefix}writers"

    @cached_property
    def batches(self) -> str:
        """The last batch of each writer."""
        return f"{self.prefix}batches"

    @cached_property
    def unsettled(self) -> str:
        """Writers with decisions that have no outcome."""
        return f"{self.prefix}unsettled"

    @cached_property
    def opened(self) -> str:
        """Agents with messages in the inbox."""
        return f"{self.prefix}opened"

    @cached_property
    def early(self) -> str:
        """Reports whose decision is not settled yet."""
        return f"{self.prefix}early"

    @cached_property
    def states(self) -> str:
        """Up to which revision of an agent's direct state the chain goes."""
        return f"{self.prefix}states"

    @cached_property
    def seals(self) -> str:
        """The seals of segments."""
        return f"{self.prefix}seals"

    @cached_property
    def removed(self) -> str:
        """How much of the chain is in segments only."""
        return f"{self.prefix}removed"

    @cached_property
    def lease(self) -> str:
        """Who projects now."""
        return f"{self.prefix}lease"

    def outcomes(self, block: int) -> str:
        """Outcomes of the entries ``block * BLOCK`` and on."""
        return f"{self.prefix}outcomes:{block}"

    def by(self, name: str) -> str:
        """The entries that an index lists."""
        return f"{self.prefix}by:{name}"

    @cached_property
    def ids(self) -> str:
        """What the shards of the message ids begin with."""
        return f"{self.prefix}id:"

    def shard(self, shard: int) -> str:
        """One shard of the message ids."""
        return f"{self.ids}{shard:x}"

    def pending(self, writer: str) -> str:
        """A writer's decisions without an outcome."""
        return f"{self.prefix}pending:{writer}"

    def open(self, agent: str) -> str:
        """An agent's messages in the inbox."""
        return f"{self.prefix}open:{agent}"


def id_place(message_id: str) -> tuple[int, str]:
    """The shard of a message id, and the fragment of its digest that stands there."""
    raw = hashlib.sha256(message_id.encode()).digest()
    return (raw[0] << 8 | raw[1]) % SHARDS, b2a_base64(raw[2:8], newline=False).decode()

"""What all workers remember of tokens, for as long as one lives: which were used, what was selected.

In the bucket ``tokens`` of the namespace, on disk, so that a restart forgets nothing. Keys are digests: no
name that an agent chooses becomes part of a subject. What one agent leaves there is bounded (``shares``), so
that it keeps nobody else from using tokens.
"""

from __future__ import annotations

import hashlib

from nats.aio.client import Client

from broker_policy.jetstream import JetStreamError, get_last, publish
from broker_policy.tokens.shares import Shares
from mas_nats.wire import headers, subjects
from mas_nats.wire.stored import WRONG_LAST_SEQUENCE

_STREAM = subjects.kv_stream(subjects.TOKENS_BUCKET)


class Marks:
    """The marks of one namespace."""

    def __init__(self, nc: Client, shares: Shares) -> None:
        self._nc = nc
        self._shares = shares

    def require_room(self, agent: str) -> None:
        """See whether ``agent``, by its full name, may leave more marks.

        Raises:
            NoRoom: it may not, for now.

        """
        self._shares.require(agent, 1)

    async def use(self, token_id: str, presentation: str, holder: str) -> bool:
        """Use a token of ``holder``; False when it was used before, in another ``presentation``.

        Raises:
            NoRoom: its holder has left too many marks.

        """
        subject, mark = _key("used", token_id), presentation.encode()
        self._shares.take(holder, 1)
        try:
            await publish(self._nc, subject, mark, {headers.EXPECTED_LAST_SUBJECT_SEQUENCE: "0"})
        except JetStreamError as error:
            # Whoever shows a token again and again does not use up what its holder may leave.
            self._shares.give_back(holder)
            if error.code not in WRONG_LAST_SEQUENCE:
                raise
            stored = await get_last(self._nc, _STREAM, subject)
            return stored is not None and stored.data == mark
        return True

    async def answered(self, agent: str, cause: str, tools: tuple[str, ...], holder: str) -> None:
        """The language model has answered ``agent`` because of ``cause``, and selected ``tools``.

        Raises:
            NoRoom: ``holder``, its full name, has left too many marks.

        """
        self._shares.take(holder, len(tools) + 1)
        for tool in tools:
            await publish(self._nc, _key("selected", agent, cause, tool), b"1", {})
        await publish(self._nc, _key("answered", agent, cause), b"1", {})

    async def has_answered(self, agent: str, cause: str) -> bool:
        """Whether it has."""
        return await self._there(_key("answered", agent, cause))

    async def has_selected(self, agent: str, cause: str, tool: str) -> bool:
        """Whether it selected ``tool``, in any of its answers."""
        return await self._there(_key("selected", agent, cause, tool))

    async def _there(self, subject: str) -> bool:
        return await get_last(self._nc, _STREAM, subject) is not None


def _key(kind: str, *names: str) -> str:
    digest = hashlib.sha256("\0".join(names).encode()).hexdigest()
    return subjects.kv_key(subjects.TOKENS_BUCKET, f"{kind}.{digest}")

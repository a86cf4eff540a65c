"""A reply that is written in parts, for a requester that takes it whole."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

import orjson

from mas_nats.message import AgentMessage, Payload, ReplyResult
from mas_nats.payload import encode, invalid, size_of_text
from mas_nats.pending import size_of
from mas_nats.wire.frames import Chunk, joined
from mas_nats.wire.verdict import Decision


class GatheredReply:
    """Gathers what is written, and sends it as one reply at the end."""

    def __init__(self, message: AgentMessage, message_type: str, *, max_payload: int) -> None:
        self._message = message
        self._type = message_type
        self._max_payload = max_payload
        self._pending: list[Chunk] = []
        self._size = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            await self._reply()

    async def write(self, chunk: str | Payload) -> None:
        """Add a chunk; see ``message.ReplyWriter``."""
        taken: Chunk = chunk if isinstance(chunk, str) else orjson.loads(encode(chunk))
        self._size += size_of_text(taken) if isinstance(taken, str) else size_of(taken)
        if self._size > self._max_payload:
            raise invalid(
                "max_payload",
                f"the reply has more than {self._max_payload} bytes, and its requester takes one",
                "Let the requester use stream() for an answer of this size",
                Decision.TOO_LARGE,
            )
        self._pending.append(taken)

    async def _reply(self) -> ReplyResult:
        return await self._message.reply(self._type, gathered(self._pending))


def gathered(chunks: list[Chunk]) -> dict[str, Any]:
    """Chunks as one JSON object: the one object they are, else ``text``, else ``chunks``."""
    whole = joined(chunks)
    if len(whole) == 1 and isinstance(whole[0], dict):
        return whole[0]
    if all(isinstance(chunk, str) for chunk in whole):
        return {"text": "".join(str(chunk) for chunk in whole)}
    return {"chunks": whole}

"""Asking the workers to redrive and to purge dead letters, as an operator does."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

import nats.errors
import orjson
from nats.aio.client import Client

from broker_policy.calls.operator import MOST_LETTERS
from mas_nats.errors import Unavailable, error_of
from mas_nats.wire import subjects
from mas_nats.wire.subjects import AdminOp
from mas_nats.wire.verdict import Verdict

PATIENCE = (10.0, 20.0, 40.0)
"""Seconds to wait for a worker, each time it is asked: it may have died, and repeating is safe."""


class Operations:
    """On a connection inside the tenant account; ``by`` is who asks, as the audit shall name it."""

    def __init__(self, nc: Client, by: str, *, patience: Sequence[float] = PATIENCE) -> None:
        self._nc = nc
        self._by = by
        self._patience = patience

    async def redrive(
        self, sequences: Sequence[int], *, to: str | None = None, dry_run: bool = False
    ) -> AsyncIterator[dict[str, Any]]:
        """Redrive in this order; what became of each (``status``: redriven, kept, gone).

        Raises:
            Unavailable: no worker answered. What was asked last may have happened; repeating is safe.
            Refused: it was asked wrongly.

        """
        async for row in self._ask(AdminOp.REDRIVE, sequences, {"to": to, "dry_run": dry_run}):
            yield row

    async def purge(self, sequences: Sequence[int]) -> AsyncIterator[dict[str, Any]]:
        """Remove for good; what became of each (``status``: purged, kept, gone).

        Raises: as ``redrive``.
        """
        async for row in self._ask(AdminOp.PURGE, sequences, {}):
            yield row

    async def _ask(
        self, op: AdminOp, sequences: Sequence[int], more: dict[str, Any]
    ) -> AsyncIterator[dict[str, Any]]:
        for first in range(0, len(sequences), MOST_LETTERS):
            body = {"by": self._by, "letters": list(sequences[first : first + MOST_LETTERS]), **more}
            verdict = await self._answer(op, orjson.dumps(body))
            if not verdict.ok:
                raise error_of(verdict)
            for row in verdict.result["letters"]:
                yield row

    async def _answer(self, op: AdminOp, body: bytes) -> Verdict:
        for seconds in self._patience:
            try:
                answer = await self._nc.request(subjects.admin(op), body, timeout=seconds)
            except nats.errors.NoRespondersError:
                raise Unavailable("no policy worker is there: start one (mas up), then repeat") from None
            except (nats.errors.Error, OSError):
                continue
            return Verdict.decode(answer.data)
        raise Unavailable("no policy worker answered: repeat, it is safe")

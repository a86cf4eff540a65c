"""Calls that wait until the limits were asked about them, in the order in which they came."""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Awaitable, Callable, Sequence

from broker_policy.admission.admission import Admission
from broker_policy.calls.asides import Asides
from broker_policy.calls.deciding import Deciding
from broker_policy.commit.waiting import Waiting
from broker_policy.pipeline import Call, Refusal
from mas_nats.policy import refusals
from mas_nats.policy.table import Table

log = logging.getLogger(__name__)

_AT_ONCE = 256
"""Calls whose limits are asked about together."""
_FRAMES = 6
"""Of a fault the innermost so many frames are logged: anybody may cause one that is deep."""


class Admitting:
    """Stands before ``decide``, which gets each call with what the limits have against it.

    ``ask`` says that of many at once; ``what`` names them in the log.
    """

    def __init__(
        self,
        what: str,
        *,
        ask: Callable[[Sequence[Call]], Awaitable[list[Refusal | None]]],
        decide: Callable[[Call, Refusal | None], None],
        asides: Asides,
    ) -> None:
        self._what = what
        self._ask = ask
        self._decide = decide
        self._asides = asides
        self._waiting: Waiting[Call] = Waiting(lambda call: (call.sender, len(call.body) + 1024))
        self._admitting: asyncio.Task[None] | None = None

    def take(self, call: Call, *, counted: bool) -> None:
        """Have ``call`` decided: at once where it is not ``counted`` and nothing waits before it."""
        if self._admitting is None and not counted:
            self._decide(call, None)
        elif not self._waiting.put(call):
            self._asides.tell(call, refusals.busy())
        elif self._admitting is None:
            self._admitting = asyncio.create_task(self._admit())

    async def stop(self) -> None:
        """Have decided what was taken."""
        if self._admitting is not None:
            await self._admitting

    async def _admit(self) -> None:
        """Ask about all that waits at once, until nothing does."""
        try:
            while self._waiting:
                calls = [self._waiting.take() for _ in range(min(len(self._waiting), _AT_ONCE))]
                try:
                    refused = await self._ask(calls)
                except Exception:
                    log.exception("%s could not be judged", self._what)
                    refused = [refusals.unavailable()] * len(calls)
                for call, refusal in zip(calls, refused, strict=True):
                    self._decided(call, refusal)
        finally:
            self._admitting = None  # else nothing would ever be asked about again

    def _decided(self, call: Call, refusal: Refusal | None) -> None:
        """Have ``call`` decided; what goes wrong with it costs no other."""
        try:
            self._decide(call, refusal)
        except Exception as error:  # noqa: BLE001 - logged with its end: a whole one may be a thousand frames
            end = "".join(traceback.format_exception(error, limit=-_FRAMES))
            log.error("a %s of %s could not be decided: %s", call.op, call.sender, end)
            self._asides.tell(call, refusals.unavailable())


class Limited:
    """The same for calls that the limits of their own namespace count.

    ``forbidden`` says what else is against a call: the limits do not count what is refused anyway.
    """

    def __init__(
        self,
        what: str,
        deciding: Deciding,
        admission: Admission,
        *,
        forbidden: Callable[[Call, Table], Refusal | None],
        decide: Callable[[Call, Refusal | None], None],
        asides: Asides,
    ) -> None:
        self._deciding = deciding
        self._admission = admission
        self._forbidden = forbidden
        self._admitting = Admitting(what, ask=self._admissible, decide=decide, asides=asides)

    def take(self, call: Call) -> None:
        """Have ``call`` decided; where limits are set, once they were asked."""
        table = self._deciding.current()
        self._admitting.take(call, counted=table is not None and self._admission.concerns(table))

    async def stop(self) -> None:
        """Have decided what was taken."""
        await self._admitting.stop()

    async def _admissible(self, calls: Sequence[Call]) -> list[Refusal | None]:
        """What the limits have against each."""
        refused: list[Refusal | None] = [None] * len(calls)
        table = self._deciding.current()
        if table is None:
            return refused
        permitted = [place for place, call in enumerate(calls) if self._forbidden(call, table) is None]
        said = await self._admission.admit([calls[place] for place in permitted], table)
        for place, refusal in zip(permitted, said, strict=True):
            refused[place] = refusal
        return refused

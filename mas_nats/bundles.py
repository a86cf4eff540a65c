"""Calls that are made at the same moment go to the policy service as one message (ADR 35).

Nothing is waited for: a call that is alone goes as it always did. What is called in the same turn of the
event loop goes together, and since the verdicts of a bundle come together, so do the calls that follow them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass

from mas_nats.errors import MasError
from mas_nats.transport import Connection, NoAnswer
from mas_nats.wire import bundle, subjects
from mas_nats.wire.headers import BUNDLE, TARGET
from mas_nats.wire.subjects import Op
from mas_nats.wire.verdict import Verdict

logger = logging.getLogger("mas_nats")

_LARGEST_BODY = 8_192
"""Bytes of the largest body that is bundled: a larger one may be searched in a process of its own."""
_MOST_BYTES = 262_144
"""Bytes of bodies in one bundle."""
_HEADER_BYTES = 1_024


@dataclass(slots=True)
class _Gathered:
    part: bundle.Part
    wait: float
    verdict: asyncio.Future[Verdict | None]


class Bundles:
    """The bundles of one agent. ``most``: calls in one of them, as the policy service said; 0: none."""

    def __init__(self, connection: Connection, agent: str) -> None:
        self.most = 0
        self._connection = connection
        self._subject = subjects.call(agent, Op.SEND)
        self._gathered: list[_Gathered] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def ask(
        self,
        op: str,
        body: bytes,
        fields: Mapping[str, str] | None,
        wait: float,
        loop: asyncio.AbstractEventLoop,
    ) -> Verdict | None:
        """The verdict on a call that goes together with others; None: it is to go on its own.

        Raises:
            MasError: what ``Connection.exchange`` raises.

        """
        if self.most < 2 or op not in bundle.BUNDLED or not fields or len(body) > _LARGEST_BODY:
            return None
        if "/" in fields.get(TARGET, ""):  # another namespace has to say its verdict first
            return None
        mine = _Gathered(bundle.Part(op, fields, body), wait, loop.create_future())
        self._gathered.append(mine)
        if len(self._gathered) == 1:
            loop.call_soon(self._leave)
        return await mine.verdict

    def _leave(self) -> None:
        gathered = [each for each in self._gathered if not each.verdict.done()]
        self._gathered = []
        if len(gathered) < 2:
            for each in gathered:
                each.verdict.set_result(None)
            return
        portion: list[_Gathered] = []
        size = 0
        for each in gathered:
            length = len(each.part.body) + _HEADER_BYTES
            if len(portion) >= self.most or size + length > _MOST_BYTES:
                self._go(portion)
                portion, size = [], 0
            portion.append(each)
            size += length
        self._go(portion)

    def _go(self, portion: list[_Gathered]) -> None:
        task = asyncio.create_task(self._exchange(portion))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _exchange(self, portion: list[_Gathered]) -> None:
        body = bundle.encode([each.part for each in portion])
        wait = min(each.wait for each in portion)
        verdicts: list[Verdict] | None = None
        failed: BaseException | None = None
        try:
            answer = await self._connection.exchange(self._subject, body, {BUNDLE: "1"}, wait)
            verdicts = bundle.decode_verdicts(Verdict.decode(answer.data), len(portion))
            if verdicts is None:
                self.most = 0  # a worker of an older version: until the next hello says otherwise
                logger.info("the policy service does not take bundles")
        except MasError as error:
            failed = error
        except ValueError as error:
            failed = NoAnswer(f"{self._subject}: {error}")
        except BaseException as error:
            failed = NoAnswer(f"{self._subject}: {error!r}")
            raise
        finally:
            for place, each in enumerate(portion):
                if each.verdict.done():
                    continue
                if failed is not None:
                    each.verdict.set_exception(failed)
                else:
                    each.verdict.set_result(verdicts[place] if verdicts else None)

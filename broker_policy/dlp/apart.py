"""Searches content in a process of its own, so that what is costly to search holds up nobody else (ADR 23).

One process for a worker, begun when it is first needed. It ends with the worker, however that ends, since
its input ends then.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import sys
from collections.abc import Sequence
from typing import Any

import orjson

from broker_policy.dlp.framing import LENGTHS, framed, opened
from broker_policy.dlp.judging import Judgement
from broker_policy.dlp.ruleset import Ruleset
from mas_nats.policy.call import Finding
from mas_nats.wire.frames import Chunk
from mas_nats.wire.verdict import Decision

log = logging.getLogger(__name__)

BUDGET = 5.0
"""Seconds of computing that one content may take. What takes longer is refused."""
_PATIENCE = 60.0
"""Seconds to wait for an answer on a busy machine; then the process is taken for lost."""


class SearchFailed(Exception):
    """The process ended or did not answer: nothing is known of the content."""


class Apart:
    """The process. ``budget`` in seconds of computing."""

    def __init__(self, *, budget: float = BUDGET, patience: float = _PATIENCE) -> None:
        self._budget = budget
        self.patience = patience
        self._turn = asyncio.Lock()  # first come, first served
        self._process: asyncio.subprocess.Process | None = None
        self._knows = ""

    @property
    def pid(self) -> int | None:
        """The number of the process; None while there is none."""
        return None if self._process is None else self._process.pid

    async def judge(self, rules: Ruleset, body: bytes) -> Judgement | None:
        """What ``judge`` says; a content that takes too long is blocked as ``COST``.

        Raises:
            ValueError: it is no JSON.
            SearchFailed: the process did not answer.

        """
        header, made = await self._ask(rules, {"kind": "body"}, body)
        if "decision" not in header:
            return None
        return Judgement(Decision(header["decision"]), tuple(header["types"]), made)

    async def screen(
        self, rules: Ruleset, held: Sequence[Chunk], new: Sequence[Chunk], *, final: bool
    ) -> tuple[tuple[Chunk, ...], tuple[Chunk, ...], Judgement | None, Finding | None]:
        """What ``StreamScreen`` says: what may go, what waits, why it is refused, what was found.

        Raises:
            SearchFailed: the process did not answer.

        """
        payload = orjson.dumps({"held": held, "new": new, "final": final})
        header, made = await self._ask(rules, {"kind": "stream"}, payload)
        if "decision" in header:
            return (), (), Judgement(Decision(header["decision"]), tuple(header["types"]), b""), None
        said = orjson.loads(made)
        found = header.get("finding")
        finding = Finding(Decision(found[0]), tuple(found[1])) if found else None
        return tuple(said["out"]), tuple(said["held"]), None, finding

    async def stop(self) -> None:
        """End the process."""
        process, self._process, self._knows = self._process, None, ""
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()

    async def _ask(
        self, rules: Ruleset, header: dict[str, Any], payload: bytes
    ) -> tuple[dict[str, Any], bytes]:
        async with self._turn:
            try:
                async with asyncio.timeout(self.patience):
                    header, made = await self._asked(rules, header, payload)
            except (OSError, EOFError, TimeoutError, asyncio.IncompleteReadError) as error:
                log.warning("the process that searches content is lost (%s)", type(error).__name__)
                await self.stop()
                raise SearchFailed from None
            except BaseException:  # cancelled with the answer still to come
                await self.stop()
                raise
        if "unfit" in header:
            raise ValueError("it is no JSON")
        if "failed" in header:
            raise SearchFailed(header["failed"])
        return header, made

    async def _asked(
        self, rules: Ruleset, header: dict[str, Any], payload: bytes
    ) -> tuple[dict[str, Any], bytes]:
        if self._process is None or self._process.returncode is not None:
            await self.stop()
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "broker_policy.dlp.searching",
                str(self._budget),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
            )
        reader, writer = self._process.stdout, self._process.stdin
        assert reader is not None and writer is not None  # noqa: S101, PT018 - asked for above
        digest = hashlib.sha256(rules.settings.encode()).hexdigest()
        if digest != self._knows:
            header = {**header, "settings": rules.settings}
        writer.write(framed(header, payload))
        await writer.drain()
        lengths = await reader.readexactly(LENGTHS.size)
        answer = opened(lengths, await reader.readexactly(sum(LENGTHS.unpack(lengths))))
        self._knows = digest
        return answer

"""Answers of language models: searched as streamed replies are, before an application gets them (ADR 36).

The service does not carry them. It says how much of what was shown may go out, and what of it in another
form; what waits travels in the sealed cursor, as that of a streamed reply does (ADR 12).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson

from broker_policy.audit.record import Outcome, Way
from broker_policy.calls.acting import Acting
from broker_policy.calls.deciding import Deciding
from broker_policy.dlp import LARGE
from broker_policy.passed import parted
from broker_policy.screen import MAX_HELD, Aside, Screen, Screened
from broker_policy.sealing import Cursor, ReplyCapability, SealBroken, commitment
from mas_nats.policy import model_answer, refusals
from mas_nats.policy.call import Call, Refusal
from mas_nats.policy.model_answer import ANSWER_RULE, BadAnswer, ModelAnswer, is_answer
from mas_nats.policy.prompt import prompt
from mas_nats.wire.verdict import Verdict, accepted


@dataclass(frozen=True, slots=True)
class _Part:
    """What was shown. ``answer`` ties a cursor to the agent, the model and the prompt."""

    said: ModelAnswer
    answer: ReplyCapability
    cursor: Cursor


class ModelAnswers:
    """Takes those ``prompt`` calls of one namespace that are about answers."""

    def __init__(self, deciding: Deciding, acting: Acting, screen: Screen, aside: Aside | None) -> None:
        self._deciding = deciding
        self._acting = acting
        self._screen = screen
        self._aside = aside

    def costly(self, call: Call) -> bool:
        """Whether there is so much to screen that it is searched before ``take``."""
        return self._aside is not None and is_answer(call) and len(call.body) > LARGE

    async def search(self, call: Call) -> None:
        """Screen a part before its turn."""
        part = self._part(call)
        if self._aside is not None and not isinstance(part, Refusal):
            call.searched = await self._aside(part.cursor.held, part.said.chunks, final=part.said.final)

    def take(self, call: Call) -> None:
        """Decide about a part."""
        judged = self._judged(call)
        if isinstance(judged, Refusal):
            self._acting.refuse(call, judged)
            return
        part, screened = judged
        call.finding = screened.finding
        salt = self._deciding.sealer.salt(call.sender, call.message_id)
        committed = commitment(salt, call.target, call.type, orjson.dumps(screened.out))

        async def let_go(_: str) -> tuple[Verdict, Outcome]:
            return accepted(call.message_id, **self._result(part, screened)), Outcome.APPLIED

        self._acting.perform(call, self._deciding.allowed(call, ANSWER_RULE, Way.ACT, committed), let_go)

    def _judged(self, call: Call) -> tuple[_Part, Screened] | Refusal:
        part = self._part(call)
        if isinstance(part, Refusal):
            return part
        screened = call.searched
        if not isinstance(screened, Screened):
            screened = self._screen(part.cursor.held, part.said.chunks, final=part.said.final)
        if screened.refusal is not None:
            return screened.refusal
        if (size := len(orjson.dumps(screened.held))) > MAX_HELD:
            return refusals.too_large(size, MAX_HELD)
        return part, screened

    def _part(self, call: Call) -> _Part | Refusal:
        table = self._deciding.table(call)
        if isinstance(table, Refusal):
            return table
        if (refusal := prompt(call, table, self._deciding.room())) is not None:
            return refusal
        try:
            said = model_answer.read(call.body)
        except BadAnswer as error:
            return refusals.invalid("llm_answer", str(error))
        call.message_id = said.asked  # what the audit is asked for
        answer = ReplyCapability(
            self._deciding.namespace, call.sender, "", said.asked, call.target, said.asked, 0, stream=True
        )
        try:
            cursor = self._deciding.sealer.open_cursor(answer, said.cursor) if said.cursor else Cursor()
        except SealBroken as error:
            return refusals.invalid("cursor", str(error))
        return _Part(said, answer, cursor)

    def _result(self, part: _Part, screened: Screened) -> dict[str, Any]:
        """``gone``: how many of the objects that were shown may go; ``changed``: those that became others."""
        shown = [*parted(part.cursor.held)[1], *part.said.chunks]
        pairs = zip(shown, screened.out, strict=False)
        changed = {str(number): now for number, (was, now) in enumerate(pairs) if was != now}
        result: dict[str, Any] = {"gone": len(screened.out), "changed": changed}
        if not part.said.final:
            following = Cursor(part.cursor.number + 1, held=screened.held)
            result["cursor"] = self._deciding.sealer.seal_cursor(part.answer, following)
        return result

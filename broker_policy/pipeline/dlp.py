"""The last step: what does the call hold that should not leave? Blocks, redacts, alerts, or finds nothing."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass

from broker_policy.dlp import LARGE, Judgement, Ruleset, judge, possible, redact_text, ruleset
from broker_policy.dlp.judging import COST
from mas_nats.errors import ConfigurationError
from mas_nats.policy import refusals
from mas_nats.policy.call import Call, Refusal
from mas_nats.policy.governance import Dlp
from mas_nats.policy.table import Table
from mas_nats.wire.subjects import Op
from mas_nats.wire.verdict import Decision

log = logging.getLogger(__name__)

_APART = b"\0"
"""Between texts that are searched together: no word, no number and no base64 goes on behind it."""
_ID = re.compile(r"(?!.*[0-9]{13})[0-9a-f]{32}")
"""128 bits in hexadecimal, as the SDK and most libraries make an id. 13 digits in a row may be a card's."""
_SOME_ID = "|"
"""Stands for such an id: a sign of no rule's, so that its neighbours do not become each other's."""


@dataclass(frozen=True, slots=True)
class Searched:
    """What ``rules`` say of a body, found out before or when it was judged first."""

    rules: Ruleset
    body: bytes
    judgement: Judgement | None


class Inspection:
    """The rules of one namespace, compiled when its policy changes."""

    def __init__(self) -> None:
        self._settings: Dlp | None = None
        self._rules: Ruleset | None = None

    def rules(self, table: Table) -> Ruleset | None:
        """The rules of ``table``; None where they cannot be compiled, so that nothing may pass."""
        settings = table.document.governance.dlp
        if settings is not self._settings:
            try:
                self._rules = ruleset(settings)
            except ConfigurationError as error:  # the controller stores no such settings
                log.error(
                    "the policy of %s has unusable rules, its namespace is closed: %s", table.namespace, error
                )
                self._rules = None
            self._settings = settings
        return self._rules

    def clean(self, calls: Sequence[Call], table: Table) -> list[bool]:
        """Of each whether it surely holds nothing, found out by one search of all their bodies.

        What that search finds may be in any of them: then nothing is known of any, as of those that are not
        written plainly. What they say beside their bodies is searched in the same way; there the digits of an
        id now and then look like something, and only of those that do it is looked at closely.
        """
        rules = self.rules(table)
        if rules is None or rules.idle:
            return [rules is not None] * len(calls)
        plain = [_plain(call) for call in calls]
        some = [call for call, each in zip(calls, plain, strict=True) if each]
        if len(some) < 2 or possible(rules, _APART.join(call.body for call in some)):
            return [False] * len(calls)
        said = iter(_harmless(rules, some))
        return [each and next(said) for each in plain]

    def inspect(self, call: Call, table: Table) -> Refusal | None:
        """Judge body and headers of ``call``: its body is what may be delivered, ``finding`` what was found.

        Of frames only the headers: their chunks are judged with what was said before (``StreamScreen``).
        """
        rules = self.rules(table)
        if rules is None:
            return refusals.dlp_unusable()
        if rules.idle:
            return None
        body = b"" if call.op == Op.FRAME else call.body
        known = isinstance(call.searched, Searched) and call.searched.body == body
        unknown = b"" if known else body
        said = _said(call, rules)
        if possible(rules, unknown + _beside(said)):
            if redact_text(rules, said) != said:
                return refusals.dlp_header()
        elif not known:
            return None
        if not body:
            return None
        value, refusal = self.value(call, body, rules)
        if refusal is None and value is not body:
            call.body = value
        return refusal

    def value(self, call: Call, value: bytes, rules: Ruleset) -> tuple[bytes, Refusal | None]:
        """``value`` as it may be delivered, or why it may not; what was found is noted in ``call``."""
        known = call.searched
        if not isinstance(known, Searched) or known.body != value:
            known = Searched(rules, value, judge(rules, value))
        elif known.rules is not rules:  # policy has changed since
            if len(value) > LARGE:
                call.searched = None
                return b"", refusals.busy()
            known = Searched(rules, value, judge(rules, value))
        call.searched, judgement = known, known.judgement
        if judgement is None:
            return value, None
        if judgement.decision is Decision.DLP_BLOCKED:
            return b"", blocked(judgement)
        call.finding = judgement.finding.with_earlier(call.finding)
        if judgement.decision is Decision.DLP_REDACTED:
            call.searched = Searched(rules, judgement.body, None)  # judged again it holds nothing more
        return judgement.body, None


def _harmless(rules: Ruleset, calls: Sequence[Call]) -> list[bool]:
    """Of each whether what it says beside its body holds nothing: by halves, where something is found."""
    distinct = {_said(call, rules) for call in calls}
    if not possible(rules, _APART.join(map(_beside, distinct))):
        return [True] * len(calls)
    if len(calls) == 1:
        (said,) = distinct
        return [redact_text(rules, said) == said]
    half = len(calls) // 2
    return _harmless(rules, calls[:half]) + _harmless(rules, calls[half:])


def _said(call: Call, rules: Ruleset) -> str:
    """What a call says beside its body; where no rule is own, ``_SOME_ID`` for an id that is nothing else.

    Each new id leads the search through states that it has not been in: that takes longer than the body.
    """
    message_id = _SOME_ID if rules.built_in and _ID.fullmatch(call.message_id) else call.message_id
    return f"{call.type} {message_id} {call.tracestate}"


def _beside(said: str) -> bytes:
    return b"\n" + said.encode(errors="replace")


def _plain(call: Call) -> bool:
    """Whether the body is ASCII without escapes, which take further searches, and not searched yet."""
    body = call.body
    return call.searched is None and body.isascii() and b"\\" not in body and len(body) <= LARGE


def blocked(judgement: Judgement) -> Refusal:
    """The refusal of what is blocked."""
    if judgement.types == (COST,):
        return refusals.dlp_costly()
    return refusals.dlp_blocked(judgement.rule, judgement.types)

"""The judgement of one body: allowed, alerted, redacted or blocked."""

from __future__ import annotations

from dataclasses import dataclass

from broker_policy.dlp import forms
from broker_policy.dlp.ruleset import Ruleset
from broker_policy.dlp.scanning import Place, Scan, TooDeep, cut, dumps, loads, placeholder, strictness
from mas_nats.policy.call import Finding
from mas_nats.policy.governance import DlpAction
from mas_nats.wire.verdict import Decision

_DECISIONS = {
    DlpAction.ALERT: Decision.ALERT,
    DlpAction.REDACT: Decision.DLP_REDACTED,
    DlpAction.BLOCK: Decision.DLP_BLOCKED,
}
NESTING = "nesting"
"""Stands among the types where a body is nested too deeply to be judged."""
COST = "cost"
"""Stands there where it would take too long."""
LARGE = 8_192
"""Bytes of content that are searched in place; more go to a process of its own (``Apart``)."""
UNREADABLE = (TooDeep, RecursionError)
"""What a search raises that cannot go so deep; the second where others have used up the stack before it."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What became of a body. ``body`` is what may be delivered: nothing where it is blocked."""

    decision: Decision
    types: tuple[str, ...]
    body: bytes

    @property
    def rule(self) -> str:
        """The types as they stand in the audit."""
        return self.finding.rule

    @property
    def finding(self) -> Finding:
        """What the call is told of it that is let pass."""
        return Finding(self.decision, self.types)


def judge(rules: Ruleset, body: bytes) -> Judgement | None:
    """What ``rules`` say of a JSON body; None where they find nothing.

    Raises:
        ValueError: it is no JSON.

    """
    if rules.idle or not (hits := possible(rules, body)):
        return None
    scan = Scan(rules, hits)
    try:
        made = scan.value(loads(body))
    except UNREADABLE:
        return Judgement(Decision.DLP_BLOCKED, (NESTING,), b"")
    if not scan.found:
        return None
    action = max(scan.found.values(), key=strictness)
    types = tuple(sorted(scan.found))
    if action is DlpAction.REDACT:
        body = dumps(made).encode(errors="replace")
    return Judgement(_DECISIONS[action], types, b"" if action is DlpAction.BLOCK else body)


def possible(rules: Ruleset, raw: bytes) -> set[int]:
    """The rules that may find something in a body, before it is read; no secret is missed by it."""
    if b"\\" not in raw:
        return _possible(rules, raw, raw.decode(errors="replace"), forms.MAX_LEVELS)
    hits: set[int] = set()
    for _ in range(1 + forms.MAX_LEVELS):  # the strings of the body, those of JSON in them, ...
        text = forms.unescaped(raw)
        raw = text.encode(errors="replace")
        hits |= _possible(rules, raw, text, forms.MAX_LEVELS)
        if b"\\" not in raw:
            break
    return hits


def _possible(rules: Ruleset, raw: bytes, text: str, levels: int) -> set[int]:
    """``text`` is what ``raw`` is in UTF-8."""
    hits, packed = rules.look(raw)
    if not text.isascii() and (plain := forms.plain(text)) != text:
        hits |= rules.look(plain)[0]
    if not (packed and levels):
        return hits
    if (said := forms.unquoted(text)) is not text:
        hits |= rules.look(said)[0]
        if not said.isascii() and (plain := forms.plain(said)) != said:
            hits |= rules.look(plain)[0]
    for _, _, inner in forms.base64_runs(text):
        hits |= _possible(rules, inner.encode(errors="replace"), inner, levels - 1)
        if "\\" in inner:
            hits |= rules.look(forms.unescaped(inner.encode(errors="replace")))[0]
    return hits


def places(rules: Ruleset, raw: bytes) -> list[Place]:
    """Where ``rules`` find something in a file: JSON, or else text as a whole. For people who look for it.

    Raises:
        TooDeep: it is nested too deeply.

    """
    scan = Scan(rules, range(len(rules.rules)), all_of_them=True)
    if rules.idle:
        return []
    try:
        value = loads(raw)
    except ValueError:
        value = raw.decode(errors="replace")
    try:
        scan.value(value)
    except RecursionError:
        raise TooDeep from None
    return scan.places


def redact_text(rules: Ruleset, text: str) -> str:
    """``text`` for a log, a header or a dead letter: without anything that may not be delivered as it is.

    What cannot be searched, since it is nested too deeply, is taken out as a whole.
    """
    if rules.idle:
        return text
    raw = text.encode(errors="replace")
    if not (hits := possible(rules, raw)):
        return text
    try:
        finds = Scan(rules, hits, all_of_them=True).finds(text)
    except UNREADABLE:
        return placeholder(NESTING)
    return cut(text, [find for find in finds if find.rule.action is not DlpAction.ALERT])

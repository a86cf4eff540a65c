"""The screen of streamed replies: what was said may go out when nothing that follows can make it a secret.

Prose goes out at once. Held back are digits, what may be the beginning of a token, and words such as
``password`` with what follows them. Where a policy redacts or blocks with rules of its own, whose beginnings
are not known, as many characters wait, too, as a find of them may have before it is one; where that has no
bound, everything waits for the end.

Objects that say that they are whole do not wait. Their texts are searched with those that went before at the
same place; what is found too late to hold its beginning back is redacted from there on, or ends the stream.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import orjson

from broker_policy.dlp import forms
from broker_policy.dlp.apart import Apart
from broker_policy.dlp.judging import LARGE, NESTING, UNREADABLE, Judgement, judge, possible
from broker_policy.dlp.ruleset import Ruleset
from broker_policy.dlp.scanning import Find, Scan, placeholder, worse
from broker_policy.passed import Passed, Path, parted, together
from broker_policy.screen import MAX_HELD, Screened
from mas_nats.policy import refusals
from mas_nats.policy.call import Finding, Refusal
from mas_nats.policy.governance import DlpAction
from mas_nats.wire.frames import WHOLE, Chunk, joined
from mas_nats.wire.verdict import Decision

LONGEST_WORD = 8_192
"""Characters without a space that wait for what follows them."""

_SAY_WORDS = (
    "pass|pwd|secret|key|token|bearer|authorization|basic|ssn|social|security|cvv|cvc|cvn|card|mrn|"
    "medical|patient|insurance|policy|member|subscriber|medicaid|medicare|beneficiary|aws|api|access|auth|"
    "client|visa|payment|credit|debit"
)
_SHORT_WORDS = "pw|pan|cc|mbi"  # parts of many others
_FIRST_SIGNS = (
    "sk-|rk_|sk_|gh|github_pat_|glpat-|xox|xapp-|whsec_|AIza|ya29.|GOCSPX-|SG.|npm_|hf_|pypi-|AKIA|"
    "ASIA|ABIA|ACCA|eyJ|AGE-|PuTTY|-----|hooks.slack.com|curl|SA|SC|SN|SO|SU|SX"
)
_SAYS, _STARTS = f"{_SAY_WORDS}|{_SHORT_WORDS}".split("|"), _FIRST_SIGNS.split("|")
_SAID = re.compile(rf"(?:{_SAY_WORDS}|\b(?:{_SHORT_WORDS})\b).{{0,48}}\Z", re.IGNORECASE | re.DOTALL)
_FAR = 512
"""Characters of a line in which what stands at its beginning says what comes later."""
_SAID_BEFORE = re.compile(rf"\b(?:curl|(?i:card))\b[^\n]{{0,{_FAR}}}\Z")
_RECORD = re.compile(r"\bM(?:R\s?#?\s?\d{0,10})?\Z")
_WORD = re.compile(r"\S+\Z")
_LAST = re.compile(r"[\w.\-]+\Z")
_NUMBERS = re.compile(r"\S*\d(?:[\d\s.\-]{0,62})\Z")
_ARMOUR = re.compile(r"-{2,5}[^\n-]{0,48}-{0,5}\Z")
_SIGNS = re.compile(r"[\d_:=@/+%\-\"'{\\]|[a-z][A-Z]")
"""What prose has not within a word; letters in turn are those of base64."""

Rules = Callable[[], Ruleset | None]
Refuse = Callable[[Judgement], Refusal]


class StreamScreen:
    """A ``Screen`` with the rules that hold when it is asked. What is large goes to ``apart``."""

    def __init__(self, rules: Rules, refuse: Refuse, apart: Apart | None = None) -> None:
        self._rules = rules
        self._refuse = refuse
        self._apart = apart

    def __call__(self, held: Sequence[Chunk], new: Sequence[Chunk], *, final: bool) -> Screened:
        """Divide ``held`` and ``new``."""
        rules = self._rules()
        if rules is None:
            return Screened((), refusal=refusals.dlp_unusable())
        if rules.idle:
            return Screened(tuple(joined([*parted(held)[1], *new])))
        return self._said(rules, *screened(rules, held, new, final=final))

    async def aside(self, held: Sequence[Chunk], new: Sequence[Chunk], *, final: bool) -> Screened:
        """The same, without holding up others while it is searched.

        Raises:
            SearchFailed: the process that searches did not answer.

        """
        rules = self._rules()
        if self._apart is None or rules is None or rules.idle or len(orjson.dumps((held, new))) <= LARGE:
            return self(held, new, final=final)
        said = await self._apart.screen(rules, held, new, final=final)
        if self._rules() is not rules:  # policy changed meanwhile: the sender repeats, under today's
            return Screened((), refusal=refusals.busy())
        return self._said(rules, *said)

    def _said(
        self,
        rules: Ruleset,
        out: tuple[Chunk, ...],
        held: tuple[Chunk, ...],
        judgement: Judgement | None,
        finding: Finding | None,
    ) -> Screened:
        if judgement is not None:
            return Screened((), refusal=self._refuse(judgement))
        if rules.endless and len(orjson.dumps(held)) > MAX_HELD:
            return Screened((), refusal=refusals.dlp_endless(rules.endless, MAX_HELD))
        return Screened(out, held, finding=finding)


def screened(
    rules: Ruleset, held: Sequence[Chunk], new: Sequence[Chunk], *, final: bool
) -> tuple[tuple[Chunk, ...], tuple[Chunk, ...], Judgement | None, Finding | None]:
    """``held`` and ``new`` divided: what may go, what waits, why all is refused, what was found."""
    passed, waiting = parted(held)
    try:
        pass_ = _Pass(rules, passed, joined([*waiting, *new]))
    except UNREADABLE:
        return (), (), Judgement(Decision.DLP_BLOCKED, (NESTING,), b""), None
    if pass_.action is DlpAction.BLOCK:
        return (), (), Judgement(Decision.DLP_BLOCKED, tuple(sorted(pass_.types)), b""), None
    out, kept = pass_.divide(final=final)
    finding = None
    if pass_.types:
        decision = Decision.ALERT if pass_.action is DlpAction.ALERT else Decision.DLP_REDACTED
        finding = Finding(decision, tuple(sorted(pass_.types)))
    remembered = {} if final else pass_.remembered()
    return tuple(joined(out)), together(remembered, joined(kept)), None, finding


class _Pass:
    """One look at what is there of a stream."""

    def __init__(self, rules: Ruleset, passed: dict[Path, Passed], chunks: list[Chunk]) -> None:
        self._rules = rules
        self._passed = passed
        self._chunks = chunks
        self._gone: set[int] = set()  # numbers of the objects that went out
        self.types: set[str] = set()
        self.action = DlpAction.ALERT
        self._text = "".join(chunk for chunk in chunks if isinstance(chunk, str))
        self._spans = [find for find in self._finds(self._text) if find.rule.action is not DlpAction.ALERT]
        self._objects = {
            number: self._judged(chunk) for number, chunk in enumerate(chunks) if not isinstance(chunk, str)
        }
        self._leaves: dict[Path, list[tuple[int, str]]] = {}
        for number, chunk in enumerate(chunks):
            if not isinstance(chunk, str):
                _leaves(chunk, (), number, self._leaves)
        for path, parts in self._leaves.items():
            if len(parts) > 1 or path in passed:
                self._across(path, parts)

    def _whole(self, number: int) -> bool:
        chunk = self._chunks[number]
        return not isinstance(chunk, str) and chunk.get(WHOLE) is True

    def _finds(self, text: str, searched: int = 0) -> list[Find]:
        """What is found in ``text``, of which so many characters were searched before."""
        if not text or not (hits := possible(self._rules, orjson.dumps(text))):
            return []
        scan = Scan(self._rules, hits)
        finds = scan.note([find for find in scan.finds(text) if find.end > searched])
        self._take(scan.found)
        return finds

    def _judged(self, chunk: dict[str, object]) -> Chunk:
        judgement = judge(self._rules, orjson.dumps(chunk))
        if judgement is None:
            return chunk
        if judgement.decision is Decision.DLP_BLOCKED:
            self.types |= set(judgement.types or (NESTING,))
            self.action = DlpAction.BLOCK
            return chunk
        redacted = judgement.decision is Decision.DLP_REDACTED
        self._take(dict.fromkeys(judgement.types, DlpAction.REDACT if redacted else DlpAction.ALERT))
        return orjson.loads(judgement.body)  # type: ignore[no-any-return]

    def _take(self, found: dict[str, DlpAction]) -> None:
        self.types |= found.keys()
        for action in found.values():
            self.action = worse(self.action, action)

    def _across(self, path: Path, parts: list[tuple[int, str]]) -> None:
        """What is found in a text that came in parts, at the same place of one object after the other."""
        before = self._passed.get(path, Passed())
        texts = [part for _, part in parts]
        if before.constant(texts) and all(self._whole(number) for number, _ in parts):
            return
        place = len(before.text)
        text = before.text + "".join(texts)
        spans = [
            Find(max(find.start, place), find.end, find.rule)
            for find in self._finds(text, place if before.same is None else 0)
            if find.rule.action is DlpAction.REDACT and find.end > place
        ]
        for number, part in parts:
            made = _redacted(text, spans, place, place + len(part))
            place += len(part)
            if made == part:
                continue
            judged = self._objects[number]
            if _at(judged, path) != part:  # something else was taken out of it, too: nothing of it is left
                made = placeholder(spans[0].rule.type)
            self._objects[number] = _replaced(judged, path, made)

    # -- dividing ------------------------------------------------------------------------------------
    def divide(self, *, final: bool) -> tuple[list[Chunk], list[Chunk]]:
        """What may go, redacted, and what waits, as it came."""
        stop = len(self._chunks)
        cut = len(self._text)
        if not final:
            cut = self._settled(self._text, self._spans)
            stop = self._first_waiting_object()
        place = 0
        for chunk in self._chunks[:stop]:
            place += len(chunk) if isinstance(chunk, str) else 0
        cut = min(cut, place)
        if not final:
            while crossing := [find.start for find in self._spans if find.start < cut < find.end]:
                cut = min(crossing)
        return self._parted(cut, stop)

    def _parted(self, cut: int, stop: int) -> tuple[list[Chunk], list[Chunk]]:
        out: list[Chunk] = []
        kept: list[Chunk] = []
        place = 0
        for number, chunk in enumerate(self._chunks):
            if not isinstance(chunk, str):
                if place <= cut and not kept and number < stop:
                    out.append(self._objects[number])
                    self._gone.add(number)
                else:
                    kept.append(chunk)
                continue
            here = max(0, min(len(chunk), cut - place)) if not kept else 0
            if here:
                out.append(_redacted(self._text, self._spans, place, place + here))
            if here < len(chunk):
                kept.append(chunk[here:])
            place += len(chunk)
        return out, kept

    def _first_waiting_object(self) -> int:
        """The number of the first chunk that waits, as a text of it may go on in a following one."""
        first = len(self._chunks)
        for path, parts in self._leaves.items():
            if all(self._whole(number) for number, _ in parts):
                continue
            before = self._passed.get(path, Passed()).text
            text = before + "".join(part for _, part in parts)
            settled = self._settled(text, [])
            if settled == len(text):
                continue
            place = len(before)
            for number, part in parts:
                place += len(part)
                if place > settled and not self._whole(number):
                    first = min(first, number)
                    break
        return first

    def remembered(self) -> dict[Path, Passed]:
        """What has gone out, now or before, and may go on in what follows: the newest first."""
        gone = {
            path: [(number, part) for number, part in parts if number in self._gone and part]
            for path, parts in self._leaves.items()
        }
        newest = {path: parts[-1][0] for path, parts in gone.items() if parts}
        out: dict[Path, Passed] = {}
        for path in sorted(newest, key=newest.__getitem__, reverse=True):
            before = self._passed.get(path, Passed())
            if not before.text and not any(self._whole(number) for number, _ in gone[path]):
                continue  # it waited until it was settled
            after = before.then([part for _, part in gone[path]])
            first = max(self._settled(after.text, []), len(after.text) - LONGEST_WORD)
            if end := after.text[first:]:
                out[path] = Passed(end, after.same)
        return out | {path: each for path, each in self._passed.items() if path not in newest}

    def _settled(self, text: str, spans: Sequence[Find]) -> int:
        """How much of ``text`` nothing can change that follows it."""
        settled = min(_beginning(text), *(find.start for find in spans if find.end == len(text)), len(text))
        if self._rules.endless:
            return 0
        if self._rules.window:
            settled = min(settled, max(0, len(text) - self._rules.window))
            if settled and (word := _WORD.search(text, max(0, settled - LONGEST_WORD), settled)):
                settled = word.start()
        return settled


def _redacted(text: str, spans: Sequence[Find], first: int, last: int) -> str:
    """``text`` from ``first`` to ``last`` without ``spans``; where one begins stands its placeholder."""
    out: list[str] = []
    place = first
    for find in sorted(spans, key=lambda each: each.start):
        if find.end <= place or find.start >= last:
            continue
        out.append(text[place : max(place, find.start)])
        if find.start >= place:
            out.append(placeholder(find.rule.type))
        place = max(place, min(find.end, last))
    out.append(text[place:last])
    return "".join(out)


def _beginning(text: str) -> int:
    """Where at the end of ``text`` the beginning of a secret may be; its length where nowhere."""
    first = _plain_beginning(text)
    tail = max(0, len(text) - 2 * _FAR)
    view = forms.plain_view(text[tail:])
    if view is not None and (drawn := _plain_beginning(view.text)) < len(view.text):
        first = min(first, tail + view.span(drawn, drawn)[0])
    return first


def _plain_beginning(text: str) -> int:
    end = len(text)
    first = end
    tail = max(0, end - LONGEST_WORD)
    if (word := _WORD.search(text, tail)) and _may_begin(word[0]):
        first = word.start()
    near = max(0, end - 96)
    if numbers := _NUMBERS.search(text, near):
        first = min(first, numbers.start())
    for shape in (_SAID, _ARMOUR, _RECORD):
        if found := shape.search(text, near):
            first = min(first, found.start())
    if first < end and (said := _SAID.search(text, max(0, first - 96), first)):
        first = said.start()  # what waits is what it is by what stands before it
    if said := _SAID_BEFORE.search(text, max(0, end - _FAR - 8)):
        first = min(first, said.start())
    return first


def _may_begin(word: str) -> bool:
    if len(word) >= 16 or _SIGNS.search(word):
        return len(word) < LONGEST_WORD
    last = _LAST.search(word)
    return _begins(word) or (last is not None and _begins(last[0]))


def _begins(word: str) -> bool:
    lower = word.lower()
    return any(each.startswith(lower) or lower.endswith(each) for each in _SAYS) or any(
        each.startswith(word) or word.startswith(each) for each in _STARTS
    )


def _leaves(value: object, path: Path, number: int, out: dict[Path, list[tuple[int, str]]]) -> None:
    if isinstance(value, str):
        out.setdefault(path, []).append((number, value))
    elif isinstance(value, dict):
        for key, inner in value.items():
            _leaves(inner, (*path, key), number, out)
    elif isinstance(value, list):
        for position, inner in enumerate(value):
            _leaves(inner, (*path, str(position)), number, out)


def _at(value: object, path: Sequence[str]) -> object:
    for step in path:
        if isinstance(value, list):
            value = value[int(step)] if int(step) < len(value) else None
        else:
            value = value.get(step) if isinstance(value, dict) else None
    return value


def _replaced(value: Chunk, path: Path, new: str) -> Chunk:
    """``value`` with ``new`` at ``path``."""
    copy: Chunk = orjson.loads(orjson.dumps(value))
    place = _at(copy, path[:-1])
    if isinstance(place, dict):
        place[path[-1]] = new
    elif isinstance(place, list):
        place[int(path[-1])] = new
    return copy

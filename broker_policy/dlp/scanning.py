"""Where in decoded JSON something is found: strings, names of fields and numbers, each in all its forms."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from broker_policy.dlp import forms
from broker_policy.dlp.classes import WEAK
from broker_policy.dlp.ruleset import Rule, Ruleset
from mas_nats.policy.governance import DlpAction

MAX_DEPTH = 200
"""Levels of objects and lists, also of those in strings of others. What is nested deeper is refused where it
would have to be judged."""
_STRING = 8
"""As many levels JSON in a string or in base64 counts for: reading into it takes as much of the stack."""
ENOUGH = 1_000
"""Finds of one rule that redacts nothing, after which it is not asked again: more change nothing."""
_MAY_BE_JSON = re.compile(r'\ufeff?[ \t\r\n]*[{\["]')
"""How an object, a list or a text begins that stands as JSON in a string."""
_SIGNS = re.compile(r"[^a-z0-9]")
_NAMING = frozenset({"name", "key", "field", "label", "parameter", "param"})
_VALUED = frozenset({"value", "val", "content", "data"})


class TooDeep(Exception):
    """JSON that is nested too deeply to be judged."""


@dataclass(frozen=True, slots=True)
class Find:
    """Something found: where in the text, and by which rule."""

    start: int
    end: int
    rule: Rule


@dataclass(frozen=True, slots=True)
class Place:
    """Where something was found: which class, at which path, from which character to which. Never what."""

    type: str
    action: DlpAction
    path: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Number:
    """A number as it is written."""

    text: str


@dataclass(slots=True)
class Object:
    """A JSON object with all its fields, repeated names too."""

    pairs: list[tuple[str, Any]]


@dataclass(slots=True)
class Scan:
    """Walks JSON with the rules of ``ruleset`` that may find something there (``hits``).

    ``found`` collects what was found, ``places`` where; ``redact`` says whether the walk makes a new value.
    """

    ruleset: Ruleset
    hits: Collection[int]
    all_of_them: bool = False  # also of what is not redacted
    found: dict[str, DlpAction] = field(default_factory=dict)
    places: list[Place] = field(default_factory=list)
    patterns: list[Rule] = field(init=False)
    fields: list[Rule] = field(init=False)
    _counts: Counter[int] = field(default_factory=Counter)
    _named: dict[str, list[Rule]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Sort the rules."""
        rules = [self.ruleset.rules[number] for number in sorted(self.hits)]
        self.patterns = [rule for rule in rules if rule.pattern is not None]
        self.fields = [rule for rule in rules if rule.field is not None]

    # -- JSON ----------------------------------------------------------------------------------------
    def value(self, value: Any, path: str = "$", named: str = "", depth: int = 0) -> Any:
        """``value`` redacted; what is found in it is noted. ``named``: the field whose value it is."""
        if depth > MAX_DEPTH:
            raise TooDeep
        if isinstance(value, str):
            return self.text(value, path, named, depth=depth)
        if isinstance(value, Number):
            return self._number(value, path, named)
        if isinstance(value, Object):
            return self._object(value, path, depth)
        if isinstance(value, list):
            return [
                self.value(each, f"{path}[{number}]", named, depth + 1) for number, each in enumerate(value)
            ]
        return value

    def _object(self, value: Object, path: str, depth: int) -> dict[str, Any]:
        pair_name = self._pair_name(value) if self.fields else ""
        out: dict[str, Any] = {}
        for key, inner in value.pairs:
            before = len(self.places)
            made = self.text(key, f"{path}.(name)", depth=depth)
            shown = key if len(self.places) == before else "(name)"
            named = pair_name if pair_name and key.lower() in _VALUED else key
            new = self.value(inner, f"{path}.{shown}", named, depth + 1)
            if made != key:
                base, number = made, 2
                while made in out:
                    made, number = f"{base}#{number}", number + 1
            out[made] = new
        return out

    @staticmethod
    def _pair_name(value: Object) -> str:
        """The name in ``{"name": "password", "value": …}``."""
        if len(value.pairs) > 16:
            return ""
        keys = {key.lower() for key, _ in value.pairs}
        if not keys & _VALUED:
            return ""
        return next(
            (inner for key, inner in value.pairs if key.lower() in _NAMING and isinstance(inner, str)), ""
        )

    def _number(self, value: Number, path: str, named: str) -> Any:
        text = _written_out(value.text)
        finds = [*self._by_name(text, named), *self._matches(text)]
        kept = self.note(finds, path)
        if redacting := [find for find in kept if find.rule.action is DlpAction.REDACT]:
            return placeholder(redacting[0].rule.type)
        return value

    # -- text ----------------------------------------------------------------------------------------
    def text(self, text: str, path: str = "$", named: str = "", level: int = 0, depth: int = 0) -> str:
        """``text``, which stands ``depth`` levels deep, redacted; what is found in it is noted."""
        if level < forms.MAX_LEVELS and _MAY_BE_JSON.match(text):
            inner = _nested(text)
            if inner is not None:
                before = len(self.places)
                made = self.value(inner, f"{path}(json)", named, depth + _STRING)
                return text if len(self.places) == before or made is inner else dumps(made)
        kept = self.note(self.finds(text, named, level, depth), path)
        return cut(text, [find for find in kept if find.rule.action is DlpAction.REDACT])

    def finds(self, text: str, named: str = "", level: int = 0, depth: int = 0) -> list[Find]:
        """What is found in ``text``, which is no JSON."""
        text = forms.whole(text)
        return [*self._by_name(text, named), *self._in_all_forms(text, level, depth)]

    def _in_all_forms(self, text: str, level: int, depth: int) -> Iterator[Find]:
        yield from self._matches(text)
        for view in forms.views(text):
            for find in self._matches(view.text):
                yield Find(*view.span(find.start, find.end), find.rule)
        if level < forms.MAX_LEVELS and len(text) >= 20:
            for start, end, said in forms.base64_runs(text):
                inner = Scan(self.ruleset, self.hits)
                inner.text(said, level=level + 1, depth=depth + _STRING)
                for rule in inner.rules_found():
                    yield Find(start, end, rule)

    def rules_found(self) -> list[Rule]:
        """One rule for each class that was found."""
        by_type = {
            rule.type: rule for rule in reversed([self.ruleset.rules[number] for number in sorted(self.hits)])
        }
        return [by_type[name] for name in self.found]

    def _matches(self, text: str) -> Iterator[Find]:
        for rule in self.patterns:
            if self.all_of_them or rule.action is DlpAction.REDACT:
                for start, end in rule.finds(text):
                    yield Find(start, end, rule)
            elif (left := ENOUGH - self._counts[rule.number]) > 0:
                for start, end in islice(rule.finds(text), left):
                    self._counts[rule.number] += 1
                    yield Find(start, end, rule)

    def _by_name(self, text: str, named: str) -> Iterator[Find]:
        if not (self.fields and named):
            return
        rules = self._named.get(named)
        if rules is None:
            name = _SIGNS.sub("", forms.plain(forms.whole(named)).lower())
            rules = [
                rule for rule in self.fields if rule.field is not None and rule.field.names.fullmatch(name)
            ]
            if len(self._named) < 1024:
                self._named[named] = rules
        for rule in rules:
            if rule.field is not None and rule.field.fits(forms.plain(text)):
                yield Find(0, len(text), rule)

    def note(self, finds: list[Find], path: str = "$") -> list[Find]:
        """Note ``finds``; those of them that count."""
        kept = _without_covered(finds) if len(finds) > 1 else finds
        for find in kept:
            worst = self.found.get(find.rule.type)
            self.found[find.rule.type] = find.rule.action if worst is None else worse(worst, find.rule.action)
            self.places.append(Place(find.rule.type, find.rule.action, path, find.start, find.end))
        return kept


def placeholder(type_: str) -> str:
    """What stands where something was taken out."""
    return f"[REDACTED:{type_}]"


_ORDER = (DlpAction.ALERT, DlpAction.REDACT, DlpAction.BLOCK)
strictness = _ORDER.index
"""The stricter an action, the larger."""


def worse(one: DlpAction, other: DlpAction) -> DlpAction:
    """The stricter of two actions."""
    return max(one, other, key=strictness)


def loads(text: str | bytes) -> Any:
    """JSON with everything that stands there: numbers as they are written, names that come twice.

    Raises:
        ValueError: it is no JSON.
        TooDeep: it is nested too deeply.

    """
    try:
        return json.loads(text, parse_int=Number, parse_float=Number, object_pairs_hook=Object)
    except RecursionError:
        raise TooDeep from None


def dumps(value: Any) -> str:
    """What ``loads`` read, as JSON again."""
    out: list[str] = []
    _write(value, out.append)
    return "".join(out)


def _write(value: Any, write: Callable[[str], None]) -> None:
    if isinstance(value, Number):
        write(value.text)
    elif isinstance(value, Object):
        _write(dict(value.pairs), write)
    elif isinstance(value, dict):
        write("{")
        for number, (key, inner) in enumerate(value.items()):
            write(("," if number else "") + json.dumps(key, ensure_ascii=False) + ":")
            _write(inner, write)
        write("}")
    elif isinstance(value, list):
        write("[")
        for number, inner in enumerate(value):
            write("," if number else "")
            _write(inner, write)
        write("]")
    else:
        write(json.dumps(value, ensure_ascii=False))


def _nested(text: str) -> Any:
    try:
        value = loads(text.removeprefix("\ufeff"))
    except ValueError:
        return None
    return value if isinstance(value, Object | list | str) else None


def _written_out(text: str) -> str:
    """A number without sign, point and exponent where it is a whole one: ``4.1e3`` is 4100."""
    if not re.search("[.eE]", text):
        return text
    try:
        value = float(text)
    except ValueError:
        return text
    return str(int(value)) if value.is_integer() and abs(value) < 1e20 else text


def _without_covered(finds: list[Find]) -> list[Find]:
    """The finds without those that say less of the same place than another."""
    if len(finds) > 1_000:  # would be compared each with each
        return finds
    strong = [find for find in finds if not _weak(find)]
    return [
        find
        for find in finds
        if not _weak(find)
        or not any(
            other.rule.type != find.rule.type and other.start < find.end and find.start < other.end
            for other in strong
        )
    ]


def _weak(find: Find) -> bool:
    return find.rule.said or (find.rule.type in WEAK and not find.rule.own)


def cut(text: str, finds: list[Find]) -> str:
    """``text`` with a placeholder for each of ``finds``."""
    if not finds:
        return text
    out: list[str] = []
    last = 0
    for find in sorted(finds, key=lambda each: (each.start, -each.end)):
        if find.start >= last:
            out += (text[last : find.start], placeholder(find.rule.type))
        last = max(last, find.end)
    out.append(text[last:])
    return "".join(out)

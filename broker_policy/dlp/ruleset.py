"""A policy's settings as something that finds: compiled once for each, and shared by who has the same."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import re2

from broker_policy.dlp import builtin, forms, validators
from broker_policy.dlp.classes import ADDRESS, ALIASES, DEFAULT_ACTIONS, EMAIL, ICD10, PHONE, canonical
from broker_policy.dlp.reach import reach
from mas_nats.errors import ConfigurationError
from mas_nats.policy.governance import Dlp, DlpAction, DlpRule

MAX_RULE_MEMORY = 1 << 20
"""Bytes that a compiled rule of a user's own may take: what needs more repeats something too often."""
_SET_MEMORY = 8 << 20
PACKED = -1
"""The number of what is no rule: base64 or percent signs, which may hold anything."""
_RULES_IN_A_SET = 256
_ANCHORS = re.compile(r"\\[AzZ]|(?<![\[\\])\^|(?<!\\)\$")
_SENTINEL = r"\A"
"""Always found. Where it is not, the set gave up, and every rule of it has to look for itself."""


WINDOW = 256
"""Characters of a stream that wait where it is not known how a find begins."""
LONGEST_WINDOW = 8_192
"""Characters that wait at most, unless all do."""
_WRITTEN = 3
"""Characters with which one may be written: ``%41``."""
_UNNAMED_BEGINNINGS = frozenset({EMAIL, PHONE, ADDRESS, ICD10})


@dataclass(frozen=True, slots=True)
class Rule:
    """One compiled rule. ``field``: by the name of a field, else by ``pattern``."""

    number: int
    type: str
    action: DlpAction
    pattern: Any = None
    group: int = 0
    validator: validators.Validator = validators.anything
    field: builtin.Field | None = None
    said: bool = False
    own: bool = False

    def finds(self, text: str) -> Iterator[tuple[int, int]]:
        """Where in ``text`` it finds something."""
        for found in self.pattern.finditer(text):
            start, end = found.span(self.group)
            if start < 0 or start == end:
                continue
            yield from self.validator(text, start, end)


def _begins_anyhow(rule: Rule) -> bool:
    return rule.action is not DlpAction.ALERT and rule.type in _UNNAMED_BEGINNINGS


class _Set:
    """Some rules of which one pass over a text says which may find something."""

    def __init__(self, sources: Sequence[tuple[int, str, bool]]) -> None:
        self._numbers = [number for number, _, _ in sources]
        self._set = re2.Set.SearchSet(_options(_SET_MEMORY))
        self._set.Add(_SENTINEL)
        for _, pattern, insensitive in sources:
            self._set.Add(f"(?i:{pattern})" if insensitive else pattern)
        self._set.Compile()

    def hits(self, text: bytes) -> Iterable[int]:
        """The numbers of the rules that may find something in ``text``."""
        found = self._set.Match(text)
        if len(found) == 1 and found[0] == 0:
            return ()
        if 0 not in found:
            return self._numbers
        return [self._numbers[index - 1] for index in found if index]


class Ruleset:
    """The rules that are on."""

    def __init__(self, settings: Dlp) -> None:
        self.enabled = settings.enabled
        self.settings = settings.model_dump_json(exclude_defaults=True)
        self.rules: list[Rule] = []
        sources: list[tuple[int, str, bool]] = []
        overrides = _overrides(settings)
        actions = DEFAULT_ACTIONS | overrides
        if settings.merge_strategy == "append":
            off = set(map(canonical, settings.disable_defaults))
            for pattern in builtin.PATTERNS:
                if pattern.type not in off:
                    compiled = _compiled(pattern.pattern, max_mem=_SET_MEMORY)
                    group = 1 if compiled.groups else 0
                    action = actions[pattern.type]
                    sources.append((len(self.rules), pattern.pattern, False))
                    self.rules.append(
                        Rule(
                            len(self.rules),
                            pattern.type,
                            action,
                            compiled,
                            group,
                            pattern.validator,
                            said=pattern.said,
                        )
                    )
            for field in builtin.FIELDS:
                if field.type not in off:
                    sources.append((len(self.rules), field.raw, False))
                    self.rules.append(
                        Rule(len(self.rules), field.type, actions[field.type], field=field, said=field.said)
                    )
        self.window = WINDOW if any(map(_begins_anyhow, self.rules)) else 0
        self.endless = ""
        always: list[int] = []
        for own in settings.rules:
            compiled = _own(own)
            if not own.enabled:
                continue
            number = len(self.rules)
            (always if _ANCHORS.search(own.pattern) else []).append(number)
            if not _ANCHORS.search(own.pattern):
                sources.append((number, own.pattern, own.case_insensitive))
            action = overrides.get(canonical(own.type), own.action)
            self.rules.append(Rule(number, own.type, action, compiled, own=True))
            if action is not DlpAction.ALERT:
                self._widen(own)
        self._always = tuple(always)
        self.built_in = not any(rule.own for rule in self.rules)
        sources.insert(0, (PACKED, rf"{forms.BASE64}|{forms.PERCENT}", False))
        self._sets = [
            made
            for first in range(0, len(sources), _RULES_IN_A_SET)
            for made in _sets(sources[first : first + _RULES_IN_A_SET])
        ]

    def _widen(self, own: DlpRule) -> None:
        """Let so much of a stream wait that a find of ``own`` cannot be cut in two."""
        needed = _WRITTEN * reach(own.pattern)
        if needed > LONGEST_WINDOW:
            self.endless = self.endless or own.id
        self.window = max(self.window, WINDOW, min(needed, LONGEST_WINDOW))

    @property
    def idle(self) -> bool:
        """Whether it finds nothing at all."""
        return not (self.enabled and self.rules)

    def look(self, text: bytes | str) -> tuple[set[int], bool]:
        """The numbers of the rules that may find something in ``text``; whether more may be packed in it."""
        if isinstance(text, str):
            text = text.encode(errors="replace")
        out = set(self._always)
        for each in self._sets:
            if found := each.hits(text):
                out.update(found)
        packed = PACKED in out
        out.discard(PACKED)
        return out, packed


@lru_cache(maxsize=256)
def _cached(settings: str) -> Ruleset:
    return Ruleset(Dlp.model_validate_json(settings))


def ruleset(settings: Dlp) -> Ruleset:
    """The compiled rules of ``settings``.

    Raises:
        ConfigurationError: a pattern is wrong or too large, or a type is not known; the text says which.

    """
    return _cached(settings.model_dump_json(exclude_defaults=True))


def _overrides(settings: Dlp) -> dict[str, DlpAction]:
    known = {*DEFAULT_ACTIONS, *ALIASES}
    own = {rule.type for rule in settings.rules}
    for name in settings.disable_defaults:
        if name not in known:
            raise ConfigurationError(
                f"dlp.disable_defaults: no built-in type {name!r}; there are {_listed(DEFAULT_ACTIONS)}"
            )
    for name in settings.policy_overrides:
        if name not in known | own:
            raise ConfigurationError(
                f"dlp.policy_overrides: no type {name!r}; there are {_listed({*DEFAULT_ACTIONS, *own})}"
            )
    return {canonical(name): action for name, action in settings.policy_overrides.items()}


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


def _own(rule: DlpRule) -> Any:
    try:
        compiled = _compiled(rule.pattern, max_mem=MAX_RULE_MEMORY, insensitive=rule.case_insensitive)
    except re2.error as error:
        reason = error.args[0] if error.args else error
        text = reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)
        raise ConfigurationError(f"dlp rule {rule.id!r}: its pattern is not one of RE2: {text}") from None
    if compiled.search("") is not None:
        raise ConfigurationError(
            f"dlp rule {rule.id!r}: its pattern finds the empty text, so it would find everything"
        )
    return compiled


def _compiled(pattern: str, *, max_mem: int, insensitive: bool = False) -> Any:
    options = _options(max_mem)
    options.case_sensitive = not insensitive
    return re2.compile(pattern, options)


def _options(max_mem: int) -> Any:
    options = re2.Options()
    options.log_errors = False
    options.max_mem = max_mem
    return options


def _sets(sources: Sequence[tuple[int, str, bool]]) -> list[_Set]:
    """One set, or two where one would be too large."""
    try:
        return [_Set(sources)]
    except re2.error:
        if len(sources) == 1:
            raise ConfigurationError("a dlp rule is too large to be compiled") from None
        half = len(sources) // 2
        return _sets(sources[:half]) + _sets(sources[half:])

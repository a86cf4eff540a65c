"""Precision and recall of the rules on labelled bodies: those in ``corpus.jsonl``, or a user's own.

Each line is a JSON object: ``body`` (any JSON), ``types`` (the classes that are in it, [] for none), and
where wanted ``id``, and ``near``: the class that a body without it resembles.
"""

from __future__ import annotations

import importlib.resources
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from broker_policy.dlp.classes import canonical
from broker_policy.dlp.judging import judge
from broker_policy.dlp.ruleset import Ruleset
from mas_nats.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class Case:
    """A body and what is in it."""

    id: str
    body: Any = field(repr=False)
    types: frozenset[str]
    near: str = ""


@dataclass(slots=True)
class Score:
    """How one class was found. ``n``: the cases that hold it."""

    n: int = 0
    found: int = 0  # of those
    wrongly: int = 0  # in cases that do not hold it

    @property
    def precision(self) -> float:
        """Of what was found, how much was there."""
        all_found = self.found + self.wrongly
        return self.found / all_found if all_found else 1.0

    @property
    def recall(self) -> float:
        """Of what was there, how much was found."""
        return self.found / self.n if self.n else 1.0


@dataclass(frozen=True, slots=True)
class Miss:
    """A case that was judged otherwise than it is labelled; without its body."""

    id: str
    missed: tuple[str, ...]
    wrongly: tuple[str, ...]


def read(path: Path | None = None) -> list[Case]:
    """The cases of a file; of the package's own where none is given.

    Raises:
        ConfigurationError: a line is not as it should be; the text names it.
        OSError: it cannot be read.

    """
    if path is None:
        text = (importlib.resources.files("broker_policy.dlp") / "corpus.jsonl").read_text(encoding="utf-8")
    else:
        text = path.read_text(encoding="utf-8")
    return list(_cases(text, str(path or "corpus.jsonl")))


def _cases(text: str, name: str) -> Iterator[Case]:
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            raw = orjson.loads(line)
            types = raw["types"]
            if not isinstance(types, list) or not all(isinstance(each, str) for each in types):
                raise TypeError  # noqa: TRY301 - told like the others
            labels = frozenset(map(canonical, types))
            yield Case(str(raw.get("id", number)), raw["body"], labels, str(raw.get("near", "")))
        except (ValueError, TypeError, KeyError, AttributeError):
            raise ConfigurationError(
                f'{name}, line {number}: needs an object such as {{"types": ["ssn"], "body": {{…}}}}'
            ) from None


def evaluate(rules: Ruleset, cases: Iterable[Case]) -> tuple[dict[str, Score], list[Miss]]:
    """The score of each class that is on or labelled, and the cases that were judged otherwise."""
    scores = {rule.type: Score() for rule in rules.rules}
    misses = []
    for case in cases:
        judgement = judge(rules, orjson.dumps(case.body))
        found = frozenset(judgement.types) if judgement else frozenset()
        for name in case.types:
            score = scores.setdefault(name, Score())
            score.n += 1
            score.found += name in found
        for name in found - case.types:
            scores.setdefault(name, Score()).wrongly += 1
        if found != case.types:
            misses.append(Miss(case.id, tuple(sorted(case.types - found)), tuple(sorted(found - case.types))))
    return scores, misses

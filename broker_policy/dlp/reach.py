"""How long the beginning of a find may be before it is one: so much of a stream waits (ADR 23).

Read with the parser of Python's ``re``, whose syntax is nearly RE2's. Where it may be read otherwise, or
not at all, the answer is "without bound", which only costs time.
"""

from __future__ import annotations

import re
import warnings
from typing import Any

from re import _constants as sre, _parser as parser  # type: ignore[attr-defined]  # isort: skip

ENDLESS = 1 << 20
"""Characters that stand for no bound."""
_CLASSES = re.compile(r"\[:\^?[a-z]+:\]|\\[pP](?:\{\^?\w+\}|[A-Z])")
_REPEATS = (sre.MAX_REPEAT, sre.MIN_REPEAT)
_MAY_STAND_AT_THE_END = (sre.AT_BOUNDARY, sre.AT_END, sre.AT_END_STRING)


def reach(pattern: str) -> int:
    """Characters that may belong to a find while there is none yet; ``ENDLESS`` where they have no bound."""
    try:
        with warnings.catch_warnings(action="ignore"):  # about sets within sets
            tree = parser.parse(_CLASSES.sub(r"\\w", pattern).replace(r"\z", r"\Z"))
        return int(min(_pending(tree), ENDLESS))
    except (re.error, RecursionError, OverflowError, ValueError):
        return ENDLESS


def _pending(tree: Any) -> int:
    """The width of ``tree``; of what it repeats at its end only what it needs, and once more."""
    items = list(tree)
    trailing = len(items) - 1
    while trailing >= 0 and items[trailing][0] is sre.AT and items[trailing][1] in _MAY_STAND_AT_THE_END:
        trailing -= 1
    if trailing < 0:
        return 0
    before = sum(_width(item) for item in items[:trailing])
    kind, about = items[trailing]
    if any(item[0] is sre.AT for item in items[trailing + 1 :] if item[1] not in _MAY_STAND_AT_THE_END):
        return before + _width(items[trailing])
    if kind in _REPEATS:
        least, most, repeated = about
        return before + min(int(least) + 1, int(most)) * _of(repeated)
    if kind is sre.SUBPATTERN:
        return before + _pending(about[-1])
    if kind is sre.BRANCH:
        return before + max(_pending(each) for each in about[1])
    return before + _width(items[trailing])


def _of(tree: Any) -> int:
    return sum(_width(item) for item in tree)


def _width(item: tuple[Any, Any]) -> int:
    kind, about = item
    if kind in _REPEATS:
        _, most, repeated = about
        return ENDLESS if most >= ENDLESS else most * _of(repeated)
    if kind is sre.SUBPATTERN:
        return _of(about[-1])
    if kind is sre.BRANCH:
        return max(_of(each) for each in about[1])
    return 0 if kind is sre.AT else 1

"""What differs between two policies of a namespace, in words for whoever applies a manifest."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from mas_nats.policy.document import Document

_LONGEST = 60
_ABSENT = object()


class Action(StrEnum):
    """What becomes of a thing."""

    ADD = "add"
    CHANGE = "change"
    REMOVE = "remove"

    @property
    def sign(self) -> str:
        """For the start of a line."""
        return {"add": "+", "change": "~", "remove": "-"}[self.value]


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that is added, changed or removed; ``detail`` says how it changes."""

    action: Action
    what: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.action.sign} {self.what}{f': {self.detail}' if self.detail else ''}"


def changes(before: Document | None, after: Document) -> tuple[Change, ...]:
    """What ``after`` adds, changes and removes; ``before`` is None where there is no such namespace yet.

    Accounts do not count: they follow from the names.
    """
    old = Document(namespace=after.namespace, account="") if before is None else before
    found = [] if before is not None else [Change(Action.ADD, f"namespace {after.namespace}")]
    was, now = dict(_things(old.model_dump(mode="json"))), dict(_things(after.model_dump(mode="json")))
    news = dict(_things(after.model_dump(mode="json", exclude_defaults=True)))
    for what in dict.fromkeys((*now, *was)):
        if what not in now:
            found.append(Change(Action.REMOVE, what))
        elif what not in was:
            found.append(Change(Action.ADD, what, _said(news[what])))
        elif detail := "; ".join(_differences(was[what], now[what])):
            found.append(Change(Action.CHANGE, what, detail))
    return tuple(found)


def _things(said: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Everything in a document that may come, change or go by itself, by what to call it."""
    for name, agent in said.get("agents", {}).items():
        yield f"agent {name}", _without(agent, "account")
    for name in said.get("inspectors", {}):
        yield f"inspector {name}", {}
    for name in said.get("operators", ()):
        yield f"operator {name}", {}
    for sender, rule in said.get("permissions", {}).items():
        yield f"permissions of {sender}", rule
    tokens = said.get("tokens", {})
    for name, application in tokens.get("applications", {}).items():
        yield f"application {name}", application
    governance = said.get("governance", {})
    for name, role in governance.get("roles", {}).items():
        yield f"role {name}", role
    dlp = governance.get("dlp", {})
    for rule in dlp.get("rules", ()):
        yield f"dlp rule {rule['id']}", rule
    yield "tokens", _without(tokens, "applications")
    yield "limits", said.get("limits", {})
    yield "dlp", _without(dlp, "rules")
    yield from _without(governance, "roles", "dlp").items()


def _without(said: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in said.items() if key not in keys}


def _said(thing: Mapping[str, Any]) -> str:
    """What is said of a new thing, but for what is empty."""
    return "; ".join(f"{key} {_short(value)}" for key, value in thing.items() if value)


def _differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    for key in dict.fromkeys((*before, *after)):
        was, now = before.get(key, _ABSENT), after.get(key, _ABSENT)
        if was == now:
            continue
        if isinstance(was, list) and isinstance(now, list) and (some := _of_lists(was, now)):
            yield f"{key} {some}"
        else:
            yield f"{key} {_short(was)} → {_short(now)}"


def _of_lists(before: Sequence[Any], after: Sequence[Any]) -> str:
    come = [f"+{_short(each)}" for each in after if each not in before]
    gone = [f"-{_short(each)}" for each in before if each not in after]
    return " ".join((*come, *gone))


def _short(value: Any) -> str:
    if value is _ABSENT:
        return "nothing"
    if isinstance(value, list):
        text = ", ".join(map(_short, value)) or "nothing"
    else:
        text = value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"

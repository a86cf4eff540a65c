"""What a check says."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Status(StrEnum):
    """How it is."""

    OK = "OK"
    WARN = "WARN"  # works, and will not for ever or not as it should
    FAIL = "FAIL"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at; ``fix`` says what to do where it is not in order."""

    name: str
    status: Status
    text: str
    fix: str = ""


def ok(name: str, text: str) -> Check:
    """In order."""
    return Check(name, Status.OK, text)


def warn(name: str, text: str, fix: str) -> Check:
    """Not as it should be."""
    return Check(name, Status.WARN, text, fix)


def fail(name: str, text: str, fix: str) -> Check:
    """Broken, or open to people who must not get in."""
    return Check(name, Status.FAIL, text, fix)


def worst(checks: list[Check]) -> Status:
    """The worst of them."""
    order = list(Status)
    return max((check.status for check in checks), key=order.index, default=Status.OK)

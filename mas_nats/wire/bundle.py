"""Several calls of one agent in one message, and their verdicts in one answer (ADR 35).

The body of a bundle is the length of a JSON list as four bytes (big endian), that list, and the bodies of its
calls one behind the other; for each call the list has ``[op, headers, length of its body]``. It goes where
``send`` goes, with the header ``Mas-Bundle``. The answer is a verdict whose result has ``verdicts``, one for
each call in their order: 0 for a plain acceptance, else the verdict as an object.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import orjson

from mas_nats.wire.subjects import Op
from mas_nats.wire.verdict import Decision, Verdict, accepted

MOST_CALLS = 128
"""Calls in one bundle."""
BUNDLED = frozenset({Op.SEND, Op.REQUEST})
PLAIN = accepted()
"""What is accepted of a bundle without anything to say of it. It names no message: its place says which."""
_LENGTH = 4
_A_CALL = (str, dict, int)


class Part(NamedTuple):
    """One call of a bundle."""

    op: str
    fields: Mapping[str, str]
    body: bytes


def encode(parts: Sequence[Part]) -> bytes:
    """The body of a bundle."""
    listed = orjson.dumps([(part.op, part.fields, len(part.body)) for part in parts])
    return b"".join((len(listed).to_bytes(_LENGTH), listed, *(part.body for part in parts)))


def decode(body: bytes) -> list[Part]:
    """Read a bundle, every byte of which an agent has chosen.

    Header values are what the header of a message could hold: one line, without control characters.

    Raises:
        ValueError: it is none; says why.

    """
    start = _LENGTH + int.from_bytes(body[:_LENGTH])
    try:
        listed = orjson.loads(body[_LENGTH:start])
    except orjson.JSONDecodeError:
        raise ValueError("its list of calls is no JSON") from None
    if not isinstance(listed, list) or not 0 < len(listed) <= MOST_CALLS:
        raise ValueError(f"it is not a list of 1 to {MOST_CALLS} calls")
    parts = []
    for each in listed:
        if not isinstance(each, list) or tuple(map(type, each)) != _A_CALL:
            raise ValueError("one of its calls is not an operation, headers and a length")
        op, fields, length = each
        end = start + length
        if op not in BUNDLED or not start <= end <= len(body):
            raise ValueError("one of its calls is not an operation, headers and a length")
        if not _one_line(fields.values()):
            raise ValueError("a header of one of its calls is not one line of text")
        parts.append(Part(op, fields, body[start:end]))
        start = end
    if start != len(body):
        raise ValueError("its calls do not end where it ends")
    return parts


def _one_line(values: Iterable[Any]) -> bool:
    try:
        return "".join(values).isprintable()
    except TypeError:
        return False


def encode_verdicts(verdicts: Sequence[Verdict]) -> bytes:
    """The answer to a bundle: what became of each of its calls."""
    said = [0 if each is PLAIN or each.plain else each.fields() for each in verdicts]
    return accepted(verdicts=said).encode()


def decode_verdicts(answer: Verdict, count: int) -> list[Verdict] | None:
    """The verdicts of ``count`` calls, in their order; None: who answered does not know bundles.

    Raises:
        ValueError: it is not an answer to this bundle.

    """
    if not answer.ok:
        return None if answer.decision is Decision.INVALID else [answer] * count
    said: Any = answer.result.get("verdicts")
    if not isinstance(said, list) or len(said) != count:
        raise ValueError("not an answer to this bundle")
    return [PLAIN if each == 0 else Verdict.read(each) for each in said]

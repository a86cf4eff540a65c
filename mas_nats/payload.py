"""Payloads as JSON, and the error for what cannot be sent."""

from __future__ import annotations

import json
from collections.abc import Mapping

import orjson
from pydantic import BaseModel

from mas_nats.errors import InvalidMessage
from mas_nats.message import Payload
from mas_nats.model_names import by_alias
from mas_nats.wire.verdict import Decision, Verdict

_LEAST, _LARGEST, _LONGEST = -(2**63), 2**64 - 1, 20
"""Integers of a payload, or a state, and their characters: others are read as floats, with other digits."""
_DIGITS_AS_ZEROS = bytes(ord("0") if byte in b"0123456789" else byte for byte in range(256))
_MANY_DIGITS = b"0" * 19
"""An integer that is too large has so many digits, at least."""


def encode(data: Payload) -> bytes:
    """The JSON object of a payload; an error's text names types, never values."""
    plain = type(data) is dict  # asked first: to look for a model or a mapping takes as long as all the rest
    if not plain and isinstance(data, BaseModel):
        try:
            body = data.model_dump_json(by_alias=by_alias(type(data))).encode()
        except ValueError:  # no JSON form, no Unicode, or a model that holds itself
            text = f"the payload's model {type(data).__name__} has no JSON form"
            raise invalid("json", text, "Use strings, numbers, lists, dicts and models of them") from None
        if too_large_integer(body):  # orjson refuses those of a mapping itself
            raise invalid("json", "the payload has an integer of more than 64 bits", "Send it as a string")
    elif plain or isinstance(data, Mapping):
        try:
            body = orjson.dumps(data if plain else dict(data), default=_plain)
        except TypeError as error:
            reason = str(error.__cause__ or error).partition(":")
            raise invalid(
                "json",
                f"the payload is not serialisable as JSON: {reason[0]}{reason[1]}{reason[2][:80]}",
                "Use strings, numbers, lists and dicts, or a pydantic model",
            ) from None
    else:
        raise invalid(
            "json", f"the payload is a {type(data).__name__}, not an object", "Send a dict or a model"
        )
    if not body.startswith(b"{"):
        raise invalid("json", "the payload's model does not serialise to a JSON object", "Send a dict")
    return body


def size_of_text(text: str) -> int:
    """Bytes of a text in a reply.

    Raises:
        InvalidMessage: it cannot be sent.

    """
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        raise invalid("text", "the text is no Unicode", "Write text without lone surrogates") from None


def too_large_integer(body: bytes) -> bool:
    """Whether JSON has an integer that is not read as it was written, since it has more than 64 bits."""
    # Digits in a row are found at the speed of memory; only where there are so many is the JSON read.
    if _MANY_DIGITS not in body.translate(_DIGITS_AS_ZEROS):
        return False
    found = False

    def look(digits: str) -> None:
        nonlocal found
        found = found or len(digits) > _LONGEST or not _LEAST <= int(digits) <= _LARGEST

    json.loads(body, parse_int=look)
    return found


def _plain(value: object) -> object:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", by_alias=by_alias(type(value)))
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, set | frozenset):
        return sorted(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


def invalid(rule: str, reason: str, fix: str, decision: Decision = Decision.INVALID) -> InvalidMessage:
    """The error for a message that is wrong before it is sent."""
    return InvalidMessage(Verdict(decision, ok=False, step="sdk", rule=rule, reason=reason, fix=fix))

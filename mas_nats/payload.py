"""Payloads as JSON, and the error for what cannot be sent."""

from __future__ import annotations

from collections.abc import Mapping

import orjson
from pydantic import BaseModel

from mas_nats.errors import InvalidMessage
from mas_nats.message import Payload
from mas_nats.wire.verdict import Decision, Verdict


def encode(data: Payload) -> bytes:
    """The JSON object of a payload; an error's text names types, never values."""
    plain = type(data) is dict  # asked first: to look for a model or a mapping takes as long as all the rest
    if not plain and isinstance(data, BaseModel):
        body = data.model_dump_json().encode()
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


def _plain(value: object) -> object:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, set | frozenset):
        return sorted(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


def invalid(rule: str, reason: str, fix: str, decision: Decision = Decision.INVALID) -> InvalidMessage:
    """The error for a message that is wrong before it is sent."""
    return InvalidMessage(Verdict(decision, ok=False, step="sdk", rule=rule, reason=reason, fix=fix))

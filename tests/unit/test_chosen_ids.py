"""Ids and types that a program chooses: what is remembered of those that are none."""

from __future__ import annotations

import pytest

from mas_nats.errors import InvalidMessage
from mas_nats.messenger import _is_token, _require_token


@pytest.mark.parametrize("value", ["x" * 129, "x" * 1_000_000, "a b", "", "ä", 7, None, [], {}])
def test_what_is_refused_is_refused_again_and_nothing_long_is_remembered(value: object) -> None:
    before = _is_token.cache_info().currsize
    for _ in range(2):
        with pytest.raises(InvalidMessage):
            _require_token("message id", value)
    short = isinstance(value, str) and len(value) <= 128
    assert _is_token.cache_info().currsize <= before + short


def test_what_is_accepted_is_accepted_again() -> None:
    for _ in range(2):
        _require_token("message type", "x" * 128)

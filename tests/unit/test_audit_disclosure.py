"""A payload and its salt open the commitment of their entry, and nothing else does."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from broker_policy.audit import entry
from broker_policy.audit.disclosure import disclose, read_salt
from broker_policy.audit.record import Record, RecordKind, Way
from broker_policy.sealing import commitment
from tests.audit_log import NAMESPACE, line

RECORD = Record(NAMESPACE, "w1i", 2, "", RecordKind.DECISIONS, 1, 3)
SALT, BODY = b"0123456789abcdef", b'{"amount": 1.10}'


def made(**changes: str) -> entry.Entry:
    committed = commitment(SALT, "bob", "task", BODY)
    return entry.decision(1, 5, RECORD, 0, line(Way.BATCH, commitment=committed, **changes), 0, "")


def matches(one: entry.Entry, salt: bytes = SALT, body: bytes = BODY) -> list[bool]:
    return [each.matches for each in disclose([one], salt, body)]


def test_what_was_delivered():
    assert matches(made()) == [True]


@given(st.binary(max_size=40), st.binary(min_size=16, max_size=16))
def test_nothing_else(body, salt):
    assert matches(made(), body=body) == [body == BODY]
    assert matches(made(), salt=salt) == [salt == SALT]


def test_not_even_the_same_json():
    assert matches(made(), body=b'{"amount":1.1}') == [False]


def test_the_entry_of_another_target_or_type():
    assert matches(made(target="carol")) == [False]
    assert matches(made(type="result")) == [False]


def test_a_refusal_commits_to_nothing():
    assert disclose([entry.decision(1, 5, RECORD, 0, line(), 0, "")], SALT, BODY) == []


@pytest.mark.parametrize("text", ["", "xyz", "00" * 15, "00" * 17])
def test_what_is_no_salt(text):
    with pytest.raises(ValueError, match="32 hexadecimal digits"):
        read_salt(text)

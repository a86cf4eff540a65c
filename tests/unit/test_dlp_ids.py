"""Ids that are nothing but ids are not searched, and nothing is missed by that."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_policy.dlp import redact_text, ruleset
from broker_policy.pipeline import dlp
from broker_policy.pipeline.dlp import Inspection
from mas_nats.policy.call import Call
from mas_nats.policy.governance import Dlp, DlpRule
from mas_nats.policy.table import Table
from mas_nats.wire.correlation import new_message_id
from tests.unit.test_dlp_together import CLEAN, holds, table
from tests.unit.test_dlp_together import call as call_of

CARD = "4111111111111111"
OWN = DlpRule(id="badge", type="badge", pattern="dead[0-9]{4}", action="block")
HEXADECIMAL = st.text("0123456789abcdef", min_size=32, max_size=32)


def call(message_id: str, tracestate: str = "", kind: str = "note") -> Call:
    made = call_of(CLEAN, message_id, kind)
    made.tracestate = tracestate
    return made


@pytest.fixture
def searched(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Everything that is searched."""
    texts: list[bytes] = []
    possible = dlp.possible
    monkeypatch.setattr(dlp, "possible", lambda rules, raw: texts.append(raw) or possible(rules, raw))
    return texts


def search(calls: list[Call], under: Table) -> list[bool]:
    """Of each whether it is refused, alone and among others."""
    alone = [holds(each, under) for each in calls]
    together = Inspection().clean(calls, under)
    assert not any(clean and refused for clean, refused in zip(together, alone, strict=True))
    return alone


def ids_of_the_sdk() -> list[str]:
    """Those that are left out; one in sixty is not."""
    ids = [each for each in (new_message_id() for _ in range(60)) if dlp._ID.fullmatch(each)]
    assert len(ids) > 40
    return ids


def test_an_id_of_the_sdk_is_not_searched(searched: list[bytes]):
    ids = ids_of_the_sdk()
    assert not any(search([call(each) for each in ids], table()))
    assert searched
    assert not any(each.encode() in text for each in ids for text in searched)


@pytest.mark.parametrize(
    "message_id",
    [
        "m1",
        "219-09-9999",
        CARD,
        "ab" * 15 + "a",
        "ab" * 16 + "a",
        "AB" * 16,
        "z" * 32,
        "sk-" + "ab" * 14 + "c",
        "a" * 10 + "1" * 13 + "b" * 9,
    ],
)
def test_every_other_id_is_searched(searched: list[bytes], message_id: str):
    search([call(message_id), call("m2")], table())
    assert sum(message_id.encode() in text for text in searched) >= 2


def test_with_own_rules_every_id_is_searched(searched: list[bytes]):
    ids = ["dead1234" + "ab" * 12, "beef1234" + "ab" * 12]
    assert search([call(each) for each in ids], table(rules=[OWN])) == [True, False]
    assert all(any(each.encode() in text for text in searched) for each in ids)
    off = OWN.model_copy(update={"enabled": False})
    searched.clear()
    assert search([call(each) for each in ids], table(rules=[off])) == [False, False]
    assert not any(each.encode() in text for each in ids for text in searched)


def test_what_stands_beside_an_id_is_searched():
    id_ = "ab" * 16
    assert search([call(id_, "k=1"), call(id_, "k=219-09-9999")], table()) == [False, True]


_BEFORE_OR_BEHIND = [
    ("shipment.tracking", f"{CARD}@v=1"),
    ("order.v2", f"{CARD}@v=1"),
    (CARD, "1x@v=1"),
    ("password:correcthorse", "k=1"),
]
_APART = [
    ("41111111", "11111111@v=1"),
    ("ssn", "219099999@v=1"),
    ("mrn", "12345@v=1"),
    ("cvv", "123@x=1"),
    ("bearer", "rojo=00f067aa0ba902b7"),
]


@pytest.mark.parametrize(("kind", "tracestate"), _BEFORE_OR_BEHIND)
def test_no_id_hides_what_stands_before_or_behind_it(kind: str, tracestate: str):
    assert all(search([call(each, tracestate, kind) for each in ids_of_the_sdk()], table()))


@pytest.mark.parametrize(("kind", "tracestate"), _APART)
def test_what_stands_before_and_behind_an_id_is_not_taken_for_one(kind: str, tracestate: str):
    assert not any(search([call(each, tracestate, kind) for each in ids_of_the_sdk()], table()))


def _says(message_id: str) -> bool:
    """Whether built-in rules find something in it, as it stands between a type and a trace state."""
    said = f"note {message_id} k=1"
    return redact_text(ruleset(Dlp()), said) != said


@given(HEXADECIMAL)
def test_no_built_in_rule_finds_anything_in_such_an_id(message_id: str):
    assert not (dlp._ID.fullmatch(message_id) and _says(message_id))


def test_that_would_be_noticed():
    assert _says(CARD)
    assert _says("219-09-9999")
    assert _says("sk-" + "a1b2" * 7)

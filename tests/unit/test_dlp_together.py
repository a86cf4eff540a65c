"""Calls whose contents are searched in one go: whatever is found in one by itself is not missed so."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_policy.dlp import corpus
from broker_policy.pipeline import dlp
from broker_policy.pipeline.dlp import Inspection, Searched
from mas_nats.policy.call import Call
from mas_nats.policy.document import AgentPolicy, Document
from mas_nats.policy.governance import Dlp, DlpRule, Governance
from mas_nats.policy.table import Table
from mas_nats.wire.subjects import Op

SSN, CARD, AWS = "219-09-9999", "4111 1111 1111 1111", "AKIAIOSFODNN7EXAMPLE"
CLEAN = orjson.dumps({"text": "the quick brown fox"})


def table(**settings: Any) -> Table:
    document = Document(
        account="A" * 56,
        namespace="default",
        agents={name: AgentPolicy(account="A" * 56) for name in ("alice", "bob")},
        governance=Governance(dlp=Dlp(**settings)),
    )
    return Table.compile(document, 1)


def call(body: bytes, message_id: str = "0123456789abcdef" * 2, kind: str = "note") -> Call:
    made = Call("alice", Op.SEND, body, "", message_id=message_id, target="bob", type=kind)
    made.received = 1
    return made


def holds(each: Call, under: Table) -> bool:
    """What one search of this call alone says, as the last step of the pipeline does it."""
    alone = call(each.body, each.message_id, each.type)
    alone.tracestate = each.tracestate
    refusal = Inspection().inspect(alone, under)
    return refusal is not None or alone.finding is not None


def missed(calls: Sequence[Call], under: Table) -> list[Call]:
    """Calls that the search of all takes for clean and that hold something."""
    said = Inspection().clean(calls, under)
    return [each for each, clean in zip(calls, said, strict=True) if clean and holds(each, under)]


def test_what_holds_nothing_is_clean():
    assert Inspection().clean([call(CLEAN)] * 16, table()) == [True] * 16


@pytest.mark.parametrize("place", [0, 3, 15])
def test_one_that_holds_something_leaves_all_to_be_searched(place: int):
    calls = [call(CLEAN) for _ in range(16)]
    calls[place] = call(orjson.dumps({"text": SSN}))
    assert Inspection().clean(calls, table()) == [False] * 16


def test_no_case_of_the_corpus_is_missed():
    """Each among clean ones, and all of them in portions of any order."""
    under = table()
    calls = [call(orjson.dumps(case.body)) for case in corpus.read()]
    for each in calls:
        assert not missed([call(CLEAN), each, call(CLEAN)], under)
    random.Random(1).shuffle(calls)
    for first in range(0, len(calls), 16):
        assert not missed(calls[first : first + 16], under)


def test_the_check_notices_a_search_that_finds_nothing(monkeypatch: pytest.MonkeyPatch):
    calls = [call(CLEAN), call(orjson.dumps({"text": SSN}))]
    under, inspection = table(), Inspection()
    with monkeypatch.context() as broken:
        broken.setattr(dlp, "possible", lambda *_: set())
        said = inspection.clean(calls, under)
    assert said == [True, True]
    assert holds(calls[1], under)


BODIES = st.one_of(
    st.sampled_from([SSN, CARD, AWS, SSN[:5], SSN[5:], CARD[:9], CARD[9:], "", "4", "-"]),
    st.text(max_size=30),
).map(lambda text: json.dumps(text, ensure_ascii=False).encode(errors="replace"))


@given(st.lists(st.builds(call, BODIES), min_size=2, max_size=16))
def test_nothing_is_missed_whatever_stands_beside_it(calls: list[Call]):
    assert not missed(calls, table())


@given(
    st.lists(st.sampled_from([SSN, CARD, "m1", "a" * 32, "1", "219-09-", "9999"]), min_size=2, max_size=16)
)
def test_ids_and_types_are_searched_too(ids: list[str]):
    assert not missed([call(CLEAN, message_id=each) for each in ids], table())
    assert not missed([call(CLEAN, kind=each) for each in ids], table())


def test_an_id_that_only_looks_like_something_costs_its_neighbours_nothing():
    """One in fifty ids of hexadecimal digits looks like the number of a card at first."""
    looks = "939196fd977ce9060816510548050a8d"
    under, inspection = table(), Inspection()
    rules = inspection.rules(under)
    assert rules is not None
    assert rules.look(looks)[0]
    said = [call(CLEAN, message_id=each) for each in (looks, SSN, "m1")]
    assert inspection.clean(said, under) == [True, False, True]


def test_parts_of_a_secret_in_neighbours_make_none():
    """They refuse nobody; together they at most cost a search of each."""
    calls = [call(b'"219-09-'), call(b'9999"')]
    assert not any(holds(each, table()) for each in calls)
    assert not missed(calls, table())


@pytest.mark.parametrize("pattern", [r"\Asecret\z", "^secret$", r"\bsecret\b", r"\Bcret", "(?s)a.*secret"])
def test_rules_of_a_users_own(pattern: str):
    """Also one with an anchor, which no search of a whole body can find."""
    under = table(rules=[DlpRule(id="own", type="own", pattern=pattern, action="block")])
    bodies = ["secret", "a secret", "no", "a", "secrets", "cret"]
    for one in bodies:
        for other in bodies:
            assert not missed([call(orjson.dumps(one)), call(orjson.dumps(other))], under)


@pytest.mark.parametrize(
    "body",
    [
        orjson.dumps({"t": json.dumps({"inner": SSN})}),
        b'{"t":"\\u0032\\u0031\\u0039-09-9999"}',
        orjson.dumps({"t": "".join(chr(ord(c) + 0xFEE0) if c.isalnum() else c for c in SSN)}),
        orjson.dumps({"t": "x" * 9_000}),
    ],
    ids=["escaped", "unicode escapes", "full width", "large"],
)
def test_what_takes_more_than_one_search_is_left_out(body: bytes):
    assert Inspection().clean([call(CLEAN), call(body), call(CLEAN)], table()) == [True, False, True]


def test_what_was_searched_before_is_left_out():
    """Its judgement is kept with it, and may be a refusal."""
    under, inspection = table(), Inspection()
    rules = inspection.rules(under)
    assert rules is not None
    known = call(CLEAN)
    known.searched = Searched(rules, CLEAN, None)
    assert inspection.clean([known, call(CLEAN), call(CLEAN)], under) == [False, True, True]


def test_one_alone_is_searched_alone():
    assert Inspection().clean([call(CLEAN)], table()) == [False]


def test_where_nothing_is_searched_for_all_is_clean():
    assert Inspection().clean([call(orjson.dumps({"text": SSN}))], table(enabled=False)) == [True]

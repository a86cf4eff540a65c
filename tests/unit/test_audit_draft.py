"""What an append consists of: outcomes in blocks, ranges, portions that Lua can take."""

from __future__ import annotations

import hypothesis.strategies as st
import orjson
import pytest
from hypothesis import given

from broker_policy.audit import chain, entry
from broker_policy.audit.draft import Draft, Head
from broker_policy.audit.entry import MAX_RANGES, WorkerEvent
from broker_policy.audit.layout import Layout, id_place
from broker_policy.audit.record import Outcome, Record, RecordKind, Way
from broker_policy.audit.settled import Settled
from tests.audit_log import NAMESPACE, line

INDEXES = st.sets(st.integers(1, 3000), max_size=400)
RECORD = Record(NAMESPACE, "w1i", 2, "", RecordKind.DECISIONS, 1, 3)
PLAIN = line(Way.BATCH)


def empty(index: int = 0) -> Draft:
    return Draft(Layout(NAMESPACE), Head(index, chain.genesis(NAMESPACE), 0))


@given(INDEXES)
def test_ranges_hold_exactly_the_indexes(indexes):
    made = entry.ranges(sorted(indexes))
    assert list(entry.unranged(made)) == sorted(indexes)
    assert all(first <= last for first, last in made)


@given(INDEXES)
def test_settled_entries_cover_all_and_stay_small(indexes):
    draft, settled = empty(5000), Settled()
    for index in indexes:
        settled.add(index, Outcome.HANDLED)
    assert settled.write(draft, 1) == len(indexes)
    entries = [orjson.loads(body) for body in draft.bodies]
    assert all(len(made["x"]) <= MAX_RANGES for made in entries)
    assert sorted(index for made in entries for index in entry.unranged(made["x"])) == sorted(indexes)


def test_outcomes_of_one_message_are_written_in_the_order_in_which_they_happen():
    draft, settled = empty(10), Settled()
    settled.add(1, Outcome.DEAD, attempt=3)
    settled.add(2, Outcome.REDELIVERED, attempt=2)
    settled.add(2, Outcome.REDELIVERED, attempt=1)
    settled.add(2, Outcome.DEAD, attempt=3)
    settled.add(2, Outcome.COMMITTED, message=9)
    settled.write(draft, 1)
    assert [orjson.loads(body)["o"] for body in draft.bodies] == ["c", "v", "v", "d"]
    assert [orjson.loads(body).get("a") for body in draft.bodies] == [None, 1, 2, 3]


def test_outcomes_go_into_their_blocks(monkeypatch):
    monkeypatch.setattr("broker_policy.audit.draft.BLOCK", 8)
    draft = empty(5)
    for _ in range(6):
        draft.add_decision(entry.decision(draft.next_index, 2, RECORD, 0, line(Way.BATCH), 3, ""))
    for index, letter in ((2, "h"), (3, "h"), (5, "d"), (7, "x")):
        draft.set_outcome(index, letter)
    written = [command for command in draft.commands(1) if command[0] == "SETRANGE"]
    layout = Layout(NAMESPACE)
    assert written == [
        ["SETRANGE", layout.outcomes(0), "2", "hh"],
        ["SETRANGE", layout.outcomes(0), "5", "d"],
        ["SETRANGE", layout.outcomes(0), "6", "cx"],
        ["SETRANGE", layout.outcomes(1), "0", "cccc"],
    ]


def test_no_command_has_more_arguments_than_lua_can_unpack():
    draft = empty()
    for _ in range(5000):
        draft.add_decision(entry.decision(draft.next_index, 2, RECORD, 0, line(), 0, ""))
    assert max(len(command) for command in draft.commands(1)) <= 1002


def test_a_target_that_is_no_id_makes_no_index():
    made = [
        entry.decision(1, 2, RECORD, 0, line(target=target, sender="spiffe://x"), 0, "")
        for target in ("a.b", "*", "ns/ok", "ns/../x", "")
    ]
    assert [sum(name.startswith("target:") for name in entry.index_names(each)) for each in made] == [
        0,
        0,
        1,
        0,
        0,
    ]


@pytest.mark.parametrize(
    ("way", "changes", "outcome"),
    [
        (Way.NONE, {}, "r"),
        (Way.BATCH, {}, "c"),
        (Way.LONE, {}, " "),
        (Way.ACT, {}, " "),
        (Way.NONE, {"decision": "ALLOWED", "rule": "duplicate"}, "u"),
        (Way.NONE, {"decision": "ALLOWED", "rule": "certificate"}, "a"),
    ],
)
def test_first_outcomes(way, changes, outcome):
    assert entry.first_outcome(entry.decision(1, 2, RECORD, 0, line(way, **changes), 0, "")) == outcome
    marked = entry.decision(1, 2, RECORD, 0, line(way, **changes), 0, "mac")
    assert entry.first_outcome(marked) == "?"


def test_the_place_of_a_message_id_never_changes():
    """Golden: an audit must be found again by any later version."""
    assert id_place("m000001") == (2967, "qIYextpT")


def test_a_draft_without_content_changes_nothing():
    draft = empty(7)
    assert not draft.changes_something
    draft.add(entry.worker(8, 1, 1, WorkerEvent.OPEN, "w1i", 1))
    assert draft.changes_something
    assert draft.head.index == 8


@given(INDEXES, INDEXES, st.integers(0, 3000))
def test_outcomes_that_come_together_are_those_that_come_one_by_one(handled, unseen, base):
    one_by_one, together = (empty(base), Settled()), (empty(base), Settled())
    for draft, _ in (one_by_one, together):
        for _ in range(max(handled | unseen, default=0) - base):
            draft.add_decision(entry.decision(draft.next_index, 2, RECORD, 0, PLAIN, 3, ""))
    for index in handled:
        one_by_one[1].add(index, Outcome.HANDLED)
    for index in unseen:
        one_by_one[1].add(index, Outcome.UNKNOWN, reason="unseen")
    together[1].add_all(handled, Outcome.HANDLED)
    together[1].add_all(unseen, Outcome.UNKNOWN, reason="unseen")
    assert one_by_one[1].write(one_by_one[0], 1) == together[1].write(together[0], 1)
    assert one_by_one[0].bodies == together[0].bodies
    letters = dict.fromkeys(handled, "h") | dict.fromkeys(unseen - handled, "?")
    written = [command for command in together[0].commands(1) if command[0] == "SETRANGE"]
    assert written == [command for command in one_by_one[0].commands(1) if command[0] == "SETRANGE"]
    found = {int(offset) + place: each for _, _, offset, text in written for place, each in enumerate(text)}
    assert {index: found[index] for index in letters} == letters

"""What tells a worker's write from an agent's, and a change that is in the chain from one that is not."""

from __future__ import annotations

import pytest

from broker_policy.audit.record import DecisionLine, RecordKey
from broker_policy.audit.state_marks import DIRECT_STATE, STATE_GAP, StateMark
from broker_policy.direct_state.mark import Marker
from tests.audit_log import line

MARKER = Marker("default", RecordKey(b"k" * 32))


def of(rule: str, message_id: str, time: int) -> DecisionLine:
    return line(op="state", rule=rule, message_id=message_id, time=time)


def test_a_mark_is_for_one_place_in_one_history():
    mark = MARKER.mark("a", 7, b"{}")
    assert MARKER.valid(mark, "a", 7, b"{}")
    assert not MARKER.valid(mark, "a", 8, b"{}")
    assert not MARKER.valid(mark, "a", -1, b"{}")
    assert not MARKER.valid(mark, "b", 7, b"{}")
    assert not MARKER.valid(mark, "a", 7, b"[]")
    assert not Marker("other", MARKER.key).valid(mark, "a", 7, b"{}")
    assert not MARKER.valid("", "a", 7, b"{}")
    assert not MARKER.valid("\u00fc", "a", 7, b"{}")


def test_marks_of_a_key_that_was_retired_stay_valid():
    mark = MARKER.mark("a", 7, b"{}")
    assert Marker("default", RecordKey(b"n" * 32, (b"k" * 32,))).valid(mark, "a", 7, b"{}")


@pytest.mark.parametrize(
    ("rule", "message_id", "time", "in_chain"),
    [
        (DIRECT_STATE, "9", 90, True),
        (DIRECT_STATE, "10", 100, True),
        (DIRECT_STATE, "11", 110, False),
        (DIRECT_STATE, "11", 90, False),  # a clock that was set back
        (DIRECT_STATE, "3", 130, False),  # a bucket that was made anew
        (STATE_GAP, "2-9", 90, True),
        (STATE_GAP, "2-11", 110, True),  # what lies between was seen by another worker after all
        (STATE_GAP, "2-12", 120, False),
    ],
)
def test_what_the_chain_holds(rule: str, message_id: str, time: int, *, in_chain: bool):
    known = StateMark.of(of(DIRECT_STATE, "10", 100))
    other = StateMark.of(of(rule, message_id, time))
    assert known is not None
    assert other is not None
    assert known.covers(other) is in_chain
    assert StateMark.decode(known.then(other).encode().encode()) == known.then(other)


@pytest.mark.parametrize(("rule", "message_id"), [("own_state", "7"), (DIRECT_STATE, "x"), (STATE_GAP, "7")])
def test_other_lines_have_no_mark(rule: str, message_id: str):
    assert StateMark.of(of(rule, message_id, 1)) is None

"""How long an agent waits before it asks again."""

from __future__ import annotations

from mas_nats.patience import FIRST_TRY, LONGEST_TRY, Patience


def test_quick_answers_keep_the_least() -> None:
    patience = Patience()
    assert patience.wait == FIRST_TRY
    for _ in range(100):
        patience.answered(0.003)
    assert patience.wait == FIRST_TRY


def test_slow_answers_are_waited_for() -> None:
    patience = Patience()
    for _ in range(100):
        patience.answered(3.0)
    assert 3.0 < patience.wait < 4.0
    for _ in range(100):
        patience.answered(0.01)
    assert patience.wait == FIRST_TRY


def test_silence_makes_patient_until_an_answer() -> None:
    """Karn: while everything has to be repeated there is no answer to learn from."""
    patience = Patience()
    waits = []
    for _ in range(6):
        waits.append(patience.wait)
        patience.unanswered(patience.wait)
    assert waits == [2.0, 4.0, 8.0, 16.0, LONGEST_TRY, LONGEST_TRY]
    patience.answered(0.01)
    assert patience.wait == FIRST_TRY


def test_many_calls_in_the_same_silence_count_once() -> None:
    patience = Patience()
    for _ in range(1000):
        patience.unanswered(FIRST_TRY)
    assert patience.wait == 2 * FIRST_TRY

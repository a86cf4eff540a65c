"""The server's time, measured with whatever a worker asks anyway."""

from __future__ import annotations

import logging
from datetime import UTC, datetime

from broker_policy.clock import ServerClock

TRUE = 1_800_000_000_000


class Machine:
    """A machine whose clock is ``wrong`` milliseconds ahead."""

    def __init__(self, wrong: int) -> None:
        self.true, self.wrong = TRUE, wrong
        self.clock = ServerClock(lambda: self.true + self.wrong)

    def ask(self, there: int, back: int) -> None:
        """One question to the server that takes so long there and back, in milliseconds."""
        asked = self.clock.local()
        self.true += there
        stamp = datetime.fromtimestamp(self.true / 1000, UTC).isoformat()
        self.true += back
        self.clock.observe(stamp, asked, self.clock.local())


def test_a_wrong_clock_is_corrected_and_said_once(caplog):
    with caplog.at_level(logging.INFO):
        for wrong in (30_000, -30_000):
            machine = Machine(wrong)
            assert machine.clock() == machine.true + wrong, "nothing is known yet"
            for _ in range(5):
                machine.ask(1, 1)
            assert abs(machine.clock() - machine.true) <= 2
    said = [record.message for record in caplog.records if "clock is" in record.message]
    assert len(said) == 2
    assert "30.0 s ahead" in said[0]
    assert "30.0 s behind" in said[1]


def test_the_quickest_answer_counts():
    machine = Machine(5_000)
    machine.ask(1, 900)
    machine.ask(2, 2)
    machine.ask(700, 10)
    assert abs(machine.clock() - machine.true) <= 3


def test_a_slow_answer_alone_moves_nothing():
    machine = Machine(0)
    machine.ask(10, 400)
    assert machine.clock.offset == 0


def test_a_clock_that_is_set_right_is_noticed(caplog):
    machine = Machine(30_000)
    machine.ask(1, 1)
    machine.wrong = 0
    with caplog.at_level(logging.INFO):
        machine.ask(1, 1)
    assert machine.clock.offset == 0
    assert "agrees" in caplog.text


def test_what_is_no_time_changes_nothing():
    machine = Machine(30_000)
    machine.ask(1, 1)
    offset = machine.clock.offset
    machine.clock.observe("", 1, 2)
    machine.clock.observe("yesterday", 1, 2)
    assert machine.clock.offset == offset

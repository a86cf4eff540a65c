"""The server's time, measured with whatever a worker asks anyway."""

from __future__ import annotations

import logging
import time
from datetime import UTC, datetime

from broker_policy.clock import ServerClock

TRUE = 1_800_000_000_000


class Machine:
    """A machine whose clock is ``wrong`` milliseconds ahead."""

    def __init__(self, wrong: int) -> None:
        self.true, self.wrong = TRUE, wrong
        begun = wrong
        self.clock = ServerClock(lambda: self.true + begun, machine=lambda: self.true + self.wrong)

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
    assert abs(machine.clock() - machine.true) <= 2
    assert "agrees" in caplog.text


def test_a_step_of_the_machines_clock_moves_nothing_and_is_said(caplog, monkeypatch):
    """Else what is due in an hour is released, and requests expire, until the server is asked again."""
    clock = ServerClock()
    before, now = clock(), time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: now + 3_600_000_000_000)
    assert before <= clock() < before + 60_000
    stamp = datetime.fromtimestamp(clock() / 1000, UTC).isoformat()
    clock.observe(stamp, clock.local(), clock.local())
    assert "3600.0 s ahead" in caplog.text
    assert clock() < before + 60_000


def test_a_server_whose_clock_is_set_is_followed():
    machine = Machine(0)
    machine.ask(1, 1)
    machine.true += 3_600_000  # as the worker sees it: the server says so much more than has passed
    stamp = datetime.fromtimestamp((machine.true + 120_000) / 1000, UTC).isoformat()
    machine.clock.observe(stamp, machine.clock.local(), machine.clock.local())
    assert abs(machine.clock() - machine.true - 120_000) <= 2


def test_what_is_no_time_changes_nothing():
    machine = Machine(30_000)
    machine.ask(1, 1)
    offset = machine.clock.offset
    machine.clock.observe("", 1, 2)
    machine.clock.observe("yesterday", 1, 2)
    assert machine.clock.offset == offset

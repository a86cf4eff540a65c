"""Who goes through the slow lane, and for how long; the clock is the test's."""

from __future__ import annotations

import pytest

from broker_policy.commit.suspects import FIRST_SUSPICION, FORGIVEN, FULL_PAUSE, SUSPICION, Suspects


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def suspects(clock: Clock) -> Suspects:
    return Suspects(clock)


def test_nobody_at_first(suspects: Suspects):
    assert not suspects.suspicious("alice", "bob")
    assert not suspects.known_full("bob")


def test_who_repeated_is_suspicious_for_a_while_and_nobody_else(suspects: Suspects, clock: Clock):
    suspects.duplicate("alice")
    assert suspects.suspicious("alice", "anybody")
    assert not suspects.suspicious("bob", "alice")
    clock.now += FIRST_SUSPICION - 0.1
    assert suspects.suspicious("alice", "anybody")
    clock.now += 0.2
    assert not suspects.suspicious("alice", "anybody")


def test_many_at_once_count_as_one(suspects: Suspects, clock: Clock):
    for _ in range(100):
        suspects.duplicate("alice")
    clock.now += FIRST_SUSPICION
    assert not suspects.suspicious("alice", "anybody")


def test_who_repeats_again_and_again_is_suspicious_for_longer(suspects: Suspects, clock: Clock):
    def suspected() -> float:
        begun = clock.now
        suspects.duplicate("alice")
        while suspects.suspicious("alice", "anybody"):
            clock.now += 0.125
        return clock.now - begun

    assert [suspected() for _ in range(6)] == [0.5, 1.0, 2.0, 4.0, SUSPICION, SUSPICION]
    clock.now += FORGIVEN
    assert suspected() == FIRST_SUSPICION


def test_repeating_while_suspected_prolongs_it(suspects: Suspects, clock: Clock):
    suspects.duplicate("alice")
    clock.now += FIRST_SUSPICION - 0.1
    suspects.duplicate("alice")
    clock.now += FIRST_SUSPICION - 0.1
    assert suspects.suspicious("alice", "anybody")


def test_the_forgiven_are_forgotten(suspects: Suspects, clock: Clock):
    for number in range(1000):
        suspects.duplicate(f"a{number}")
    clock.now += FIRST_SUSPICION + FORGIVEN
    suspects.duplicate("alice")
    assert len(suspects._senders) == 1


def test_a_full_inbox_is_not_asked_for_a_moment_and_then_by_the_slow_lane(suspects: Suspects, clock: Clock):
    suspects.full("bob")
    assert suspects.known_full("bob")
    assert suspects.suspicious("anybody", "bob")
    assert not suspects.suspicious("anybody", "carol")
    clock.now += FULL_PAUSE + 0.1
    assert not suspects.known_full("bob")
    assert suspects.suspicious("anybody", "bob"), "one that is read slowly is full again and again"
    clock.now += SUSPICION
    assert not suspects.suspicious("anybody", "bob")


def test_an_inbox_that_took_a_message_is_asked_again_at_once(suspects: Suspects):
    suspects.full("bob")
    suspects.has_room("bob")
    assert not suspects.known_full("bob")
    assert suspects.suspicious("anybody", "bob")
    suspects.has_room("never-full")


def test_nothing_is_kept_of_who_behaves(suspects: Suspects, clock: Clock):
    suspects.duplicate("alice")
    suspects.full("bob")
    clock.now += SUSPICION + FORGIVEN
    suspects.suspicious("alice", "bob")
    suspects.known_full("bob")
    assert [*suspects._senders, *suspects._targets, *suspects._full] == []

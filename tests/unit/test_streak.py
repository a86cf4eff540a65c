"""What an instance takes for handled is handled: against a consumer that does whatever a consumer may do."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from mas_nats.streak import Streak

MAX_DELIVER = 3
SEEDS = range(1500)
STEPS = 120


@dataclass
class Instance:
    streak: Streak
    running: dict[int, int] = field(default_factory=dict)  # sequence -> attempt
    gathered: set[int] = field(default_factory=set)


@dataclass
class Consumer:
    """One inbox, its consumer, its instances and the worker that is asked to take messages out."""

    chance: random.Random
    make: Callable[[], Streak]
    looks: bool  # whether the worker looks what lies at the front
    anew: bool  # whether instances know that the server started anew
    there: dict[int, int] = field(default_factory=dict)  # in the inbox: sequence -> attempts so far
    handled: set[int] = field(default_factory=set)
    again: list[int] = field(default_factory=list)  # to be delivered again
    out: dict[int, Instance] = field(default_factory=dict)  # who has which at last
    last: int = 0
    delivered: int = 0  # the last sequence that was delivered for the first time
    number: int = 0
    taken: int = 0
    lost: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.instances = [Instance(self.make()) for _ in range(self.chance.choice((1, 1, 2, 3)))]

    def step(self) -> None:
        moves = (
            self.publish,
            self.deliver,
            self.deliver,
            self.end,
            self.end,
            self.expire,
            self.ask,
            self.restart,
        )
        self.chance.choices(moves, weights=(8, 8, 8, 8, 8, 1, 3, 0.5))[0]()

    def publish(self) -> None:
        self.last += self.chance.choice((1, 1, 2, 9))  # messages of others lie between
        self.there[self.last] = 0

    def deliver(self) -> None:
        """The next one, to whoever is next; sometimes it gets lost on its way."""
        self.again = [sequence for sequence in self.again if sequence in self.there]
        fresh = [sequence for sequence in self.there if sequence > self.delivered]
        if not self.again and not fresh:
            return
        if self.again:
            sequence = self.again.pop(0)
        else:
            sequence = self.delivered = fresh[0]
        self.there[sequence] += 1
        self.number += 1
        one = self.chance.choice(self.instances)
        self.out[sequence] = one
        if self.chance.random() < 0.02:
            return
        one.streak.delivered(sequence, self.there[sequence], self.number)
        if sequence in one.gathered:
            return  # it knows that it has handled it
        one.running[sequence] = self.there[sequence]

    def end(self) -> None:
        """A handler ends, well or not."""
        one = self.chance.choice(self.instances)
        if not one.running:
            return
        sequence = self.chance.choice(list(one.running))
        attempt = one.running.pop(sequence)
        if self.chance.random() < 0.15:
            if attempt >= MAX_DELIVER:
                one.streak.end()
            self.come_again(sequence)
            return
        self.handled.add(sequence)
        if self.chance.random() < 0.1 or not one.streak.handled(sequence):
            one.streak.forget(sequence)
            self.acknowledge(sequence)
        else:
            one.gathered.add(sequence)

    def expire(self) -> None:
        """An ack wait is over, whatever its instance is doing."""
        if self.out:
            self.come_again(self.chance.choice(list(self.out)))

    def come_again(self, sequence: int) -> None:
        self.out.pop(sequence, None)
        if sequence in self.there and self.there[sequence] < MAX_DELIVER and sequence not in self.again:
            self.again.append(sequence)

    def acknowledge(self, sequence: int) -> None:
        if self.chance.random() < 0.9:  # else it is lost
            self.there.pop(sequence, None)
            self.out.pop(sequence, None)

    def ask(self) -> None:
        one = self.chance.choice(self.instances)
        since, front = one.streak.since, one.streak.take()
        for sequence in one.gathered - set(front):
            self.acknowledge(sequence)
        one.gathered.clear()
        if not front or (self.looks and min(self.there, default=since) < since):
            return
        for sequence in [each for each in self.there if each <= front[-1]]:
            del self.there[sequence]
            self.taken += 1
            if sequence not in self.handled:
                self.lost.append(sequence)

    def restart(self) -> None:
        """The server starts anew and has forgotten the last deliveries; instances have to ask it again."""
        if self.anew:
            for one in self.instances:
                one.streak.end()
        back = self.chance.randrange(4)
        self.number = max(0, self.number - back)
        self.delivered = max(0, self.delivered - back)
        self.out.clear()
        if self.chance.random() < 0.5:
            self.there = dict.fromkeys(self.there, 0)  # nor does it know how often it delivered them
        self.again = [
            each for each in self.there if each <= self.delivered and self.there[each] < MAX_DELIVER
        ]


def outcome(make: Callable[[], Streak], *, looks: bool = True, anew: bool = True) -> tuple[int, int]:
    """How many messages were taken out together, and how many of them nobody had handled."""
    taken = lost = 0
    for seed in SEEDS:
        consumer = Consumer(random.Random(seed), make, looks, anew)
        for _ in range(STEPS):
            consumer.step()
        taken += consumer.taken
        lost += len(consumer.lost)
    return taken, lost


class Numberless(Streak):
    """Does not look for gaps."""

    def delivered(self, sequence: int, attempt: int, number: int) -> None:
        super().delivered(sequence, attempt, self._number + 1)


class Orderless(Streak):
    """Takes a message that comes again, or comes late, for one of its streak."""

    def delivered(self, sequence: int, attempt: int, number: int) -> None:
        self._newest = 0
        self._handled.setdefault(sequence, False)
        super().delivered(sequence, attempt, number)


class Endless(Streak):
    """Forgets what it has given up, and goes on."""

    def end(self) -> None:
        self._handled = dict.fromkeys(self._handled, True)


def test_nothing_is_taken_out_that_nobody_has_handled() -> None:
    taken, lost = outcome(Streak)
    assert lost == 0
    assert taken > 1000  # it does take out


def test_it_needs_the_numbers_of_deliveries() -> None:
    assert outcome(Numberless)[1] > 0


def test_it_needs_to_begin_anew_where_something_does_not_fit() -> None:
    assert outcome(Endless)[1] > 0
    assert outcome(Orderless)[1] > 0


def test_it_needs_to_hear_of_a_server_that_started_anew() -> None:
    assert outcome(Streak, anew=False)[1] > 0


def test_it_needs_somebody_to_look_what_lies_before_it() -> None:
    assert outcome(Streak, looks=False)[1] > 0


def test_what_lies_behind_an_unhandled_one_leaves_too_and_is_not_taken_out() -> None:
    streak = Streak()
    for number, sequence in enumerate((10, 12, 15, 20), start=1):
        streak.delivered(sequence, 1, number)
    for sequence in (10, 15, 20):
        assert streak.handled(sequence)
    assert streak.take() == [10]
    assert streak.since == 10
    assert streak.handled(12)
    assert streak.take() == [12]  # 15 and 20 were left to be acknowledged each by itself
    assert not streak.handled(15)


def test_a_streak_begins_anew_after_a_gap() -> None:
    streak = Streak()
    streak.delivered(10, 1, 1)
    streak.delivered(14, 1, 3)
    assert not streak.handled(10)
    assert streak.handled(14)
    assert (streak.since, streak.take()) == (14, [14])

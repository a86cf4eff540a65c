"""What is released next: the oldest of each sender, the senders in turn."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from broker_policy.delayed.queue import DueQueue, Waiting


def waiting(sender: str, sequence: int, due: int) -> Waiting:
    return Waiting(sender, str(sequence), sequence, due, "bob")


def test_one_of_another_does_not_wait_for_ten_thousand():
    queue = DueQueue()
    for number in range(10_000):
        queue.add(waiting("alice", number, due=number))
    queue.add(waiting("carol", 20_000, due=9_999))
    assert "carol" in [one.sender for one in (queue.take(10_000), queue.take(10_000)) if one]


def test_nothing_before_its_time_and_the_oldest_first():
    queue = DueQueue()
    for number, due in enumerate((300, 100, 200)):
        queue.add(waiting("alice", number, due))
    assert queue.take(99) is None
    assert queue.next() == 100
    taken = [queue.take(300) for _ in range(4)]
    assert [one.due for one in taken if one] == [100, 200, 300]


def test_what_was_given_back_waits_and_is_not_added_twice():
    queue = DueQueue()
    one = waiting("alice", 1, due=100)
    assert queue.add(one)
    assert queue.take(100) is one
    assert not queue.add(one)
    queue.put_back(one, 500)
    assert queue.take(499) is None
    assert queue.take(500) is one
    queue.done(one)
    assert queue.add(one)


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 20)), max_size=40),
    st.lists(st.integers(0, 25), max_size=60),
)
def test_everything_comes_once_and_only_when_due(messages: list[tuple[str, int]], times: list[int]):
    queue = DueQueue()
    for sequence, (sender, due) in enumerate(messages):
        queue.add(waiting(sender, sequence, due))
    taken: list[Waiting] = []
    for now in [*sorted(times), *[25] * len(messages)]:
        following = queue.next()
        if (one := queue.take(now)) is not None:
            assert one.due <= now
            taken.append(one)
        elif following is not None and len(taken) < len(messages):
            assert min(due for place, (_, due) in enumerate(messages) if place not in _places(taken)) > now
    assert _places(taken) == set(range(len(messages)))
    assert len(taken) == len(messages)


def _places(taken: list[Waiting]) -> set[int]:
    return {one.sequence for one in taken}

"""When an instance acknowledges each message by itself, and when it asks for many together."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import orjson
import pytest
from sdk_worker import eventually

from mas_nats import acknowledging
from mas_nats.acknowledging import ACK, ENOUGH, LEAST, LONGEST_GATHERING, Acknowledgements
from mas_nats.errors import PermissionDenied
from mas_nats.policy.refusals import not_together
from mas_nats.session import Terms
from mas_nats.transport import Incoming, NoAnswer, NoResponders
from mas_nats.wire.state_mode import StateMode
from mas_nats.wire.verdict import ACK_PENDING, Decision, Verdict, accepted

TERMS = Terms(
    instance="i",
    namespace="default",
    heartbeat=5,
    in_flight=100,
    ack_wait=10,
    max_deliver=3,
    max_payload=1 << 20,
    max_state=1 << 20,
    state=StateMode.MEDIATED,
    retry_delay=1,
    retry_delay_max=10,
    retry_spread=0.25,
    ack_many=True,
)
DENIED = PermissionDenied(Verdict(Decision.AUTHZ_DENIED, ok=False))


@dataclass
class Wire:
    """What is said to the broker. ``answer`` is the policy service."""

    each: list[str] = field(default_factory=list)
    together: list[dict[str, Any]] = field(default_factory=list)
    answer: Callable[[], Awaitable[Verdict]] | None = None
    timeout: float = 2.0  # for which an answer has to be waited

    async def publish(self, subject: str, body: bytes = b"", reply: str = "") -> None:
        assert (body, reply) == (ACK, "")
        self.each.append(subject)

    async def exchange(
        self, subject: str, body: bytes, headers: Mapping[str, str] | None, timeout: float
    ) -> Incoming:
        assert (subject, headers, timeout) == ("mas.call.b.ack", None, self.timeout)
        self.together.append(orjson.loads(body))
        verdict = accepted() if self.answer is None else await self.answer()
        return Incoming("", "", {}, verdict.encode())


class Instance:
    """Gets deliveries without a gap and handles them; messages of others lie between its own."""

    def __init__(self, terms: Terms = TERMS) -> None:
        self.wire = Wire()
        self.terms = terms
        self.acks = Acknowledgements(self.wire, "b", lambda: self.terms)  # type: ignore[arg-type]
        self.number = 0

    def deliver(self, count: int) -> list[int]:
        numbers = range(self.number + 1, self.number + count + 1)
        for number in numbers:
            self.acks.delivered(10 * number, 1, number)
        self.number += count
        return [10 * number for number in numbers]

    async def handle(self, sequences: list[int], *, last: bool = False) -> None:
        for sequence in sequences:
            await self.acks.handled(sequence, str(sequence), last=last and sequence == sequences[-1])

    async def settled(self) -> None:
        await eventually(lambda: self.acks._timer is None and self.acks._asking is None)
        await asyncio.gather(*self.acks._one_by_one)


def names(sequences: list[int]) -> list[str]:
    return [str(sequence) for sequence in sequences]


async def test_one_that_is_alone_is_acknowledged_at_once():
    one = Instance()
    await one.handle(one.deliver(1), last=True)
    assert (one.wire.each, one.wire.together) == (["10"], [])


async def test_many_are_acknowledged_together():
    one = Instance()
    await one.handle(one.deliver(LEAST), last=True)
    await one.settled()
    assert one.wire.each == []
    assert one.wire.together == [{"since": 10, "last": 10 * LEAST, "most": LEAST}]


async def looked_at(one: Instance, count: int) -> None:
    """Wait until it has looked, and waits for more than these."""
    await eventually(lambda: one.acks._seen == count)
    assert one.wire.together == []


async def test_where_more_come_all_wait_for_those(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(acknowledging, "LONGEST_GATHERING", 60.0)
    one = Instance(replace(TERMS, ack_wait=1e4))
    await one.handle(one.deliver(LEAST))
    await looked_at(one, LEAST)
    await one.handle(one.deliver(1))
    await looked_at(one, LEAST + 1)
    await one.settled()  # nothing came since
    assert [each["most"] for each in one.wire.together] == [LEAST + 1]


async def test_where_an_answer_took_long_they_may_wait_longer():
    async def slow() -> Verdict:
        await asyncio.sleep(0.2)
        return accepted()

    async def longest() -> float:
        """For how long those that are handled now may wait."""
        await one.handle(one.deliver(LEAST))
        left = one.acks._until - asyncio.get_running_loop().time()
        await one.settled()
        return left

    one = Instance(replace(TERMS, ack_wait=1e4))
    one.wire.answer = slow
    assert await longest() <= LONGEST_GATHERING
    one.wire.answer = None
    assert await longest() > 0.3
    assert await longest() < 0.3
    assert [each["most"] for each in one.wire.together] == [LEAST] * 3


async def test_where_they_waited_too_long_for_few_that_may_be_pending_they_wait_as_usual():
    one = Instance(replace(TERMS, ack_wait=1e4))
    one.acks._longest, one.acks._pause = 10.0, 0.0
    one.wire.answer = lambda: _told(not_together(ACK_PENDING, "full").verdict(""))
    await one.handle(one.deliver(LEAST))
    await one.settled()
    assert one.acks._longest == LONGEST_GATHERING
    one.acks._not_before = 0.0

    async def slow() -> Verdict:
        await asyncio.sleep(0.05)
        return accepted()

    one.wire.answer = slow
    await one.handle(one.deliver(LEAST))
    await one.settled()
    assert one.acks._longest == LONGEST_GATHERING  # however long an answer takes from now on


@pytest.mark.parametrize(
    ("longest", "ack_wait", "count"), [(0.0, 1e4, LEAST), (60.0, 0.1, LEAST), (60.0, 1e4, ENOUGH)]
)
async def test_they_do_not_wait_for_ever(
    longest: float, ack_wait: float, count: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(acknowledging, "LONGEST_GATHERING", longest)
    one = Instance(replace(TERMS, ack_wait=ack_wait))
    one.wire.timeout = min(2.0, ack_wait / 4)
    await one.handle(one.deliver(count))
    await one.settled()
    assert one.acks._seen == 0  # it left at the first look
    assert [each["most"] for each in one.wire.together] == [count]


async def test_behind_one_that_is_not_handled_nobody_waits_for_more(monkeypatch: pytest.MonkeyPatch):
    """They cannot be taken out together, however many come; and a consumer may be full of them."""
    monkeypatch.setattr(acknowledging, "LONGEST_GATHERING", 60.0)
    one = Instance(replace(TERMS, ack_wait=1e4))
    slow, *others = one.deliver(LEAST + 1)
    await one.handle(others)
    await one.settled()
    assert one.acks._seen == 0  # it left at the first look
    assert (one.wire.each, one.wire.together) == (names(others), [])
    await one.handle([slow])
    await one.settled()


async def test_enough_do_not_wait_for_the_next_look(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(acknowledging, "GATHERING", 3600.0)
    one = Instance()
    await one.handle(one.deliver(ENOUGH))
    await one.settled()
    assert [each["most"] for each in one.wire.together] == [ENOUGH]


async def test_where_an_answer_took_long_more_are_enough(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(acknowledging, "GATHERING", 3600.0)
    one = Instance(replace(TERMS, ack_wait=1e4))
    one.acks._longest = 2 * LONGEST_GATHERING
    await one.handle(first := one.deliver(ENOUGH))
    assert one.acks._timer is not None
    await one.handle(rest := one.deliver(768 - ENOUGH))
    await one.settled()
    assert [each["most"] for each in one.wire.together] == [len(first) + len(rest)]


async def test_where_few_may_be_pending_they_wait_no_longer_than_ever(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(acknowledging, "LONGEST_GATHERING", 60.0)
    monkeypatch.setattr(acknowledging, "_FIRST_PAUSE", 0.0)
    one = Instance(replace(TERMS, ack_wait=1e4))
    one.acks._pause = 0.0
    one.wire.answer = lambda: _told(not_together(ACK_PENDING, "full").verdict(""))
    await one.handle(one.deliver(LEAST))
    await one.settled()
    assert one.acks._seen == LEAST  # it waited for more
    one.wire.answer = None
    for _ in range(2):
        one.acks._seen = 0
        await one.handle(one.deliver(LEAST))
        await one.settled()
        assert one.acks._seen == 0
    one.acks.anew()
    await one.handle(one.deliver(LEAST))
    await one.settled()
    assert one.acks._seen == LEAST


async def test_few_are_acknowledged_each_by_itself():
    one = Instance()
    await one.handle(few := one.deliver(LEAST - 1))
    await one.settled()
    assert (one.wire.each, one.wire.together) == (names(few), [])


async def test_those_behind_one_that_is_not_handled_are_acknowledged_each_by_itself():
    one = Instance()
    got = one.deliver(2 * LEAST + 1)
    await one.handle(got[:LEAST] + got[LEAST + 1 :])
    await one.settled()
    assert one.wire.together == [{"since": 10, "last": got[LEAST - 1], "most": 2 * LEAST}]
    assert one.wire.each == names(got[LEAST + 1 :])
    more = one.deliver(LEAST)
    await one.handle([got[LEAST], *more])
    await one.settled()
    # Of those between, the server may have taken no notice yet; they are removed then.
    assert one.wire.together[1] == {"since": 10, "last": more[-1], "most": 2 * LEAST + 1}


async def test_after_a_gap_those_before_it_are_acknowledged_each_by_itself():
    one = Instance()
    await one.handle(before := one.deliver(LEAST))
    one.number += 1
    await one.handle(after := one.deliver(LEAST))
    await one.settled()
    assert one.wire.each == names(before)
    assert one.wire.together == [{"since": after[0], "last": after[-1], "most": LEAST}]


async def test_after_a_restart_of_the_server_too():
    one = Instance()
    await one.handle(before := one.deliver(LEAST))
    one.acks.anew()
    await one.settled()
    assert (one.wire.each, one.wire.together) == (names(before), [])


async def test_what_is_asked_for_when_the_connection_is_lost_is_not_asked_for_in_the_next_log():
    """The question may still wait for a connection, and its range holds other messages there."""
    one, connected = Instance(), asyncio.Event()
    asked: list[bool] = []

    async def answer() -> Verdict:
        await connected.wait()
        asked.append(True)
        return accepted()

    one.wire.answer = answer
    await one.handle(before := one.deliver(LEAST))
    await eventually(lambda: one.wire.together)
    await one.handle(behind := one.deliver(3))
    one.acks.anew()
    connected.set()
    await one.settled()
    assert asked == []
    assert one.wire.each == names(before + behind)  # before anything comes through the next connection
    assert one.acks._streak.alone == 0
    one.wire.answer = None
    await one.handle(after := one.deliver(LEAST))
    await one.settled()
    assert one.wire.together[1:] == [{"since": after[0], "last": after[-1], "most": LEAST}]


async def test_what_was_about_to_be_asked_for_is_not_either():
    one = Instance()
    await one.handle(before := one.deliver(LEAST))
    one.acks._leave()
    one.acks.anew()  # before the question has begun
    await one.settled()
    assert (one.wire.each, one.wire.together) == (names(before), [])


async def test_nothing_is_said_of_a_sequence_that_stands_for_another_message_now():
    one = Instance()
    got = one.deliver(3)
    await one.handle(got)
    one.acks.replaced(got[1])
    await one.settled()
    assert one.wire.each == names([got[0], got[2]])


async def test_after_the_last_attempt_a_new_streak_begins():
    """It waits to be buried; a worker finds it before those that come later, and refuses."""
    one = Instance()
    got = one.deliver(LEAST + 1)
    await one.handle(got[1:])
    one.acks.given_back(got[0], TERMS.max_deliver, 0)
    await one.handle(later := one.deliver(LEAST))
    await one.settled()
    assert one.wire.each == names(got[1:])
    assert one.wire.together == [{"since": later[0], "last": later[-1], "most": LEAST}]


async def test_nothing_is_asked_for_while_one_is_to_come_again(monkeypatch: pytest.MonkeyPatch):
    """The server would forget that it is about to deliver it, and wait for the ack wait."""
    one = Instance()
    *got, failed = one.deliver(LEAST + 1)
    one.acks.given_back(failed, 1, 5)
    await one.handle(got)
    await one.settled()
    assert (one.wire.each, one.wire.together) == (names(got), [])
    one.number += 1
    one.acks.delivered(failed, 2, one.number)  # it came
    await one.handle([failed, *(more := one.deliver(LEAST))])
    await one.settled()
    assert [each["last"] for each in one.wire.together] == [more[-1]]
    monkeypatch.setattr(acknowledging, "_BACK", 0.0)
    one.acks.given_back(more[0], 1, 0)  # it went to another instance, or was buried
    await one.handle(one.deliver(LEAST))
    await one.settled()
    assert len(one.wire.together) == 2


async def test_one_that_never_ends_keeps_a_streak_for_a_minute_only(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(acknowledging, "_STUCK", 0.0)
    one = Instance()
    await one.handle(one.deliver(LEAST + 1)[1:])
    await one.settled()
    await one.handle(one.deliver(LEAST))
    await one.settled()
    assert one.wire.together == []  # it takes two looks
    await one.handle(got := one.deliver(LEAST))
    await one.settled()
    assert [each["since"] for each in one.wire.together] == [got[0]]


def refused() -> Awaitable[Verdict]:
    return _told(Verdict(Decision.INVALID, ok=False, reason="no"))


async def _told(verdict: Verdict) -> Verdict:
    return verdict


def failing(error: Exception) -> Callable[[], Awaitable[Verdict]]:
    async def fail() -> Verdict:
        raise error

    return fail


@pytest.mark.parametrize(
    "answer",
    [
        refused,
        failing(NoAnswer("late")),
        failing(NoResponders("nobody")),
        failing(DENIED),
        failing(ValueError()),
    ],
    ids=["refused", "late", "nobody", "denied", "unreadable"],
)
async def test_what_is_not_taken_out_is_acknowledged_each_by_itself(answer: Callable[[], Awaitable[Verdict]]):
    one = Instance()
    one.wire.answer = answer
    await one.handle(first := one.deliver(LEAST))
    await one.settled()
    assert one.wire.each == names(first)
    await one.handle(second := one.deliver(LEAST))  # not asked again so soon
    await one.settled()
    assert (one.wire.each, len(one.wire.together)) == (names(first + second), 1)


async def test_it_is_asked_again_after_a_pause_unless_the_account_may_not(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(acknowledging, "_FIRST_PAUSE", 0.0)
    for answer, times in ((refused, 2), (failing(DENIED), 1)):
        one = Instance()
        one.acks._pause = 0.0
        one.wire.answer = answer
        for _ in range(2):
            await one.handle(one.deliver(LEAST))
            await one.settled()
        assert len(one.wire.together) == times


async def test_while_one_answer_is_awaited_the_next_gather():
    one, go = Instance(), asyncio.Event()

    async def late() -> Verdict:
        await go.wait()
        return accepted()

    one.wire.answer = late
    await one.handle(one.deliver(LEAST))
    await eventually(lambda: one.wire.together)
    await one.handle(one.deliver(3 * LEAST))
    go.set()
    await one.settled()
    assert [each["most"] for each in one.wire.together] == [LEAST, 3 * LEAST]
    assert one.wire.each == []


async def test_more_than_a_thousand_do_not_gather():
    one, go = Instance(), asyncio.Event()

    async def never() -> Verdict:
        await go.wait()
        return accepted()

    one.wire.answer = never
    await one.handle(one.deliver(LEAST))
    await eventually(lambda: one.wire.together)
    await one.handle(many := one.deliver(1024))
    await asyncio.gather(*one.acks._one_by_one)
    assert one.wire.each == names(many)
    go.set()
    await one.settled()


async def test_an_older_worker_is_not_asked():
    one = Instance(replace(TERMS, ack_many=False))
    await one.handle(many := one.deliver(2 * LEAST))
    assert (one.wire.each, one.wire.together) == (names(many), [])


async def test_who_leaves_acknowledges_what_is_gathered():
    one = Instance()
    await one.handle(some := one.deliver(LEAST))
    await one.acks.close()
    assert one.wire.each == names(some)
    await one.handle(late := one.deliver(LEAST))
    assert one.wire.each == names(some + late)

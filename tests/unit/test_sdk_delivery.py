"""What becomes of deliveries when answers are lost, handlers hang or the server falls silent."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from sdk_worker import LIMITS, ScriptedWorker, endpoint, eventually

from broker_policy.embedded.nats_server import NatsServer
from broker_policy.identity.pki import CertificateAuthority
from mas_nats import (
    Agent,
    AgentMessage,
    OutcomeUnknown,
    Reject,
    ReplyResult,
    RequestTimeout,
    Unavailable,
    pull,
)
from mas_nats.wire.subjects import Op
from mas_nats.wire.verdict import Decision, Verdict

Make = Callable[..., "Recorder"]


class Recorder(Agent[dict[str, object]]):
    """Runs ``work`` for every message and records what it got."""

    work: Callable[[AgentMessage], Awaitable[None]] | None = None

    def __init__(self, agent_id: str, **kwargs: Any) -> None:
        super().__init__(agent_id, **kwargs)
        self.got: list[AgentMessage] = []
        self.running = 0
        self.peak = 0

    async def on_message(self, message: AgentMessage) -> None:
        self.got.append(message)
        self.running += 1
        self.peak = max(self.peak, self.running)
        try:
            if self.work is not None:
                await self.work(message)
        finally:
            self.running -= 1

    @property
    def numbers(self) -> list[int]:
        return [message.data["n"] for message in self.got]


@pytest.fixture
async def worker(
    ca: CertificateAuthority, nats_server: NatsServer, tmp_path: Path
) -> AsyncIterator[ScriptedWorker]:
    worker = await ScriptedWorker(endpoint(ca, tmp_path / "w", nats_server, "w"), ["a", "b"]).start()
    yield worker
    await worker.stop()


@pytest.fixture
async def make(
    ca: CertificateAuthority, nats_server: NatsServer, worker: ScriptedWorker, tmp_path: Path
) -> AsyncIterator[Make]:
    made: list[Recorder] = []

    def make_one(agent_id: str) -> Recorder:
        where = endpoint(ca, tmp_path / f"{agent_id}{len(made)}", nats_server, agent_id)
        made.append(Recorder(agent_id, server_addr=where.url, tls=where.tls))
        return made[-1]

    yield make_one
    await asyncio.gather(*(agent.stop(timeout=1) for agent in made))


async def send_many(agent: Agent[Any], count: int) -> None:
    await asyncio.gather(*(agent.send("b", "t", {"n": n}) for n in range(count)))


async def waiting(worker: ScriptedWorker) -> int:
    return int((await worker.js.stream_info("INBOX")).state.messages)


async def all_acked(worker: ScriptedWorker) -> None:
    end = time.monotonic() + 5
    while await waiting(worker):
        assert time.monotonic() < end, "not everything was acknowledged"
        await asyncio.sleep(0.02)


async def test_many_messages_each_once(make: Make, worker: ScriptedWorker):
    a, b = make("a"), make("b")
    await asyncio.gather(a.start(), b.start())
    await send_many(a, 200)
    await eventually(lambda: len(b.got) == 200)
    assert sorted(b.numbers) == list(range(200))
    assert b.peak <= LIMITS.in_flight
    await all_acked(worker)


async def test_in_flight_is_bounded_and_full(make: Make):
    a, b = make("a"), make("b")
    release = asyncio.Event()

    async def work(_: AgentMessage) -> None:
        await release.wait()

    b.work = work
    await asyncio.gather(a.start(), b.start())
    await send_many(a, 3 * LIMITS.in_flight)
    await eventually(lambda: b.running == LIMITS.in_flight)
    await asyncio.sleep(0.2)
    assert b.peak == LIMITS.in_flight
    release.set()
    await eventually(lambda: len(b.got) == 3 * LIMITS.in_flight)
    assert b.peak == LIMITS.in_flight


async def test_failure_is_reported_scrubbed_and_tried_again(make: Make, worker: ScriptedWorker):
    a, b = make("a"), make("b")

    async def work(message: AgentMessage) -> None:
        if message.attempt < 3:
            raise ValueError(f"cannot take {message.data['card']}")

    b.work = work
    await asyncio.gather(a.start(), b.start())
    before = time.monotonic()
    await a.send("b", "t", {"card": "4111111111111111"})
    await eventually(lambda: len(b.got) == 3)
    assert [message.attempt for message in b.got] == [1, 2, 3]
    assert len({message.message_id for message in b.got}) == 1
    assert time.monotonic() - before > 0.75 * (0.1 + 0.2)  # doubling, spread by a quarter
    reports = [body for _, op, _, body in worker.calls if op == Op.FAIL]
    assert [(each["attempt"], each["error_class"], each["retryable"]) for each in reports] == [
        (1, "ValueError", True),
        (2, "ValueError", True),
    ]
    assert reports[0]["error"].startswith("cannot take [...]")
    await all_acked(worker)


async def test_reject_and_no_handler_are_not_tried_again(make: Make, worker: ScriptedWorker):
    a, b = make("a"), make("b")

    async def work(message: AgentMessage) -> None:
        raise Reject("not for me")

    b.work = work
    await asyncio.gather(a.start(), b.start())
    await a.send("b", "t", {})
    await eventually(lambda: worker.dead)
    assert worker.dead[0]["error_class"] == "Reject"
    assert worker.dead[0]["error"] == "not for me"
    await all_acked(worker)
    assert len(b.got) == 1


class Unspeakable(Exception):
    """What its text does depends on who asks."""

    def __str__(self) -> str:
        raise RecursionError


@pytest.mark.parametrize("error", [Unspeakable(), ValueError("half a character: \ud800")])
async def test_whatever_is_raised_is_reported(make: Make, worker: ScriptedWorker, error: Exception):
    a, b = make("a"), make("b")

    async def work(message: AgentMessage) -> None:
        if message.attempt == 1:
            raise error

    b.work = work
    await asyncio.gather(a.start(), b.start())
    await a.send("b", "t", {"n": 1})
    await all_acked(worker)
    reports = [body["error"] for _, op, _, body in worker.calls if op == Op.FAIL]
    assert [text[:16] for text in reports] == [
        str(error)[:16] if isinstance(error, ValueError) else " (in work, line "
    ]


async def test_a_failure_that_cannot_be_told_is_reported_all_the_same(
    make: Make, worker: ScriptedWorker, monkeypatch: pytest.MonkeyPatch
):
    def fail(error: BaseException, payload: object) -> str:
        raise RecursionError

    monkeypatch.setattr("mas_nats.inbox.scrub", fail)
    a, b = make("a"), make("b")

    async def work(message: AgentMessage) -> None:
        if message.attempt == 1:
            raise ValueError("boom")

    b.work = work
    await asyncio.gather(a.start(), b.start())
    await a.send("b", "t", {"n": 1})
    await all_acked(worker)
    reports = [body for _, op, _, body in worker.calls if op == Op.FAIL]
    assert [(each["error_class"], each["error"]) for each in reports] == [("ValueError", "")]
    assert b.numbers == [1, 1]


async def test_report_that_finds_nobody_still_delays(make: Make, worker: ScriptedWorker):
    a, b, gone = make("a"), make("b"), asyncio.Event()

    async def work(message: AgentMessage) -> None:
        if message.attempt == 1:
            await gone.wait()
            raise ValueError("first")

    b.work = work
    await asyncio.gather(a.start(), b.start())
    await a.send("b", "t", {"n": 1})
    await worker.leave()
    gone.set()
    await eventually(lambda: len(b.got) == 2)
    await all_acked(worker)


async def test_blocking_handler_is_not_started_twice(make: Make, worker: ScriptedWorker):
    a, b = make("a"), make("b")

    async def work(message: AgentMessage) -> None:
        time.sleep(2.5 * LIMITS.ack_wait)  # noqa: ASYNC251 - the whole loop stands still

    await a.start()
    await a.send("b", "t", {"n": 1})
    await a.stop()
    b.work = work
    await b.start()
    await eventually(lambda: b.got)
    await all_acked(worker)
    await asyncio.sleep(0.3)
    assert [message.attempt for message in b.got] == [1]


async def test_long_handler_is_not_given_to_another_instance(make: Make, worker: ScriptedWorker):
    a, b, other = make("a"), make("b"), make("b")

    async def work(message: AgentMessage) -> None:
        await asyncio.sleep(2.5 * LIMITS.ack_wait)

    b.work = other.work = work
    await asyncio.gather(a.start(), b.start(), other.start())
    await a.send("b", "t", {"n": 1})
    await eventually(lambda: b.got or other.got)
    await asyncio.sleep(2.6 * LIMITS.ack_wait)
    assert len(b.got) + len(other.got) == 1
    await all_acked(worker)


async def test_a_shorter_ack_wait_is_heeded_by_who_runs_already(make: Make, worker: ScriptedWorker):
    """An apply made it shorter; the next heartbeat says so."""
    await worker.limited(LIMITS.model_copy(update={"ack_wait": 60.0}))
    a, b, other = make("a"), make("b"), make("b")

    async def work(message: AgentMessage) -> None:
        await asyncio.sleep(2.5 * LIMITS.ack_wait)

    b.work = other.work = work
    await asyncio.gather(a.start(), b.start(), other.start())
    await worker.limited(LIMITS)
    for each in (b, other):
        await each._alive().session.hello()
    await a.send("b", "t", {"n": 1})
    await eventually(lambda: b.got or other.got)
    await all_acked(worker)
    assert [message.attempt for message in b.got + other.got] == [1]


async def test_no_attempt_waits_longer_than_it_may(make: Make):
    b = make("b")
    await b.start()
    inbox: Any = b._inbox
    first, last = ([inbox._delay(attempt) for _ in range(1_000)] for attempt in (1, 99))
    assert max(last) <= LIMITS.retry_delay_max
    assert min(last) > LIMITS.retry_delay_max / 2
    assert LIMITS.retry_delay < max(first) <= 1.25 * LIMITS.retry_delay
    assert LIMITS.retry_delay > min(first) >= 0.75 * LIMITS.retry_delay


async def test_lost_ack_is_repeated_not_handled_again(make: Make, worker: ScriptedWorker):
    a, b = make("a"), make("b")
    await asyncio.gather(a.start(), b.start())
    inbox: Any = b._inbox
    original, lost = inbox._acks.say, []

    async def lose_first(ack_subject: str, body: bytes) -> None:
        if not lost:
            lost.append(body)
            return
        await original(ack_subject, body)

    inbox._acks.say = lose_first
    await a.send("b", "t", {"n": 1})
    await eventually(lambda: lost)
    await eventually(lambda: inbox._acked)
    await all_acked(worker)
    assert len(b.got) == 1


async def send_each(agent: Agent[Any], numbers: range) -> None:
    for n in numbers:
        await agent.send("b", "t", {"n": n})


async def test_what_a_restored_log_has_under_known_sequences_is_handled(
    make: Make, worker: ScriptedWorker, nats_server: NatsServer, tmp_path: Path
):
    a, b = make("a"), make("b")
    await asyncio.gather(a.start(), b.start())
    await send_each(a, range(3))
    await all_acked(worker)
    await nats_server.process.stop()
    shutil.copytree(nats_server.folder, tmp_path / "backup")
    await nats_server.start()
    await send_each(a, range(10, 15))
    await eventually(lambda: len(b.got) == 8, timeout=10)
    await all_acked(worker)
    await nats_server.process.stop()
    shutil.rmtree(nats_server.folder)
    shutil.copytree(tmp_path / "backup", nats_server.folder)
    await nats_server.start()
    await send_each(a, range(20, 25))
    await eventually(lambda: set(range(20, 25)) <= set(b.numbers), timeout=10)
    await all_acked(worker)


async def made_anew(worker: ScriptedWorker) -> None:
    """The stream of all messages is another one, and counts from 1."""
    await worker.js.delete_stream("INBOX")
    await worker.start()


async def test_what_a_log_that_is_made_anew_has_is_handled(make: Make, worker: ScriptedWorker):
    a, b = make("a"), make("b")
    await asyncio.gather(a.start(), b.start())
    await send_each(a, range(3))
    await all_acked(worker)
    await made_anew(worker)
    await send_each(a, range(10, 13))
    await eventually(lambda: b.numbers == [0, 1, 2, 10, 11, 12], timeout=10)
    await all_acked(worker)


@pytest.mark.parametrize("how", ["returns", "fails", "is given up"])
async def test_what_ends_of_an_earlier_log_says_nothing_of_a_message_of_this_one(
    make: Make, worker: ScriptedWorker, how: str
):
    a, b = make("a"), make("b")
    go = {n: asyncio.Event() for n in range(2)}
    unknown: list[OutcomeUnknown] = []

    async def work(message: AgentMessage) -> None:
        await go[message.data["n"]].wait()
        if message.data["n"] == 0:
            with pytest.raises(OutcomeUnknown) as caught:
                await message.acknowledge()
            unknown.append(caught.value)
            if how == "fails":
                raise Reject("no")
            if how == "is given up":
                raise asyncio.CancelledError

    b.work = work
    await asyncio.gather(a.start(), b.start())
    await send_each(a, range(1))
    await eventually(lambda: b.running == 1)
    await made_anew(worker)
    await send_each(a, range(1, 2))
    await eventually(lambda: b.running == 2, timeout=10)
    inbox: Any = b._inbox
    assert inbox._in_hand() == 2
    go[0].set()
    await eventually(lambda: b.running == 1)
    await asyncio.sleep(0.3)
    assert len(unknown) == 1
    assert (await waiting(worker), worker.count(Op.FAIL), inbox._in_hand()) == (1, 0, 1)
    go[1].set()
    await all_acked(worker)
    assert [message.attempt for message in b.got] == [1, 1]


async def test_who_stops_waits_for_what_runs_of_an_earlier_log(make: Make, worker: ScriptedWorker):
    a, b = make("a"), make("b")
    done: list[int] = []

    async def work(message: AgentMessage) -> None:
        if message.data["n"] == 0:
            await asyncio.sleep(1.5)
        done.append(message.data["n"])

    b.work = work
    await asyncio.gather(a.start(), b.start())
    await send_each(a, range(1))
    await eventually(lambda: b.running)
    await made_anew(worker)
    await send_each(a, range(1, 2))
    await eventually(lambda: done == [1])
    await b.stop()
    assert done == [1, 0]


async def test_expired_request_is_not_handled(make: Make, worker: ScriptedWorker):
    a, b = make("a"), make("b")
    await a.start()
    with pytest.raises(RequestTimeout):
        await a.request("b", "t", {"n": 1}, timeout=0.2)
    await b.start()
    await eventually(lambda: worker.count(Op.FAIL))
    await all_acked(worker)
    assert b.got == []
    report = next(body for _, op, _, body in worker.calls if op == Op.FAIL)
    assert (report["error_class"], report["retryable"]) == ("EXPIRED", False)


async def test_stop_drains_and_gives_back_the_rest(make: Make, worker: ScriptedWorker):
    a, b, other = make("a"), make("b"), make("b")
    started = asyncio.Event()

    async def work(message: AgentMessage) -> None:
        started.set()
        await asyncio.sleep(0.3)

    b.work = work
    await asyncio.gather(a.start(), b.start())
    await send_many(a, 4 * LIMITS.in_flight)
    await started.wait()
    await b.stop()
    assert b.running == 0
    before = time.monotonic()
    await other.start()
    await eventually(lambda: len(b.got) + len(other.got) >= 4 * LIMITS.in_flight)
    assert time.monotonic() - before < LIMITS.ack_wait, "something waited for the ack wait"
    assert max(Counter(b.numbers + other.numbers).values()) == 1


async def test_stop_does_not_wait_for_ever(make: Make, worker: ScriptedWorker):
    a, b = make("a"), make("b")

    async def work(message: AgentMessage) -> None:
        await asyncio.Event().wait()

    b.work = work
    await asyncio.gather(a.start(), b.start())
    await a.send("b", "t", {"n": 1})
    await eventually(lambda: b.running)
    before = time.monotonic()
    await b.stop(timeout=0.2)
    assert time.monotonic() - before < 2
    assert await waiting(worker) == 1  # given back


async def test_silent_server_is_asked_anew(
    make: Make, worker: ScriptedWorker, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(pull, "HEARTBEAT", 0.3)
    a, b = make("a"), make("b")
    await asyncio.gather(a.start(), b.start())
    inbox: Any = b._inbox
    # Another's request to forget: as if the server had lost it.
    await inbox._pull._subscription._inner.unsubscribe()
    await asyncio.sleep(0)
    await a.send("b", "t", {"n": 1})
    await eventually(lambda: b.got)


async def test_consumer_gone_and_back(make: Make, worker: ScriptedWorker):
    a, b = make("a"), make("b")
    await asyncio.gather(a.start(), b.start())
    config = (await worker.js.consumer_info("INBOX", "b")).config
    await worker.js.delete_consumer("INBOX", "b")
    await asyncio.sleep(0.2)
    await worker.js.add_consumer("INBOX", config)
    await a.send("b", "t", {"n": 1})
    await eventually(lambda: b.got, timeout=10)


async def test_server_restart_in_the_middle(make: Make, worker: ScriptedWorker, nats_server: NatsServer):
    a, b = make("a"), make("b")
    await asyncio.gather(a.start(), b.start())
    await send_many(a, 20)
    await nats_server.process.stop()
    await nats_server.start()
    await worker.start()

    async def send_until_taken(n: int) -> None:
        while True:
            try:
                await a.send("b", "t", {"n": n}, id=f"n{n}")
            except Unavailable:
                await asyncio.sleep(0.1)
            else:
                return

    await asyncio.gather(*(send_until_taken(n) for n in range(20, 40)))
    await eventually(lambda: set(b.numbers) == set(range(40)), timeout=10)
    await all_acked(worker)


async def test_what_comes_after_a_loss_is_not_taken_to_follow_what_came_before(make: Make):
    a, b = make("a"), make("b")
    await asyncio.gather(a.start(), b.start())
    await send_many(a, 3)
    await eventually(lambda: len(b.got) == 3)
    inbox: Any = b._inbox
    streak, at_loss = inbox._acks._streak, list[int]()
    assert streak.since > 0
    b._alive().connection.at_loss.append(lambda: at_loss.append(streak.since))
    await b._alive().connection._client.force_reconnect()  # type: ignore[attr-defined]
    await eventually(lambda: at_loss)
    assert at_loss == [0]
    await a.send("b", "t", {"n": 3})
    await eventually(lambda: len(b.got) == 4)


async def test_reply_missed_by_a_reconnect_is_fetched(make: Make, worker: ScriptedWorker):
    a, b = make("a"), make("b")
    blocked = asyncio.Event()

    async def work(message: AgentMessage) -> None:
        await blocked.wait()
        await message.reply("answer", {"n": message.data["n"] + 1})

    b.work = work
    await asyncio.gather(a.start(), b.start())
    asking = asyncio.ensure_future(a.request("b", "t", {"n": 1}, timeout=20))
    await eventually(lambda: b.got)
    messenger: Any = a._running.messenger if a._running else None
    await messenger._subscription.end()  # the answer passes by while nobody listens
    blocked.set()
    await eventually(lambda: worker.count(Op.REPLY))
    await asyncio.sleep(0.1)
    assert not asking.done()
    connection: Any = messenger._connection
    await connection._client.force_reconnect()
    assert (await asking).data == {"n": 2}


async def test_repeated_reply_is_recognised(make: Make):
    a, b = make("a"), make("b")
    results: list[Any] = []

    async def work(message: AgentMessage) -> None:
        results.append(await message.reply("answer", {"n": message.attempt}))
        if message.attempt == 1:
            raise ValueError("after the reply")

    b.work = work
    await asyncio.gather(a.start(), b.start())
    assert (await a.request("b", "t", {"n": 0})).data == {"n": 1}
    await eventually(lambda: len(results) == 2)
    assert [each.duplicate for each in results] == [False, True]


async def test_reply_to_a_send_is_a_clear_error(make: Make, worker: ScriptedWorker):
    a, b = make("a"), make("b")

    async def work(message: AgentMessage) -> None:
        await message.reply("answer", {})

    b.work = work
    await asyncio.gather(a.start(), b.start())
    await a.send("b", "t", {"n": 0})
    await eventually(lambda: worker.count(Op.FAIL))
    report = next(body for _, op, _, body in worker.calls if op == Op.FAIL)
    assert report["error_class"] == "InvalidMessage"
    assert "was sent, not requested" in report["error"]


async def test_bad_messages_are_refused_before_they_leave(make: Make, worker: ScriptedWorker):
    a = make("a")
    await a.start()
    bad: list[tuple[Any, Any, Any, str]] = [
        ("b.c", "t", {}, "target"),
        ("*", "t", {}, "target"),
        ("b c", "t", {}, "target"),
        (None, "t", {}, "target"),
        ("b", "", {}, "message type"),
        ("b", "a b", {}, "message type"),
        ("b", "x\r\ny", {}, "message type"),
        ("b", "t", [1], "not an object"),
        ("b", "t", {"a": object()}, "object has no JSON form"),
        ("b", "t", {1: 2}, "not serialisable"),
        ("b", "t", {"a": "x" * 2_000_000}, "2000008 bytes, the limit is"),
    ]
    for target, kind, data, text in bad:
        with pytest.raises(Exception, match=text) as caught:
            await a.send(target, kind, data)
        assert type(caught.value).__name__ == "InvalidMessage", data
    assert worker.count(Op.SEND) == 0


async def test_header_injection_ends_at_the_sdk(make: Make, worker: ScriptedWorker):
    a = make("a")
    await a.start()
    with pytest.raises(Exception, match="message id"):
        await a.send("b", "t", {}, id="x\r\nMas-Sender: ceo")
    assert orjson.dumps([fields for _, _, fields, _ in worker.calls]).count(b"ceo") == 0


async def test_not_started(make: Make):
    with pytest.raises(Unavailable, match="is not started"):
        await make("a").send("b", "t", {})


async def test_late_reply_is_no_error(make: Make, worker: ScriptedWorker):
    a, b = make("a"), make("b")
    results: list[Any] = []

    async def work(message: AgentMessage) -> None:
        results.append(await message.reply("answer", {}))

    b.work = work
    worker.say[Op.REPLY] = lambda: Verdict(Decision.REPLY_LATE, ok=False, reason="too late")
    await asyncio.gather(a.start(), b.start())
    with pytest.raises(RequestTimeout):
        await a.request("b", "t", {"n": 1}, timeout=0.5)
    await eventually(lambda: results)
    assert results == [ReplyResult(delivered=False, late=True)]
    await all_acked(worker)

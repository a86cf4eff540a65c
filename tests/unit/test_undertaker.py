"""Dead letters on a real server: stored, recorded, removed; repeatable at any point, none lost or twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import nats.errors
import orjson
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext

from broker_policy.audit.record import Outcome, Report
from broker_policy.dead_letters import advisories
from broker_policy.dead_letters.advisories import AdvisoryFollower
from broker_policy.dead_letters.removed import RemovedAgents
from broker_policy.dead_letters.sweep import Sweep
from broker_policy.dead_letters.undertaker import NoRoom, NotYours, Undertaker
from broker_policy.ending import end
from broker_policy.jetstream import JetStreamError, StoredMessage, direct_get, direct_get_page, publish
from mas_nats.policy.document import Limits
from mas_nats.wire import headers, subjects
from tests.audit_log import NAMESPACE, make_streams
from tests.lossy import Lossy

LIMITS = Limits(max_deliver=2, ack_wait=1.0)


class Journal:
    """Takes reports as the log would, and what requesters are told."""

    def __init__(self) -> None:
        self.reports: list[Report] = []
        self.told: list[str] = []
        self.full = False
        self.deaf: Exception | None = None

    async def record(self, report: Report) -> bool:
        if not self.full:
            self.reports.append(report)
        return not self.full

    async def tell(self, token: str, reason: str) -> None:
        if self.deaf:
            raise self.deaf
        self.told.append(token)


@pytest.fixture
def journal() -> Journal:
    return Journal()


@pytest.fixture
async def lossy(nc: Client) -> Lossy:
    await make_streams(nc, ("bob", "carol"), LIMITS)
    return Lossy(nc)


@pytest.fixture
def undertaker(lossy: Lossy, journal: Journal) -> Undertaker:
    return Undertaker(lossy, NAMESPACE, record=journal.record, tell_requester=journal.tell)


async def message(nc: Client, agent: str = "bob", **more: str) -> StoredMessage:
    fields = {headers.MESSAGE_ID: "m1", headers.SENDER: "alice", headers.SALT: "00", "X-Other": "gone"} | more
    ack = await publish(nc, subjects.inbox(agent), b'{"n":1}', fields)
    stored = await direct_get(nc, subjects.INBOX_STREAM, ack.sequence)
    assert stored is not None
    return stored


async def letters(nc: Client) -> list[StoredMessage]:
    return await direct_get_page(nc, subjects.DLQ_STREAM, ">", 1)


async def waiting(nc: Client, agent: str = "bob") -> list[int]:
    found = await direct_get_page(nc, subjects.INBOX_STREAM, subjects.inbox(agent), 1)
    return [each.sequence for each in found]


async def bury(undertaker: Undertaker, stored: StoredMessage) -> None:
    await undertaker.bury("bob", stored, reason="ValueError", attempt=2, error="ValueError: no\r\nX: \x01é")


async def test_a_dead_letter_has_body_headers_and_last_error(
    undertaker: Undertaker, nc: Client, journal: Journal
):
    stored = await message(nc, **{headers.REPLY_TOKEN: "token"})
    await bury(undertaker, stored)
    (letter,) = await letters(nc)
    assert (letter.subject, letter.data) == ("mas.dlq.bob", b'{"n":1}')
    assert letter.headers[headers.MESSAGE_ID] == "m1"
    assert "X-Other" not in letter.headers
    assert letter.headers[headers.DEAD_REASON] == "ValueError"
    assert letter.headers[headers.DEAD_ATTEMPTS] == "2"
    assert letter.headers[headers.DEAD_ERROR] == "ValueError: no X: ??"
    assert letter.headers[headers.DEAD_SEQUENCE] == str(stored.sequence)
    assert await waiting(nc) == []
    assert [(each.agent, each.sequence, each.outcome) for each in journal.reports] == [
        ("bob", stored.sequence, Outcome.DEAD)
    ]
    assert journal.told == ["token"]


# -- a crash at every point: what went before is there, what follows did not happen ------------------------
def dead_letter(subject: str, _: dict[str, str]) -> bool:
    return subject.startswith("mas.dlq.")


def removal(subject: str, _: dict[str, str]) -> bool:
    return subject.startswith("$JS.API.STREAM.MSG.DELETE")


@pytest.mark.parametrize("fault", ["lose", "swallow"])
@pytest.mark.parametrize("point", [dead_letter, removal])
async def test_interrupted_and_done_again(
    undertaker: Undertaker, lossy: Lossy, nc: Client, fault: str, point: Callable[..., bool]
):
    stored = await message(nc)
    getattr(lossy, fault)(point)
    with pytest.raises(TimeoutError):
        await bury(undertaker, stored)
    if again := await undertaker.find("bob", stored.sequence):
        await bury(undertaker, again)
    assert len(await letters(nc)) == 1
    assert await waiting(nc) == []


async def test_interrupted_before_it_was_recorded(undertaker: Undertaker, journal: Journal, nc: Client):
    stored = await message(nc)
    journal.full = True
    with pytest.raises(NoRoom, match="INBOX"):
        await bury(undertaker, stored)
    assert await waiting(nc) == [stored.sequence]
    journal.full = False
    await bury(undertaker, stored)
    assert len(await letters(nc)) == 1
    assert len(journal.reports) == 1
    assert await waiting(nc) == []


async def test_where_the_log_was_made_anew_its_messages_get_letters_of_their_own(
    undertaker: Undertaker, nc: Client
):
    """It gives the same sequences again, within the time for which the dead letters know their ids."""
    for decision in ("w1i.1.0", "w2i.1.0"):
        stored = await message(nc, **{headers.AUDIT: decision})
        assert stored.sequence == 1
        await bury(undertaker, stored)
        assert await waiting(nc) == []
        await nc.jetstream().delete_stream(subjects.INBOX_STREAM)
        await make_streams(nc, ("bob", "carol"), LIMITS)
    assert [each.headers[headers.AUDIT] for each in await letters(nc)] == ["w1i.1.0", "w2i.1.0"]


async def test_no_room_for_dead_letters_loses_nothing(undertaker: Undertaker, journal: Journal, nc: Client):
    js = nc.jetstream()
    config = (await js.stream_info(subjects.DLQ_STREAM)).config
    config.max_bytes = 10
    await js.update_stream(config)
    stored = await message(nc)
    with pytest.raises(NoRoom, match="DLQ"):
        await bury(undertaker, stored)
    assert await waiting(nc) == [stored.sequence]
    assert journal.reports == []


async def test_a_requester_that_cannot_be_told_is_no_obstacle(
    undertaker: Undertaker, journal: Journal, nc: Client
):
    journal.deaf = JetStreamError(503, "no stream")
    await bury(undertaker, await message(nc, **{headers.REPLY_TOKEN: "token"}))
    assert await waiting(nc) == []


async def test_only_what_lies_in_the_agents_own_inbox_is_found(undertaker: Undertaker, nc: Client):
    own, foreign = await message(nc), await message(nc, "carol")
    record = await publish(nc, subjects.audit_record("w1i", 1), b"{}", {})
    assert (await undertaker.find("bob", own.sequence)) is not None
    for sequence in (foreign.sequence, record.sequence):
        with pytest.raises(NotYours):
            await undertaker.find("bob", sequence)
    assert await undertaker.find("bob", 99_999) is None


async def test_the_last_error_is_a_hint_and_never_an_obstacle(undertaker: Undertaker, nc: Client):
    await undertaker.remember(7, "ValueError: é")
    assert await undertaker.last_error(7) == "ValueError: é"
    assert await undertaker.last_error(8) == ""
    await nc.jetstream().delete_stream(subjects.kv_stream(subjects.ATTEMPTS_BUCKET))
    await undertaker.remember(7, "more")
    assert await undertaker.last_error(7) == ""


# -- messages that nobody reports --------------------------------------------------------------------------
async def exhaust(nc: Client, agent: str = "bob") -> None:
    """Let every attempt fail in silence; the server notices with the pull after the last."""
    pull = await nc.jetstream().pull_subscribe_bind(consumer=agent, stream=subjects.INBOX_STREAM)
    for _ in range(LIMITS.max_deliver):
        for each in await pull.fetch(10, timeout=2):
            await each.nak()
    with pytest.raises(TimeoutError):
        await pull.fetch(10, timeout=0.3)
    await pull.unsubscribe()


async def until(condition: Callable[[], object], timeout: float = 8) -> None:
    async with asyncio.timeout(timeout):
        while not condition():
            await asyncio.sleep(0.05)


@pytest.fixture
async def follower(nc: Client, undertaker: Undertaker) -> AsyncIterator[None]:
    task = asyncio.create_task(AdvisoryFollower(nc, undertaker).run())
    yield
    await end([task])


async def test_the_servers_advisory_is_enough(
    undertaker: Undertaker, nc: Client, journal: Journal, follower: None
):
    stored = await message(nc)
    await undertaker.remember(stored.sequence, "KeyError: x")
    await exhaust(nc)
    await until(lambda: journal.reports)
    (letter,) = await letters(nc)
    assert letter.headers[headers.DEAD_REASON] == "EXHAUSTED"
    assert letter.headers[headers.DEAD_ERROR] == "KeyError: x"


async def test_nothing_to_follow_is_no_trouble(
    nc: Client, undertaker: Undertaker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """nats-py says in one of two ways that nothing came, as the last answer comes before the end or not."""
    fetches: list[type[TimeoutError]] = []

    async def fetch(*_: object, **__: object) -> None:
        fetches.append((TimeoutError, nats.errors.TimeoutError)[len(fetches) % 2])
        await asyncio.sleep(0)
        raise fetches[-1]

    monkeypatch.setattr(JetStreamContext.PullSubscription, "fetch", fetch)
    task = asyncio.create_task(AdvisoryFollower(nc, undertaker).run())
    await until(lambda: len(fetches) > 3)
    await end([task])
    assert caplog.messages == []


async def test_no_advisory_stops_the_following(
    nc: Client, journal: Journal, follower: None, monkeypatch: pytest.MonkeyPatch
):
    """None that is malformed, none whose message finds no room, none that is about somebody else's."""
    monkeypatch.setattr(advisories, "_TRY_AGAIN", 0.2)
    subject = subjects.ADVISORY_MAX_DELIVERIES.removesuffix("*")
    foreign = await message(nc, "carol")
    for body in (
        b"no json",
        b"[]",
        b"{}",
        b'{"consumer":"bob","stream_seq":"x"}',
        orjson.dumps({"consumer": "bob", "stream_seq": foreign.sequence}),
        orjson.dumps({"consumer": "bob", "stream_seq": 99_999}),
    ):
        await publish(nc, subject + "bob", body, {})
    journal.full = True
    await message(nc)
    await exhaust(nc)
    await asyncio.sleep(0.5)
    journal.full = False
    await until(lambda: journal.reports)
    assert len(await letters(nc)) == 1
    assert await waiting(nc, "carol") == [foreign.sequence]
    info = await nc.jetstream().consumer_info(subjects.ADVISORIES_STREAM, "policy")
    assert info.num_pending == 0


async def test_following_leaves_no_subscriptions_behind(
    nc: Client, undertaker: Undertaker, monkeypatch: pytest.MonkeyPatch
):
    tries = []

    async def fail(_: list[Msg]) -> None:
        tries.append(1)
        raise RuntimeError("a fault")

    following = AdvisoryFollower(nc, undertaker)
    monkeypatch.setattr(following, "_batch", fail)
    subject = subjects.ADVISORY_MAX_DELIVERIES.removesuffix("*")
    for _ in range(3):
        await publish(nc, subject + "bob", b"{}", {})
    before = len(nc._subs)
    task = asyncio.create_task(following.run())
    await until(lambda: tries)
    await until(lambda: len(nc._subs) <= before + 1)
    await end([task])
    assert len(nc._subs) <= before + 1


def sweep_of(nc: Client, undertaker: Undertaker, removed: set[str] | None = None) -> Sweep:
    gone = (set() if removed is None else removed).__contains__
    return Sweep(nc, undertaker, RemovedAgents(nc, undertaker, gone), removed_agent=gone)


async def test_the_sweep_finds_what_nobody_announced(undertaker: Undertaker, nc: Client, journal: Journal):
    stored = await message(nc)
    await exhaust(nc)
    sweep = sweep_of(nc, undertaker)
    assert await sweep.sweep() == 0  # seen once
    assert await sweep.sweep() == 1
    (letter,) = await letters(nc)
    assert letter.headers[headers.DEAD_SEQUENCE] == str(stored.sequence)
    assert letter.headers[headers.DEAD_ATTEMPTS] == "2"
    assert await waiting(nc) == []
    assert await sweep.sweep() == 0


async def test_the_sweep_leaves_what_may_yet_be_handled(undertaker: Undertaker, nc: Client):
    """Never delivered, in flight, or given back with a delay."""
    sweep = sweep_of(nc, undertaker)
    await message(nc)
    for _ in range(3):
        assert await sweep.sweep() == 0
    pull = await nc.jetstream().pull_subscribe_bind(consumer="bob", stream=subjects.INBOX_STREAM)
    (delivered,) = await pull.fetch(1, timeout=2)
    for _ in range(3):
        assert await sweep.sweep() == 0
    await delivered.nak(delay=60)
    await message(nc)
    for _ in range(3):
        assert await sweep.sweep() == 0
    assert len(await waiting(nc)) == 2
    await pull.unsubscribe()


async def test_the_sweep_finds_what_is_exhausted_while_its_agent_is_busy(undertaker: Undertaker, nc: Client):
    """Something is always in flight; what ran out of attempts is dead all the same, and nothing else is."""
    first = await message(nc)
    await exhaust(nc)
    sweep = sweep_of(nc, undertaker)
    pull = await nc.jetstream().pull_subscribe_bind(consumer="bob", stream=subjects.INBOX_STREAM)
    found, inside = [], []
    for _ in range(4):
        stored = await message(nc)
        (delivered,) = await pull.fetch(1, timeout=2)
        found.append(await sweep.sweep())
        inside.append(stored.sequence in await waiting(nc))
        await delivered.ack_sync()
    assert (sum(found), all(inside)) == (1, True)
    assert await waiting(nc) == []
    (letter,) = await letters(nc)
    assert letter.headers[headers.DEAD_SEQUENCE] == str(first.sequence)
    await pull.unsubscribe()


async def test_the_sweep_does_not_take_a_long_handler_for_exhausted(undertaker: Undertaker, nc: Client):
    await message(nc)
    pull = await nc.jetstream().pull_subscribe_bind(consumer="bob", stream=subjects.INBOX_STREAM)
    (long,) = await pull.fetch(1, timeout=2)
    sweep = sweep_of(nc, undertaker)
    for _ in range(4):
        await message(nc)
        (delivered,) = await pull.fetch(1, timeout=2)
        assert await sweep.sweep() == 0
        await delivered.ack_sync()
        await long.in_progress()
    assert await letters(nc) == []
    await pull.unsubscribe()


async def test_the_sweep_finds_what_came_for_a_removed_agent(undertaker: Undertaker, nc: Client):
    """With its consumer or without; and as long as policy has the agent, not at all."""
    removed: set[str] = set()
    sweep = sweep_of(nc, undertaker, removed)
    await message(nc, "bob")
    await message(nc, "nobody")
    assert [await sweep.sweep(), await sweep.sweep()] == [0, 0]
    removed |= {"bob", "nobody"}
    assert [await sweep.sweep(), await sweep.sweep()] == [0, 2]
    found = {each.subject: each.headers[headers.DEAD_REASON] for each in await letters(nc)}
    assert found == {"mas.dlq.bob": "AGENT_REMOVED", "mas.dlq.nobody": "AGENT_REMOVED"}
    assert await waiting(nc, "*") == []

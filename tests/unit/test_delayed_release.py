"""Releasing delayed messages on a real server: once, in turn, whatever dies or gets lost on the way."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import nats.errors
import orjson
import pytest
from nats.aio.client import Client

from broker_policy.audit.record import Outcome
from broker_policy.delayed import lease as leases
from broker_policy.delayed import releaser
from broker_policy.delayed import stream as delayed_stream
from broker_policy.delayed.claims import Claim, Claims, For
from broker_policy.delayed.lease import Lease
from broker_policy.delayed.releaser import Releaser
from broker_policy.delayed.stream import DelayedStream
from broker_policy.ending import end
from broker_policy.jetstream import api, delete_message, direct_get_page, publish
from broker_policy.tenants import streams
from mas_nats.policy.document import Document, Limits
from mas_nats.wire import headers, subjects
from mas_nats.wire.correlation import correlation
from mas_nats.wire.subjects import RELEASE, AdminOp
from mas_nats.wire.verdict import Decision, Verdict
from tests.lossy import Lossy
from tests.serving import Serving, document, serving


@pytest.fixture(autouse=True)
def _short_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a dead worker held is free after a second."""
    monkeypatch.setattr(streams, "LEASE_AGE", 1.0)
    monkeypatch.setattr(releaser, "RENEW_EVERY", 0.25)
    monkeypatch.setattr(releaser, "ASK_EVERY", 0.25)
    monkeypatch.setattr(releaser, "_STOPPING", 1.0)


@pytest.fixture
def lossy(nc: Client) -> Lossy:
    return Lossy(nc)


@pytest.fixture
async def here(nc: Client, lossy: Lossy) -> AsyncIterator[Serving]:
    async with serving(nc, through=lossy) as up:
        yield up


async def delay(
    here: Serving, message_id: str, milliseconds: int = 0, sender: str = "alice", **more: Any
) -> Verdict:
    fields = {headers.MSG_ID: message_id, headers.TARGET: "bob", headers.TYPE: "work"}
    due = more.pop("due", None)
    fields |= {headers.DUE: str(due)} if due else {headers.DELAY: str(milliseconds)}
    fields |= more.pop("fields", {})
    return await here.call(sender, "delay", more.pop("body", {"id": message_id}), **fields)


async def cancel(here: Serving, message_id: str) -> bool:
    verdict = await here.call("alice", "withdraw", **{headers.MSG_ID: message_id})
    assert verdict.ok
    return bool(verdict.result["cancelled"])


async def inbox(nc: Client, agent: str = "bob") -> list[str]:
    stored = await direct_get_page(nc, subjects.INBOX_STREAM, subjects.inbox(agent), 1, batch=1000)
    return [each.headers[headers.MESSAGE_ID] for each in stored]


async def held(nc: Client, stream: str = subjects.DELAYED_STREAM) -> int:
    """Messages that wait to be released, or claims."""
    return int((await api(nc, f"STREAM.INFO.{stream}", {}))["state"]["messages"])


async def until(condition: Callable[[], Any], timeout: float = 12) -> None:
    async with asyncio.timeout(timeout):
        while not await condition():
            await asyncio.sleep(0.02)


def to(prefix: str) -> Callable[[str, dict[str, str]], bool]:
    return lambda subject, _: subject.startswith(prefix)


STEPS = {
    "before the claim": to("mas.claim."),
    "before the record": to("mas.audit."),
    "before the message": to("mas.inbox."),
    "before the removal": to("$JS.API.STREAM.MSG.DELETE.DELAYED"),
}


@pytest.mark.parametrize("step", STEPS)
async def test_a_worker_that_dies_anywhere_leaves_it_to_another(nc: Client, step: str):
    lossy = Lossy(nc)
    async with serving(nc, through=lossy) as here:
        assert (await delay(here, "m1", 300)).ok
        lossy.swallow(STEPS[step], times=10_000)
        await asyncio.wait_for(lossy.happened.wait(), 5)
        for task in (*here.service._followers, *here.service._lanes):
            task.cancel()  # as dead as it can be within this process
    async with serving(nc):
        await until(lambda: _equal(inbox(nc), ["m1"]))
        await until(lambda: _empty(nc))


@pytest.mark.parametrize("step", STEPS)
async def test_an_answer_that_is_lost_changes_nothing(here: Serving, lossy: Lossy, step: str):
    lossy.lose(STEPS[step])
    assert (await delay(here, "m1", 100)).ok
    await until(lambda: _empty(here.nc))
    assert await inbox(here.nc) == ["m1"]


async def test_handled_before_it_was_removed(nc: Client):
    """The message was stored and handled, its worker died before the removal: nothing is delivered twice."""
    lossy = Lossy(nc)
    async with serving(nc, through=lossy) as here:
        lossy.swallow(STEPS["before the removal"], times=10_000)
        assert (await delay(here, "m1", 0)).ok
        await until(lambda: _equal(inbox(nc), ["m1"]))
        (stored,) = await direct_get_page(nc, subjects.INBOX_STREAM, subjects.inbox("bob"), 1)
        await delete_message(nc, subjects.INBOX_STREAM, stored.sequence)
        lines = [line for record in await here.records() for line in record.decisions if line.op == RELEASE]
        for task in here.service._followers:
            task.cancel()
    async with serving(nc) as here:
        here.recall.known["alice", "m1"] = lines[0].commitment
        await until(lambda: _empty(nc))
        assert await inbox(nc) == []


async def race(here: Serving) -> tuple[set[str], set[str], list[str]]:
    """Cancel messages at the moment when they are due: all, the cancelled, and what was delivered."""
    names = [f"m{number}" for number in range(200)]
    begin = time.time() + 1.0
    when = [begin + place * 0.001 for place in range(len(names))]
    sending = (delay(here, name, due=int(due * 1000)) for name, due in zip(names, when, strict=True))
    assert all(verdict.ok for verdict in await asyncio.gather(*sending))

    async def later(place: int) -> bool:
        offset = -0.05 + 0.03 * (place % 10)  # so that most of them meet their release
        if place % 10 in (0, 9):
            offset = -0.5 if place % 10 == 0 else 1.0
        await asyncio.sleep(when[place] + offset - time.time())
        return await cancel(here, names[place])

    told = await asyncio.gather(*(later(place) for place in range(len(names))))
    await until(lambda: _empty(here.nc))
    return set(names), {name for name, yes in zip(names, told, strict=True) if yes}, await inbox(here.nc)


async def test_cancelled_or_delivered_never_both_never_neither(here: Serving):
    names, cancelled, delivered = await race(here)
    assert set(delivered) == names - cancelled
    assert len(delivered) == len(names) - len(cancelled)
    assert cancelled
    assert delivered


async def test_without_claims_some_would_be_both(here: Serving, monkeypatch: pytest.MonkeyPatch):
    """The control: the same race where everybody's claim holds, and takes as long as over a network."""

    async def mine(_: Claims, _sender: str, _token: str, message: int, what: For, *_content: str) -> Claim:
        await asyncio.sleep(0.03)
        return Claim(what, message, 0, new=True)

    monkeypatch.setattr(Claims, "claim", mine)
    _, cancelled, delivered = await race(here)
    assert cancelled & set(delivered)


async def test_a_cancellation_that_was_not_finished_is(nc: Client):
    lossy = Lossy(nc)
    async with serving(nc, through=lossy) as here:
        assert (await delay(here, "m1", 500)).ok
        lossy.swallow(STEPS["before the removal"], times=1)
        assert not (await here.call("alice", "withdraw", **{headers.MSG_ID: "m1"})).ok
        await until(lambda: _empty(nc))
        assert await inbox(nc) == []
        assert await cancel(here, "m1"), "it was cancelled"


async def _nothing(*_: object, **__: object) -> None:
    """Nothing was released lately."""


async def test_a_repetition_held_while_it_is_released_is_not_cancelled(nc: Client, monkeypatch: Any):
    """Its worker held the repetition and died before it asked for a release."""

    async with serving(nc) as here:
        assert (await delay(here, "m1", 0)).ok
        await until(lambda: _equal(inbox(nc), ["m1"]))
        await until(lambda: _empty(nc))
        monkeypatch.setattr(DelayedStream, "_released", _nothing)
        assert (await delay(here, "m1", 60_000)).ok
        assert await held(nc) == 1
        assert not await cancel(here, "m1"), "it is in the inbox"


async def test_without_what_was_released_it_would_be_both(nc: Client, monkeypatch: Any):
    """The control: the same where nothing is known of earlier claims."""

    async with serving(nc) as here:
        assert (await delay(here, "m1", 0)).ok
        await until(lambda: _equal(inbox(nc), ["m1"]))
        await until(lambda: _empty(nc))
        monkeypatch.setattr(DelayedStream, "_released", _nothing)
        assert (await delay(here, "m1", 60_000)).ok
        claims = Claims(nc)
        await claims.drop(await claims.find("alice", correlation("m1")))
        assert await cancel(here, "m1")


async def test_a_claim_of_an_earlier_message_means_nothing(here: Serving):
    token = correlation("m1")
    claims = Claims(here.nc)
    await claims.claim("alice", token, 0, For.CANCEL)
    assert (await delay(here, "m1", 0)).ok
    await until(lambda: _equal(inbox(here.nc), ["m1"]))
    assert await claims.claim("alice", "other", 7, For.RELEASE) is not None
    assert await claims.claim("alice", "other", 3, For.CANCEL) is None


async def test_what_was_overdue_comes_slowly_oldest_first_and_in_turn(nc: Client, monkeypatch: Any):
    limits = Limits(release_rate=60)

    async def idle(_: Releaser) -> None:
        await asyncio.Event().wait()

    policy = document(("alice", "carol", "bob"), limits=limits)
    with monkeypatch.context() as patch:
        patch.setattr(Releaser, "run", idle)
        async with serving(nc, policy) as here:
            past = int(time.time() * 1000) - 1000
            for number in range(100, 0, -1):
                assert (await delay(here, f"a{number:03}", due=past + number)).ok
            assert (await delay(here, "c", due=past + 101, sender="carol")).ok
    async with serving(nc, policy) as here:
        begun = time.monotonic()
        await until(lambda: _empty(nc))
        took = time.monotonic() - begun
    order = await inbox(nc)
    assert order.index("c") < 10
    order.remove("c")
    places = {name: place for place, name in enumerate(order)}
    assert sorted(places) == [f"a{number:03}" for number in range(1, 101)]
    assert all(abs(place - (int(name[1:]) - 1)) < 10 for name, place in places.items())
    assert took > 0.9 * (101 / 60 - 0.1)


async def test_a_full_inbox_keeps_it_and_does_not_hold_up_others(nc: Client):
    async with serving(nc, document(("alice", "bob", "carol"), limits=Limits(inbox_messages=1))) as here:
        assert (await here.send("alice", "bob", id="first")).ok
        assert (await delay(here, "m1", 0)).ok
        assert (await delay(here, "m2", 200, fields={headers.TARGET: "carol"})).ok
        await until(lambda: _equal(inbox(nc, "carol"), ["m2"]))
        assert await inbox(nc) == ["first"]
        assert await held(nc) == 1
        (stored,) = await direct_get_page(nc, subjects.INBOX_STREAM, subjects.inbox("bob"), 1)
        await delete_message(nc, subjects.INBOX_STREAM, stored.sequence)
        await until(lambda: _equal(inbox(nc), ["m1"]))


async def test_a_full_inbox_is_tried_by_one_message_at_a_time(nc: Client):
    async with serving(nc, document(limits=Limits(inbox_messages=1))) as here:
        assert (await here.send("alice", "bob", id="first")).ok
        for verdict in await asyncio.gather(*(delay(here, f"m{number}", 0) for number in range(100))):
            assert verdict.ok

        async def refused() -> int:
            lines = [line for record in await here.records() for line in record.decisions]
            return sum(line.decision == Decision.INBOX_FULL for line in lines)

        await until(refused)
        await asyncio.sleep(0.4)  # what was under way when it turned out to be full
        before = await refused()

        async def tried() -> bool:
            return await refused() >= before + 2

        await until(tried)
        assert await refused() < before + 6


async def test_while_the_inbox_is_full_it_can_be_cancelled(nc: Client):
    async with serving(nc, document(limits=Limits(inbox_messages=1))) as here:
        assert (await here.send("alice", "bob", id="first")).ok
        assert (await delay(here, "m1", 0)).ok

        async def refused() -> bool:
            lines = [line for record in await here.records() for line in record.decisions]
            return any(line.decision == Decision.INBOX_FULL for line in lines)

        await until(refused)
        await until(lambda: cancel(here, "m1"))  # not while it is just being tried
        assert await held(nc) == 0


async def test_what_only_one_message_meets_holds_up_nobody_else(nc: Client):
    """Ids that were used before, of messages that nobody can compare any more: any sender can have them."""
    policy = document(("alice", "carol", "bob"), limits=Limits(release_rate=40))
    names = [f"m{number}" for number in range(30)]
    async with serving(nc, policy) as here:
        for name in names:
            assert (await here.send("alice", "bob", {"id": name}, id=name)).ok
        for stored in await direct_get_page(nc, subjects.INBOX_STREAM, subjects.inbox("bob"), 1):
            await delete_message(nc, subjects.INBOX_STREAM, stored.sequence)
    async with serving(nc, policy) as here:  # it remembers none of them, and nor does the audit
        due = int(time.time() * 1000) + 300
        for name in names:
            assert (await delay(here, name, due=due)).ok
            assert (await delay(here, f"c{name}", due=due, sender="carol")).ok
        # Several are released at once, so not always in their order; each leaves after it is in the inbox.
        await until(lambda: _equal(_sorted(inbox(nc)), sorted(f"c{name}" for name in names)), timeout=30)
        await until(lambda: _equal(held(nc), len(names)))


async def away(nc: Client, count: int, sender: str = "alice") -> None:
    """Messages that are due to other namespaces, each in turn to one of two."""
    now = str(int(time.time() * 1000))
    for number in range(count):
        fields = {headers.MESSAGE_ID: f"away{number}", headers.SENDER: sender, headers.TYPE: "work"}
        fields |= {headers.TARGET: f"there{number % 2}/desk{number}", headers.SENT: now, headers.DUE: now}
        await publish(nc, subjects.delayed(sender, correlation(f"away{number}")), b"{}", fields)


async def test_a_namespace_that_does_not_answer_holds_up_no_other(
    here: Serving, monkeypatch: pytest.MonkeyPatch
):
    stuck: list[str] = []
    monkeypatch.setattr(here.service._crossing, "take", lambda call: stuck.append(call.target))
    monkeypatch.setattr(releaser, "AT_ONCE", 8)
    await away(here.nc, 30)
    await until(lambda: _counts(_now(stuck), 4))
    assert (await delay(here, "m1", 0, sender="bob", fields={headers.TARGET: "alice"})).ok
    await until(lambda: _equal(inbox(here.nc, "alice"), ["m1"]))
    assert sorted(target[:6] for target in stuck) == ["there0"] * 2 + ["there1"] * 2


async def test_a_namespace_that_does_not_answer_is_tried_by_one_message_at_a_time(
    here: Serving, monkeypatch: pytest.MonkeyPatch
):
    stuck: list[str] = []
    monkeypatch.setattr(here.service._crossing, "take", lambda call: stuck.append(call.target))
    monkeypatch.setattr(releaser, "AT_ONCE", 8)
    monkeypatch.setattr(releaser, "_ANSWER_WITHIN", 0.3)
    await away(here.nc, 30)
    await until(lambda: _counts(_now(stuck), 4))
    await until(lambda: _counts(_now(stuck), 6))  # one to each, after the first pause
    assert len(here.service._releaser._running) <= 2
    assert set(here.service._releaser._pauses) == {"there0/", "there1/"}


async def test_a_namespace_that_does_not_answer_does_not_try_for_all_after_a_pause(
    here: Serving, monkeypatch: pytest.MonkeyPatch
):
    stuck: list[str] = []
    monkeypatch.setattr(here.service._crossing, "take", lambda call: stuck.append(call.target))
    here.service._releaser._pauses[""] = (0.0, 0.2)  # over: the next message shows whether all is well
    await away(here.nc, 1)
    await until(lambda: _counts(_now(stuck), 1))
    assert (await delay(here, "m1", 0, sender="bob", fields={headers.TARGET: "alice"})).ok
    await until(lambda: _equal(inbox(here.nc, "alice"), ["m1"]))


async def _now(stuck: list[str]) -> list[str]:
    return list(stuck)


async def test_full_dead_letters_hold_up_only_what_is_refused(nc: Client):
    names = [f"m{number}" for number in range(30)]
    limits = Limits(log_bytes=400_000, release_rate=40)
    everybody = document(("alice", "carol", "bob"), limits=limits)
    async with serving(nc, everybody) as here:
        for name in names:
            assert (await delay(here, name, 2_000)).ok
            assert (await delay(here, f"c{name}", 2_000, sender="carol")).ok
        allow = {"carol": ("bob",)}
        await nc.request(subjects.dead_letter("bob"), b"x" * 399_800, timeout=5)
    async with serving(nc, document(("alice", "carol", "bob"), allow=allow, limits=limits)):
        await until(lambda: _counts(inbox(nc), len(names)), timeout=30)
        await until(lambda: _equal(held(nc), len(names)))  # carol's leave after they are in the inbox


async def test_what_is_cancelled_is_not_kept_in_memory_until_it_would_be_due(
    nc: Client, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(releaser, "_SPARE", 10)
    async with serving(nc) as here:
        queued = here.service._releaser
        assert (await delay(here, "stays", 3_600_000)).ok
        for number in range(60):
            assert (await delay(here, f"m{number}", 3_600_000)).ok
            assert await cancel(here, f"m{number}")
        await until(lambda: _at_most(queued, 12))
        assert (await delay(here, "due", 0)).ok
        await until(lambda: _equal(inbox(nc), ["due"]))


async def test_what_was_cancelled_is_not_held_again_by_a_try_that_was_not_answered(nc: Client):
    class Between(Lossy):
        """Has a message cancelled that was stored, before its worker repeats it for want of an answer."""

        told: bool | None = None

        async def request(self, subject: str, *args: Any, **more: Any) -> Any:
            answer = await self.nc.request(subject, *args, **more)
            if subject.startswith("mas.delayed.") and self.told is None:
                self.told = await cancel(here, "m1")
                raise nats.errors.TimeoutError
            return answer

    between = Between(nc)
    async with serving(nc, through=between) as here:
        assert (await delay(here, "m1", 60_000)).ok
        assert between.told
        assert await held(nc) == 0
        assert (await delay(here, "m1", 60_000)).ok, "asked for anew it is another message"
        assert await held(nc) == 1


async def test_a_repetition_is_told_so_where_the_first_is_released_meanwhile(nc: Client):
    class Between(Lossy):
        """Has the first released between the refusal of the second and the look at what is in its way."""

        tries = 0

        async def request(self, subject: str, *args: Any, **more: Any) -> Any:
            answer = await self.nc.request(subject, *args, **more)
            if subject.startswith("mas.delayed."):
                self.tries += 1
                if self.tries == 2:
                    await until(lambda: _equal(held(nc), 0))
            return answer

    between = Between(nc)
    async with serving(nc, through=between) as here:
        assert (await delay(here, "m1", 1000)).ok
        again = await delay(here, "m1", 1000)
        assert between.tries == 2
        assert again.ok
        assert again.duplicate


async def test_many_at_once_are_held_to_the_limit_and_counted_once(nc: Client):
    counted: list[str] = []

    class Counting(Lossy):
        async def publish(self, subject: str, *args: Any, **more: Any) -> None:
            if subject.startswith(f"$JS.API.DIRECT.GET.{subjects.DELAYED_STREAM}"):
                counted.append(subject)
            await self.nc.publish(subject, *args, **more)

    async with serving(nc, document(limits=Limits(delayed_messages=10)), through=Counting(nc)) as here:
        counted.clear()
        calls = [delay(here, f"m{number}", 60_000) for number in range(100)]
        verdicts = await asyncio.gather(*calls)
        refused = [verdict.decision for verdict in verdicts if not verdict.ok]
        assert refused == [Decision.DELAYED_FULL] * 90
        assert await held(nc) == 10
        assert len(counted) < 10
        assert (await delay(here, "another", 60_000, sender="bob")).ok


async def test_what_has_been_held_for_a_while_counts(nc: Client, monkeypatch: pytest.MonkeyPatch):
    """Also for a worker that was started since."""
    monkeypatch.setattr(delayed_stream, "COUNT_EVERY", 0.0)
    policy = document(limits=Limits(delayed_messages=3))
    async with serving(nc, policy) as here:
        for number in range(3):
            assert (await delay(here, f"m{number}", 60_000)).ok
        assert (await delay(here, "m3", 60_000)).decision is Decision.DELAYED_FULL
    async with serving(nc, policy) as here:
        assert (await delay(here, "m4", 60_000)).decision is Decision.DELAYED_FULL
        assert (await delay(here, "another", 60_000, sender="bob")).ok
        assert await cancel(here, "m0")
        assert (await delay(here, "m5", 60_000)).ok
        assert await held(nc) == 4


async def test_what_was_not_held_leaves_its_room(nc: Client, lossy: Lossy):
    policy = document(limits=Limits(delayed_messages=2))
    async with serving(nc, policy, through=lossy) as here:
        assert (await delay(here, "m1", 60_000)).ok
        for _ in range(3):  # the same again, and another under its id: neither takes room
            assert (await delay(here, "m1", 60_000)).duplicate
            assert (await delay(here, "m1", 60_000, body={"n": 2})).decision is Decision.ID_REUSED
        lossy.refuse(to("mas.delayed."))
        assert not (await delay(here, "m2", 60_000)).ok
        assert (await delay(here, "m2", 60_000)).ok
        assert (await delay(here, "m3", 60_000)).decision is Decision.DELAYED_FULL
        assert (await delay(here, "m2", 60_000)).duplicate


async def test_a_repetition_of_what_is_on_its_way_is_not_too_many(nc: Client, lossy: Lossy):
    async with serving(nc, document(limits=Limits(delayed_messages=1)), through=lossy) as here:
        release = lossy.hold(to("mas.delayed."))
        first = asyncio.create_task(delay(here, "m1", 60_000))
        await lossy.happened.wait()
        second = await delay(here, "m1", 60_000)
        assert second.ok
        assert (await delay(here, "m2", 60_000)).decision is Decision.DELAYED_FULL
        release()
        assert (await first).ok
        assert await held(nc) == 1


async def test_the_stream_takes_no_more_than_its_bytes(nc: Client):
    async with serving(nc, document(limits=Limits(log_bytes=100_000))) as here:
        body = {"text": "x" * 30_000}
        verdicts = [await delay(here, f"m{number}", 60_000, body=body) for number in range(5)]
        assert [verdict.decision for verdict in verdicts if not verdict.ok][:1] == [Decision.LOG_FULL]
        assert await cancel(here, "m0")
        assert (await delay(here, "again", 60_000, body=body)).ok


async def test_the_same_id_sent_and_delayed_is_one_message(here: Serving):
    assert (await here.send("alice", "bob", {"n": 1}, id="m1")).ok
    assert (await delay(here, "m1", 0, body={"n": 1})).ok
    assert (await delay(here, "m2", 200, body={"n": 1})).ok
    assert (await here.send("alice", "bob", {"n": 2}, id="m2")).ok
    await until(lambda: _empty(here.nc))
    assert await inbox(here.nc) == ["m1", "m2"]
    dead = await direct_get_page(here.nc, subjects.DLQ_STREAM, subjects.dead_letter("bob"), 1)
    assert [each.headers[headers.DEAD_REASON] for each in dead] == [Decision.ID_REUSED]
    wanted = orjson.dumps({"by": "olga", "letters": [dead[0].sequence]})
    redriven = await here.nc.request(subjects.admin(AdminOp.REDRIVE), wanted, timeout=10)
    assert Verdict.decode(redriven.data).ok
    assert await inbox(here.nc) == ["m1", "m2", "m2"]


async def test_hostile_headers_of_a_call(here: Serving):
    hostile = {
        "Nats-Schedule": "@at 2020-01-01T00:00:00Z",
        "Nats-Schedule-Target": subjects.inbox("bob"),
        "Nats-Rollup": "all",
        "Nats-TTL": "1s",
        "Nats-Expected-Last-Subject-Sequence": "99",
        "Mas-Sender": "carol",
        "Mas-Audit": "w1.1.0",
    }
    assert (await delay(here, "m1", 60_000, fields=hostile)).ok
    (stored,) = await direct_get_page(here.nc, subjects.DELAYED_STREAM, ">", 1)
    assert stored.subject == subjects.delayed("alice", correlation("m1"))
    assert stored.headers[headers.SENDER] == "alice"
    assert not {"Nats-Schedule", "Nats-Schedule-Target", "Nats-Rollup", "Nats-TTL"} & stored.headers.keys()
    for fields in ({headers.DELAY: "-5"}, {headers.DELAY: "1e9"}, {headers.DELAY: "9" * 15}):
        assert (await delay(here, "m2", fields=fields)).decision == Decision.INVALID
    no_time = {headers.MSG_ID: "m3", headers.TARGET: "bob", headers.TYPE: "work"}
    assert (await here.call("alice", "delay", {}, **no_time)).decision == Decision.INVALID


async def test_the_log_says_what_became_of_it(here: Serving):
    assert (await delay(here, "m1", 100)).ok
    assert (await delay(here, "m2", 60_000)).ok
    assert await cancel(here, "m2")
    assert not await cancel(here, "m9")
    await until(lambda: _equal(inbox(here.nc), ["m1"]))

    async def settled() -> bool:
        records = await here.records()
        named = {
            (record.writer, record.number, place): line
            for record in records
            for place, line in enumerate(record.decisions)
        }
        outcomes = [
            (named[record.writer, each.number, each.position], each.outcome)
            for record in records
            for each in record.settlements
        ]
        told = {(line.op, line.message_id): outcome for line, outcome in outcomes}
        return told == {
            ("delay", "m1"): Outcome.APPLIED,
            ("delay", "m2"): Outcome.APPLIED,
            ("withdraw", "m2"): Outcome.APPLIED,
            ("withdraw", "m9"): Outcome.FAILED,
            ("release", "m1"): Outcome.COMMITTED,
        }

    await until(settled)


async def test_a_lease_is_one_workers_at_a_time(nc: Client):
    async with serving(nc):
        first, second = Lease(nc, "test", "w1"), Lease(nc, "test", "w2")
        assert await first.hold()
        assert not await second.hold()
        assert await first.hold()
        await first.give_up()
        assert await second.hold()
        assert not await first.hold()
        await until(first.hold)  # nobody renews it


@pytest.mark.parametrize("held_before", [True, False])
async def test_who_is_ended_while_it_asks_leaves_no_lease(
    nc: Client, monkeypatch: pytest.MonkeyPatch, *, held_before: bool
):
    """What it wrote is stored, and the answer never comes."""
    monkeypatch.setattr(streams, "LEASE_AGE", 120.0)
    async with serving(nc):
        first, second = Lease(nc, "test", "w1"), Lease(nc, "test", "w2")

        async def left() -> bool:
            await first.give_up()  # on a busy machine it may not be answered
            return await second.hold()

        if held_before:
            assert await first.hold()
        stored = asyncio.Event()

        async def unanswered(*given: Any, **options: Any) -> Any:
            await publish(*given, **options)
            stored.set()
            await asyncio.Event().wait()

        with monkeypatch.context() as away:
            away.setattr(leases, "publish", unanswered)
            asking = asyncio.create_task(first.hold())
            await stored.wait()
            await end([asking])
        await until(left)


async def test_who_looks_too_late_has_no_lease(nc: Client, monkeypatch: pytest.MonkeyPatch):
    """Another worker took it between the look and the write."""
    async with serving(nc):
        first, second = Lease(nc, "test", "w1"), Lease(nc, "test", "w2")
        free = second._free

        async def overtaken() -> bool:
            found = await free()
            await first.hold()
            return found

        monkeypatch.setattr(second, "_free", overtaken)
        assert not await second.hold()
        assert await first.hold()


async def test_a_lease_that_expired_is_taken_again_or_lost(nc: Client):
    async with serving(nc):
        first, second = Lease(nc, "test", "w1"), Lease(nc, "test", "w2")
        assert await first.hold()
        await until(lambda: _is_free(second))
        assert await first.hold()
        await until(lambda: _is_free(second))
        assert await second.hold()
        assert not await first.hold()
        assert await Lease(nc, "test", "w2").hold(), "the same worker, started anew"


async def _is_free(lease: Lease) -> bool:
    return await lease._free()


async def test_a_worker_that_stops_leaves_nothing_behind(nc: Client):
    names = [f"m{number}" for number in range(200)]
    async with serving(nc, document(limits=Limits(release_rate=200))) as here:
        await asyncio.gather(*(delay(here, name, 100) for name in names))
        await until(lambda: inbox(nc))
    left = await held(nc)
    assert len(await inbox(nc)) + left == len(names), "some were stored and not removed"
    assert await Lease(nc, "delayed", "another").hold()


async def _equal(looking: Any, wanted: Any) -> bool:
    return bool(await looking == wanted)


async def _sorted(looking: Any) -> list[str]:
    return sorted(await looking)


async def _counts(looking: Any, wanted: int) -> bool:
    return len(await looking) == wanted


async def _at_most(queued: Releaser, count: int) -> bool:
    return 0 < len(queued._queue) <= count


async def _empty(nc: Client) -> bool:
    return await held(nc) == 0


def test_a_document_without_the_new_limits_is_read():
    limits = orjson.loads(Limits().model_dump_json())
    for name in ("max_delay", "delayed_messages", "release_rate"):
        del limits[name]
    raw = {"namespace": "default", "account": "A", "limits": limits}
    assert Document.model_validate_json(orjson.dumps(raw)).limits == Limits()

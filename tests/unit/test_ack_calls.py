"""Acknowledging many at once, as any agent may ask for it, on a real server."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from mas_nats.policy.document import Limits
from mas_nats.wire import subjects
from mas_nats.wire.verdict import Decision
from tests.serving import Serving, document, serving


@pytest.fixture
async def here(nc: Client) -> AsyncIterator[Serving]:
    async with serving(nc) as up:
        yield up


async def inbox(here: Serving, agent: str = "bob") -> list[int]:
    """What lies in an inbox."""
    return [each.sequence for each in await here.log() if each.subject == subjects.inbox(agent)]


async def sent(here: Serving, count: int, target: str = "bob") -> list[int]:
    for _ in range(count):
        assert (await here.send("alice", target)).ok
    return (await inbox(here, target))[-count:]


async def fetch(here: Serving, count: int, agent: str = "bob") -> list[Msg]:
    pulled = await here.nc.jetstream().pull_subscribe_bind(consumer=agent, stream=subjects.INBOX_STREAM)
    got: list[Msg] = []
    while len(got) < count:
        got += await pulled.fetch(count - len(got), timeout=5)
    return got


async def pending(here: Serving, agent: str = "bob") -> int:
    info = await here.nc.jetstream().consumer_info(subjects.INBOX_STREAM, agent)
    return int(info.num_ack_pending or 0)


def body(sequences: Sequence[int], **more: Any) -> dict[str, Any]:
    return {"since": sequences[0], "last": sequences[-1], "most": len(sequences), **more}


async def test_what_was_handled_is_taken_out_and_what_follows_stays(here: Serving):
    sequences = await sent(here, 6)
    await fetch(here, 5)
    verdict = await here.call("bob", "ack", body(sequences[:4]))
    assert (verdict.ok, verdict.result) == (True, {"removed": 4})
    assert await inbox(here) == sequences[4:]
    assert await pending(here) == 1
    assert (await here.call("bob", "ack", body(sequences[:4]))).ok  # the answer was lost
    assert await inbox(here) == sequences[4:]


async def test_one_that_another_instance_may_have_keeps_all_behind_it(here: Serving):
    sequences = await sent(here, 6)
    await fetch(here, 6)
    verdict = await here.call("bob", "ack", body(sequences[1:]))
    assert (verdict.ok, verdict.decision, verdict.rule) == (False, Decision.INVALID, "oldest")
    assert await inbox(here) == sequences
    assert (await here.call("bob", "ack", body(sequences))).ok  # the control
    assert await inbox(here) == []


async def test_one_that_waits_to_be_buried_keeps_all_behind_it(here: Serving):
    """Its attempts are used up, so the consumer has passed it; it still lies in the inbox."""
    await sent(here, 1)
    for _ in range(here.follower.table("default").limits.max_deliver):
        [message] = await fetch(here, 1)
        await message.nak()
    sequences = await sent(here, 2)
    await fetch(here, 2)
    assert not (await here.call("bob", "ack", body(sequences))).ok
    assert len(await inbox(here)) == 3


async def test_what_was_not_delivered_cannot_be_taken_out(here: Serving):
    sequences = await sent(here, 4)
    await fetch(here, 2)
    for last in (sequences[2], sequences[3], 2**53 - 1):
        verdict = await here.call("bob", "ack", {"since": sequences[0], "last": last, "most": 2})
        assert (verdict.decision, verdict.rule) == (Decision.INVALID, "delivered")
    assert await inbox(here) == sequences
    assert (await here.call("bob", "ack", body(sequences[:2]))).ok  # the control
    assert await inbox(here) == sequences[2:]


async def test_a_consumer_that_may_not_have_more_pending_is_not_kept_asleep(nc: Client):
    """A removal does not wake it, an acknowledgement does."""
    async with serving(nc, document(limits=Limits(max_ack_pending=8, in_flight=8))) as here:
        sequences = await sent(here, 10)
        got = await fetch(here, 8)
        verdict = await here.call("bob", "ack", body(sequences[:8]))
        assert (verdict.decision, verdict.rule) == (Decision.INVALID, "pending")
        assert await inbox(here) == sequences
        for message in got[:2]:
            await message.ack()
        async with asyncio.timeout(10):
            while await pending(here) > 6:  # the server takes them in turn
                await asyncio.sleep(0.01)
        assert (await here.call("bob", "ack", body(sequences[:8]))).ok  # the control
        assert await inbox(here) == sequences[8:]


async def test_nobody_takes_out_what_lies_in_the_inbox_of_another(here: Serving):
    of_bob = await sent(here, 3)
    await here.send("bob", "alice")
    own = await inbox(here, "alice")
    await fetch(here, 3)
    await fetch(here, 1, "alice")
    for since, last in ((of_bob[0], of_bob[-1]), (1, own[-1]), (of_bob[0], own[-1])):
        await here.call("alice", "ack", {"since": since, "last": last, "most": 9})
        assert await inbox(here) == of_bob
    assert await here.records()  # nor a record


async def test_more_than_was_handled_is_said_aloud(here: Serving, caplog: pytest.LogCaptureFixture):
    """An instance that is wrong about its own inbox: nobody else can know."""
    sequences = await sent(here, 3)
    await fetch(here, 3)
    with caplog.at_level(logging.ERROR):
        await here.call("bob", "ack", body(sequences, most=2))
    assert "bob acknowledged 2 messages and 3 were removed" in caplog.text


@pytest.mark.parametrize(
    "change",
    [
        {"since": 0},
        {"since": -1},
        {"since": "1"},
        {"since": True},
        {"since": None},
        {"last": 2**53},
        {"last": 1e30},
        {"last": 1.5},
        {"most": 0},
        {"most": []},
    ],
    ids=repr,
)
async def test_a_body_that_is_none_is_told_so(here: Serving, change: dict[str, object]):
    sequences = await sent(here, 2)
    await fetch(here, 2)
    verdict = await here.call("bob", "ack", body(sequences, **change))
    assert (verdict.ok, verdict.decision) == (False, Decision.INVALID)
    assert await inbox(here) == sequences

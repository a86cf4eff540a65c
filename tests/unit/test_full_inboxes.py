"""Inboxes that become full in the middle of a batch: what was told is what the log holds (ADR 11)."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Iterator

from nats.aio.client import Client

from mas_nats.policy.document import Document, Limits
from mas_nats.wire import headers, subjects
from mas_nats.wire.verdict import Decision, Verdict
from tests.audit_log import NAMESPACE, make_streams
from tests.serving import Serving, document, serving

ROOM = 30
INBOXES = tuple(f"inbox{number}" for number in range(20))
SENDS = 2 * ROOM * len(INBOXES)
AT_ONCE = 100


async def test_what_was_accepted_is_there_when_inboxes_fill_up(nc: Client):
    """At random, so that batches hold different numbers of messages for inboxes with different room."""
    ids = itertools.count()
    verdicts: dict[str, Verdict] = {}
    async with serving(nc, document(("alice", *INBOXES), limits=Limits(inbox_messages=ROOM))) as here:

        async def work(targets: Iterator[str]) -> None:
            for target in targets:
                message_id = f"m{next(ids)}"
                fields = {headers.MSG_ID: message_id, headers.TARGET: target, headers.TYPE: "work"}
                # A batch that is stored in part is not answered, which takes longer to find out.
                verdicts[message_id] = await here.call("alice", "send", timeout=5, **fields)

        targets = iter([random.choice(INBOXES) for _ in range(SENDS)])
        await asyncio.gather(*(work(targets) for _ in range(AT_ONCE)))
        stored = [each for each in await here.log() if each.subject.startswith("mas.inbox.")]

    accepted = {message_id for message_id, verdict in verdicts.items() if verdict.ok}
    assert {verdict.decision for verdict in verdicts.values()} == {Decision.ALLOWED, Decision.INBOX_FULL}
    assert accepted == {each.headers[headers.MESSAGE_ID] for each in stored}
    assert len(stored) == len(accepted)
    assert max(sum(each.subject == subjects.inbox(inbox) for each in stored) for inbox in INBOXES) == ROOM


async def test_a_lower_limit_takes_nothing_away_and_holds_all_the_same(nc: Client):
    """The server would delete the oldest messages; so workers keep the lower limit, and two of them do."""
    policy, lower = (document(limits=Limits(inbox_messages=most)) for most in (20, 5))
    async with serving(nc, policy) as here, serving(nc, policy) as there:
        for _ in range(19):
            assert (await here.send("alice", "bob")).ok
        await lowered(nc, here, lower)
        assert await lying(here) == 19
        async with asyncio.timeout(5):
            while (verdict := await here.send("alice", "bob")).ok:
                await asyncio.sleep(0.05)
        assert (verdict.decision, verdict.rule) == (Decision.INBOX_FULL, "inbox_messages")
        assert (await here.send("bob", "alice")).ok, "others' inboxes have room"
        await nc.jetstream().purge_stream(subjects.INBOX_STREAM, subject=subjects.inbox("bob"), keep=2)
        async with asyncio.timeout(5):
            while not (await there.send("alice", "bob")).ok:
                await asyncio.sleep(0.05)
    async with serving(nc, lower) as here:  # also a worker that is started then
        async with asyncio.timeout(5):
            while (await here.send("alice", "bob")).ok:
                await asyncio.sleep(0.3)
        assert 5 <= await lying(here) <= 6


async def test_a_limit_that_is_raised_again_is_the_servers(nc: Client):
    policy, lower, higher = (document(limits=Limits(inbox_messages=most)) for most in (20, 5, 30))
    async with serving(nc, policy) as here:
        await lowered(nc, here, lower)
        await lowered(nc, here, higher)
        verdicts = [await here.send("alice", "bob") for _ in range(31)]
        assert [verdict.ok for verdict in verdicts] == [True] * 30 + [False]


async def lowered(nc: Client, here: Serving, policy: Document) -> None:
    """What an apply does: the streams first, then the policy."""
    await make_streams(nc, policy.agents, policy.limits)
    stored = await here.store.get(NAMESPACE)
    assert stored is not None
    await here.store.wait_confirmed(await here.store.put(policy, expected=stored.sequence), timeout=5)


async def lying(here: Serving, agent: str = "bob") -> int:
    return sum(each.subject == subjects.inbox(agent) for each in await here.log())

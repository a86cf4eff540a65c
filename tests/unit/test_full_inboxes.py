"""Inboxes that become full in the middle of a batch: what was told is what the log holds (ADR 11)."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Iterator

from nats.aio.client import Client

from mas_nats.policy.document import Limits
from mas_nats.wire import headers, subjects
from mas_nats.wire.verdict import Decision, Verdict
from tests.serving import document, serving

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

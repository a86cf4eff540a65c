"""Finds messages that ran out of attempts and that no advisory announced (DESIGN 5).

The server announces them once, with the pull after the last attempt; a server that dies meanwhile, or a
flood of advisories, leaves them in the inbox for ever. They can be told for certain while nothing of their
agent is in flight: whatever was delivered once and still lies there will not be delivered again.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from nats.aio.client import Client

from broker_policy.commit.answered import UNANSWERED
from broker_policy.dead_letters.undertaker import EXHAUSTED, UNREPORTED, NoRoom, Undertaker
from broker_policy.jetstream import StoredMessage, api, direct_get_page
from mas_nats.wire import subjects
from mas_nats.wire.identity import is_id

log = logging.getLogger(__name__)

EVERY = 30.0
"""Seconds between two looks; what both of them see is buried."""
_AT_ONCE = 100


class Sweep:
    """Looks through the inboxes of one namespace. Any number of workers may."""

    def __init__(self, nc: Client, undertaker: Undertaker) -> None:
        self._nc = nc
        self._undertaker = undertaker
        self._seen: set[int] = set()

    async def run(self) -> None:
        """Sweep for ever."""
        while True:
            await asyncio.sleep(EVERY)
            try:
                await self.sweep()
            except NoRoom as full:
                log.warning("messages that ran out of attempts stay in their inboxes: %s", full)
            except UNANSWERED as error:
                log.warning("inboxes cannot be swept (%r), trying again", error)
            except Exception:
                log.exception("inboxes cannot be swept, trying again")

    async def sweep(self) -> int:
        """Bury what this look and the one before have seen; returns how many messages.

        Raises:
            NoRoom: the dead letters, or the log, are full.
            JetStreamError, nats.errors.Error: a stream did not answer; call again.

        """
        seen: set[int] = set()
        buried = 0
        for consumer in await self._consumers():
            for stored in await self._left_behind(consumer):
                if stored.sequence not in self._seen:
                    seen.add(stored.sequence)
                    continue
                error = await self._undertaker.last_error(stored.sequence) or UNREPORTED
                attempts = max(int(consumer["config"].get("max_deliver", 0)), 0)
                await self._undertaker.bury(
                    consumer["name"], stored, reason=EXHAUSTED, attempt=attempts, error=error
                )
                buried += 1
        self._seen = seen
        return buried

    async def _consumers(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        while True:
            page = await api(self._nc, f"CONSUMER.LIST.{subjects.INBOX_STREAM}", {"offset": len(found)})
            some = page.get("consumers") or []
            found += some
            if not some or len(found) >= int(page["total"]):
                return [consumer for consumer in found if is_id(consumer["name"])]

    async def _left_behind(self, consumer: dict[str, Any]) -> list[StoredMessage]:
        """What was delivered and lies in the inbox though nothing is in flight."""
        delivered = int(consumer["delivered"]["stream_seq"])
        if consumer["num_ack_pending"] or not delivered:
            return []
        inbox = subjects.inbox(consumer["name"])
        page = await direct_get_page(self._nc, subjects.INBOX_STREAM, inbox, 1, batch=_AT_ONCE)
        return [stored for stored in page if stored.sequence <= delivered]

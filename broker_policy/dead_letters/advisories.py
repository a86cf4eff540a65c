"""Follows the server's advisories of deliveries that ran out of attempts without a report.

Nothing but the name of a message is taken from an advisory: an agent can bring about advisories that name
messages of others. A ``+TERM`` by an agent is as good as its ack, so its advisory says nothing new.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging

import nats.errors
import orjson
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig

from broker_policy.commit.answered import UNANSWERED
from broker_policy.dead_letters.undertaker import EXHAUSTED, UNREPORTED, NoRoom, NotYours, Undertaker
from mas_nats.wire import subjects

log = logging.getLogger(__name__)

_DURABLE = "policy"
_TRY_AGAIN = 5.0
"""Seconds until what found no room is tried again."""


class AdvisoryFollower:
    """One of several workers that share the advisories of a namespace."""

    def __init__(self, nc: Client, undertaker: Undertaker) -> None:
        self._nc = nc
        self._undertaker = undertaker

    async def run(self) -> None:
        """Follow for ever."""
        js = self._nc.jetstream(timeout=5)
        config = ConsumerConfig(
            durable_name=_DURABLE, ack_policy=AckPolicy.EXPLICIT, ack_wait=30, max_ack_pending=256
        )
        while True:
            pull = None
            try:
                await js.add_consumer(subjects.ADVISORIES_STREAM, config)
                pull = await js.pull_subscribe_bind(consumer=_DURABLE, stream=subjects.ADVISORIES_STREAM)
                while True:
                    with contextlib.suppress(TimeoutError):  # nothing happened: the usual case
                        await self._batch(await pull.fetch(64, timeout=20))
            except Exception as error:  # noqa: BLE001 - whatever it is, the advisories stay and are read again
                log.warning("advisories cannot be followed (%r), trying again", error)
                await asyncio.sleep(1)
            finally:
                if pull is not None:
                    with contextlib.suppress(nats.errors.Error, OSError):
                        await pull.unsubscribe()

    async def _batch(self, messages: list[Msg]) -> None:
        for message in messages:
            try:
                await self._handle(orjson.loads(message.data))
            except NotYours as error:
                log.warning("an advisory names a message that is not there: %s", error)
            except (KeyError, TypeError, ValueError) as error:
                log.warning("an advisory that is none: %r", error)
            except (NoRoom, *UNANSWERED) as error:
                log.warning("a message that ran out of attempts cannot be dead-lettered yet: %r", error)
                await message.nak(delay=_TRY_AGAIN)
                continue
            await message.ack()

    async def _handle(self, advisory: dict[str, object]) -> None:
        agent, sequence = str(advisory["consumer"]), int(str(advisory["stream_seq"]))
        attempt = int(str(advisory.get("deliveries", 0)))
        stored = await self._undertaker.find(agent, sequence)
        if stored is not None:
            error = await self._undertaker.last_error(sequence) or UNREPORTED
            await self._undertaker.bury(
                agent, stored, reason=EXHAUSTED, attempt=attempt, error=error, failed=True
            )

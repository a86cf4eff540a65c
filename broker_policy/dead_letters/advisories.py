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

from broker_policy.dead_letters.failures import EXHAUSTED
from broker_policy.dead_letters.undertaker import NotYours, Undertaker
from broker_policy.jetstream import JetStreamError
from mas_nats.wire import subjects

log = logging.getLogger(__name__)

_DURABLE = "policy"


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
            try:
                await js.add_consumer(subjects.ADVISORIES_STREAM, config)
                pull = await js.pull_subscribe_bind(consumer=_DURABLE, stream=subjects.ADVISORIES_STREAM)
                while True:
                    with contextlib.suppress(nats.errors.TimeoutError):  # nothing happened: the usual case
                        await self._batch(await pull.fetch(64, timeout=20))
            except (nats.errors.Error, JetStreamError, OSError) as error:
                log.warning("advisories cannot be followed (%s), trying again", type(error).__name__)
                await asyncio.sleep(1)

    async def _batch(self, messages: list[Msg]) -> None:
        for message in messages:
            try:
                done = await self._handle(orjson.loads(message.data))
            except NotYours as error:
                log.warning("an advisory names a message that is not there: %s", error)
                done = True
            if done:
                await message.ack()
            else:
                await message.nak(delay=1)

    async def _handle(self, advisory: dict[str, object]) -> bool:
        agent, sequence = str(advisory["consumer"]), int(str(advisory["stream_seq"]))
        attempt = int(str(advisory.get("deliveries", 0)))
        stored = await self._undertaker.find(agent, sequence)
        if stored is None:
            return True
        error = await self._undertaker.last_error(sequence) or "no report: the agent died or went silent"
        return await self._undertaker.bury(agent, stored, reason=EXHAUSTED, attempt=attempt, error=error)

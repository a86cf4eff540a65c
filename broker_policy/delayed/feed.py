"""Tells what waits: first all that is in the stream, then each message as it is stored; headers only."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

import nats.errors
from nats.aio.client import Client
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from broker_policy.delayed.queue import Waiting
from mas_nats.wire import headers, subjects

log = logging.getLogger(__name__)

_HEARTBEAT = 2.0
_SILENCE = 3 * _HEARTBEAT
_LAST_CONSUMER = "Nats-Last-Consumer"
_SIZE = "Nats-Msg-Size"


class Missed(Exception):
    """Something may not have been heard: begin again."""


@dataclass(frozen=True, slots=True)
class Heard:
    """One message, and how many more are in the stream at that moment. None: there is none."""

    waiting: Waiting | None
    more: int


async def listen(nc: Client, *, sender: str = "*") -> AsyncGenerator[Heard]:
    """Every delayed message, each once, for ever. Nothing is taken from the stream by it.

    Raises:
        Missed: begin again.
        nats.errors.Error, nats.js.errors.Error: the server does not answer.

    """
    inbox = nc.new_inbox()
    subscription = await nc.subscribe(inbox, pending_msgs_limit=-1, pending_bytes_limit=-1)
    js, name = nc.jetstream(timeout=5), ""
    try:
        consumer = await js.add_consumer(
            subjects.DELAYED_STREAM,
            ConsumerConfig(
                deliver_subject=inbox,
                deliver_policy=DeliverPolicy.ALL,
                ack_policy=AckPolicy.NONE,
                filter_subject=subjects.delayed(sender),
                headers_only=True,
                mem_storage=True,
                flow_control=True,
                idle_heartbeat=_HEARTBEAT,
                inactive_threshold=30.0,
                max_deliver=1,
            ),
        )
        name = str(consumer.name)
        if not consumer.num_pending:
            yield Heard(None, 0)
        heard = 0
        while True:
            try:
                message = await subscription.next_msg(timeout=_SILENCE)
            except nats.errors.TimeoutError as silent:
                raise Missed("the server is silent") from silent
            fields = message.headers or {}
            if headers.STATUS in fields:
                if int(fields.get(_LAST_CONSUMER, heard)) != heard:
                    raise Missed("a message was lost on the way")
                if message.reply:
                    await message.respond(b"")  # it waits for that before it sends more
                continue
            heard += 1
            if message.metadata.sequence.consumer != heard:
                raise Missed("a message was lost on the way")
            yield Heard(_waiting(message, fields), message.metadata.num_pending)
    finally:
        with contextlib.suppress(nats.errors.Error):
            await subscription.unsubscribe()
            if name:
                await js.delete_consumer(subjects.DELAYED_STREAM, name)


def _waiting(message: Any, fields: dict[str, str]) -> Waiting | None:
    _, _, sender, token = message.subject.split(".")
    try:
        return Waiting(
            sender=sender,
            token=token,
            sequence=message.metadata.sequence.stream,
            due=int(fields[headers.DUE]),
            target=fields[headers.TARGET],
            type=fields[headers.TYPE],
            message_id=fields[headers.MESSAGE_ID],
            sent=int(fields[headers.SENT]),
            size=int(fields.get(_SIZE, 0)),
        )
    except (KeyError, ValueError) as error:
        log.warning("%s holds what is no delayed message: %r", message.subject, error)
        return None

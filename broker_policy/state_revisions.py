"""Which revision the state of each agent is at, read without the states: they are large, and private."""

from __future__ import annotations

import contextlib
import secrets
from typing import Any

import nats.errors
import orjson
from nats.aio.client import Client

from broker_policy.jetstream import JetStreamError, api
from mas_nats.wire import headers, subjects

_PAGE = 1000
_UNUSED = 10_000_000_000
"""Nanoseconds after which the server removes the consumer, should whoever made it have died."""


async def state_revisions(nc: Client, *, timeout: float = 5.0) -> dict[str, int]:
    """The newest revision of each agent that has, or had, a state; ``nc`` may make consumers.

    A removal is a revision, too. The answer may be a moment old, as that of a direct get.

    Raises:
        JetStreamError, nats.errors.Error: the bucket did not answer.

    """
    stream = subjects.kv_stream(subjects.STATE_BUCKET)
    name = f"REVISIONS-{secrets.token_hex(8)}"
    config = {
        "name": name,
        "deliver_policy": "last_per_subject",
        "filter_subject": subjects.kv_key(subjects.STATE_BUCKET, "*"),
        "headers_only": True,
        "ack_policy": "none",
        "mem_storage": True,
        "num_replicas": 1,
        "inactive_threshold": _UNUSED,
    }
    asked = {"stream_name": stream, "config": config, "action": "create"}
    await api(nc, f"CONSUMER.CREATE.{stream}.{name}", asked, timeout=timeout)
    try:
        found: dict[str, int] = {}
        while page := await _page(nc, f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{name}", timeout):
            found |= page
            if len(page) < _PAGE:
                break
        return found
    finally:
        with contextlib.suppress(JetStreamError, nats.errors.Error):
            await api(nc, f"CONSUMER.DELETE.{stream}.{name}", {}, timeout=timeout)


async def _page(nc: Client, subject: str, timeout: float) -> dict[str, int]:
    inbox = nc.new_inbox()
    subscription = await nc.subscribe(inbox)
    found: dict[str, int] = {}
    try:
        await nc.publish(subject, orjson.dumps({"batch": _PAGE, "no_wait": True}), reply=inbox)
        while len(found) < _PAGE:
            message: Any = await subscription.next_msg(timeout=timeout)
            if headers.STATUS in (message.headers or {}) and not message.reply:
                return found  # there are no more
            found[message.subject.rpartition(".")[2]] = int(message.metadata.sequence.stream)
        return found
    finally:
        with contextlib.suppress(nats.errors.Error):
            await subscription.unsubscribe()

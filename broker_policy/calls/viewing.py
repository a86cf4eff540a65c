"""Consumers for inspectors: they show what is in a stream, take nothing away and deliver to nobody else.

What an inspector asks of the JetStream API for them arrives here (``accounts.inspector``). What is asked of
the server in its stead is built from nothing, so that neither a deliver subject nor an option of a consumer
can change or reach what the inspector may not (ADR 29).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import secrets
from collections.abc import Callable
from typing import Annotated, Any

import nats.errors
import orjson
from nats.aio.client import Client
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from broker_policy.commit.answered import UNANSWERED
from broker_policy.ending import end
from broker_policy.jetstream import JetStreamError, api
from broker_policy.tenants.streams import tenant_stream_names
from mas_nats.wire import subjects

log = logging.getLogger(__name__)

_UNUSED = 300
"""Seconds after which a consumer that nobody reads is removed."""
_MOST_AT_ONCE = 64
_SECOND = 1_000_000_000
_NAME_TAKEN = (10013, 10148)
"""Another consumer, or one of another configuration, has the name (nats-server errors.json)."""
_INBOX = re.compile(r"_INBOX\.([A-Za-z0-9_-]{1,64})")
_MADE = "io.nats.jetstream.api.v1.consumer_create_response"
Filter = Annotated[str, Field(min_length=1, max_length=256)]


class Refused(Exception):
    """Why an inspector does not get it."""


_MOST_NAMED = 100
"""Places of a configuration that cannot be read, of which all are named."""


class View(BaseModel):
    """What of a consumer's configuration an inspector may choose; the rest of it is not read."""

    model_config = ConfigDict(extra="ignore", strict=True)

    deliver_policy: str = "all"
    opt_start_seq: int | None = None
    opt_start_time: str | None = None
    filter_subject: Filter | None = None
    filter_subjects: list[Filter] | None = Field(default=None, max_length=64)
    headers_only: bool | None = None
    idle_heartbeat: int | None = Field(default=None, ge=0)
    deliver_subject: str | None = None


class _Asked(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    config: View


class Viewing:
    """Takes what the inspectors of one namespace ask. ``known``: whether policy has an inspector now."""

    def __init__(self, nc: Client, known: Callable[[str], bool]) -> None:
        self._nc = nc
        self._known = known
        self._streams = viewable()
        self._running: set[asyncio.Task[None]] = set()
        self._subscription: Any = None

    async def start(self) -> None:
        """Take requests from here on."""
        self._subscription = await self._nc.subscribe(
            subjects.VIEWS, queue=subjects.WORKER_QUEUE, cb=self._take
        )

    async def stop(self) -> None:
        """Take no more."""
        if self._subscription is not None:
            with contextlib.suppress(nats.errors.Error, OSError):
                await self._subscription.unsubscribe()
        await end(self._running)

    async def _take(self, message: Any) -> None:
        if message.reply and len(self._running) < _MOST_AT_ONCE:  # else the inspector's client asks again
            task = asyncio.create_task(self._answer(message))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def _answer(self, message: Any) -> None:
        _, _, inspector, stream, *_ = message.subject.split(".")
        try:
            told = await self._told(inspector, stream, message.data)
            await message.respond(orjson.dumps({"type": _MADE, **told}))
        except UNANSWERED as error:
            log.warning("no view of %s for inspector %s: %r", stream, inspector, error)

    async def _told(self, inspector: str, stream: str, body: bytes) -> dict[str, Any]:
        """The answer in the form of the JetStream API."""
        try:
            return await self._create(inspector, stream, body)
        except Refused as refused:
            error = {"code": 403, "err_code": 0, "description": str(refused)}
        except JetStreamError as refused:
            error = {"code": 400, "err_code": refused.code, "description": refused.description}
        return {"error": error}

    async def _create(self, inspector: str, stream: str, body: bytes) -> dict[str, Any]:
        if not self._known(inspector):
            raise Refused(f"policy knows no inspector {inspector}")
        if stream not in self._streams:
            raise Refused(
                f"an inspector has no consumer on {stream[:64]}; INBOX is read with nats stream view and "
                "nats stream get, which need none"
            )
        try:
            view = _Asked.model_validate_json(body).config
        except ValidationError as error:
            if error.error_count() > _MOST_NAMED:
                raise Refused("the consumer's configuration cannot be read") from None
            wrong = ", ".join(".".join(map(str, each["loc"])) for each in error.errors(include_input=False))
            raise Refused(f"the consumer's configuration cannot be read: {wrong}") from None
        config = consumer(inspector, view)
        present = (await api(self._nc, f"CONSUMER.NAMES.{stream}", {})).get("consumers") or ()
        for name in subjects.view_consumers(inspector):
            if name in present:
                continue
            asked = {"stream_name": stream, "config": {**config, "name": name}, "action": "create"}
            try:
                made = await api(self._nc, f"CONSUMER.CREATE.{stream}.{name}", asked)
            except JetStreamError as error:
                if error.code not in _NAME_TAKEN:
                    raise
                continue
            if view.deliver_subject:
                made["config"]["deliver_subject"] = view.deliver_subject
            return made
        raise Refused(
            f"inspector {inspector} has {subjects.MOST_VIEWS} consumers on {stream} already: close some, or "
            f"wait {_UNUSED} s until those that nobody reads are gone"
        )


def viewable() -> frozenset[str]:
    """The streams from which a consumer takes nothing away: all but the work queue."""
    return tenant_stream_names() - {subjects.INBOX_STREAM}


def consumer(inspector: str, view: View) -> dict[str, Any]:
    """The configuration, but for its name, of the consumer that ``inspector`` gets for what it asked.

    Raises:
        Refused: it cannot be had; the text says why.

    """
    config = view.model_dump(exclude_none=True, exclude={"deliver_subject", "idle_heartbeat"})
    config |= {
        "ack_policy": "none",
        "replay_policy": "instant",
        "mem_storage": True,
        "num_replicas": 1,
        "inactive_threshold": _UNUSED * _SECOND,
        "metadata": {"view": secrets.token_hex(8)},  # so that no two are the same, and shared
    }
    if view.deliver_subject:
        inbox = _INBOX.fullmatch(view.deliver_subject)
        if inbox is None:
            raise Refused("a consumer of an inspector delivers to an inbox of its own: _INBOX.<one word>")
        config["deliver_subject"] = subjects.viewed(inspector, inbox.group(1))
        if view.idle_heartbeat:
            config["idle_heartbeat"] = max(view.idle_heartbeat, _SECOND)
    return config

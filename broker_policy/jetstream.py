"""JetStream requests that nats-py has no call for: reads by the leader, batched direct gets, removal.

A *direct get* is answered by any node that keeps a copy, and a copy may be behind: what it lacks may be
there, what it has may be gone. Where that would matter, ``get_message`` and its like ask the stream's leader
(ADR 20).
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import nats.errors
import orjson
from nats.aio.client import Client
from nats.aio.msg import Msg

from mas_nats.asking import AskingClient, Published
from mas_nats.wire import headers
from mas_nats.wire.stored import unsettled


class JetStreamError(Exception):
    """The JetStream API answered with an error."""

    def __init__(self, code: int, description: str) -> None:
        super().__init__(f"{description} ({code})")
        self.code = code
        self.description = description


class Unsettled(nats.errors.Error):
    """The stream said neither yes nor no: it elects a leader, or an earlier try is still under way. Repeat.

    What was published may be stored, or yet be.
    """


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """A message as it lies in a stream."""

    subject: str
    sequence: int
    data: bytes
    headers: dict[str, str]


async def api(nc: Client, subject: str, request: dict[str, Any], *, timeout: float = 5.0) -> dict[str, Any]:
    """One request to the JetStream API, without its prefix.

    Raises:
        JetStreamError: the server refused it.
        Unsettled: there is no leader at the moment; repeat.

    """
    answer = await nc.request(f"$JS.API.{subject}", orjson.dumps(request), timeout=timeout)
    return checked(answer.data)


def checked(answer: bytes) -> dict[str, Any]:
    """The answer of a stream, or of the API, unless it is an error.

    Raises:
        JetStreamError: it is, and nothing was done.
        Unsettled: it is, and says nothing for sure.

    """
    result: dict[str, Any] = orjson.loads(answer)
    if not (error := result.get("error")):
        return result
    code, description = int(error.get("err_code", error.get("code", 0))), str(error.get("description"))
    if unsettled(error):
        raise Unsettled(f"{description} ({code})")
    raise JetStreamError(code, description)


_LEASE = 3.0
"""Seconds: a leader that heard from a majority within them is the only one. The others wait for four at least
before they elect another (measured: one that is cut off calls itself leader for ten)."""


MESSAGE_LIMIT = 10077
"""A stream's or a subject's limit is reached; the description says which (nats-server errors.json)."""
NO_ROOM = (10002, 10023, 10028, 10047, MESSAGE_LIMIT)
"""The stream, its account or the server has no room left; a subject's limit is among them, see above."""


def subject_full(error: JetStreamError) -> bool:
    """Whether it is one subject's limit that was reached, not the stream's."""
    return error.code == MESSAGE_LIMIT and "per subject" in error.description


DUPLICATE_IN_BATCH = 10201
NO_MESSAGE = 10037


@dataclass(frozen=True, slots=True)
class Ack:
    """The stream's acknowledgement. ``repeated``: an earlier try of the same publish was not answered."""

    sequence: int
    duplicate: bool = False
    repeated: bool = False


async def publish(
    nc: Client, subject: str, body: bytes, fields: dict[str, str], *, timeout: float = 5.0
) -> Ack:
    """Publish to a stream and wait for its acknowledgement.

    Raises:
        JetStreamError: the stream refused it; nothing was stored.
        nats.errors.Error: no answer within ``timeout`` seconds, or no connection; it may be stored.

    """
    return _ack(await nc.request(subject, body, timeout=timeout, headers=fields))


async def publish_behind(
    nc: AskingClient,
    first: Published,
    subject: str,
    body: bytes,
    fields: dict[str, str],
    *,
    timeout: float = 5.0,
) -> Ack:
    """As ``publish``, right behind ``first``, which the stream does not acknowledge."""
    return _ack(await nc.request_behind(first, subject, body, timeout=timeout, headers=fields))


def _ack(answer: Msg) -> Ack:
    result = checked(answer.data)
    return Ack(int(result["seq"]), bool(result.get("duplicate")))


# -- by the leader ---------------------------------------------------------------------------------------
async def stream_info(
    nc: Client, stream: str, options: Mapping[str, Any] | None = None, *, timeout: float = 5.0
) -> dict[str, Any]:
    """What the leader says of a stream: at least what was acknowledged before the call.

    Raises:
        Unsettled: the leader may have been replaced without knowing it; repeat.
        JetStreamError: there is no such stream.

    """
    info = await api(nc, f"STREAM.INFO.{stream}", dict(options or {}), timeout=timeout)
    group = info.get("cluster") or {}
    copies = group.get("replicas") or []
    heard = sum(0 < copy.get("active", 0) < _LEASE * 1e9 for copy in copies)
    if copies and (not group.get("leader") or heard < (len(copies) + 1) // 2):
        # Also a node that knows of no leader answers this, with what it has (tried on nats-server 2.15.1).
        raise Unsettled(f"who answers for stream {stream} has lost sight of the other nodes")
    return info


async def get_message(
    nc: Client, stream: str, sequence: int, *, timeout: float = 5.0
) -> StoredMessage | None:
    """The message at ``sequence``; None when the leader has none there (any more).

    Raises: as ``stream_info``.
    """
    return await _get(nc, stream, {"seq": sequence}, timeout)


async def get_known(nc: Client, stream: str, sequence: int, *, timeout: float = 5.0) -> StoredMessage | None:
    """The message at ``sequence``, where one was surely stored; None when it was removed.

    Raises: as ``stream_info``.
    """
    found = await get_message(nc, stream, sequence, timeout=timeout)
    if found is None and (await stream_info(nc, stream, timeout=timeout))["state"]["last_seq"] < sequence:
        raise Unsettled(f"stream {stream} has not caught up with its message {sequence}")
    return found


async def get_next(
    nc: Client, stream: str, sequence: int, subject: str, *, timeout: float = 5.0
) -> StoredMessage | None:
    """The first message on ``subject`` from ``sequence`` on, or None. Raises: as ``stream_info``."""
    return await _get(nc, stream, {"seq": sequence, "next_by_subj": subject}, timeout)


async def next_sequence(nc: Client, stream: str, sequence: int, subject: str, *, timeout: float = 5.0) -> int:
    """Where the first message on ``subject`` from ``sequence`` on is; behind the stream where there is none.

    What was stored between was surely removed. Where nothing is found it is looked for once more, with the
    stream's end known: who answered first may not have come so far. Raises: as ``stream_info``.
    """
    end = 0
    while True:
        found = await get_next(nc, stream, sequence, subject, timeout=timeout)
        if found is not None:
            return found.sequence
        if end:
            return end
        end = int((await stream_info(nc, stream, timeout=timeout))["state"]["last_seq"]) + 1


async def get_last(nc: Client, stream: str, subject: str, *, timeout: float = 5.0) -> StoredMessage | None:
    """The last message on ``subject``, or None. Raises: as ``stream_info``."""
    return await _get(nc, stream, {"last_by_subj": subject}, timeout)


async def get_last_of_each(
    nc: Client, stream: str, pattern: str, *, timeout: float = 5.0
) -> list[StoredMessage]:
    """The last message of every subject that matches ``pattern``, in the order of the stream.

    Raises: as ``stream_info``.
    """
    names = await count_of_each(nc, stream, pattern, timeout=timeout)
    latest = await _at_once(nc, stream, sorted(names), timeout)
    return sorted(latest, key=lambda message: message.sequence)


async def count_of_each(nc: Client, stream: str, pattern: str, *, timeout: float = 5.0) -> dict[str, int]:
    """How many messages each subject has that matches ``pattern``. Raises: as ``stream_info``."""
    counts: dict[str, int] = {}
    while True:
        page = await stream_info(
            nc, stream, {"subjects_filter": pattern, "offset": len(counts)}, timeout=timeout
        )
        found = page["state"].get("subjects") or {}
        counts |= found
        if not found or len(counts) >= int(page.get("total", 0)):
            return counts


async def _at_once(nc: Client, stream: str, names: Iterable[str], timeout: float) -> list[StoredMessage]:
    limit = asyncio.Semaphore(_AT_ONCE)

    async def get(name: str) -> StoredMessage | None:
        async with limit:
            return await get_last(nc, stream, name, timeout=timeout)

    return [each for each in await asyncio.gather(*map(get, names)) if each is not None]


_AT_ONCE = 64


async def _get(nc: Client, stream: str, request: dict[str, Any], timeout: float) -> StoredMessage | None:
    try:
        found = (await api(nc, f"STREAM.MSG.GET.{stream}", request, timeout=timeout))["message"]
    except JetStreamError as error:
        if error.code == NO_MESSAGE:
            return None
        raise
    fields = _fields(base64.b64decode(found.get("hdrs", "")))
    return StoredMessage(found["subject"], int(found["seq"]), base64.b64decode(found.get("data", "")), fields)


# -- by any node that keeps a copy -----------------------------------------------------------------------
async def direct_get(nc: Client, stream: str, sequence: int, *, timeout: float = 5.0) -> StoredMessage | None:
    """The message at ``sequence``, or None when there is none (any more)."""
    request = orjson.dumps({"seq": sequence})
    answer = await nc.request(f"$JS.API.DIRECT.GET.{stream}", request, timeout=timeout)
    return _stored(answer)


async def last_by_subject(
    nc: Client, stream: str, subject: str, *, timeout: float = 5.0
) -> StoredMessage | None:
    """The last message on ``subject``, or None."""
    answer = await nc.request(f"$JS.API.DIRECT.GET.{stream}.{subject}", b"", timeout=timeout)
    return _stored(answer)


async def last_of_each(nc: Client, stream: str, pattern: str, *, timeout: float = 5.0) -> list[StoredMessage]:
    """The last message of every subject that matches ``pattern``, in the order of the stream."""
    latest: dict[str, StoredMessage] = {}
    sequence = 1
    while page := await direct_get_page(nc, stream, pattern, sequence, timeout=timeout):
        for message in page:
            latest[message.subject] = message
        sequence = page[-1].sequence + 1
    return sorted(latest.values(), key=lambda message: message.sequence)


async def direct_get_page(
    nc: Client,
    stream: str,
    pattern: str,
    sequence: int,
    *,
    batch: int = 1000,
    max_bytes: int = 0,
    timeout: float = 5.0,
) -> list[StoredMessage]:
    """Up to ``batch`` messages that match ``pattern``, from ``sequence`` on; empty when there are none.

    ``max_bytes``: no more after so many bytes (0: no such limit).
    """
    inbox = nc.new_inbox()
    subscription = await nc.subscribe(inbox)
    found: list[StoredMessage] = []
    try:
        request: dict[str, Any] = {"seq": sequence, "next_by_subj": pattern, "batch": batch}
        if max_bytes:
            request["max_bytes"] = max_bytes
        await nc.publish(f"$JS.API.DIRECT.GET.{stream}", orjson.dumps(request), reply=inbox)
        while (stored := _stored(await subscription.next_msg(timeout=timeout))) is not None:
            found.append(stored)
        return found
    finally:
        with contextlib.suppress(nats.errors.Error):
            await subscription.unsubscribe()


async def count_by_subject(nc: Client, stream: str, pattern: str, *, timeout: float = 5.0) -> int:
    """How many messages match ``pattern``."""
    inbox = nc.new_inbox()
    subscription = await nc.subscribe(inbox)
    try:
        request = orjson.dumps({"seq": 1, "next_by_subj": pattern, "batch": 1})
        await nc.publish(f"$JS.API.DIRECT.GET.{stream}", request, reply=inbox)
        first = await subscription.next_msg(timeout=timeout)
        if _stored(first) is None:
            return 0
        return 1 + int((first.headers or {}).get(headers.NUM_PENDING, 0))
    finally:
        with contextlib.suppress(nats.errors.Error):
            await subscription.unsubscribe()


async def delete_message(
    nc: Client, stream: str, sequence: int, *, erase: bool = False, timeout: float = 5.0
) -> bool:
    """Remove one message; False when it was gone already. ``erase``: overwrite it on disk too."""
    try:
        request = {"seq": sequence, "no_erase": not erase}
        await api(nc, f"STREAM.MSG.DELETE.{stream}", request, timeout=timeout)
    except JetStreamError as error:
        if error.code in (10043, 10037, 10057):  # deletion failed or no message found: already gone
            return False
        raise
    return True


def _fields(raw: bytes) -> dict[str, str]:
    """Headers as they are stored, behind their first line."""
    lines = (line.partition(":") for line in raw.decode(errors="replace").split("\r\n")[1:] if line)
    return {name.strip(): value.strip() for name, _, value in lines}


def _stored(message: Any) -> StoredMessage | None:
    fields: dict[str, str] = dict(message.headers or {})
    if headers.STORED_SEQUENCE in fields and headers.STORED_SUBJECT in fields:
        # First, since a header that was stored with the message could pose as the server's status.
        sequence = int(fields[headers.STORED_SEQUENCE])
        return StoredMessage(fields[headers.STORED_SUBJECT], sequence, message.data, fields)
    status = fields.get(headers.STATUS, "")
    if status in ("404", "204"):
        return None
    raise JetStreamError(int(status or 0), fields.get("Description", "direct get failed"))

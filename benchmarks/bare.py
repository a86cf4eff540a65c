"""The way of a governed call without any policy: programs of a measurement, beside those of ``traffic``.

Calls go to a worker, which stores a record and what it is about, and answers. It decides nothing, searches
nothing and audits nothing, and everybody is in one account: what this takes is NATS's and its client's.

Calls that are in flight together go as one request, as the SDK has it (ADR 35).
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import orjson
from nats.aio.client import Client

from benchmarks.traffic import (
    BODY,
    RAW_BUCKET,
    counted,
    measure,
    measured_once,
    ours,
    pull_and_ack,
    role,
    rounds,
    say,
)
from mas_nats.asking import AskingClient, Published
from mas_nats.loop import run
from mas_nats.wire import headers
from mas_nats.wire.bundle import MOST_CALLS

BARE_STREAM, BARE_SUBJECT, BARE_RECORDS = "BARE", "bare.inbox.b", "bare.record"
SEND, REPLY, STATE = "bare.send", "bare.reply", "bare.state"
RECORD = b"x" * 300
"""Stands for a decision in a record."""
_BETWEEN = b"\0"
_ASKED = "Bare-Asked"  # where the reply to a message goes
_numbers = itertools.count()


async def bare_receive(count: int, _: int) -> None:
    await pull_and_ack(BARE_STREAM, count)


async def bare_send(count: int, concurrency: int) -> None:
    together = min(concurrency, MOST_CALLS)
    sizes = [together] * ((count - 1) // together)
    sizes += [rest] if (rest := (count - 1) % together) else []
    async with ours() as nc:
        left: list[int] = []

        async def request() -> None:
            await nc.request(SEND, _BETWEEN.join([BODY] * left.pop()), timeout=30)

        async for _round in rounds():
            left[:] = [*sizes, 1]
            await request()
            await measured_once(len(sizes), concurrency // together, request)


async def bare_request(count: int, concurrency: int) -> None:
    async with ours() as nc:
        inbox, waiting = nc.new_inbox(), dict[str, asyncio.Future[None]]()

        async def replied(message: Any) -> None:
            waiting.pop(message.subject).set_result(None)

        async def request() -> None:
            at = f"{inbox}.{next(_numbers)}"
            waiting[at] = reply = asyncio.get_running_loop().create_future()
            await nc.request(SEND, BODY, headers={_ASKED: at}, timeout=30)
            await reply

        await nc.subscribe(f"{inbox}.*", cb=replied)
        await measure(count, concurrency, request)


async def bare_respond(count: int, _: int) -> None:
    """A standing pull, as the SDK has it."""
    async with ours() as nc:
        inbox, answered = nc.new_inbox(), asyncio.Semaphore(0)

        async def handle(message: Any) -> None:
            if message.headers and _ASKED in message.headers:
                at = {_ASKED: message.headers[_ASKED]}
                await nc.request(REPLY, BODY, headers=at, timeout=30)
                await message.ack()
                answered.release()

        async def received(message: Any) -> None:
            asyncio.create_task(handle(message))  # noqa: RUF006 - awaited by the count

        await nc.subscribe(inbox, cb=received)
        await nc.publish(
            f"$JS.API.CONSUMER.MSG.NEXT.{BARE_STREAM}.b",
            b'{"batch":1000000,"expires":600000000000}',
            reply=inbox,
        )
        await nc.flush()
        await counted(nc, count, answered)


async def bare_state(count: int, _: int) -> None:
    async with ours() as nc:
        await measure(count, 1, lambda: nc.request(STATE, BODY, timeout=30))


async def bare_work(_count: int, _concurrency: int) -> None:
    arrived: list[Any] = []
    woken = asyncio.Event()

    async def take(message: Any) -> None:
        arrived.append(message)
        woken.set()

    async with ours() as nc:
        last = await (await nc.jetstream(timeout=30).key_value(RAW_BUCKET)).put("bare", BODY)

        async def state(message: Any) -> None:
            nonlocal last
            await _record(nc)
            at, expected = f"$KV.{RAW_BUCKET}.bare", {headers.EXPECTED_LAST_SUBJECT_SEQUENCE: str(last)}
            ack = await nc.jetstream(timeout=30).publish(at, message.data, headers=expected)
            last = ack.seq
            await nc.publish(message.reply, b"+")

        async def reply(message: Any) -> None:
            await _record(nc)
            await nc.publish(message.headers[_ASKED], message.data)
            await nc.publish(message.reply, b"+")

        await nc.subscribe_directly(SEND, take)
        await nc.subscribe(REPLY, cb=reply)
        await nc.subscribe(STATE, cb=state)
        await nc.flush()
        say(ready=True)
        while True:
            await woken.wait()
            woken.clear()
            taken, arrived[:] = list(arrived), []
            messages = [(body, each.headers or {}) for each in taken for body in each.data.split(_BETWEEN)]
            await _store(nc, messages)
            for each in taken:
                await nc.publish(each.reply, b"+")


async def _record(nc: Client) -> None:
    name = f"{os.getpid()}.{next(_numbers)}"
    await nc.request(f"{BARE_RECORDS}.{name}", RECORD, headers={headers.MSG_ID: name}, timeout=30)


async def _store(nc: AskingClient, messages: list[tuple[bytes, dict[str, str]]]) -> None:
    name = f"{os.getpid()}.{next(_numbers)}"
    parts = [Part(f"{BARE_RECORDS}.{name}", RECORD * len(messages), {headers.MSG_ID: f"{name}.0"})]
    for place, (body, more) in enumerate(messages, start=1):
        parts.append(Part(BARE_SUBJECT, body, {headers.MSG_ID: f"{name}.{place}", **more}))
    await store(nc, parts, batch=name.replace(".", "-"))


class Part(NamedTuple):
    """What is published of a record or a message, with the id by which it is stored once."""

    subject: str
    body: bytes
    fields: dict[str, str]


async def store(nc: AskingClient, parts: Sequence[Part], *, batch: str) -> int:
    """Store a record and the messages behind it: one plainly, as the inbox lane does it, more as a batch.

    Returns the sequence of the record.

    Raises:
        RuntimeError: the server refused it.

    """
    if len(parts) == 1:
        record = parts[0]
        return _sequence(await nc.request(record.subject, record.body, timeout=30, headers=record.fields))
    if len(parts) == 2:
        record, message = parts
        message.fields[headers.EXPECTED_LAST_MSG_ID] = record.fields[headers.MSG_ID]
        first = Published(record.subject, record.body, record.fields)
        answer = await nc.request_behind(
            first, message.subject, message.body, timeout=30, headers=message.fields
        )
        return _sequence(answer) - 1
    for place, part in enumerate(parts, start=1):
        part.fields[headers.BATCH_ID], part.fields[headers.BATCH_SEQUENCE] = batch, str(place)
    for part in parts[:-1]:
        await nc.publish(part.subject, part.body, headers=part.fields)
    last = parts[-1]
    last.fields[headers.BATCH_COMMIT] = "1"
    answer = await nc.request(last.subject, last.body, timeout=30, headers=last.fields)
    return _sequence(answer) - len(parts) + 1


def _sequence(answer: Any) -> int:
    said = orjson.loads(answer.data)
    if "error" in said:
        raise RuntimeError(said["error"])
    return int(said["seq"])


if __name__ == "__main__":
    run(role(bare_receive, bare_send, bare_request, bare_respond, bare_state, bare_work))

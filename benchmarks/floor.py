"""One way with the least that a policy service of this kind does: programs beside those of ``bare``.

Here each message is permitted, searched, committed to, recorded and chained into the audit, each by as few
calls of the same libraries as there can be. It shows what those take, and so how much of the governed way is
this project's own. What it leaves out: an account for each agent, limits, circuits, redaction, reading the
records back from the log, what became of a message, and everything that goes wrong.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import itertools
import os
import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import orjson
from redis.asyncio import Redis

from benchmarks.bare import BARE_RECORDS, BARE_STREAM, BARE_SUBJECT, Part, store
from benchmarks.traffic import PAYLOAD, measure, ours, role, rounds, say
from broker_policy.dlp import Ruleset, ruleset
from broker_policy.embedded.layout import Broker, Layout
from mas_nats.loop import run
from mas_nats.policy.governance import Dlp
from mas_nats.resilient import ResilientClient
from mas_nats.wire import headers
from mas_nats.wire.bundle import MOST_CALLS

SEND, ACK = "floor.send", "floor.ack"
SENDER, TARGET, TYPE = "a", "b", "note"
_GATHERING = 0.05
_TOGETHER = 16
_ENTRIES = 400
"""Entries in one append to the audit."""
_EVERYTHING: Any = {"pending_msgs_limit": -1, "pending_bytes_limit": -1}
_APPEND = """
local index = tonumber(redis.call('HGET', KEYS[1], 'i') or '0')
for place = 2, #ARGV, 2 do
  index = index + 1
  redis.call('XADD', KEYS[2], string.format('%.0f-0', index), 'e', ARGV[place], 'h', ARGV[place + 1])
end
redis.call('HSET', KEYS[1], 'i', index)
for _, command in ipairs(cjson.decode(ARGV[1])) do redis.call(unpack(command)) end
return 1
"""


class _Call(NamedTuple):
    message_id: str
    body: bytes
    done: asyncio.Future[None]


async def floor_send(count: int, concurrency: int) -> None:
    """Calls of one turn of the loop go as one request."""
    loop, gathered, tasks = asyncio.get_running_loop(), list[_Call](), set[asyncio.Task[None]]()

    async with ours() as nc:

        async def exchange(calls: Sequence[_Call]) -> None:
            listed = orjson.dumps([(each.message_id, TARGET, TYPE, len(each.body)) for each in calls])
            body = b"".join((len(listed).to_bytes(4), listed, *(each.body for each in calls)))
            answer = await nc.request(SEND, body, timeout=30)
            for each, refused in zip(calls, orjson.loads(answer.data), strict=True):
                if not refused:
                    each.done.set_result(None)

        def leave() -> None:
            calls = gathered.copy()
            gathered.clear()
            for first in range(0, len(calls), MOST_CALLS):
                task = asyncio.create_task(exchange(calls[first : first + MOST_CALLS]))
                tasks.add(task)
                task.add_done_callback(tasks.discard)

        async def send() -> None:
            done: asyncio.Future[None] = loop.create_future()
            gathered.append(_Call(secrets.token_hex(16), orjson.dumps(PAYLOAD), done))
            if len(gathered) == 1:
                loop.call_soon(leave)
            await done

        await measure(count, concurrency, send)


async def floor_receive(count: int, _: int) -> None:
    """A standing pull; what was handled is acknowledged together."""
    loop, tasks = asyncio.get_running_loop(), set[asyncio.Task[None]]()
    left, last, due, all_seen = 0, 0, False, asyncio.Event()

    async with ours() as nc:

        async def acknowledge() -> None:
            nonlocal due
            due = False
            await nc.request(ACK, str(last).encode(), timeout=30)

        def leave() -> None:
            task = asyncio.create_task(acknowledge())
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        async def handle(message: Any) -> None:
            nonlocal left, last, due
            orjson.loads(message.data)
            last = int(message.reply.split(".")[5])
            if not due:
                due = True
                loop.call_later(_GATHERING, leave)
            left -= 1
            if not left:
                all_seen.set()

        inbox = nc.new_inbox()
        await nc.subscribe(inbox, cb=handle, **_EVERYTHING)
        pull = b'{"batch":1000000,"expires":600000000000}'
        await nc.publish(f"$JS.API.CONSUMER.MSG.NEXT.{BARE_STREAM}.b", pull, reply=inbox)
        await nc.flush()
        async for _round in rounds():
            left = count
            all_seen.clear()
            say(ready=True)
            await all_seen.wait()
            await acknowledge()
            say(done=time.time())
        await asyncio.gather(*tasks)


class _Audit:
    """Chains what records say, every 0.3 seconds, and removes them."""

    def __init__(self, nc: ResilientClient, redis: Any) -> None:
        self.records: list[tuple[int, bytes]] = []  # each with its place in the log
        self._nc = nc
        self._append = redis.register_script(_APPEND)
        self._hash, self._index = b"", 0
        self._clear()

    def _clear(self) -> None:
        self._chain: list[bytes | str] = []
        self._indexes: list[int] = []
        self._ids: list[str | int] = []
        self._open: list[int] = []

    async def run(self) -> None:
        while True:
            await asyncio.sleep(0.3)
            if self.records:
                await self._project()

    async def _project(self) -> None:
        records, self.records = self.records, []
        for sequence, record in records:
            number, _, lines = orjson.loads(record)
            for place, line in enumerate(lines):
                self._link(sequence, number, place, line)
            if len(self._indexes) >= _ENTRIES:
                await self._leave()
        await self._leave()
        request = orjson.dumps({"filter": f"{BARE_RECORDS}.>", "seq": records[-1][0] + 1})
        await self._nc.request(f"$JS.API.STREAM.PURGE.{BARE_STREAM}", request, timeout=30)

    def _link(self, sequence: int, number: int, place: int, line: list[Any]) -> None:
        self._index += 1
        names = ("id", "f", "t", "y", "z", "d", "r", "c", "at")
        said = {"i": self._index, "k": "d", "n": number, "p": place, "s": sequence, "wy": "b"}
        entry = orjson.dumps(said | dict(zip(names, line, strict=True)), option=orjson.OPT_SORT_KEYS)
        self._hash = hashlib.sha256(self._hash + entry).digest()
        self._chain += (entry, self._hash.hex())
        self._indexes.append(self._index)
        self._ids += (line[0], self._index)
        self._open += (sequence + 1 + place, self._index)

    async def _leave(self) -> None:
        if self._indexes:
            lists = ("decision", f"sender:{SENDER}", f"target:{TARGET}")
            commands: list[list[Any]] = [["RPUSH", f"floor:{name}", *self._indexes] for name in lists]
            commands += [["HSET", "floor:ids", *self._ids], ["ZADD", "floor:open", *self._open]]
            await self._append(
                keys=["floor:head", "floor:chain"], args=[orjson.dumps(commands), *self._chain]
            )
        self._clear()


class _Worker:
    """Takes bundles, decides, stores and answers."""

    def __init__(self, nc: ResilientClient, audit: _Audit) -> None:
        self._nc, self._audit = nc, audit
        self._arrived: list[Any] = []
        self._woken = asyncio.Event()
        self._rules: Ruleset = ruleset(Dlp())
        self._key = secrets.token_bytes(32)
        self._allowed = {SENDER: {TARGET}}
        self._known = set[str]()
        self._numbers = itertools.count(1)
        self._previous = ""

    async def take(self, message: Any) -> None:
        self._arrived.append(message)
        self._woken.set()

    async def acknowledge(self, message: Any) -> None:
        request = orjson.dumps({"filter": BARE_SUBJECT, "seq": int(message.data) + 1})
        await self._nc.request(f"$JS.API.STREAM.PURGE.{BARE_STREAM}", request, timeout=30)
        await self._nc.publish(message.reply, b"+")

    async def run(self) -> None:
        while True:
            await self._woken.wait()
            self._woken.clear()
            taken, self._arrived = self._arrived, []
            lines: list[list[Any]] = []
            out: list[tuple[dict[str, str], bytes]] = []
            answers = [(message.reply, self._decide(message.data, lines, out)) for message in taken]
            for first in range(0, len(out), _TOGETHER):
                if self._rules.look(b"\0".join(body for _, body in out[first : first + _TOGETHER]))[0]:
                    raise RuntimeError("what is sent here holds nothing")
            await self._store(lines, out)
            for reply, verdicts in answers:
                await self._nc.publish(reply, orjson.dumps(verdicts))

    def _decide(
        self, data: bytes, lines: list[list[Any]], out: list[tuple[dict[str, str], bytes]]
    ) -> list[int]:
        verdicts: list[int] = []
        now, start = int(time.time() * 1000), 4 + int.from_bytes(data[:4])
        for message_id, target, kind, length in orjson.loads(data[4:start]):
            body = data[start : start + length]
            start += length
            refused = target not in self._allowed[SENDER] or message_id in self._known
            verdicts.append(int(refused))
            if refused:
                continue
            self._known.add(message_id)
            salt = hmac.digest(self._key, message_id.encode(), "sha256")[:16]
            content = b"\0".join((target.encode(), kind.encode(), body))
            committed = hmac.digest(salt, content, "sha256").hex()
            lines.append([message_id, SENDER, target, kind, length, "ALLOWED", "permissions", committed, now])
            fields = {
                headers.MESSAGE_ID: message_id,
                headers.SENDER: SENDER,
                headers.TYPE: kind,
                headers.SENT: str(now),
                headers.SALT: salt.hex(),
                headers.TARGET: target,
                headers.MSG_ID: f"{SENDER}.{message_id}",
            }
            out.append((fields, body))
        return verdicts

    async def _store(self, lines: list[list[Any]], out: list[tuple[dict[str, str], bytes]]) -> None:
        number = next(self._numbers)
        record, name = orjson.dumps([number, self._previous, lines]), f"{os.getpid()}.{number}"
        mac = hmac.digest(self._key, record, "sha256").hex()
        parts = [Part(f"{BARE_RECORDS}.{name}", record, {headers.MSG_ID: name, headers.RECORD_MAC: mac})]
        for place, (fields, body) in enumerate(out):
            fields[headers.AUDIT] = f"{name}.{place}"
            parts.append(Part(BARE_SUBJECT, body, fields))
        first = await store(self._nc, parts, batch=name.replace(".", "-"))
        self._previous = hashlib.sha256(record).hexdigest()
        self._audit.records.append((first, record))


async def floor_work(_count: int, _concurrency: int) -> None:
    url = Broker.read(Layout(Path.cwd() / ".mas")).redis_url()
    async with ours() as nc, Redis.from_url(url, socket_timeout=60) as redis:
        audit = _Audit(nc, redis)
        worker = _Worker(nc, audit)
        await nc.subscribe_directly(SEND, worker.take)
        await nc.subscribe(ACK, cb=worker.acknowledge)
        await nc.flush()
        say(ready=True)
        await asyncio.gather(worker.run(), audit.run())


if __name__ == "__main__":
    run(role(floor_receive, floor_send, floor_work))

"""A message and a request with the least that a policy service of this kind does: programs beside ``bare``.

Here each message is permitted, searched, committed to, recorded and chained into the audit, each by as few
calls of the same libraries as there can be. It shows what those take, and so how much of the governed way is
this project's own. What it leaves out: an account for each agent, limits, circuits, redaction, reading the
records back from the log, what became of a message, replies that are kept, and everything that goes wrong.
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
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
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

SEND, ACK, REPLY = "floor.send", "floor.ack", "floor.reply"
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


def _bundle(calls: Sequence[tuple[str, bytes]], asked: str = "") -> bytes:
    """One request of calls, each an id and a body; ``asked`` says where a reply goes."""
    listed = orjson.dumps([(message_id, TARGET, TYPE, len(body), asked) for message_id, body in calls])
    return b"".join((len(listed).to_bytes(4), listed, *(body for _, body in calls)))


async def floor_send(count: int, concurrency: int) -> None:
    """Calls of one turn of the loop go as one request."""
    loop, gathered, tasks = asyncio.get_running_loop(), list[_Call](), set[asyncio.Task[None]]()

    async with ours() as nc:

        async def exchange(calls: Sequence[_Call]) -> None:
            body = _bundle([(each.message_id, each.body) for each in calls])
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


async def floor_request(count: int, concurrency: int) -> None:
    """A request is a call like any other; its reply comes to a standing subscription."""
    async with ours() as nc:
        inbox, waiting = nc.new_inbox(), dict[str, asyncio.Future[None]]()
        numbers = itertools.count()

        async def replied(message: Any) -> None:
            orjson.loads(message.data)
            waiting.pop(message.subject).set_result(None)

        async def request() -> None:
            at = f"{inbox}.{next(numbers)}"
            waiting[at] = reply = asyncio.get_running_loop().create_future()
            body = _bundle([(secrets.token_hex(16), orjson.dumps(PAYLOAD))], at)
            answer = await nc.request(SEND, body, timeout=30)
            if not any(orjson.loads(answer.data)):
                await reply

        await nc.subscribe_directly(f"{inbox}.*", replied)
        await measure(count, concurrency, request)


async def floor_receive(count: int, _: int) -> None:
    """A standing pull; what was handled is acknowledged together, what is requested is answered first."""
    loop, tasks = asyncio.get_running_loop(), set[asyncio.Task[None]]()
    left, last, all_seen = 0, 0, asyncio.Event()
    due: asyncio.TimerHandle | None = None

    async with ours() as nc:

        async def acknowledge() -> None:
            nonlocal due
            if due is not None:
                due.cancel()
            due = None
            await nc.request(ACK, str(last).encode(), timeout=30)

        def leave() -> None:
            task = asyncio.create_task(acknowledge())
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        def handled(sequence: int) -> None:
            nonlocal left, last, due
            last = max(last, sequence)
            if due is None:
                due = loop.call_later(_GATHERING, leave)
            left -= 1
            if not left:
                all_seen.set()

        async def answer(token: str, sequence: int) -> None:
            await nc.request(REPLY, orjson.dumps(PAYLOAD), headers={headers.REPLY_TOKEN: token}, timeout=30)
            handled(sequence)

        async def handle(message: Any) -> None:
            orjson.loads(message.data)
            sequence = int(message.reply.split(".")[5])
            if (token := message.headers.get(headers.REPLY_TOKEN)) is None:
                handled(sequence)
                return
            tasks.add(task := asyncio.create_task(answer(token, sequence)))
            task.add_done_callback(tasks.discard)

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
        self._seal = AESGCM(self._key)
        self._allowed = {SENDER: {TARGET}}
        self._known = set[str]()
        self._tasks = set[asyncio.Task[None]]()
        self._storing = asyncio.Lock()
        self._numbers = itertools.count(1)
        self._previous = ""

    async def take(self, message: Any) -> None:
        self._arrived.append(message)
        self._woken.set()

    async def acknowledge(self, message: Any) -> None:
        request = orjson.dumps({"filter": BARE_SUBJECT, "seq": int(message.data) + 1})
        await self._nc.request(f"$JS.API.STREAM.PURGE.{BARE_STREAM}", request, timeout=30)
        await self._nc.publish(message.reply, b"+")

    async def replied(self, message: Any) -> None:
        task = asyncio.create_task(self._reply(message))
        self._tasks.add(task)
        task.add_done_callback(self._replied)

    def _replied(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        task.result()  # what went wrong is said

    async def _reply(self, message: Any) -> None:
        """Open the capability that came with the request; the reply is kept nowhere."""
        token = bytes.fromhex(message.headers[headers.REPLY_TOKEN])
        asked, message_id, target, until = orjson.loads(self._seal.decrypt(token[:12], token[12:], None))
        now = int(time.time() * 1000)
        if target != TARGET or until < now or self._rules.look(message.data)[0]:
            raise RuntimeError("what is replied here is wanted")
        line, fields = self._recorded(f"{message_id}.r", target, SENDER, TYPE, message.data, now)
        await self._store([line], [])
        await self._nc.publish(asked, message.data, headers=fields)
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
        for message_id, target, kind, length, asked in orjson.loads(data[4:start]):
            body = data[start : start + length]
            start += length
            refused = target not in self._allowed[SENDER] or message_id in self._known
            verdicts.append(int(refused))
            if refused:
                continue
            self._known.add(message_id)
            line, fields = self._recorded(message_id, SENDER, target, kind, body, now)
            fields[headers.MSG_ID] = f"{SENDER}.{message_id}"
            if asked:
                capability = orjson.dumps((asked, message_id, target, now + 60_000))
                nonce = secrets.token_bytes(12)
                fields[headers.REPLY_TOKEN] = (nonce + self._seal.encrypt(nonce, capability, None)).hex()
            lines.append(line)
            out.append((fields, body))
        return verdicts

    def _recorded(
        self, message_id: str, sender: str, target: str, kind: str, body: bytes, now: int
    ) -> tuple[list[Any], dict[str, str]]:
        """The line of a record, with what commits to the content; and what a message says of itself."""
        salt = hmac.digest(self._key, message_id.encode(), "sha256")[:16]
        content = b"\0".join((target.encode(), kind.encode(), body))
        committed = hmac.digest(salt, content, "sha256").hex()
        line = [message_id, sender, target, kind, len(body), "ALLOWED", "permissions", committed, now]
        fields = {
            headers.MESSAGE_ID: message_id,
            headers.SENDER: sender,
            headers.TYPE: kind,
            headers.SENT: str(now),
            headers.SALT: salt.hex(),
            headers.TARGET: target,
        }
        return line, fields

    async def _store(self, lines: list[list[Any]], out: list[tuple[dict[str, str], bytes]]) -> None:
        async with self._storing:  # each record names the one before it
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
        await nc.subscribe_directly(REPLY, worker.replied)
        await nc.flush()
        say(ready=True)
        await asyncio.gather(worker.run(), audit.run())


if __name__ == "__main__":
    run(role(floor_receive, floor_send, floor_request, floor_work))

"""A stand-in for the policy service on a plain nats-server: it speaks the call protocol and obeys a script.

It judges nothing. What it is for: answers that are lost, late or absent, which the real service gives only
when something breaks.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
from nats.js.errors import APIError, NotFoundError

from broker_policy.embedded.nats_server import NatsServer
from broker_policy.identity.pki import CertificateAuthority
from broker_policy.tenants.streams import inbox_consumer, tenant_streams
from mas_nats.config import Endpoint, TlsClientConfig
from mas_nats.policy.document import Limits
from mas_nats.resilient import ResilientClient
from mas_nats.wire import headers, subjects
from mas_nats.wire.correlation import correlation
from mas_nats.wire.identity import Identity, Role
from mas_nats.wire.verdict import Decision, Verdict, accepted

LIMITS = Limits(ack_wait=1.5, retry_delay=0.1, retry_delay_max=1.0, max_deliver=3, in_flight=8)


def endpoint(ca: CertificateAuthority, folder: Path, server: NatsServer, agent: str) -> Endpoint:
    paths = ca.issue(Identity("mas", "default", Role.AGENT, agent), folder)
    return Endpoint(server.url, TlsClientConfig(paths.ca, paths.cert, paths.key))


class ScriptedWorker:
    """Obeys ``lose`` (so many calls not taken), ``mute`` (taken, not answered) and ``say`` (the answer)."""

    def __init__(self, where: Endpoint, agents: list[str], limits: Limits = LIMITS) -> None:
        self.calls: list[tuple[str, str, dict[str, str], Any]] = []  # sender, op, headers, body
        self.lose: Counter[str] = Counter()
        self.mute: Counter[str] = Counter()
        self.say: dict[str, Callable[[], Verdict]] = {}
        self.refuse_bundles: Verdict | None = None
        self.dead: list[dict[str, Any]] = []
        self._where = where
        self._agents = agents
        self._limits = limits
        self._seen: dict[str, Verdict] = {}
        self.nc: Any = None
        self._subscription: Any = None

    async def start(self) -> ScriptedWorker:
        self.nc = ResilientClient()
        await self.nc.connect_within(5, error_cb=_quiet, servers=[self._where.url], tls=self._where.context())
        self.js = self.nc.jetstream()
        for config in tenant_streams(self._limits):
            try:
                await self.js.add_stream(config)
            except APIError:
                await self.js.update_stream(config)
        await self.limited(self._limits)
        await self.listen()
        return self

    async def limited(self, limits: Limits) -> None:
        """Have other limits, as an apply brings them."""
        self._limits = limits
        for agent in self._agents:
            await self.js.add_consumer(subjects.INBOX_STREAM, inbox_consumer(agent, limits))

    async def listen(self) -> None:
        self._subscription = await self.nc.subscribe(
            subjects.CALLS, queue=subjects.WORKER_QUEUE, cb=self._take
        )
        await self.nc.flush()

    async def leave(self) -> None:
        await self._subscription.unsubscribe()
        await self.nc.flush()

    async def stop(self) -> None:
        await self.nc.close()

    def count(self, op: str) -> int:
        return sum(1 for _, called, _, _ in self.calls if called == op)

    async def _take(self, message: Any) -> None:
        _, _, sender, op = message.subject.split(".")
        fields = dict(message.headers or {})
        if headers.BUNDLE in fields and self.refuse_bundles is not None:
            await message.respond(self.refuse_bundles.encode())
            return
        body = orjson.loads(message.data)
        self.calls.append((sender, op, fields, body))
        if self.lose[op] > 0:
            self.lose[op] -= 1
            return
        if op in self.say:
            verdict = self.say[op]()
        else:
            verdict = await getattr(self, f"_{op}")(sender, fields, body, message.data)
        if self.mute[op] > 0:
            self.mute[op] -= 1
            return
        await message.respond(verdict.encode())

    async def _hello(self, sender: str, fields: dict[str, str], body: Any, raw: bytes) -> Verdict:
        limits = self._limits
        return accepted(
            instance=body["instance"] or secrets.token_hex(10),
            namespace="default",
            heartbeat=5.0,
            in_flight=limits.in_flight,
            ack_wait=limits.ack_wait,
            max_deliver=limits.max_deliver,
            max_payload=limits.max_payload,
            max_state=limits.max_state,
            retry_delay=limits.retry_delay,
            retry_delay_max=limits.retry_delay_max,
        )

    async def _bye(self, sender: str, fields: dict[str, str], body: Any, raw: bytes) -> Verdict:
        return accepted()

    async def _send(self, sender: str, fields: dict[str, str], body: Any, raw: bytes) -> Verdict:
        message_id, target = fields[headers.MSG_ID], fields[headers.TARGET]
        envelope = {
            headers.MSG_ID: f"{sender}.{message_id}",
            headers.MESSAGE_ID: message_id,
            headers.SENDER: sender,
            headers.TARGET: target,
            headers.TYPE: fields[headers.TYPE],
            headers.SENT: "1700000000000",
        }
        if headers.DEADLINE in fields:
            envelope[headers.DEADLINE] = fields[headers.DEADLINE]
            token = f"{sender}.{fields[headers.INSTANCE]}.{correlation(message_id)}"
            envelope[headers.REPLY_TOKEN] = token
        ack = await self.js.publish(subjects.inbox(target), raw, headers=envelope)
        return accepted(message_id, duplicate=bool(ack.duplicate))

    _request = _send

    async def _reply(self, sender: str, fields: dict[str, str], body: Any, raw: bytes) -> Verdict:
        requester, instance, token = fields[headers.REPLY_TOKEN].split(".")
        message_id = fields[headers.MSG_ID]
        ack = await self.js.publish(
            subjects.answer(requester, instance, token, 0),
            raw,
            headers={
                headers.MSG_ID: message_id,
                headers.MESSAGE_ID: message_id,
                headers.SENDER: sender,
                headers.TYPE: fields[headers.TYPE],
                headers.SENT: "1700000000000",
            },
        )
        return accepted(message_id, duplicate=bool(ack.duplicate))

    async def _fail(self, sender: str, fields: dict[str, str], body: Any, raw: bytes) -> Verdict:
        if body["error_class"] == "EXPIRED":
            return accepted(expired=True)
        dead = not body["retryable"] or body["attempt"] >= self._limits.max_deliver
        if dead:
            self.dead.append(body)
        return accepted(dead=dead)

    async def _discover(self, sender: str, fields: dict[str, str], body: Any, raw: bytes) -> Verdict:
        return accepted(
            agents=[{"agent_id": "b", "capabilities": body["capabilities"], "metadata": {"x": 1}}]
        )

    async def _state(self, sender: str, fields: dict[str, str], body: Any, raw: bytes) -> Verdict:
        if (known := self._seen.get(fields[headers.MSG_ID])) is not None:
            return known
        try:
            stored = await self.js.get_last_msg("KV_state", f"$KV.state.{sender}")
            revision, value = stored.seq, orjson.loads(stored.data) if stored.data else None
        except NotFoundError:
            revision, value = 0, None
        if body["op"] == "get":
            return accepted(revision=revision, value=value)
        if body["revision"] != revision:
            return Verdict(Decision.STATE_CONFLICT, ok=False, reason="another instance wrote")
        data = orjson.dumps(body["value"]) if body["op"] == "put" else b""
        ack = await self.js.publish(f"$KV.state.{sender}", data)
        verdict = self._seen[fields[headers.MSG_ID]] = accepted(revision=ack.seq)
        return verdict


async def _quiet(error: Exception) -> None:
    """The broker going away is part of these tests."""


async def eventually(condition: Callable[[], object], timeout: float = 5.0) -> None:
    """Wait until ``condition`` holds."""
    end = asyncio.get_running_loop().time() + timeout
    while not condition():
        assert asyncio.get_running_loop().time() < end, "it did not happen in time"
        await asyncio.sleep(0.01)

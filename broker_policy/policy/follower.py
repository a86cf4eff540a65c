"""A view of policy: follows the bucket, confirms its revision, and knows when it is stale.

A worker asks the bucket's stream for its last sequence several times a second. While the answer equals
the revision it has loaded, of the same bucket, that revision is confirmed. Without a confirmation for
``STALE_AFTER`` seconds it must refuse: somebody may have been forbidden something meanwhile (DESIGN 4,
promise 3). A document that cannot be read closes its own namespace and no other.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import Any

import nats.errors
import orjson
from nats.aio.client import Client
from pydantic import ValidationError

from broker_policy.clock import ServerClock
from broker_policy.ending import end
from broker_policy.jetstream import StoredMessage, Unsettled, last_of_each, stream_info
from mas_nats.policy.document import Document, key
from mas_nats.policy.table import Table
from mas_nats.wire import subjects

log = logging.getLogger(__name__)

STALE_AFTER = 2.0
"""Seconds without confirmation after which a worker refuses (DESIGN 4)."""
_POLL = 0.4
_BEAT = 1.0

Changed = Callable[[Table], Awaitable[None]]


class PolicyFollower:
    """Keeps one compiled table for each namespace, under one revision for all.

    ``keys`` names the worker's keys for its heartbeat; ``server_clock`` is told what time the server says.
    Who is no ``worker`` has no heartbeat, and learns of changes by asking only: it needs but to read.
    """

    def __init__(
        self,
        nc: Client,
        worker: str = "",
        *,
        clock: Callable[[], float] = time.monotonic,
        server_clock: ServerClock | None = None,
        keys: Callable[[], Mapping[str, object]] = dict,
    ) -> None:
        self._nc = nc
        self._server_clock = server_clock or ServerClock()
        self._keys = keys
        self._worker = worker
        self._clock = clock
        self._tables: MappingProxyType[str, Table] = MappingProxyType({})
        self._revision = 0
        self._bucket = ""  # when the bucket was made: one that was made anew counts its revisions anew
        self._confirmed_at = -1e9
        self._beat_at = -1e9
        self._beat_body = b""
        self._unseen = False
        self._poke = asyncio.Event()
        self._listeners: list[Changed] = []
        self._task: asyncio.Task[None] | None = None

    @property
    def revision(self) -> int:
        """The revision that is loaded; 0 before the first."""
        return self._revision

    @property
    def stale(self) -> bool:
        """Whether the loaded revision went unconfirmed for too long, so that nothing may be allowed."""
        return self._clock() - self._confirmed_at > STALE_AFTER

    def table(self, namespace: str) -> Table | None:
        """The current table of ``namespace``. Take it once for a batch: it never changes."""
        return self._tables.get(namespace)

    def tables(self) -> list[Table]:
        """The current tables of all namespaces."""
        return list(self._tables.values())

    def revoked(self, fingerprint: str) -> bool:
        """Whether a certificate was revoked, in whatever namespace.

        Who does that by fingerprint may have named another than its holder's.
        """
        return any(fingerprint in table.document.revoked for table in self._tables.values())

    def on_change(self, listener: Changed) -> None:
        """Call ``listener`` with each new table, the present ones included when started later."""
        self._listeners.append(listener)

    async def start(self) -> None:
        """Load the present policy and follow it from here on."""
        if self._worker:
            await self._nc.subscribe(subjects.kv_key(subjects.POLICY_BUCKET, ">"), cb=self._poked)
        await self._follow_once()
        self._task = asyncio.create_task(self._follow(), name="policy-follower")

    async def stop(self) -> None:
        """Stop following; from 2 s on the view is stale."""
        if self._task is not None:
            await end([self._task])
            self._task = None

    async def _poked(self, _: Any) -> None:
        self._poke.set()

    async def _follow(self) -> None:
        was_stale = False
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._poke.wait(), _POLL)
            self._poke.clear()
            try:
                await self._follow_once()
            except Exception as error:  # noqa: BLE001 - whatever it is, unconfirmed means refused
                if self.stale and not was_stale:
                    log.error("policy cannot be confirmed, refusing traffic: %r", error)
            if was_stale and not self.stale:
                log.info("policy is confirmed again at revision %d", self._revision)
            was_stale = self.stale

    async def _follow_once(self) -> None:
        asked_at = self._clock()
        stream = subjects.kv_stream(subjects.POLICY_BUCKET)
        asked_when = self._server_clock.local()
        info = await stream_info(self._nc, stream, timeout=1.0)
        self._server_clock.observe(str(info.get("ts", "")), asked_when, self._server_clock.local())
        last, bucket = int(info["state"]["last_seq"]), str(info["created"])
        if (last, bucket) != (self._revision, self._bucket):
            await self._load(stream, last)
            self._bucket = bucket
        self._confirmed_at = asked_at
        if self._worker:
            await self._beat()

    async def _load(self, stream: str, revision: int) -> None:
        tables: dict[str, Table] = {}
        found = await last_of_each(self._nc, stream, subjects.kv_key(subjects.POLICY_BUCKET, ">"))
        if revision and (not found or found[-1].sequence < revision):
            # A copy that is behind. In this bucket the last message is never removed.
            raise Unsettled(f"policy revision {revision} is not on every node yet")
        for entry in found:
            if (document := _read(entry)) is not None:
                tables[document.namespace] = Table.compile(document, revision)
        self._tables = MappingProxyType(tables)
        self._revision = revision
        for table in tables.values():
            for listener in self._listeners:
                try:
                    await listener(table)
                except Exception:
                    log.exception("policy of %s: a listener failed", table.namespace)

    async def _beat(self) -> None:
        now = self._clock()
        body = orjson.dumps({"revision": self._revision, "keys": self._keys()})
        if body == self._beat_body and now - self._beat_at < _BEAT:
            return
        try:
            await self._nc.request(subjects.kv_key(subjects.WORKERS_BUCKET, self._worker), body, timeout=1.0)
        except (nats.errors.Error, OSError) as error:
            if not self._unseen:  # the bucket lives in memory: only the tenant controller can make it again
                log.warning("this worker's heartbeat is not taken (%r): run 'mas apply'", error)
            self._unseen = True
            return
        self._beat_at, self._beat_body, self._unseen = now, body, False


def _read(entry: StoredMessage) -> Document | None:
    """The document of an entry; None when it is deleted, no document, or cannot be read."""
    if not entry.data:
        return None
    try:
        document = Document.model_validate_json(entry.data)
    except ValidationError as error:
        log.error("policy %s cannot be read, its namespace is closed: %s", entry.subject, error)
        return None
    if entry.subject != subjects.kv_key(subjects.POLICY_BUCKET, key(document.namespace)):
        log.error("policy %s is about namespace %s and is ignored", entry.subject, document.namespace)
        return None
    return document

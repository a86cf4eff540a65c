"""The namespaces that one worker serves: each is begun when it has a policy, and let go when it has none."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nats.errors
import nats.js.errors
from nats.aio.client import Client
from redis.asyncio import Redis

from broker_policy.admission.counters import Counters
from broker_policy.audit.file_sink import FileSink
from broker_policy.audit.lease import Leases
from broker_policy.audit.memory import Memory, memory_of
from broker_policy.audit.projector import AWAY, Lag, Projector
from broker_policy.audit.recall import Recall
from broker_policy.audit.record import RecordKey
from broker_policy.audit.store import Store
from broker_policy.callout.service import Attempt
from broker_policy.calls.arriving import Arriving
from broker_policy.clock import ServerClock
from broker_policy.commit.disk_room import DiskRoom
from broker_policy.dead_letters.sweep import SWEEP_EVERY
from broker_policy.dlp import Apart
from broker_policy.ending import end
from broker_policy.jetstream import JetStreamError
from broker_policy.policy.follower import PolicyFollower
from broker_policy.sealing import Sealer
from broker_policy.service import NamespaceService
from broker_policy.telemetry.watching import Watch
from broker_policy.tenants.connect import Listener, connect_tenant
from broker_policy.tenants.endpoint import Endpoint
from broker_policy.tenants.live_keys import LiveWorkerKeys
from broker_policy.tenants.reach import keep_in_reach
from broker_policy.tenants.restore import restore
from mas_nats.policy.document import Document
from mas_nats.policy.governance import AuditSink
from mas_nats.policy.table import Table
from mas_nats.resilient import ResilientClient
from mas_nats.wire import subjects
from mas_nats.wire.identity import Role

log = logging.getLogger(__name__)

_START_PATIENCE = 1.0
"""Seconds for which a namespace that begins to be served holds up the following of policy for the others."""
_TRY_AGAIN = 1.0
_KEEP_WHOLE = 10.0
"""Seconds between two looks for streams and consumers that somebody removed, and at who has no policy."""
_MOST_UNHEARD = 1000
"""Attempts to connect that are kept until their namespaces are served."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """What the namespaces of one worker have in common."""

    name: str  # of the worker, as people know it
    worker_id: str
    endpoint: Endpoint
    keys: LiveWorkerKeys
    follower: PolicyFollower
    clock: ServerClock
    sealer: Sealer
    record_key: RecordKey
    redis: Redis
    leases: Leases
    counters: Counters
    apart: Apart
    disk: DiskRoom
    root: Path  # below it are the files to which the audit is copied
    sweep_every: float = SWEEP_EVERY  # seconds
    watch: Callable[[str], Watch | None]
    observing: Callable[[], Awaitable[Client]]
    spawn: Callable[
        [Coroutine[Any, Any, None]], asyncio.Task[None]
    ]  # what ends with an error ends the worker
    ended: Callable[[asyncio.Task[None]], None]  # the same of a task that others end


@dataclass(slots=True)
class Served:
    """One namespace in this worker."""

    nc: Any
    service: NamespaceService
    projector: Projector
    projecting: asyncio.Task[None]
    beside: list[asyncio.Task[None]]  # what looks after its service and its connection
    removed: bool = False  # it had no policy at the last look

    async def lag(self) -> Lag:
        """What of the log is not in the chain yet."""
        return await self.projector.lag()

    def circuits(self) -> Counter[str]:
        """How many circuits are open and half open."""
        return self.service.circuits()


class Namespaces(Mapping[str, Served]):
    """Those that are served at the moment, by name."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._served: dict[str, Served] = {}
        self._starting: dict[str, asyncio.Task[None]] = {}
        self._leaving: dict[str, asyncio.Task[None]] = {}
        self._unheard: deque[Attempt] = deque(maxlen=_MOST_UNHEARD)  # in namespaces that are not served yet
        self._starts: Counter[str] = Counter()
        self._copied: set[str] = set()  # namespaces with a task that copies their audit
        self._stopping = False

    def __getitem__(self, namespace: str) -> Served:
        return self._served[namespace]

    def __iter__(self) -> Iterator[str]:
        return iter(self._served)

    def __len__(self) -> int:
        return len(self._served)

    # -- begin ---------------------------------------------------------------------------------------
    async def serve(self, table: Table) -> None:
        """Begin to serve a namespace, and wait for it a moment: who applied a policy may use it at once."""
        namespace = table.namespace
        if namespace in self._served:
            self._served[namespace].service.policy_changed()
        if namespace in self._served or namespace in self._starting or self._stopping:
            return
        self._starting[namespace] = self._shared.spawn(self._keep_starting(namespace))
        if namespace not in self._leaving:
            await asyncio.wait({self._starting[namespace]}, timeout=_START_PATIENCE)

    async def _keep_starting(self, namespace: str) -> None:
        try:
            while not self._stopping and (table := self._shared.follower.table(namespace)) is not None:
                try:
                    await self._start(table)
                except Exception as error:  # noqa: BLE001 - whatever it is, the other namespaces go on
                    log.warning("namespace %s cannot be served yet: %r", namespace, error)
                    await asyncio.sleep(_TRY_AGAIN)
                else:
                    return
        finally:
            del self._starting[namespace]

    async def _start(self, table: Table) -> None:
        shared, namespace = self._shared, table.namespace
        if namespace in self._leaving:
            await asyncio.wait({self._leaving[namespace]})
        self._starts[namespace] += 1

        async def reconnected() -> None:  # the server may be a new one that has forgotten what was in memory
            shared.spawn(self._keep_restoring(namespace))

        async def connect(what: str = "", listener: Listener | None = None) -> ResilientClient:
            name = f"{shared.worker_id}-{namespace}{what}"
            account = table.document.account
            return await connect_tenant(
                shared.endpoint, shared.keys, account, name=name, reconnected=listener
            )

        nc = await connect(listener=reconnected)
        service = NamespaceService(
            nc,
            namespace,
            # Record numbers begin anew with each start.
            worker=f"{shared.worker_id}x{self._starts[namespace]}",
            follower=shared.follower,
            sealer=shared.sealer,
            record_key=shared.record_key,
            recall=Recall(Store(shared.redis, namespace)),
            listen=lambda: connect("-state"),
            sweep_every=shared.sweep_every,
            disk=shared.disk,
            clock=shared.clock,
            counters=shared.counters,
            apart=shared.apart,
            neighbours=self._entrance,
            watch=shared.watch(namespace),
            token_ring=lambda: shared.keys.tokens,
        )
        try:
            await self._restore(nc, namespace)
            await service.start()
        except BaseException:
            await service.stop()
            await nc.close()
            raise
        projector = Projector(
            namespace,
            nc,
            shared.redis,
            shared.record_key,
            clock=lambda: shared.clock() / 1000,
            remember=lambda: self._remember(nc),
            leases=shared.leases,
            name=shared.name,
        )
        projecting = asyncio.create_task(projector.run(), name=f"{namespace}-projector")
        projecting.add_done_callback(shared.ended)
        beside = [shared.spawn(service.wait_broken())]
        if shared.endpoint.nodes > 1:
            reach = keep_in_reach(nc, subjects.INBOX_STREAM, f"{shared.worker_id}-{namespace}")
            beside.append(shared.spawn(reach))
        self._served[namespace] = Served(nc, service, projector, projecting, beside)
        self._audit_unheard()
        if namespace not in self._copied:
            self._copied.add(namespace)
            sink = FileSink(
                Store(shared.redis, namespace), lambda: self._sink_of(namespace), root=shared.root
            )
            shared.spawn(sink.run())

    def _entrance(self, namespace: str) -> Arriving | None:
        """Where messages of other namespaces come in."""
        served = self._served.get(namespace)
        return None if served is None else served.service.arriving

    def _sink_of(self, namespace: str) -> AuditSink | None:
        table = self._shared.follower.table(namespace)
        return None if table is None else table.document.governance.audit

    async def _remember(self, nc: Client) -> Memory:
        return await memory_of(nc, await self._shared.observing(), self._shared.endpoint.nodes)

    # -- who connects --------------------------------------------------------------------------------
    def audit(self, attempt: Attempt) -> None:
        """Audit an attempt to connect in the namespace that it names."""
        if attempt.holder is None:
            return  # nobody was named: there is no namespace to audit it in, the log has it
        identity = attempt.holder.identity
        served = self._served.get(identity.namespace)
        if served is not None:
            agent = identity.name if identity.role is Role.AGENT else ""
            served.service.connected(
                attempt.uri, attempt.holder.fingerprint, agent=agent, refused=attempt.reason
            )
        elif self._shared.follower.table(identity.namespace) is not None:
            self._unheard.append(attempt)  # let in as soon as there is a policy, and it is about to be served

    def _audit_unheard(self) -> None:
        unheard = tuple(self._unheard)
        self._unheard.clear()
        for attempt in unheard:
            self.audit(attempt)

    # -- keep, and let go ----------------------------------------------------------------------------
    async def keep_whole(self) -> None:
        """Make again what was removed while the connection stood: nobody says so."""
        while True:
            await asyncio.sleep(_KEEP_WHOLE)
            if not self._shared.follower.stale:
                await asyncio.gather(*map(self._restored, tuple(self._served)))
                self._let_go()

    async def _keep_restoring(self, namespace: str) -> None:
        while namespace in self._served and self._shared.follower.table(namespace) is not None:
            if await self._restored(namespace):
                return
            await asyncio.sleep(_TRY_AGAIN)

    async def _restored(self, namespace: str) -> bool:
        """Whether the namespace has all that it needs now."""
        try:
            await self._restore(self._served[namespace].nc, namespace)
        except (nats.errors.Error, nats.js.errors.Error, JetStreamError, OSError) as error:
            log.warning("streams of %s cannot be looked at: %r", namespace, error)
            return False
        return True

    async def _restore(self, nc: Client, namespace: str) -> None:
        def policy() -> Document | None:
            table = self._shared.follower.table(namespace)
            return None if table is None else table.document

        if made := await restore(nc, policy, self._shared.endpoint.nodes):
            log.warning("namespace %s had lost %s: made again, empty", namespace, ", ".join(made))

    def _let_go(self) -> None:
        """End serving namespaces that have had no policy since the last look: an idle one costs, too.

        Nothing of theirs is removed. With a policy they are served again.
        """
        if self._stopping:
            return
        for namespace, served in tuple(self._served.items()):
            if self._shared.follower.table(namespace) is not None:
                served.removed = False
            elif not served.removed:
                served.removed = True
            else:
                del self._served[namespace]
                self._leaving[namespace] = asyncio.create_task(self._leave(namespace, served))

    async def _leave(self, namespace: str, served: Served) -> None:
        """Close the records, project them, disconnect; sooner where there is a policy again."""
        try:
            await end(served.beside)
            await served.service.stop()
            while not self._stopping and self._shared.follower.table(namespace) is None:
                with contextlib.suppress(*AWAY):
                    if await served.projector.at_rest():
                        log.info("namespace %s has no policy any more: it is not served", namespace)
                        break
                await asyncio.sleep(_TRY_AGAIN)
        except Exception:  # whatever it is, the other namespaces go on
            log.exception("namespace %s has no policy any more, and was left in bad order", namespace)
        finally:
            await end([served.projecting])
            await served.nc.close()
            del self._leaving[namespace]

    # -- stop, in this order -------------------------------------------------------------------------
    async def begin_no_more(self) -> None:
        """Serve no other namespace from here on, and wait for those that are being let go."""
        self._stopping = True
        if self._leaving:
            await asyncio.wait(self._leaving.values())

    async def stop_serving(self) -> None:
        """Finish what was taken, and close the records."""
        stopping = [served.service.stop() for served in self._served.values()]
        for result in await asyncio.gather(*stopping, return_exceptions=True):
            if isinstance(result, BaseException):
                log.error("a namespace did not stop in good order: %r", result)

    async def stop_projecting(self) -> None:
        """Have the others project what is left."""
        await end(served.projecting for served in self._served.values())

    async def disconnect(self) -> None:
        """Close the connections."""
        for served in self._served.values():
            await served.nc.close()

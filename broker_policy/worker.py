"""A policy worker: one process that answers the callout, serves every namespace, and projects the audit.

``python -m broker_policy.worker --folder .mas --name w1`` runs one on an embedded installation. Any number
may run, on any machine that has the worker keys; they share nothing but NATS and Redis.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import itertools
import logging
import secrets
import signal
import sys
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nats.errors
import nats.js.errors
from nats.aio.client import Client
from redis.asyncio import Redis
from redis.exceptions import RedisError

from broker_policy import huge_pages
from broker_policy.admission.counters import PATIENCE, Counters
from broker_policy.audit.lease import Leases
from broker_policy.callout.service import CalloutService
from broker_policy.clock import ServerClock
from broker_policy.commit.disk_room import DiskRoom, jetstream_store, local_disk
from broker_policy.dead_letters.sweep import SWEEP_EVERY
from broker_policy.dlp import Apart, ruleset
from broker_policy.embedded import durability, telemetry_file
from broker_policy.embedded.errors import NotDurable
from broker_policy.embedded.layout import DEFAULT_FOLDER, Broker, Layout
from broker_policy.ending import end
from broker_policy.identity.pki import Holder
from broker_policy.policy.follower import PolicyFollower
from broker_policy.redis_starts import follow_starts
from broker_policy.sealing import Sealer
from broker_policy.serving import Namespaces, Shared
from broker_policy.tenants.accounts import Grant, grant_for
from broker_policy.tenants.connect import (
    connect_callout,
    connect_control,
    connect_observer,
)
from broker_policy.tenants.endpoint import Endpoint
from broker_policy.tenants.live_keys import LiveWorkerKeys
from broker_policy.tenants.material import PublicMaterial, WorkerKeys
from broker_policy.tenants.reach import keep_in_reach
from broker_policy.tenants.sealing_ring import SealingKey, SealingRing
from mas_nats.errors import ConfigurationError
from mas_nats.loop import run
from mas_nats.policy.table import Table
from mas_nats.telemetry.settings import OFF, TelemetrySettings
from mas_nats.wire import subjects
from mas_nats.wire.identity import Identity

if TYPE_CHECKING:  # not loaded where it is off
    from broker_policy.telemetry.worker import WorkerTelemetry

log = logging.getLogger(__name__)

_FOLLOW_KEYS = 0.5
_NEW_OBJECTS = 10_000
"""Objects more than at the garbage collector's last look, before it looks again: those of calls under way
are thousands, all of them in use."""
_GATHERED_AFTER, _GATHERED_EVERY = (3.0, 30.0), 600.0
"""Seconds after which, and then between which, memory is gathered on huge pages."""


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """What a worker needs to know."""

    name: str
    endpoint: Endpoint
    keys: WorkerKeys
    public: PublicMaterial
    redis_url: str
    sweep_every: float = SWEEP_EVERY  # seconds
    counted_within: float = PATIENCE  # seconds that messages wait for the counters in Redis
    keys_folder: Path | None = None  # where rotated keys are looked for
    durable: bool = True  # refuse to start on servers that acknowledge before they flush
    disk: Path | None = None  # where the servers store, if that is on this machine: it must not fill up
    redis_folder: Path | None = None  # of a Redis whose file is looked at before it starts
    telemetry: TelemetrySettings = OFF
    metrics_port: int = 0  # where this worker shows its metrics and its health; 0: nowhere

    @classmethod
    def embedded(cls, layout: Layout, name: str, *, metrics_port: int = 0) -> WorkerConfig:
        """Read the configuration of an embedded installation.

        Raises:
            ConfigurationError: keys or certificates are missing or damaged.
            NotRunning: nothing runs there.

        """
        broker = Broker.read(layout)
        return cls(
            name=name,
            endpoint=broker.connection(layout, "worker"),
            keys=WorkerKeys.load(layout.keys),
            public=PublicMaterial.load(layout.keys),
            redis_url=broker.redis_url(),
            keys_folder=layout.keys,
            durable=broker.durable,
            disk=layout.root,
            redis_folder=layout.redis,
            telemetry=telemetry_file.read(layout),
            metrics_port=metrics_port,
        )


class PolicyWorker:
    """One worker. Use ``start``, ``wait`` and ``stop``."""

    def __init__(self, config: WorkerConfig) -> None:
        self._config = config
        # Never twice under one sealing key: its counter nonces and its record numbers begin anew (48 bits).
        self.worker_id = f"w{secrets.token_hex(6)}"
        self._clock = ServerClock()
        self._keys = LiveWorkerKeys(config.keys, config.keys_folder)
        ring = config.keys.sealing
        self._sealer = Sealer(self.worker_id, tuple(ring))
        self._record_key = ring.record_key
        self._ring: SealingRing | None = None
        self._opening: tuple[SealingKey, ...] = ()
        self._take_ring()
        self._redis = Redis.from_url(config.redis_url, socket_timeout=5, socket_connect_timeout=2)
        self._leases = Leases(self._redis)
        self._counters = Counters.at(config.redis_url, patience=config.counted_within)
        self._apart = Apart()
        self._broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._tasks: set[asyncio.Task[None]] = set()
        self._control: Any = None
        self._callout_nc: Any = None
        self._observer: Any = None
        self._telemetry = _telemetry(config, self.worker_id)
        local = [local_disk(config.disk)] if config.disk is not None else []
        self._disk = DiskRoom(jetstream_store(self._jsz), *local)
        self._follower: PolicyFollower
        self._namespaces: Namespaces
        self._callout: CalloutService

    async def start(self) -> None:
        """Serve from here on.

        Raises:
            NotDurable: a server acknowledges before it flushes, and the profile is durable.

        """
        config = self._config
        await self._require_durable()
        await self._disk.look()
        self._spawn(self._disk.follow())
        self._control = await connect_control(config.endpoint, self._keys, config.public, name=self.worker_id)
        self._follower = PolicyFollower(
            self._control, self.worker_id, server_clock=self._clock, keys=self._keys.names
        )
        self._namespaces = Namespaces(self._shared())
        if config.endpoint.nodes > 1:
            stream = subjects.kv_stream(subjects.POLICY_BUCKET)
            self._spawn(keep_in_reach(self._control, stream, self.worker_id))
        self._follower.on_change(self._serve)
        await self._follower.start()
        self._callout_nc = await connect_callout(
            config.endpoint, self._keys, config.public, name=self.worker_id
        )
        self._callout = CalloutService(
            self._callout_nc,
            self._keys,
            config.public,
            self._resolve,
            revoked=self._revoked,
            clock=self._clock,
            on_accept=self._namespaces.audit,
            on_refuse=self._namespaces.audit,
        )
        await self._callout.start()
        self._spawn(self._follow_keys())
        self._spawn(self._namespaces.keep_whole())
        self._spawn(follow_starts(self._redis, config.redis_folder))
        self._spawn(_gather_memory())
        if self._telemetry is not None:
            await self._telemetry.start(lambda: dict(self._namespaces), stale=lambda: self._follower.stale)
        log.info(
            "worker %s (%s) serves %s", config.name, self.worker_id, sorted(self._namespaces) or "nothing yet"
        )

    async def wait(self) -> None:
        """Return only by raising: a part of this worker cannot go on.

        Raises:
            LogUnreachable: the log did not answer for minutes.
            NotDurable: Redis came back with settings that lose acknowledged writes.

        """
        await self._broken

    async def stop(self) -> None:
        """Finish what was taken, close the records, disconnect."""
        begun = self._control is not None  # so far that there is policy to follow
        if begun:
            await self._namespaces.begin_no_more()
        await end(self._tasks)
        if self._telemetry is not None:
            await self._telemetry.end_looking()
        if self._callout_nc is not None:
            with contextlib.suppress(nats.errors.Error):
                await self._callout.stop()
        if begun:
            await self._namespaces.stop_serving()
            await self._follower.stop()
            await self._namespaces.stop_projecting()
        await self._leases.stop()
        if begun:
            await self._namespaces.disconnect()
        for nc in (self._callout_nc, self._control, self._observer):
            if nc is not None:
                await nc.close()
        await self._apart.stop()
        await self._counters.close()
        await self._redis.aclose()
        if self._telemetry is not None:
            await self._telemetry.stop()
        if not self._broken.done():
            self._broken.cancel()

    # -- durability ----------------------------------------------------------------------------------
    async def _require_durable(self) -> None:
        config = self._config
        if not config.durable:
            log.warning("relaxed profile: an accepted message can be lost in a power cut")
            return
        observer = await self._observing()
        durability.require(await durability.nats_findings(observer, servers=config.endpoint.nodes))
        if await self._redis_answers():
            durability.require(await durability.redis_findings(self._redis))
        else:
            log.warning("Redis does not answer: traffic goes on, the audit waits in the log")
            self._spawn(self._require_redis_durable())

    async def _observing(self) -> Client:
        if self._observer is None:
            config = self._config
            self._observer = await connect_observer(
                config.endpoint, self._keys, config.public, name=self.worker_id
            )
        observer: Client = self._observer
        return observer

    async def _jsz(self) -> list[dict[str, Any]]:
        return await durability.jetstream_summaries(await self._observing())

    async def _redis_answers(self) -> bool:
        try:
            await self._redis.execute_command("PING")  # type: ignore[no-untyped-call]
        except (RedisError, OSError):
            return False
        return True

    async def _require_redis_durable(self) -> None:
        await asyncio.sleep(1)
        if not await self._redis_answers():
            self._spawn(self._require_redis_durable())
            return
        durability.require(await durability.redis_findings(self._redis))

    # -- namespaces ------------------------------------------------------------------------------------
    def _shared(self) -> Shared:
        config, telemetry = self._config, self._telemetry
        return Shared(
            name=config.name,
            worker_id=self.worker_id,
            endpoint=config.endpoint,
            keys=self._keys,
            follower=self._follower,
            clock=self._clock,
            sealer=self._sealer,
            record_key=self._record_key,
            redis=self._redis,
            leases=self._leases,
            counters=self._counters,
            apart=self._apart,
            disk=self._disk,
            root=config.disk or Path(),
            sweep_every=config.sweep_every,
            watch=lambda namespace: None if telemetry is None else telemetry.watch(namespace),
            observing=self._observing,
            spawn=self._spawn,
            ended=self._ended,
        )

    async def _serve(self, table: Table) -> None:
        self._take_ring()  # the server's time is known by now
        with contextlib.suppress(ConfigurationError):  # told by whoever needs them
            ruleset(table.document.governance.dlp)  # compiled now, not with the first message
        await self._namespaces.serve(table)

    def _spawn(self, running: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(running)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) and not self._broken.done():
            self._broken.set_exception(error)

    # -- keys ----------------------------------------------------------------------------------------
    async def _follow_keys(self) -> None:
        while True:
            await asyncio.sleep(_FOLLOW_KEYS)
            self._keys.refresh()
            self._take_ring()

    def _take_ring(self) -> None:
        """Seal and recognise by the keys as they are now; some may have had their time."""
        ring = self._keys.sealing.pruned(self._clock())
        opening = ring.opening(self._clock())
        if ring != self._ring or opening != self._opening:
            self._ring, self._opening = ring, opening
            self._sealer.use(tuple(ring), opening)
            self._record_key.become(ring.record_key)

    # -- callout -------------------------------------------------------------------------------------
    def _resolve(self, identity: Identity) -> Grant | None:
        if self._follower.stale:
            raise RuntimeError("policy cannot be confirmed")
        table = self._follower.table(identity.namespace)
        return None if table is None else grant_for(table.document, identity)

    def _revoked(self, holder: Holder) -> bool:
        return self._follower.revoked(holder.fingerprint)


def _telemetry(config: WorkerConfig, worker: str) -> WorkerTelemetry | None:
    """The telemetry, where there is any; nothing of it is even imported where there is none."""
    if not config.telemetry.enabled and not config.metrics_port:
        return None
    from broker_policy.telemetry.worker import WorkerTelemetry  # noqa: PLC0415

    return WorkerTelemetry(config.telemetry, worker=worker, port=config.metrics_port)


async def _gather_memory() -> None:
    for pause in itertools.chain(_GATHERED_AFTER, itertools.repeat(_GATHERED_EVERY)):
        await asyncio.sleep(pause)
        try:
            await asyncio.to_thread(huge_pages.gather)
        except Exception as error:  # noqa: BLE001 - whatever it is, without it everything is only slower
            log.info("memory is not gathered on huge pages: %r", error)
            return


async def serve(config: WorkerConfig, ready: Path | None) -> int:
    """Run a worker until SIGTERM or SIGINT; its exit status."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    worker = PolicyWorker(config)
    try:
        await worker.start()
        if ready is not None:
            ready.touch()
        stopped = asyncio.create_task(stop.wait())
        broken = asyncio.create_task(worker.wait())
        done, _ = await asyncio.wait({stopped, broken}, return_when=asyncio.FIRST_COMPLETED)
        if broken in done:
            broken.result()
        broken.cancel()
    except NotDurable as error:
        log.error("%s", error)
        return 1
    finally:
        if ready is not None:
            ready.unlink(missing_ok=True)
        await worker.stop()
    return 0


def main() -> None:
    """Run a worker of an embedded installation."""
    parser = argparse.ArgumentParser(prog="python -m broker_policy.worker", description=main.__doc__)
    parser.add_argument("--folder", type=Path, default=DEFAULT_FOLDER, help="the folder of 'mas up'")
    parser.add_argument("--name", default="w1", help="names the process in logs and ready file")
    parser.add_argument("--metrics-port", type=int, default=0, help="where it shows metrics and health")
    arguments = parser.parse_args()
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr
    )
    layout = Layout(arguments.folder.resolve())
    config = WorkerConfig.embedded(layout, arguments.name, metrics_port=arguments.metrics_port)
    ready = layout.ready(arguments.name)
    gc.set_threshold(_NEW_OBJECTS)
    sys.exit(run(serve(config, ready)))


if __name__ == "__main__":
    main()

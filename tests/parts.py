"""The same system as ``tests/system.py``, but with the workers in this process, so that a test can stop one,
cut it off, or leave none."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from broker_policy.embedded.certify import certify
from broker_policy.embedded.layout import Broker, Layout
from broker_policy.embedded.nats_server import NatsServer
from broker_policy.embedded.redis_server import RedisServer
from broker_policy.tenants.material import create_material
from broker_policy.tenants.provision import provision
from broker_policy.worker import PolicyWorker, WorkerConfig
from tests.system import System


@dataclass
class Parts(System):
    """Servers as processes, workers as objects."""

    nats: NatsServer
    redis_server: RedisServer
    workers: list[PolicyWorker] = field(default_factory=list)

    async def start_worker(self, **changes: Any) -> PolicyWorker:
        """Start one more; ``changes`` are to its configuration."""
        config = WorkerConfig.embedded(self.layout, f"w{len(self.workers) + 1}")
        worker = PolicyWorker(replace(config, **changes))
        await worker.start()
        self.workers.append(worker)
        return worker

    async def stop_worker(self, worker: PolicyWorker) -> None:
        self.workers.remove(worker)
        await worker.stop()

    async def provision(self) -> list[str]:
        """What ``mas up`` does after each start of nats-server, and what it says."""
        material = self.material
        return await provision(
            self.broker.connection(self.layout, "controller"), material.controller, material.public
        )


@contextlib.asynccontextmanager
async def parts(folder: Path, *, workers: int = 1) -> AsyncIterator[Parts]:
    """Bring the parts up in ``folder`` and down again."""
    layout = Layout(folder / ".mas")
    layout.create()
    certify(layout)
    material = create_material(layout.keys)
    nats = NatsServer(
        layout.node(1, 1),
        material.public,
        server_cert=layout.server_cert,
        server_key=layout.server_key,
        ca=layout.ca,
        log=layout.log("nats-server"),
    )
    redis = RedisServer(layout.redis, log=layout.log("redis-server"))
    up = Parts(layout, nats, redis)
    try:
        await redis.start()
        await nats.start()
        Broker(
            url=nats.url,
            ca=str(layout.ca),
            monitor=nats.monitor_url,
            redis=f"redis://127.0.0.1:{redis.port}/0",
            redis_password=str(layout.redis_password),
            pid=os.getpid(),
            since="",
            durable=True,
        ).write(layout)
        await up.provision()
        for _ in range(workers):
            await up.start_worker()
        yield up
    finally:
        for worker in up.workers:
            await worker.stop()
        nats.kill()
        redis.kill()

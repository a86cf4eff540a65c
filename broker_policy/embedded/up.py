"""Everything from one folder: servers, keys, certificates, the default namespace, workers, the signer.

``running`` is what ``mas up``, the demo and the programmatic server share.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime

from broker_policy.embedded import durability, given_tls, lock, redis_choice, telemetry_file
from broker_policy.embedded.batch_folders import BatchFolders
from broker_policy.embedded.certify import certify, certify_routes
from broker_policy.embedded.layout import Broker, Layout
from broker_policy.embedded.nodes import Ports, servers, settle, until_formed
from broker_policy.embedded.plan import Plan
from broker_policy.embedded.ports import LOOPBACK
from broker_policy.embedded.process import Process
from broker_policy.embedded.redis_server import RedisServer
from broker_policy.embedded.server_files import ServerFiles
from broker_policy.embedded.supervisor import Supervisor
from broker_policy.identity.private_files import private_folder
from broker_policy.tenants.material import Material, create_material
from broker_policy.tenants.provision import provision
from broker_policy.unused import UNUSED
from mas_nats.errors import ConfigurationError


@contextlib.asynccontextmanager
async def running(layout: Layout, plan: Plan, say: Callable[[str], None]) -> AsyncIterator[Broker]:
    """Bring everything up, keep it up for the length of the block, and bring it down.

    ``say`` gets a line for each step and for whatever happens meanwhile.

    Raises:
        AlreadyRunning: another process holds the folder.
        BinaryMissing: a server's binary is missing; the text says how to get it.
        ServerDied: a process did not get ready; the text has the end of its log.
        NotDurable: the servers would acknowledge before they flush.
        ConfigurationError: keys or manifest cannot be used.

    """
    if plan.workers < 1:
        raise ConfigurationError(f"{plan.workers} workers: at least one is needed")
    say = _heard_or_not(say)
    private_folder(layout.root)
    nodes = settle(layout, plan.nodes)
    since = datetime.now(UTC).isoformat(timespec="seconds")
    with lock.held(layout.lock) as tell:
        # Not before: while the last broker of this folder ends, its ports are still taken.
        ports = Ports.choose(layout, plan.port, nodes)
        tell(lock.LockHolder(os.getpid(), since, ports.urls))
        supervisor = Supervisor(say)
        folders = BatchFolders(layout.node(1, nodes)) if nodes == 1 else None
        try:
            broker = await _bring_up(layout, plan, ports, since, supervisor, say)
            if folders is not None:
                supervisor.attend(folders.follow())
            yield broker
        finally:
            layout.endpoint.unlink(missing_ok=True)
            await supervisor.stop()
            if folders is not None:
                folders.remove()


def _heard_or_not(say: Callable[[str], None]) -> Callable[[str], None]:
    """``say``, which ends nothing where the line cannot be written, to a full disk or a lost terminal.

    Who says it keeps processes running.
    """

    def said(line: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            say(line)

    return said


async def _bring_up(
    layout: Layout, plan: Plan, ports: Ports, since: str, supervisor: Supervisor, say: Callable[[str], None]
) -> Broker:
    layout.create()
    ports.write(layout)
    hostname = certify(layout, plan.tls)
    if len(ports.nodes) > 1:
        certify_routes(layout)
    material = create_material(layout.keys)
    nats_servers = servers(layout, material.public, ports, relaxed=plan.relaxed, host=plan.host)
    monitors = [server.monitor_url for server in nats_servers]
    joined = await redis_choice.choose(
        layout, plan.redis, say, relaxed=plan.relaxed, socket_timeout=plan.redis_timeout
    )
    broker = Broker(
        url=ports.urls,
        ca=str(layout.ca),
        monitor=",".join(monitors),
        redis=joined.address if joined else f"redis://{LOOPBACK}:{ports.redis}/0",
        redis_password=str(layout.redis_password),
        pid=os.getpid(),
        since=since,
        durable=not plan.relaxed,
        nodes=len(nats_servers),
        tls_hostname=hostname,
    )
    connection = broker.connection(layout, "controller")

    async def complete() -> None:
        now = Material.load(layout.keys)  # they may have been rotated
        for line in await provision(connection, now.controller, now.public):
            say(line)

    if joined is None:
        own = RedisServer(
            layout.redis, port=ports.redis, relaxed=plan.relaxed, log=layout.log("redis-server")
        )
        await supervisor.start(own.process)
    # A node of a cluster forgets nothing that the others know, and must be able to come back alone.
    await supervisor.start(
        *(server.process for server in nats_servers), restarted=complete if broker.nodes == 1 else None
    )
    if broker.nodes > 1:
        await until_formed(monitors)
    if not plan.relaxed:
        found = await asyncio.gather(*map(durability.monitor_findings, monitors))
        durability.require([finding for findings in found for finding in findings])
    for line in await provision(connection, material.controller, material.public, plan.manifest):
        say(line)
    broker.write(layout)  # workers look for it
    telemetry_file.write(layout, plan.telemetry)
    workers = [_worker(layout, plan, number) for number in range(1, plan.workers + 1)]
    await supervisor.start(*workers, program(layout, "signer", "broker_policy.audit.signer"))
    supervisor.attend(ServerFiles(layout, nats_servers, say).follow())
    if plan.tls is not None:
        supervisor.attend(given_tls.follow(layout, plan.tls, say))
    return broker


def _worker(layout: Layout, plan: Plan, number: int) -> Process:
    arguments = ["--name", f"w{number}"]
    if port := telemetry_file.port_of(plan.telemetry, number):
        arguments += ["--metrics-port", str(port)]
    return program(layout, f"w{number}", "broker_policy.worker", arguments)


def program(layout: Layout, name: str, module: str, arguments: Sequence[str] = ()) -> Process:
    """A Python program of ours; it makes ``run/<name>.ready`` when it is ready."""
    ready = layout.ready(name)
    # -P: a file in the current folder must not take the place of a module.
    command = [sys.executable, "-P", "-m", "mas_nats.starting"]
    command += [word for each in UNUSED for word in ("--without", each)]
    command += [module, "--folder", str(layout.root), *arguments]

    async def is_ready() -> bool:
        return ready.exists()

    return Process(
        name,
        command,
        cwd=layout.root,
        output=layout.log(name),
        ready=is_ready,
        prepare=lambda: ready.unlink(missing_ok=True),
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )

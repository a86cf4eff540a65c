"""What the governed, audited, durable path does today, beside raw nats-py on the same server.

``python -m benchmarks.first_measurement`` takes about two minutes, prints a table, and writes
``benchmarks/results/first_measurement.json``. Sides alternate, several rounds, medians. No tuning was done.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from nats.js.api import AckPolicy, ConsumerConfig, DiscardPolicy, RetentionPolicy, StorageType, StreamConfig

from benchmarks.traffic import NAMESPACE, RAW_NAMESPACE, RAW_STREAM, RAW_SUBJECT
from broker_policy.embedded.layout import Broker, Layout
from broker_policy.embedded.up import Plan, running
from broker_policy.identity.pki import CertificateAuthority
from broker_policy.policy.store import PolicyStore
from broker_policy.tenants.apply import apply
from broker_policy.tenants.connect import connect_control_admin, connect_tenant_admin
from broker_policy.tenants.controller import TenantController
from broker_policy.tenants.material import Material
from mas_nats.manifest.wanted import Wanted, WantedAgent
from mas_nats.policy.document import Limits, Permissions
from mas_nats.wire.identity import DEFAULT_TRUST_DOMAIN, Identity, Role

ROUNDS = 3
ONE_WAY = {1: 500, 16: 3_000, 64: 6_000, 256: 10_000}
REQUESTS = {1: 300, 64: 3_000}
REPOSITORY = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"


@asynccontextmanager
async def brought_up(workers: int = 2) -> AsyncIterator[tuple[Path, Layout, Broker]]:
    """A broker in a folder of its own, which is there for as long as the block."""
    with tempfile.TemporaryDirectory(prefix="mas-bench-") as name:
        layout = Layout(Path(name) / ".mas")
        plan = Plan(workers=workers)
        async with running(layout, plan, lambda line: print(line, file=sys.stderr)) as broker:
            yield Path(name), layout, broker


async def main() -> None:
    async with brought_up() as (folder, layout, broker):
        await prepare(layout, broker)
        result = {
            "machine": {"cores": os.cpu_count(), "python": platform.python_version()},
            "fsync_ms": round(fsync_time(folder) * 1e3, 3),
            "workers": 2,
            "payload_bytes": 1024,
            "rounds": ROUNDS,
            "one_way": await one_way(folder),
            "request_reply": await request_reply(folder),
        }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "first_measurement.json").write_text(json.dumps(result, indent=2) + "\n")
    show(result)


async def prepare(layout: Layout, broker: Broker) -> None:
    """Two agents and their certificates; beside them an account with a plain stream."""
    material = Material.load(layout.keys)
    endpoint = broker.connection(layout, "controller")
    wanted = Wanted(
        namespace=NAMESPACE,
        agents={"a": WantedAgent(), "b": WantedAgent()},
        permissions={"a": Permissions(allowed_targets=("b",))},
        limits=Limits(in_flight=256),
    )
    async with TenantController(endpoint, material.controller, material.public) as controller:
        control = await connect_control_admin(endpoint, material.controller)
        await apply(controller, PolicyStore(control), wanted)
        await control.close()
        await controller.ensure_tenant(RAW_NAMESPACE, Limits())
    authority = CertificateAuthority.open_or_create(layout.authority)
    for name in ("a", "b"):
        identity = Identity(DEFAULT_TRUST_DOMAIN, NAMESPACE, Role.AGENT, name)
        authority.issue(identity, layout.certs, lifetime=timedelta(hours=1))
    raw = await connect_tenant_admin(endpoint, material.controller, RAW_NAMESPACE)
    js = raw.jetstream()
    await js.add_stream(
        StreamConfig(
            name=RAW_STREAM,
            subjects=[RAW_SUBJECT],
            storage=StorageType.FILE,
            retention=RetentionPolicy.WORK_QUEUE,
            discard=DiscardPolicy.NEW,
        )
    )
    consumer = ConsumerConfig(name="b", durable_name="b", ack_policy=AckPolicy.EXPLICIT, max_ack_pending=2000)
    await js.add_consumer(RAW_STREAM, consumer)
    await raw.close()


async def one_way(folder: Path) -> dict[str, Any]:
    out = {}
    for concurrency, count in ONE_WAY.items():
        sides: dict[str, list[dict[str, float]]] = {"raw": [], "mediated": []}
        for _ in range(ROUNDS):
            sides["raw"].append(await pair(folder, "raw-receive", "raw-send", count, concurrency))
            sides["mediated"].append(await pair(folder, "receive", "send", count, concurrency))
        out[f"c{concurrency}"] = compared(sides, count)
    return out


async def request_reply(folder: Path) -> dict[str, Any]:
    out = {}
    for concurrency, count in REQUESTS.items():
        sides: dict[str, list[dict[str, float]]] = {"raw": [], "mediated": []}
        for _ in range(ROUNDS):
            sides["raw"].append(await pair(folder, "raw-respond", "raw-request", count, concurrency))
            sides["mediated"].append(await pair(folder, "receive", "request", count, concurrency))
        out[f"c{concurrency}"] = compared(sides, count)
    return out


async def pair(folder: Path, receiver: str, sender: str, count: int, concurrency: int) -> dict[str, float]:
    """One receiver and one sender; from the first send until the last was handled."""
    receiving = await start(folder, receiver, count, concurrency)
    await line(receiving)
    sending = await start(folder, sender, count, concurrency)
    await line(sending)
    sent, received = await line(sending), await line(receiving)
    await asyncio.gather(sending.wait(), receiving.wait())
    seconds = max(received["done"], sent["done"]) - sent["started"]
    return {"per_second": (count - 1) / seconds, "p50_ms": sent["p50"] * 1e3, "p99_ms": sent["p99"] * 1e3}


async def start(folder: Path, role: str, count: int, concurrency: int) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "benchmarks.traffic",
        role,
        str(count),
        str(concurrency),
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=asyncio.subprocess.PIPE,
    )


async def line(process: asyncio.subprocess.Process) -> dict[str, float]:
    async with asyncio.timeout(120):
        raw = await process.stdout.readline() if process.stdout else b""
    parsed: dict[str, float] = json.loads(raw)
    return parsed


def compared(sides: dict[str, list[dict[str, float]]], count: int) -> dict[str, Any]:
    out: dict[str, Any] = {"messages": count}
    for side, rounds in sides.items():
        out[side] = {key: round(statistics.median(each[key] for each in rounds), 2) for key in rounds[0]}
        rates = [each["per_second"] for each in rounds]
        out[side]["spread"] = round((max(rates) - min(rates)) / statistics.median(rates), 2)
    out["ratio"] = round(out["mediated"]["per_second"] / out["raw"]["per_second"], 2)
    return out


def fsync_time(folder: Path) -> float:
    """Median seconds of an fsync after a small write."""
    times = []
    with (folder / "fsync").open("wb", buffering=0) as file:
        for _ in range(50):
            file.write(b"x" * 1024)
            begun = time.perf_counter()
            os.fsync(file.fileno())
            times.append(time.perf_counter() - begun)
    return statistics.median(times)


def show(result: dict[str, Any]) -> None:
    cores, workers = result["machine"]["cores"], result["workers"]
    print(f"fsync {result['fsync_ms']} ms, {cores} cores, {workers} workers, 1 KiB, medians of {ROUNDS}")
    for kind in ("one_way", "request_reply"):
        print(f"\n{kind:<16}{'raw/s':>8}{'ours/s':>8}{'ratio':>7}{'raw p50, p99 ms':>18}{'ours':>18}")
        for key, row in result[kind].items():
            raw, ours = row["raw"], row["mediated"]
            rates = f"{raw['per_second']:>8.0f}{ours['per_second']:>8.0f}{row['ratio']:>7.2f}"
            print(f"{key:<16}{rates}{latencies(raw):>18}{latencies(ours):>18}")


def latencies(side: dict[str, float]) -> str:
    return f"{side['p50_ms']:.2f}, {side['p99_ms']:.1f}"


if __name__ == "__main__":
    asyncio.run(main())

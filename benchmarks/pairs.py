"""One measurement: a sender and a receiver as processes, from the first call until the last was handled."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from benchmarks.site import REPOSITORY
from broker_policy.embedded.layout import Broker, Layout

Measured = dict[str, float]
"""``per_second``, ``p50_ms`` and ``p99_ms`` as the sender sees them, and ``cpu_us``: processor time a call,
by process: ``cpu_us.sender``, ``cpu_us.nats-server`` and so on."""
_TICK = os.sysconf("SC_CLK_TCK")


async def pair(
    folder: Path, receiver: str, sender: str, count: int, concurrency: int, **environment: str
) -> Measured:
    """``count`` calls from a process of one role to one of the other; "" when nobody receives."""
    receiving = await _start(folder, receiver, count, concurrency, environment) if receiver else None
    receiver_before = await _line(receiving) if receiving else {}
    sending = await _start(folder, sender, count, concurrency, environment)
    sender_before = await _line(sending)
    before = servers(folder)
    sent = await _line(sending)
    received = await _line(receiving) if receiving else sent
    after = servers(folder)
    await asyncio.gather(*(each.wait() for each in (sending, receiving) if each))
    calls = count - 1  # the first one warms up
    seconds = max(received["done"], sent["done"]) - sent["started"]
    used = {name: after[name] - before.get(name, 0.0) for name in after}
    used["sender"] = sent["cpu"] - sender_before["cpu"]
    if receiving:
        used["receiver"] = received["cpu"] - receiver_before["cpu"]
    return {
        "per_second": calls / seconds,
        "p50_ms": sent["p50"] * 1e3,
        "p99_ms": sent["p99"] * 1e3,
        **{f"cpu_us.{name}": each / calls * 1e6 for name, each in used.items()},
    }


async def _start(
    folder: Path, role: str, count: int, concurrency: int, environment: Mapping[str, str]
) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "benchmarks.traffic",
        role,
        str(count),
        str(concurrency),
        cwd=folder,
        env={**os.environ, **environment, "PYTHONPATH": str(REPOSITORY)},
        stdout=asyncio.subprocess.PIPE,
    )


async def _line(process: asyncio.subprocess.Process) -> dict[str, float]:
    async with asyncio.timeout(120):
        raw = await process.stdout.readline() if process.stdout else b""
    if not raw:
        raise RuntimeError(f"a program of the measurement ended early, with {await process.wait()}")
    parsed: dict[str, float] = json.loads(raw)
    return parsed


def servers(folder: Path) -> dict[str, float]:
    """Processor seconds so far of each kind of process below ``mas up``."""
    used: dict[str, float] = {}
    for name, pid in _processes(folder):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        used[name] = used.get(name, 0.0) + (int(fields[11]) + int(fields[12])) / _TICK
    return used


def peaks(folder: Path) -> dict[str, float]:
    """The most memory that each kind of process has had, in MB; of workers the largest."""
    found: dict[str, float] = {}
    for name, pid in _processes(folder):
        status = Path(f"/proc/{pid}/status").read_text()
        peak = int(status.partition("VmHWM:")[2].split()[0]) / 1024
        found[name] = max(found.get(name, 0.0), round(peak, 1))
    return found


def _processes(folder: Path) -> list[tuple[str, int]]:
    layout = Layout(folder / ".mas")
    parent = Broker.read(layout).pid
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
            command = (status.parent / "cmdline").read_bytes().decode()
        except OSError:
            continue
        if int(fields[1]) == parent and (name := _kind(command)):
            found.append((name, int(status.parent.name)))
    return found


def _kind(command: str) -> str:
    kinds = {
        "nats-server": "nats-server",
        "redis-server": "redis",
        "broker_policy.worker": "policy",
        "broker_policy.audit.signer": "signer",
    }
    return next((name for part, name in kinds.items() if part in command), "")

"""One measurement: a sender and a receiver as processes, from the first call until the last was handled."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Self

from benchmarks.site import REPOSITORY
from broker_policy.embedded.layout import Broker, Layout

Measured = dict[str, float]
"""``per_second``, ``p50_ms`` and ``p99_ms`` as the sender sees them, and ``cpu_us``: processor time a call,
by process: ``cpu_us.sender``, ``cpu_us.nats-server`` and so on. ``others`` is the part of the machine's
processors that everybody else had meanwhile, the kernel's own work for this included."""
_TICK = os.sysconf("SC_CLK_TCK")


class Pair:
    """Both processes; they stay for as many rounds as are wanted. Use as ``async with Pair(...) as pair``.

    ``receiver`` and ``sender`` are roles of ``traffic`` or ``bare``; "" when nobody receives. ``beside`` is
    the role of a third one, which serves both; "" where there is none. A round is ``count`` calls, the first
    of which warms up; it ends when the last was handled, or when ``settled`` returns, where that is given.
    """

    def __init__(
        self,
        folder: Path,
        receiver: str,
        sender: str,
        count: int,
        concurrency: int,
        *,
        environment: Mapping[str, str],
        beside: str = "",
        settled: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._folder = folder
        self._settled = settled
        self._roles = [role for role in (receiver, sender) if role]
        self._beside = beside
        self._third: asyncio.subprocess.Process | None = None
        self._count = count
        self._arguments = (str(count), str(concurrency))
        self._environment = environment
        self._processes: list[asyncio.subprocess.Process] = []

    async def __aenter__(self) -> Self:
        if self._beside:
            self._third = await self._start(self._beside)
            await _line(self._third)
        self._processes = [await self._start(role) for role in self._roles]
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for each in self._processes:
            if each.stdin:
                each.stdin.close()
            if kind is not None and each.returncode is None:
                each.terminate()  # it waits for what will not come
        await asyncio.gather(*(each.wait() for each in self._processes))
        if self._third is not None:
            self._third.terminate()
            await self._third.wait()

    async def round(self) -> Measured:
        """Measure once."""
        ready = [await _next_round(each) for each in self._processes]
        before, began, busy = self._used(), time.monotonic(), machine_busy()
        done = [await _line(each) for each in reversed(self._processes)][::-1]
        ended = max(each["done"] for each in done)
        if self._settled is not None:
            await self._settled()
            ended = time.time()
        after, busy, took = self._used(), machine_busy() - busy, time.monotonic() - began
        calls, sent = self._count - 1, done[-1]
        seconds = ended - sent["started"]
        used = {name: after[name] - before.get(name, 0.0) for name in after}
        spent = [late["cpu"] - early["cpu"] for early, late in zip(ready, done, strict=True)]
        used |= zip(("sender", "receiver"), reversed(spent), strict=False)
        theirs = (busy - sum(used.values())) / took / (os.cpu_count() or 1)
        return {
            "others": max(theirs, 0.0),
            "per_second": calls / seconds,
            "p50_ms": sent["p50"] * 1e3,
            "p99_ms": sent["p99"] * 1e3,
            **{f"cpu_us.{name}": each / calls * 1e6 for name, each in used.items()},
        }

    def _used(self) -> dict[str, float]:
        used = servers(self._folder)
        if self._third is not None:
            used["policy"] = used.get("policy", 0.0) + _used(self._third.pid)
        return used

    async def _start(self, role: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", _module(role), role, *self._arguments),
            cwd=self._folder,
            env={**os.environ, **self._environment, "PYTHONPATH": str(REPOSITORY)},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )


def _module(role: str) -> str:
    kind = role.partition("-")[0]
    return f"benchmarks.{kind}" if kind in ("bare", "floor") else "benchmarks.traffic"


async def pair(
    folder: Path, receiver: str, sender: str, count: int, concurrency: int, **environment: str
) -> Measured:
    """One round with processes of its own."""
    async with Pair(folder, receiver, sender, count, concurrency, environment=environment) as both:
        return await both.round()


async def _next_round(process: asyncio.subprocess.Process) -> dict[str, float]:
    """What it says when it is ready."""
    if process.stdin:
        process.stdin.write(b"\n")
    return await _line(process)


async def _line(process: asyncio.subprocess.Process) -> dict[str, float]:
    async with asyncio.timeout(120):
        raw = await process.stdout.readline() if process.stdout else b""
    if not raw:
        raise RuntimeError(f"a program of the measurement ended early, with {await process.wait()}")
    parsed: dict[str, float] = json.loads(raw)
    return parsed


def machine_busy() -> float:
    """Processor seconds so far in which the machine was not idle, those that its host took away included."""
    user, nice, system, _idle, _waits, *more = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    return sum(map(int, (user, nice, system, *more))) / _TICK


def servers(folder: Path) -> dict[str, float]:
    """Processor seconds so far of each kind of process that ``mas up`` has started for ``folder``."""
    used: dict[str, float] = {}
    for name, pid in _processes(folder):
        used[name] = used.get(name, 0.0) + _used(pid)
    return used


def _used(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICK


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
    parent, root = Broker.read(layout).pid, layout.root.resolve()
    found: list[tuple[str, int]] = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
            command = (status.parent / "cmdline").read_bytes().decode()
            where = (status.parent / "cwd").readlink()
        except OSError:
            continue
        if int(fields[1]) == parent and where.is_relative_to(root) and (name := _kind(command)):
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

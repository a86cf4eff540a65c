"""What is done to the system. A strike returns how to undo it, or None where the system heals by itself.

To add one: an async function that takes a ``Scene`` and an entry in a table, ``SINGLE`` or ``CLUSTER``.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import nats.errors
from redis.exceptions import RedisError

from broker_policy.audit.layout import Layout
from broker_policy.embedded.halt import halt
from broker_policy.jetstream import JetStreamError, api
from mas_nats import MasError
from mas_nats.wire import subjects
from tests.chaos.crew import Crew
from tests.processes import children
from tests.route_proxies import RouteProxies
from tests.system import System, mas

AWAY = (JetStreamError, KeyError, MasError, OSError, RedisError, ValueError, nats.errors.Error)
"""What is raised while a server cannot say what it is asked."""
Heal = Callable[[], Awaitable[None]]
Strike = Callable[["Scene"], Awaitable["Undo | None"]]


@dataclass(frozen=True, slots=True)
class Undo:
    """How a strike is undone: after a while, or ``at_once`` (then recovery counts from the strike)."""

    heal: Heal
    at_once: bool = False


@dataclass(slots=True)
class Scene:
    """What a nemesis may reach. ``rng`` decides whatever is left to chance.

    ``proxies`` are between the nodes of a cluster; None where there is one node.
    """

    system: System
    namespace: str
    crew: Crew
    rng: random.Random
    proxies: RouteProxies | None = None

    async def server(self, name: str) -> int:
        """The process id of a server or worker of ``mas up``, waiting until it runs."""
        async with asyncio.timeout(20):
            while True:
                with contextlib.suppress(FileNotFoundError):
                    if (pid := children(self.system.broker.pid).get(name)) is not None:
                        return pid
                await asyncio.sleep(0.02)

    async def projecting(self) -> str:
        """The worker that projects the audit now; any, where nobody does at this moment."""
        with contextlib.suppress(*AWAY):
            async with self.system.redis() as redis:
                holder = await redis.get(Layout(self.namespace).lease)
                if holder:
                    return str(holder.decode().partition(".")[0])
        return self.rng.choice(("w1", "w2"))

    async def leading(self) -> int:
        """The number of the node that leads the log; any, where nobody does at this moment."""
        with contextlib.suppress(*AWAY):
            async with self.system.tenant(self.namespace) as nc:
                info = await api(nc, f"STREAM.INFO.{subjects.INBOX_STREAM}", {})
                return int(str(info["cluster"]["leader"]).removeprefix("nats-"))
        return self.any_node()

    def any_node(self) -> int:
        """The number of a node."""
        return self.rng.choice((1, 2, 3))

    def some_workers(self) -> list[str]:
        """One worker or both."""
        return self.rng.choice((["w1"], ["w2"], ["w1", "w2"]))


@dataclass(frozen=True, slots=True)
class Nemesis:
    """One kind of harm."""

    name: str
    strike: Strike


def kill(pids: Iterable[int]) -> None:
    """``kill -9``."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def pause(pids: Iterable[int]) -> Undo:
    """SIGSTOP; the way back is SIGCONT."""
    halted = list(pids)
    for pid in halted:
        with contextlib.suppress(ProcessLookupError):
            halt(pid)

    async def resume() -> None:
        for pid in halted:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    return Undo(resume)


def killed(names: Callable[[Scene], list[str]]) -> Strike:
    """Kill servers or workers of ``mas up``, which starts them again."""

    async def strike(scene: Scene) -> None:
        kill([await scene.server(name) for name in names(scene)])

    return strike


def paused(names: Callable[[Scene], list[str]]) -> Strike:
    """Pause servers or workers of ``mas up``."""

    async def strike(scene: Scene) -> Undo:
        return pause([await scene.server(name) for name in names(scene)])

    return strike


async def projector_killed(scene: Scene) -> None:
    kill([await scene.server(await scene.projecting())])


async def projector_paused(scene: Scene) -> Undo:
    """Long enough for another to take over; then it goes on where it was."""
    return pause([await scene.server(await scene.projecting())])


def _some_agents(scene: Scene) -> list[int]:
    running = [process.pid for process in scene.crew.processes if process.running]
    return scene.rng.sample(running, min(scene.rng.choice((1, 2)), len(running)))


async def agents_killed(scene: Scene) -> None:
    kill(_some_agents(scene))


async def agents_paused(scene: Scene) -> Undo:
    return pause(_some_agents(scene))


async def everything_killed(scene: Scene) -> Undo:
    """``kill -9`` of ``mas up`` and all it runs; it is brought up again on the same folder."""
    parent = scene.system.broker.pid
    family = [parent, *children(parent).values()]
    kill(family)

    async def again() -> None:
        async with asyncio.timeout(30):
            while any(_there(pid) for pid in family):
                await asyncio.sleep(0.02)
        await asyncio.to_thread(mas, "up", "--detach", "--folder", str(scene.system.layout.root))

    return Undo(again, at_once=True)


def _there(pid: int) -> bool:
    """Whether a process runs; one that nobody has reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


SINGLE = (
    Nemesis("workers killed", killed(Scene.some_workers)),
    Nemesis("workers paused", paused(Scene.some_workers)),
    Nemesis("projector killed", projector_killed),
    Nemesis("projector paused", projector_paused),
    Nemesis("agents killed", agents_killed),
    Nemesis("agents paused", agents_paused),
    Nemesis("redis killed", killed(lambda _: ["redis-server"])),
    Nemesis("redis paused", paused(lambda _: ["redis-server"])),
    Nemesis("nats killed", killed(lambda _: ["nats-server"])),
    Nemesis("nats paused", paused(lambda _: ["nats-server"])),
    Nemesis("everything restarted", everything_killed),
)
"""On one node."""


# -- the nodes of a cluster --------------------------------------------------------------------------------
async def node_killed(scene: Scene) -> None:
    kill([await scene.server(f"nats-{scene.any_node()}")])


async def node_paused(scene: Scene) -> Undo:
    return pause([await scene.server(f"nats-{scene.any_node()}")])


async def leader_killed(scene: Scene) -> None:
    kill([await scene.server(f"nats-{await scene.leading()}")])


async def leader_paused(scene: Scene) -> Undo:
    return pause([await scene.server(f"nats-{await scene.leading()}")])


async def nodes_killed(scene: Scene) -> None:
    """All at once: whatever was acknowledged must be on the disks."""
    kill([await scene.server(f"nats-{number}") for number in (1, 2, 3)])


async def leader_isolated(scene: Scene) -> Undo:
    return isolated(scene, await scene.leading(), silent=False)


async def node_isolated(scene: Scene) -> Undo:
    return isolated(scene, scene.any_node(), silent=False)


async def cable_pulled(scene: Scene) -> Undo:
    """Nothing arrives, and nobody is told."""
    return isolated(scene, await scene.leading(), silent=True)


async def two_parted(scene: Scene) -> Undo:
    """Two do not hear each other; both hear the third."""
    proxies = _proxies(scene)
    one, other = scene.rng.sample((1, 2, 3), 2)
    await asyncio.to_thread(proxies.part, one, other)
    return Undo(lambda: asyncio.to_thread(proxies.heal))


def isolated(scene: Scene, node: int, *, silent: bool) -> Undo:
    """Part a node from the two others."""
    proxies = _proxies(scene)
    proxies.isolate(node, silent=silent)
    return Undo(lambda: asyncio.to_thread(proxies.heal))


def _proxies(scene: Scene) -> RouteProxies:
    if scene.proxies is None:
        raise RuntimeError("there is nothing between the nodes that could be cut")
    return scene.proxies


CLUSTER = (
    Nemesis("node killed", node_killed),
    Nemesis("node paused", node_paused),
    Nemesis("leader killed", leader_killed),
    Nemesis("leader paused", leader_paused),
    Nemesis("node isolated", node_isolated),
    Nemesis("leader isolated", leader_isolated),
    Nemesis("leader's cable pulled", cable_pulled),
    Nemesis("two nodes parted", two_parted),
    Nemesis("all nodes killed", nodes_killed),
    Nemesis("workers killed", killed(Scene.some_workers)),
    Nemesis("everything restarted", everything_killed),
)
"""On three nodes."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One strike, as it was, in unix seconds."""

    struck: float
    since: float  # from when recovery counts: when it was undone, else when it was struck

    @classmethod
    async def do(cls, nemesis: Nemesis, scene: Scene, hold: float) -> Fault:
        """Strike, hold for ``hold`` seconds where it has to be undone, and heal."""
        struck = time.time()
        undo = await nemesis.strike(scene)
        if undo is None:
            return cls(struck, struck)
        if undo.at_once:
            await undo.heal()
            return cls(struck, struck)
        try:
            await asyncio.sleep(hold)
        finally:
            since = time.time()
            await undo.heal()
        return cls(struck, since)

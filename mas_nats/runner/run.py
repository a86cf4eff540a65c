"""The whole of ``mas run``: look, start, keep, stop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from mas_nats.errors import ConfigurationError
from mas_nats.manifest import mas_yaml
from mas_nats.runner.backoff import Backoff
from mas_nats.runner.examination import examine
from mas_nats.runner.guard import Guard
from mas_nats.runner.keeper import End, Keeper
from mas_nats.runner.plan import NO_MANIFEST, Plan
from mas_nats.runner.printing import JsonLines, Text
from mas_nats.stopping import Stop, unless

GRACE = 30.0
"""Seconds between the wish to stop and SIGKILL."""
_RETURN = 2.0
"""Seconds of the grace in which an agent gives back what its handlers did not finish, and disconnects."""

Show = Text | JsonLines


class Certifier(Protocol):
    """Provides development certificates where the manifest names none."""

    def due(self, plan: Plan) -> Collection[str]:
        """The agents for whom ``issue`` would make one now."""

    def issue(self, plan: Plan, show: Show) -> None:
        """Make those that are missing, before the start."""

    async def renew(self, plan: Plan, show: Show) -> None:
        """Replace those that expire soon, until cancelled."""


@dataclass(frozen=True, slots=True)
class Options:
    """What to run, and how.

    ``agents``: only these; all where it is empty. ``until``: stop all when this agent has ended by itself.
    ``check``: look whether everything is in order, and start nothing. ``grace`` is in seconds.
    """

    manifest: Path | None = None
    agents: Sequence[str] = ()
    server: str | None = None
    folder: Path | None = None
    grace: float = GRACE
    until: str | None = None
    check: bool = False
    log_level: str = "WARNING"
    backoff: Backoff = field(default_factory=Backoff)

    @property
    def drain(self) -> float:
        """Seconds that handlers get of the grace."""
        return max(self.grace - _RETURN, self.grace / 2)


async def run(
    options: Options, show: Callable[[Callable[[], None]], Show], certifier: Certifier | None = None
) -> int:
    """Run the agents of a manifest until a signal comes, or all have finished.

    ``show`` makes the printer; it gets what is to be called when nobody reads any more.

    Returns the exit status: 0 when everything stopped or finished as it should, 1 when something had to be
    killed or the agent of ``until`` failed.

    Raises:
        ConfigurationError: manifest, classes or certificates are not in order. Nothing was started.

    """
    stop = Stop()
    stop.on_signals()
    printer = show(stop.asked.set)
    path = mas_yaml.chosen(options.manifest)
    if path is None:
        raise ConfigurationError(NO_MANIFEST)
    plan = Plan(path, options.agents, server=options.server, folder=options.folder)
    if options.until is not None and options.until not in {entry.agent_id for entry in plan.entries}:
        raise ConfigurationError(f"--until {options.until}: that agent is not run here")
    printer.introduce(plan.names)
    for name in plan.skipped:
        printer.event("skipped", f"{name} has no class_path: it is run elsewhere", agent=name)
    with Guard() as guard:
        if not await unless(stop.asked, examine(plan, guard)):
            return 0
        if options.check:
            plan.require_certificates(besides=() if certifier is None else certifier.due(plan))
            count = f"{len(plan.names)} instances of {len(plan.entries)} agents"
            printer.event("checked", f"{plan.path} can be run: {count}", manifest=str(plan.path))
            return 0
        if certifier is not None:
            certifier.issue(plan, printer)
        plan.require_certificates()
        keepers = [
            Keeper(each, printer, guard, backoff=options.backoff, once=each.agent_id == options.until)
            for each in plan.instances(drain=options.drain, log_level=options.log_level)
        ]
        renewing = None if certifier is None else asyncio.create_task(certifier.renew(plan, printer))
        try:
            return await _keep(keepers, stop, printer, options)
        finally:
            if renewing is not None:
                renewing.cancel()
                await asyncio.gather(renewing, return_exceptions=True)


async def _keep(keepers: Sequence[Keeper], stop: Stop, printer: Show, options: Options) -> int:
    """Run all until it is over; the exit status."""
    running = {asyncio.create_task(each.keep()): each for each in keepers}
    asked = asyncio.create_task(stop.asked.wait())
    awaited = {task for task, each in running.items() if options.until in (None, each.instance.agent_id)}
    try:
        while not (stop.asked.is_set() or all(task.done() for task in awaited)):
            waiting = {asked, *(task for task in awaited if not task.done())}
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        await _stop(running, stop, printer, options.grace)
    finally:
        for task in (asked, *running):
            task.cancel()  # the child of one that still runs is killed
        await asyncio.gather(asked, *running, return_exceptions=True)
    ends = [task.result() for task in running]
    return int(any(end in {End.KILLED, End.FAILED} for end in ends))


async def _stop(running: dict[asyncio.Task[End], Keeper], stop: Stop, printer: Show, grace: float) -> None:
    left = [task for task in running if not task.done()]
    if not left:
        return
    count = f"{len(left)} instance{'s' if len(left) > 1 else ''}"
    printer.event("stopping", f"stopping {count}, within {grace:g} s", instances=len(left))
    for task in left:
        running[task].stop()
    hurried = asyncio.create_task(stop.hurried.wait())
    ended = asyncio.gather(*left)
    try:
        await asyncio.wait((hurried, ended), timeout=grace, return_when=asyncio.FIRST_COMPLETED)
        for task in left:
            if not task.done():
                running[task].kill()
        await ended
    finally:
        hurried.cancel()

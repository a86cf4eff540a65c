"""The circuit breaker of one namespace in one worker: which targets are left alone for now.

Failures are what targets report of their handlers, and messages that the server saw fail without a report.
What does not fit a handler's model, is rejected or has expired is never one: it is the sender's affair.

Every worker knows the circuits that are not closed, hears on ``mas.circuit`` when one changes, and looks for
itself every few seconds. As long as all are closed, letting a message through costs nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any

import nats.errors
from nats.aio.client import Client

from broker_policy.admission import circuit as circuits
from broker_policy.admission.circuit import Circuit, State
from broker_policy.admission.circuits import Change, Changed, OwnCircuits, SharedCircuits
from broker_policy.admission.counters import Away
from broker_policy.commit.answered import UNANSWERED
from broker_policy.ending import end
from mas_nats.policy import refusals
from mas_nats.policy.call import Refusal
from mas_nats.policy.governance import CircuitBreaker
from mas_nats.wire import subjects

log = logging.getLogger(__name__)

_LOOK_EVERY = 5.0
_FOLLOW_EVERY = 0.2
"""Seconds between two looks at what became of probes."""
_FOLLOW_FOR = 3600.0
"""Seconds for which a probe is followed, or for as long as it keeps its room where that is longer."""
_AGAIN = 1.0
"""Seconds after which a message is tried again that found no room among the probes."""
_MOST = 1_000
"""Probes that a worker follows."""
_AT_ONCE = 32
"""Probes that are looked after at once."""

StillThere = Callable[[str, int], Awaitable[bool]]
"""Whether the message at a sequence lies in an agent's inbox."""


@dataclass(frozen=True, slots=True)
class _Known:
    """A circuit that is not closed; by this process's clock when it may be tried, and when that is asked."""

    circuit: Circuit
    due: float
    ask: float


@dataclass(frozen=True, slots=True)
class _Followed:
    """A probe in the inbox, and since when."""

    sequence: int
    since: float


class Breaker:
    """``settings``: of the moment, None where there is no policy.

    ``there`` says what became of probes, ``removed`` whether policy has an agent no more.
    """

    def __init__(
        self,
        nc: Client,
        namespace: str,
        *,
        shared: SharedCircuits,
        settings: Callable[[], CircuitBreaker | None],
        there: StillThere,
        removed: Callable[[str], bool],
    ) -> None:
        self._nc = nc
        self._namespace = namespace
        self._shared = shared
        self._own = OwnCircuits()
        self._settings = settings
        self._there = there
        self._removed = removed
        self._known: dict[str, _Known] = {}
        self._noted: set[str] = set()  # agents of whom it learned something since the last look began
        self._probes: dict[tuple[str, str], _Followed] = {}  # by target and dedup id
        self._tasks: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self._subscription: Any = None

    @property
    def quiet(self) -> bool:
        """Whether every circuit is closed as far as this worker knows."""
        return not self._known

    def states(self) -> Counter[str]:
        """How many circuits are open and half open, as far as this worker knows."""
        now = time.monotonic()
        return Counter(State.OPEN if known.due > now else State.HALF_OPEN for known in self._known.values())

    def concerns(self, target: str) -> bool:
        """Whether the circuit of ``target`` is not closed as far as this worker knows."""
        return target in self._known

    # -- messages ---------------------------------------------------------------------------------------
    async def admit(self, messages: Sequence[tuple[str, str]]) -> list[Refusal | bool]:
        """Of messages (target and dedup id): a refusal, True for a probe, else False."""
        settings = self._active()
        if settings is None or not self._known:
            return [False] * len(messages)
        asked: dict[str, list[str]] = {}
        for target, id_ in messages:
            if (known := self._known.get(target)) is not None and known.ask <= time.monotonic():
                asked.setdefault(target, []).append(id_)
        told = await asyncio.gather(*(self._try(target, ids, settings) for target, ids in asked.items()))
        let = dict(zip(asked, told, strict=True))
        return [self._said(target, id_, let) for target, id_ in messages]

    def foresee(self, target: str) -> Refusal | None:
        """What ``admit`` would say, as far as this worker knows."""
        known = self._known.get(target)
        if self._active() is None or known is None or known.due <= time.monotonic():
            return None
        return refusals.circuit_open(target, known.due - time.monotonic())

    def _said(self, target: str, id_: str, let: dict[str, tuple[State, frozenset[str]]]) -> Refusal | bool:
        if target in let:
            state, passing = let[target]
            if id_ in passing:
                return state is State.HALF_OPEN
        known = self._known.get(target)
        if known is None:
            return False
        return refusals.circuit_open(target, max(known.due - time.monotonic(), _AGAIN))

    async def _try(
        self, target: str, ids: Sequence[str], settings: CircuitBreaker
    ) -> tuple[State, frozenset[str]]:
        passing: frozenset[str] = frozenset()

        def change(circuit: Circuit, now: int) -> Circuit:
            nonlocal passing
            changed, passing = circuits.probe(circuit, settings, now, ids)
            return changed

        changed = await self._change(target, change, settings)
        if len(passing) < len(ids) and (known := self._known.get(target)) is not None:
            # No room: not each batch needs to ask again. Whatever changes the circuit asks sooner.
            self._known[target] = replace(known, ask=max(known.ask, time.monotonic() + _FOLLOW_EVERY))
        return changed.after.state(changed.now), passing

    def probed(self, target: str, id_: str, sequence: int) -> None:
        """A probe lies in the inbox at ``sequence``; 0: it was refused later on."""
        if not sequence:
            self._spawn(self.inconclusive(target, id_))
        elif len(self._probes) < _MOST:
            self._probes[target, id_] = _Followed(sequence, time.monotonic())
            self._wake.set()

    # -- what became of them ------------------------------------------------------------------------------
    async def failed(self, target: str, id_: str) -> None:
        """A handler of ``target`` failed, or the target died of a message."""
        settings = self._active()
        if settings is not None and not self._removed(target):
            await self._change(
                target, lambda circuit, now: circuits.failed(circuit, settings, now, id_), settings
            )

    async def inconclusive(self, target: str, id_: str) -> None:
        """A message is gone, and it is not the target's doing."""
        settings = self._active()
        if settings is not None and target in self._known:
            await self._change(target, lambda circuit, _: circuits.inconclusive(circuit, id_), settings)

    # -- operators ----------------------------------------------------------------------------------------
    async def reset(self, target: str) -> str:
        """Close a circuit and forget its failures; what it was."""
        settings = self._settings() or CircuitBreaker()
        changed = await self._change(target, lambda _circuit, _now: Circuit(), settings)
        return changed.before.state(changed.now)

    async def listed(self) -> list[dict[str, Any]]:
        """The circuits that are not closed, for people."""
        await self._look()
        now = time.monotonic()
        return [
            {
                "agent": agent,
                "state": State.OPEN if known.due > now else State.HALF_OPEN,
                "retry_after": round(max(known.due - now, 0.0), 3),
                "probes": len(known.circuit.probes),
                "handled": known.circuit.handled,
            }
            for agent, known in sorted(self._known.items())
        ]

    # -- running --------------------------------------------------------------------------------------------
    async def start(self) -> None:
        """Hear of changes from here on."""

        async def changed(message: Any) -> None:
            self._spawn(self._read(message.data.decode(errors="replace")))

        self._subscription = await self._nc.subscribe(subjects.CIRCUIT, cb=changed)
        await self._look()

    async def stop(self) -> None:
        """Hear no more."""
        if self._subscription is not None:
            with contextlib.suppress(nats.errors.Error, OSError):
                await self._subscription.unsubscribe()
        await end(self._tasks)

    async def run(self) -> None:
        """Follow circuits and probes for ever."""
        looked = time.monotonic()
        while True:
            self._wake.clear()
            wait = _FOLLOW_EVERY if self._probes else max(0.1, looked + _LOOK_EVERY - time.monotonic())
            with contextlib.suppress(TimeoutError):
                if self._probes:
                    await asyncio.sleep(wait)
                else:
                    await asyncio.wait_for(self._wake.wait(), wait)
            try:
                await self._follow_probes()
                if time.monotonic() - looked >= _LOOK_EVERY:
                    looked = time.monotonic()
                    await self._look()
            except Exception:
                log.exception("circuits of %s cannot be followed, trying again", self._namespace)

    async def _follow_probes(self) -> None:
        followed = list(self._probes.items())
        for first in range(0, len(followed), _AT_ONCE):
            some = followed[first : first + _AT_ONCE]
            await asyncio.gather(*(self._follow(target, id_, probe) for (target, id_), probe in some))

    async def _follow(self, target: str, id_: str, probe: _Followed) -> None:
        settings = self._active()
        if settings is None or target not in self._known:
            self._probes.pop((target, id_), None)
            return
        if time.monotonic() - probe.since > max(_FOLLOW_FOR, settings.timeout_seconds):
            self._probes.pop((target, id_), None)
            return
        try:
            if await self._there(target, probe.sequence):
                return
        except UNANSWERED as error:
            log.debug("a probe cannot be followed: %r", error)
            return
        self._probes.pop((target, id_), None)
        await self._change(target, lambda circuit, _: circuits.handled(circuit, settings, id_), settings)

    async def _look(self) -> None:
        """Learn every circuit anew, tell Redis what it missed, and forget those of removed agents."""
        settings = self._active()
        if settings is None:
            self._known = {}
            return
        self._noted.clear()
        try:
            found, now = await self._shared.unsettled(settings)
        except Away:
            for agent, known in self._known.items():
                self._own.circuits.setdefault(agent, known.circuit)
            found, now = self._own.unsettled(settings)
        else:
            if self._own.circuits:
                await self._give_back(settings)
                return
        newer = {agent: self._known[agent] for agent in self._noted & self._known.keys()}
        older = {agent: _known(found[agent], now) for agent in found.keys() - self._noted}
        self._known = older | newer
        for agent in filter(self._removed, found):
            await self._change(agent, lambda _circuit, _now: Circuit(), settings)

    async def _give_back(self, settings: CircuitBreaker) -> None:
        kept, self._own.circuits = self._own.circuits, {}
        for agent, mine in kept.items():
            if mine.until:

                def keep(theirs: Circuit, _: int, mine: Circuit = mine) -> Circuit:
                    return theirs if theirs.until else mine

                await self._change(agent, keep, settings)
        await self._look()

    async def _read(self, agent: str) -> None:
        if (settings := self._active()) is not None:
            await self._change(agent, lambda circuit, now: circuits.current(circuit, settings, now), settings)

    def _active(self) -> CircuitBreaker | None:
        settings = self._settings()
        return settings if settings is not None and settings.enabled else None

    # -- changes -------------------------------------------------------------------------------------------
    async def _change(self, agent: str, change: Change, settings: CircuitBreaker) -> Changed:
        try:
            changed = await self._shared.change(agent, settings, change)
        except Away:
            if agent not in self._own.circuits and (known := self._known.get(agent)) is not None:
                self._own.circuits[agent] = known.circuit
            changed = self._own.change(agent, change)
        self._note(agent, changed, settings)
        return changed

    def _note(self, agent: str, changed: Changed, settings: CircuitBreaker) -> None:
        before, after, now = changed
        self._noted.add(agent)
        if after.until:
            self._known[agent] = _known(after, now)
        else:
            self._known.pop(agent, None)
        if before.until == after.until:
            if not before.probes and after.probes:
                log.info("the circuit of %s/%s is half open: it is tried", self._namespace, agent)
            return
        if after.until:
            log.warning(
                "the circuit of %s/%s is open for %g s: its handlers failed",
                self._namespace,
                agent,
                settings.timeout_seconds,
            )
        else:
            log.info("the circuit of %s/%s is closed again", self._namespace, agent)
        self._spawn(self._announce(agent))

    async def _announce(self, agent: str) -> None:
        with contextlib.suppress(nats.errors.Error, OSError):
            await self._nc.publish(subjects.CIRCUIT, agent.encode())

    def _spawn(self, running: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.create_task(running)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _known(circuit: Circuit, now: int) -> _Known:
    due = time.monotonic() + (circuit.until - now) / 1000
    return _Known(replace(circuit, failures=()), due, due)

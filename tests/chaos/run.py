"""One run on one system: load without pause, the nemeses in turn, then rest, then the check."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mas_nats.manifest.wanted import WantedAgent
from mas_nats.policy.document import Limits
from mas_nats.policy.governance import CircuitBreaker, Governance
from mas_nats.wire.state_mode import StateMode
from tests.chaos import evidence
from tests.chaos.checker import Audit, Found, check
from tests.chaos.crew import DIRECT, HANDLERS, MEDIATED, SENDERS, Crew
from tests.chaos.history import History
from tests.chaos.nemeses import Fault, Nemesis, Scene
from tests.chaos.program import FORBIDDEN
from tests.route_proxies import RouteProxies
from tests.system import System

PATIENCE = 60.0
"""Seconds within which the system must accept again after a fault, and work off what piled up."""
FAILING = Governance(circuit_breaker=CircuitBreaker(enabled=False))
"""Handlers fail on purpose all the time; whoever is refused meanwhile is not what is looked for."""
LIMITS = Limits(ack_wait=3.0, retry_delay=0.2, retry_delay_max=1.0, max_deliver=12)
"""A killed agent's messages come again after 3 s; pauses must not use up all attempts."""
PROMPT = frozenset(("note", "ask"))
"""What is handled at the first attempt unless something is broken."""


@dataclass(slots=True)
class Phase:
    """The time of one nemesis: from its begin up to the next one's."""

    nemesis: str
    begin: float  # unix seconds
    end: float = 0.0
    faults: list[Fault] = field(default_factory=list)
    recovery: list[float] = field(default_factory=list)  # seconds to the first accepted message
    drained: list[float] = field(default_factory=list)  # seconds until all accepted before was handled
    stuck: bool = False  # it did not recover in time

    def has(self, when: float) -> bool:
        """Whether something of that time belongs to it."""
        return self.begin <= when < self.end


@dataclass(slots=True)
class Outcome:
    """What a run showed."""

    phases: list[Phase]
    history: History
    audit: Audit
    found: Found
    evidence: evidence.Evidence
    settled_after: float

    @property
    def ok(self) -> bool:
        """Whether everything that must hold does."""
        stuck = any(phase.stuck for phase in self.phases)
        return not self.found.faults and self.evidence.intact and not stuck


@dataclass
class Run:
    """``seconds`` is for load and nemeses; coming to rest takes up to a minute more."""

    system: System
    nemeses: Sequence[Nemesis]
    seconds: float
    seed: int
    folder: Path
    say: Callable[[str], None]
    rate: float = 500.0  # messages a second
    namespace: str = "chaos"
    patience: float = PATIENCE
    proxies: RouteProxies | None = None
    history: History = field(default_factory=History)

    async def perform(self) -> Outcome:
        """Do it all. Errors of the run itself are raised; what the system did wrong is in the outcome."""
        names = {role.agent for role in (*SENDERS, *HANDLERS)} | {FORBIDDEN, MEDIATED}
        agents = {name: WantedAgent() for name in sorted(names)}
        agents[DIRECT] = WantedAgent(state=StateMode.DIRECT)
        targets = sorted({role.agent for role in HANDLERS})
        allow = {role.agent: targets for role in SENDERS}
        await self.system.namespace(agents, allow, limits=LIMITS, governance=FAILING, name=self.namespace)
        url = self.system.broker.url
        tls = lambda agent: self.system.tls(agent, self.namespace)  # noqa: E731
        crew = Crew(self.folder, url, tls, rate=self.rate, seed=self.seed, say=self._aside)
        try:
            await crew.start()
            phases = await self._strike(crew)
            await crew.stop_senders(self._undecided)
            await self._until(self._all_done, self.patience)
            settled_after = await evidence.rest(self.system, self.namespace, self.say)
        finally:
            await crew.stop()
        return await self._judge(phases, crew, settled_after)

    # -- faults --------------------------------------------------------------------------------------
    async def _strike(self, crew: Crew) -> list[Phase]:
        rng = random.Random(self.seed)
        order = list(self.nemeses)
        rng.shuffle(order)
        scene = Scene(self.system, self.namespace, crew, rng, self.proxies)
        phases: list[Phase] = []
        finish = time.time() + self.seconds
        for place, nemesis in enumerate(order):
            now = time.time()
            phase = Phase(nemesis.name, now)
            phases.append(phase)
            share = max(1.0, (finish - now) / (len(order) - place))
            await self._phase(phase, nemesis, scene, share)
            phase.end = time.time()
            self._progress(phase)
            if phase.stuck:
                break
        phases[0].begin, phases[-1].end = 0.0, float("inf")
        return phases

    async def _phase(self, phase: Phase, nemesis: Nemesis, scene: Scene, share: float) -> None:
        """Strike as often as the time allows, at least once; each time only a system that has recovered."""
        end = phase.begin + share
        while True:
            await asyncio.sleep(scene.rng.uniform(0.1, 0.2) * min(share, 15))
            hold = scene.rng.uniform(0.1, 0.3) * min(share, 20)
            begun = time.time()
            fault = await Fault.do(nemesis, scene, hold)
            phase.faults.append(fault)
            if not await self._recover(phase, fault.since):
                phase.stuck = True
                self.say(f"{nemesis.name}: NOT RECOVERED within {self.patience:g} s")
                return
            if time.time() + 1.5 * (time.time() - begun) > end:
                break
        await asyncio.sleep(max(0.0, end - time.time()))

    async def _recover(self, phase: Phase, since: float) -> bool:
        recovered = await self._until(lambda: self._recovered(since), self.patience)
        if recovered is None:
            return False
        drained = await self._until(lambda: self._drained(recovered), self.patience)
        if drained is None or await self._until(lambda: self._kept(since), self.patience) is None:
            return False
        phase.recovery.append(recovered - since)
        phase.drained.append(drained - since)
        return True

    # -- what the histories say of recovery --------------------------------------------------------------
    async def _until(self, answer: Callable[[], float | None], patience: float) -> float | None:
        deadline = time.monotonic() + patience
        while True:
            self.history.read(self.folder / "history")
            if (found := answer()) is not None or time.monotonic() > deadline:
                return found
            await asyncio.sleep(0.1)

    def _recovered(self, since: float) -> float | None:
        """When the first message was accepted that was first attempted after ``since``."""
        sent = self.history.sent
        return min(
            (when for one, when in self.history.accepted.items() if when > since and sent[one].time > since),
            default=None,
        )

    def _kept(self, since: float) -> float | None:
        """When each state had been updated again after ``since``."""
        first: dict[str, float] = {}
        for all_of in self.history.kept.values():
            for each in all_of:
                if each.time > since:
                    first[each.agent] = min(each.time, first.get(each.agent, each.time))
        return max(first.values()) if first.keys() == {DIRECT, MEDIATED} else None

    def _drained(self, until: float) -> float | None:
        """When all was handled that was accepted by ``until``, not before that; None while it is not."""
        last = until
        for one, when in self.history.accepted.items():
            if when <= until and self.history.sent[one].type in PROMPT:
                runs = self.history.handled.get(one)
                if runs is None and one not in self.history.unanswered and one not in self.history.replies:
                    return None
                last = max(last, runs[0].time if runs else last)
        return last

    def _all_done(self) -> float | None:
        """Everything was handled that can be; the check has the last word."""
        return self._drained(float("inf"))

    def _undecided(self) -> set[str]:
        self.history.read(self.folder / "history")
        return self.history.undecided()

    # -- the end -----------------------------------------------------------------------------------------
    async def _judge(self, phases: list[Phase], crew: Crew, settled_after: float) -> Outcome:
        self.history.read(crew.logs)
        collected = await evidence.collect(self.system, self.namespace, self.folder)
        audit = Audit.read(collected.export)
        found = check(self.history, collected.dead, audit, collected.states, collected.revisions)
        return Outcome(phases, self.history, audit, found, collected, settled_after)

    def _progress(self, phase: Phase) -> None:
        self.history.read(self.folder / "history")
        accepted = sum(phase.has(self.history.sent[one].time) for one in self.history.accepted)
        recovery, drained = max(phase.recovery, default=-1), max(phase.drained, default=-1)
        self.say(
            f"{phase.nemesis:<22} {len(phase.faults):>3} faults {accepted:>8} accepted   "
            f"recovery {recovery:6.2f} s   drained {drained:6.2f} s"
        )

    def _aside(self, line: str) -> None:
        """What happens to the crew is not worth a line of the table."""
        with (self.folder / "crew.log").open("a") as file:
            file.write(f"{time.time():.3f} {line}\n")

"""The policy service for one namespace, in one worker: takes calls, has them judged, committed, answered.

Workers share the calls by queue group and share nothing else in memory; what one worker sealed, another
opens. Every call is answered with a verdict; a call that changes something is answered only after the
record of the decision is durable.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

import nats.errors

from broker_policy.admission.admission import Admission
from broker_policy.admission.breaker import Breaker
from broker_policy.admission.census import Census
from broker_policy.admission.circuits import SharedCircuits
from broker_policy.admission.counters import Counters
from broker_policy.admission.rates import Rates
from broker_policy.agent_state import StateBucket
from broker_policy.audit.recall import Memory
from broker_policy.audit.record import Outcome, RecordKey, Way
from broker_policy.calls.acknowledging import Acknowledging
from broker_policy.calls.acting import Acting
from broker_policy.calls.arriving import Arriving
from broker_policy.calls.asides import Asides
from broker_policy.calls.bundles import Bundle
from broker_policy.calls.crossing import Crossing, Neighbours
from broker_policy.calls.deciding import Deciding
from broker_policy.calls.delayed import DelayedCalls
from broker_policy.calls.flow import FlowCalls
from broker_policy.calls.frames import FrameCalls
from broker_policy.calls.messages import Messages
from broker_policy.calls.model_answers import ModelAnswers
from broker_policy.calls.operator import OperatorCalls
from broker_policy.calls.presence import Presence
from broker_policy.calls.prompts import PromptCalls
from broker_policy.calls.replies import Replies, ReplyCalls
from broker_policy.calls.searching import Searching
from broker_policy.calls.state import StateCalls
from broker_policy.calls.tokens import TokenCalls
from broker_policy.clock import Milliseconds, wall_clock
from broker_policy.commit.act_lane import Act, ActLane
from broker_policy.commit.answered import UNANSWERED, LogUnreachable
from broker_policy.commit.disk_room import DiskRoom
from broker_policy.commit.inbox_lane import InboxLane
from broker_policy.commit.lines import line_of
from broker_policy.commit.log_room import LogRoom
from broker_policy.commit.pressing import Pressing
from broker_policy.commit.suspects import Suspects
from broker_policy.commit.writer import RecordWriter
from broker_policy.dead_letters.advisories import AdvisoryFollower
from broker_policy.dead_letters.failures import FailureReports
from broker_policy.dead_letters.redrive import Redriver
from broker_policy.dead_letters.removed import RemovedAgents
from broker_policy.dead_letters.sweep import SWEEP_EVERY, Sweep
from broker_policy.dead_letters.undertaker import Undertaker
from broker_policy.dedup import RecentIds, dedup_of
from broker_policy.delayed.releaser import Releaser
from broker_policy.delayed.stream import DelayedStream
from broker_policy.direct_state.changes import Lines
from broker_policy.direct_state.follower import DirectStateAudit
from broker_policy.direct_state.hearing import Connect
from broker_policy.direct_state.mark import Marker
from broker_policy.dlp import Apart, StreamScreen
from broker_policy.ending import end
from broker_policy.jetstream import get_known
from broker_policy.left_requests import LeftRequests
from broker_policy.onlookers import Onlookers
from broker_policy.pipeline import Call
from broker_policy.pipeline.dlp import blocked
from broker_policy.policy.follower import PolicyFollower
from broker_policy.registry import Registry
from broker_policy.screen import Aside, Screen
from broker_policy.sealing import Sealer
from broker_policy.telemetry.watching import Watch
from broker_policy.tenants.sealing_ring import SealingRing
from broker_policy.tenants.streams import MOST_MARKS, TOKENS_AGE
from broker_policy.tokens.keys import TokenKeys
from broker_policy.tokens.marks import Marks
from broker_policy.tokens.shares import Shares
from mas_nats.policy import refusals
from mas_nats.policy.governance import CircuitBreaker
from mas_nats.resilient import ResilientClient
from mas_nats.wire import headers, subjects
from mas_nats.wire.bundle import encode_verdicts
from mas_nats.wire.subjects import Op
from mas_nats.wire.verdict import Decision, Verdict

log = logging.getLogger(__name__)

_PATIENCE = 10.0
"""Seconds for which ``stop`` waits for what is under way."""
_HEADER_ROOM = 8_192
"""Bytes that the headers of a delivery, or the envelope of an answer, may take beside the body."""
_TURN = 0.005
"""Seconds after which a call that is judged in place gives the loop free."""
_SEARCHED = frozenset({Op.SEND, Op.REQUEST, Op.REPLY, Op.FRAME, Op.STATE, Op.DELAY, Op.PROMPT, Op.TOKEN})


class NamespaceService:
    """One namespace's policy service in one worker."""

    _stopping = False
    _subscription: Any = None

    def __init__(
        self,
        nc: ResilientClient,
        namespace: str,
        *,
        worker: str,
        follower: PolicyFollower,
        sealer: Sealer,
        record_key: RecordKey,
        recall: Memory,
        listen: Connect,
        screen: Screen | None = None,
        sweep_every: float = SWEEP_EVERY,
        disk: DiskRoom | None = None,
        clock: Milliseconds = wall_clock,
        counters: Counters | None = None,
        apart: Apart | None = None,
        neighbours: Neighbours = lambda _: None,
        watch: Watch | None = None,
        token_ring: Callable[[], SealingRing | None] = lambda: None,
    ) -> None:
        self._nc = nc
        self._watch = watch
        self._clock = clock
        self._namespace = namespace
        self._follower = follower
        self._registry = Registry(nc)
        self._room = LogRoom(
            nc,
            self._log_bytes,
            disk,
            messages=self._inbox_messages,
            workers=lambda: self._census.workers,
        )
        self._asides = Asides(self._answer)
        deciding = Deciding(
            namespace, follower, self._registry, sealer, lambda: nc.max_payload - _HEADER_ROOM, clock
        )

        def writer(lane: str, *, messages: bool = False) -> RecordWriter:
            return RecordWriter(
                nc,
                namespace,
                worker + lane,
                record_key,
                room=self._room,
                messages=messages,
                clock=clock,
                told=None if watch is None else watch.recorded,
            )

        counters = counters or Counters(None)
        recent = RecentIds()
        self._shares = Shares(MOST_MARKS, TOKENS_AGE, workers=lambda: self._census.workers)
        self._census = Census(nc, worker, needed=self._shared_out, urgent=lambda: counters.away)
        self._breaker = Breaker(
            nc,
            namespace,
            shared=SharedCircuits(counters, namespace),
            settings=self._breaking,
            there=self._in_inbox,
            removed=self._removed,
        )
        rates = Rates(counters, namespace, workers=lambda: self._census.workers)
        admission = Admission(
            namespace,
            rates,
            self._breaker,
            known=lambda dedup: recent.get(dedup) is not None,
        )
        messages = Messages(deciding, admission)
        lanes: dict[str, Any] = {
            "judging": messages,
            "answer": self._answered,
            "probed": self._probed,
            "recall": recall,
            "recent": recent,
            "inboxes": self._room.inboxes,
            "suspects": Suspects(),
            "single": lambda: self._room.copies == 1,
            "watch": watch,
        }
        self._slow = InboxLane(nc, writer("s", messages=True), slow=None, **lanes)
        self._inbox = InboxLane(nc, writer("i", messages=True), slow=self._slow, **lanes)
        self._acts = ActLane(writer("a"))
        self._connections = Pressing(self._acts)
        marker = Marker(namespace, record_key)
        self._direct_states = DirectStateAudit(
            nc,
            listen=listen,
            worker=worker,
            writer=writer("d"),
            lines=Lines(marker, sealer, self._registry.fingerprint),
            table=lambda: follower.table(namespace),
            revision=lambda: follower.revision,
        )
        acting = Acting(self._acts, deciding, self._asides, self._answer)
        self._leaving, self._returning = (ActLane(writer(lane), at_once=False) for lane in "mr")
        replies = Replies(nc, namespace, sealer, clock, _replies_of(neighbours))
        self._crossing = Crossing(
            deciding,
            rates,
            neighbours,
            messages=self._leaving,
            answers=self._returning,
            asides=self._asides,
            answer=self._answer,
        )
        flow = FlowCalls(nc, deciding, acting, self._asides)
        undertaker = Undertaker(
            nc,
            namespace,
            record=self._acts.recorded,
            tell_requester=replies.tell_failure,
            watch=self._breaker,
            clock=clock,
        )
        self._advisories = AdvisoryFollower(nc, undertaker)
        removed = RemovedAgents(nc, undertaker, self._removed)
        self._sweep = Sweep(nc, undertaker, removed, removed_agent=self._removed, every=sweep_every)
        failures = FailureReports(undertaker, self._acts.recorded, deciding, acting, watch=self._breaker)
        self._held = delayed = DelayedStream(nc, workers=lambda: self._census.workers)
        self._delayed = delayed_calls = DelayedCalls(
            delayed, deciding, acting, admission=admission, asides=self._asides
        )
        self._apart, self._shared_apart = apart or Apart(), apart is not None
        screening = _screening(screen, StreamScreen(deciding.rules, blocked, self._apart))
        frames = FrameCalls(replies, deciding, acting, *screening)
        self._prompts = PromptCalls(
            deciding,
            acting,
            ModelAnswers(deciding, acting, *screening),
            admission=admission,
            asides=self._asides,
        )
        self._searching = Searching(self._apart, deciding, frames, self._prompts.answers, self._asides)
        self._arriving = Arriving(
            deciding,
            Acting(self._returning, deciding, self._asides, self._answer),
            self._leaving,
            replies=replies,
            put=self._take_arriving,
            search=self._searching.take,
        )
        self._operators = OperatorCalls(
            nc,
            asides=self._asides,
            deciding=deciding,
            acting=acting,
            redriver=Redriver(
                nc,
                put=self._put_searched,
                search=self._searching.search,
                judge=messages.judge,
                redriven=recall.redriven,
            ),
            removed=removed,
            withdraw=delayed_calls.withdraw,
            breaker=self._breaker,
            put_state=self._put_state,
        )
        self._onlookers = Onlookers(nc, namespace, worker, self._inspects)
        self._left = LeftRequests(nc)
        self._releaser = Releaser(
            nc,
            namespace,
            delayed,
            worker=worker,
            judge=self._put_searched,
            rate=self._release_rate,
            confirmed=lambda: not follower.stale,
            clock=lambda: clock() / 1000,
        )
        self._calls: dict[str, Callable[[Call], None]] = {
            Op.SEND: self._take_message,
            Op.REQUEST: self._take_message,
            Op.REPLY: ReplyCalls(replies, deciding, acting, self._crossing.reply).take,
            Op.FRAME: frames.take,
            Op.FLOW: flow.take_flow,
            Op.CANCEL: flow.take_cancel,
            Op.STATE: StateCalls(StateBucket(nc, marker), deciding, acting, self._asides).take,
            Op.DELAY: self._take_delayed,
            Op.WITHDRAW: delayed_calls.take_back,
            Op.PROMPT: self._prompts.take,
            Op.FAIL: lambda call: self._asides.take(call, failures.report),
            Op.ACK: Acknowledging(nc, deciding, self._asides).take,
            **Presence(self._registry, sealer, deciding, acting, self._left).takers(self._asides),
            Op.TOKEN: TokenCalls(
                TokenKeys(token_ring, clock), Marks(nc, self._shares), deciding, acting, self._asides
            ).take,
        }
        self._lanes: list[asyncio.Task[None]] = []
        self._followers: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Take calls from here on."""
        await self._registry.start()
        await self._census.start()
        await self._breaker.start()
        await self._room.look()
        self._lanes = [
            asyncio.create_task(lane.run(), name=f"{self._namespace}-lane")
            for lane in (
                self._inbox,
                self._slow,
                self._acts,
                self._direct_states,
                self._leaving,
                self._returning,
            )
        ]
        self._followers = [
            asyncio.create_task(running, name=f"{self._namespace}-{name}")
            for name, running in (
                ("advisories", self._advisories.run()),
                ("sweep", self._sweep.run()),
                ("log-room", self._room.follow()),
                ("releaser", self._releaser.run()),
                ("census", self._census.run()),
                ("breaker", self._breaker.run()),
                ("left-requests", self._left.run()),
            )
        ]
        self._subscription = await self._nc.subscribe_directly(
            subjects.CALLS, self._take, queue=subjects.WORKER_QUEUE
        )
        await self._operators.start()
        await self._onlookers.start()
        await self._nc.flush()

    def policy_changed(self) -> None:
        """Look at once at what the new policy asks for."""
        self._direct_states.policy_changed()

    async def stop(self) -> None:
        """Take no more calls, finish what was taken, close the records."""
        self._stopping = True
        if self._subscription is not None:
            # What has arrived is still taken.
            for stop in (self._subscription.drain, self._operators.stop, self._onlookers.stop):
                with contextlib.suppress(nats.errors.Error, OSError):
                    await stop()
        await self._census.stop()
        await end(self._followers)
        await self._releaser.stop()
        await self._delayed.stop()
        await self._prompts.stop()
        await self._searching.stop(_PATIENCE)
        await self._asides.stop(_PATIENCE)  # before the lanes, which they may need
        await self._crossing.stop()
        if left := await self._connections.stop(_PATIENCE):
            log.error("%d connections to %s are not audited: too much was under way", left, self._namespace)
        away, home = self._lanes[-2:], self._lanes[:-2]
        self._leaving.close()
        self._returning.close()
        if away:  # first, while the other namespaces of this worker still decide
            await asyncio.wait(away, timeout=_PATIENCE)
        for lane in (self._inbox, self._slow, self._acts, self._direct_states):
            lane.close()
        if home:
            await asyncio.wait(home, timeout=_PATIENCE)
        await end(self._lanes)
        if not self._shared_apart:
            await self._apart.stop()
        await self._breaker.stop()

    async def wait_broken(self) -> None:
        """Return only by raising: a lane, or what follows the log, ended though nobody closed it.

        Raises:
            LogUnreachable: the log did not answer for minutes.

        """
        everything = [*self._lanes, *self._followers]
        done, _ = await asyncio.wait(everything, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
        raise LogUnreachable(f"{', '.join(task.get_name() for task in done)} ended")

    def connected(self, uri: str, fingerprint: str, *, agent: str, refused: str = "") -> None:
        """Audit an attempt to connect; let all workers know the certificate of an ``agent`` let in."""
        call = Call(
            agent or uri,
            "connect",
            b"",
            "",
            target=self._namespace,
            type="connect",
            received=self._clock(),
        )
        decision = Decision.AUTHZ_DENIED if refused else Decision.ALLOWED
        line = line_of(call, decision, refused or "certificate", Way.NONE, "", fingerprint, call.received)

        async def perform(_: str | None) -> Outcome:
            if agent and not refused:
                with contextlib.suppress(*UNANSWERED):
                    await self._registry.authenticated(agent, fingerprint)
            return Outcome.APPLIED

        if not self._connections.put(Act(perform, line, self._follower.revision)):
            log.error("a connection of %s is not audited: too much is under way", call.sender)

    async def _take(self, message: Any) -> None:
        try:
            call = Call.read(message, self._clock())
        except ValueError:
            return  # no call subject: cannot come through an agent's account
        begun = time.perf_counter()
        if call.op == Op.SEND and message.headers and headers.BUNDLE in message.headers:
            self._take_bundle(call, message)
        else:
            self._take_call(call)
        if time.perf_counter() - begun > _TURN:
            await asyncio.sleep(0)  # many may have arrived: others have their turn between them

    def _take_bundle(self, whole: Call, message: Any) -> None:
        try:
            bundle = Bundle.read(message, self._clock)
        except ValueError as error:
            self._asides.tell(whole, refusals.invalid("bundle", f"a bundle that cannot be read: {error}"))
            return
        for call in bundle.calls:
            self._take_call(call)

    def _take_call(self, call: Call) -> None:
        take = self._calls.get(call.op)
        if take is None:
            self._asides.tell(call, refusals.invalid("op", f"there is no call {call.op[:40]!r}"))
            return
        self._onlookers.tally.asked(call)
        call.crosses = self._crossing.concerns(call)
        self._watched(call)
        try:
            if call.op not in _SEARCHED:
                take(call)
            elif not self._searching.take(call, take):
                self._asides.tell(call, refusals.busy())
        except Exception:
            log.exception("%s of %s failed", call.op, call.sender)
            self._asides.tell(call, refusals.unavailable())

    @property
    def arriving(self) -> Arriving | None:
        """Where messages from other namespaces come in; None while it stops."""
        return None if self._stopping else self._arriving

    def _take_message(self, call: Call) -> None:
        if call.crosses:
            self._crossing.take(call)
            return
        lane = self._slow if call.repeated else self._inbox  # a repetition may make a whole batch fail
        if not lane.put(call):
            self._asides.tell(call, refusals.busy())

    def _take_delayed(self, call: Call) -> None:
        if not (call.crosses and self._crossing.turns_away(call)):
            self._delayed.take(call)

    def _watched(self, call: Call) -> None:
        if self._watch is not None:
            call.watched = self._watch.arrived(call)

    def circuits(self) -> Counter[str]:
        """How many circuits are open and half open, as far as this worker knows."""
        return self._breaker.states()

    def _take_arriving(self, call: Call) -> bool:
        self._watched(call)
        return self._searching.take(call, self._take_message)

    def _put_searched(self, call: Call) -> bool:
        """Give what does not come from an agent now to the lane; False when it has too much to do."""
        self._watched(call)
        call.crosses = self._crossing.concerns(call)
        return self._searching.take(call, self._put)

    def _put_state(self, call: Call) -> bool:
        return self._searching.take(call, self._calls[Op.STATE])

    def _put(self, call: Call) -> None:
        if call.crosses:
            self._crossing.take(call)
        elif not self._inbox.put(call):
            self._asides.tell(call, refusals.busy())

    def _removed(self, agent: str) -> bool:
        """Whether policy, which is known for certain, does not have ``agent``."""
        table = self._follower.table(self._namespace)
        return not self._follower.stale and table is not None and table.agent(agent) is None

    def _inspects(self, name: str) -> bool:
        table = self._follower.table(self._namespace)
        return not self._follower.stale and table is not None and name in table.document.inspectors

    def _limited(self) -> bool:
        table = self._follower.table(self._namespace)
        return table is not None and table.limited

    def _shared_out(self) -> bool:
        """Whether it matters how many workers there are."""
        return self._limited() or self._shares.used or self._room.scarce or self._held.scarce

    def _breaking(self) -> CircuitBreaker | None:
        table = self._follower.table(self._namespace)
        return None if table is None else table.document.governance.circuit_breaker

    def _probed(self, call: Call, sequence: int) -> None:
        self._breaker.probed(call.target, dedup_of(self._namespace, call), sequence)

    async def _in_inbox(self, agent: str, sequence: int) -> bool:
        stored = await get_known(self._nc, subjects.INBOX_STREAM, sequence)  # a node behind says nothing
        return stored is not None and stored.subject == subjects.inbox(agent)

    def _log_bytes(self) -> int | None:
        table = self._follower.table(self._namespace)
        return None if table is None else table.limits.log_bytes

    def _inbox_messages(self) -> int | None:
        table = self._follower.table(self._namespace)
        return None if table is None else table.limits.inbox_messages

    def _release_rate(self) -> int:
        table = self._follower.table(self._namespace)
        return 1 if table is None else table.limits.release_rate

    async def _answer(self, call: Call, verdict: Verdict) -> None:
        if (answer := self._answered(call, verdict)) is not None:
            await answer

    def _answered(self, call: Call, verdict: Verdict) -> Awaitable[None] | None:
        """Take the verdict of ``call``; what sends the answer, once there is one to send."""
        if call.finding is not None and verdict.ok and verdict.decision is Decision.ALLOWED:
            verdict = replace(verdict, decision=call.finding.decision, rule=call.finding.rule)
        if call.watched is not None:
            call.watched.answered(verdict)
        if call.on_verdict is not None:
            call.on_verdict(verdict)
        elif call.reply_to:
            if call.bundle is None:
                return self._send_answer([call], [verdict], verdict.encode())
            if (whole := call.bundle.answered(call, verdict)) is not None:
                calls, verdicts = whole
                return self._send_answer(calls, verdicts, encode_verdicts(verdicts))
        return None

    async def _send_answer(self, calls: Sequence[Call], verdicts: Sequence[Verdict], answer: bytes) -> None:
        self._onlookers.tally.answered(calls, verdicts, self._clock())
        with contextlib.suppress(nats.errors.Error, OSError):  # the caller repeats, under the same id
            await self._nc.publish(calls[0].reply_to, answer)


def _replies_of(neighbours: Neighbours) -> Callable[[str], Replies | None]:
    def replies(namespace: str) -> Replies | None:
        there = neighbours(namespace)
        return None if there is None else there.replies

    return replies


def _screening(given: Screen | None, own: StreamScreen) -> tuple[Screen, Aside | None]:
    return (own, own.aside) if given is None else (given, None)

"""The policy service for one namespace, in one worker: takes calls, judges them, commits, answers.

Workers share the calls by queue group and share nothing else in memory; what one worker sealed, another
opens. Every call is answered with a verdict; a call that changes something is answered only after the
record of the decision is durable.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Any

import nats.errors
from nats.aio.client import Client

from broker_policy import refusals
from broker_policy.agent_state import BadStateCall, Conflict, StateBucket, StateCall
from broker_policy.asides import UNANSWERED, Asides
from broker_policy.audit.record import DecisionLine, Outcome, RecordKey, Way
from broker_policy.commit.act_lane import Act, ActLane
from broker_policy.commit.answered import LogUnreachable
from broker_policy.commit.inbox_lane import InboxLane, Judged, Outgoing, Recall
from broker_policy.commit.lines import line_of
from broker_policy.commit.log_room import LogRoom
from broker_policy.commit.suspects import Suspects
from broker_policy.commit.writer import RecordWriter
from broker_policy.dead_letters.advisories import AdvisoryFollower
from broker_policy.dead_letters.failures import FailureReports
from broker_policy.dead_letters.sweep import Sweep
from broker_policy.dead_letters.undertaker import Undertaker
from broker_policy.dedup import RecentIds, dedup_id
from broker_policy.direct_state.changes import Lines
from broker_policy.direct_state.follower import DirectStateAudit
from broker_policy.direct_state.mark import Marker
from broker_policy.ending import end
from broker_policy.jetstream import NO_ROOM, JetStreamError
from broker_policy.pipeline import Call, Refusal, judge
from broker_policy.pipeline.shape import well_formed
from broker_policy.policy.follower import PolicyFollower
from broker_policy.policy.table import Table
from broker_policy.presence import Presence
from broker_policy.registry import Registry
from broker_policy.replies import Replies
from broker_policy.sealing import ReplyCapability, Sealer, commitment
from mas_nats.wire import headers, subjects
from mas_nats.wire.correlation import correlation
from mas_nats.wire.subjects import Op
from mas_nats.wire.verdict import Decision, Verdict, accepted

log = logging.getLogger(__name__)

_PATIENCE = 10.0
"""Seconds for which ``stop`` waits for what is under way."""
_HEADER_ROOM = 8_192
"""Bytes that the headers of a delivery, or the envelope of an answer, may take beside the body."""


class NamespaceService:
    """One namespace's policy service in one worker."""

    def __init__(
        self,
        nc: Client,
        namespace: str,
        *,
        worker: str,
        follower: PolicyFollower,
        sealer: Sealer,
        record_key: RecordKey,
        recall: Recall,
    ) -> None:
        self._nc = nc
        self._namespace = namespace
        self._follower = follower
        self._sealer = sealer
        self._registry = Registry(nc)
        self._replies = Replies(nc, namespace, sealer)
        marker = Marker(namespace, record_key)
        self._states = StateBucket(nc, marker)
        self._room = LogRoom(nc, self._log_bytes)
        suspects, recent = Suspects(), RecentIds()
        lanes: dict[str, Any] = {
            "judge": self._judge_message,
            "answer": self._publish,
            "recall": recall,
            "recent": recent,
            "suspects": suspects,
        }

        def writer(lane: str) -> RecordWriter:
            return RecordWriter(nc, namespace, worker + lane, record_key, room=self._room)

        self._slow = InboxLane(nc, writer("s"), slow=None, **lanes)
        self._inbox = InboxLane(nc, writer("i"), slow=self._slow, **lanes)
        self._acts = ActLane(writer("a"))
        self._direct_states = DirectStateAudit(
            nc,
            worker=worker,
            writer=writer("d"),
            lines=Lines(marker, sealer, self._registry.fingerprint),
            table=lambda: follower.table(namespace),
            revision=lambda: follower.revision,
        )
        undertaker = Undertaker(
            nc, namespace, record=self._acts.recorded, tell_requester=self._replies.tell_failure
        )
        self._advisories = AdvisoryFollower(nc, undertaker)
        self._sweep = Sweep(nc, undertaker)
        failures = FailureReports(undertaker, self._acts.recorded, self._table)
        presence = Presence(self._registry, sealer, self._table, room=lambda: nc.max_payload - _HEADER_ROOM)
        self._ops: dict[str, Callable[[Call], None]] = {
            Op.SEND: self._message,
            Op.REQUEST: self._message,
            Op.REPLY: self._reply,
            Op.STATE: self._state,
            Op.FAIL: lambda call: self._asides.take(call, failures.report),
            Op.HELLO: lambda call: self._asides.take(call, presence.hello),
            Op.BYE: lambda call: self._asides.take(call, presence.bye),
            Op.DISCOVER: lambda call: self._asides.take(call, presence.discover),
        }
        self._subscription: Any = None
        self._lanes: list[asyncio.Task[None]] = []
        self._followers: list[asyncio.Task[None]] = []
        self._asides = Asides(self._answer)

    async def start(self) -> None:
        """Take calls from here on."""
        await self._registry.start()
        await self._room.look()
        self._lanes = [
            asyncio.create_task(lane.run(), name=f"{self._namespace}-lane")
            for lane in (self._inbox, self._slow, self._acts, self._direct_states)
        ]
        self._followers = [
            asyncio.create_task(running, name=f"{self._namespace}-{name}")
            for name, running in (
                ("advisories", self._advisories.run()),
                ("sweep", self._sweep.run()),
                ("log-room", self._room.follow()),
            )
        ]
        self._subscription = await self._nc.subscribe(
            subjects.CALLS,
            queue=subjects.WORKER_QUEUE,
            cb=self._take,
            pending_msgs_limit=-1,
            pending_bytes_limit=-1,
        )
        await self._nc.flush()

    async def stop(self) -> None:
        """Take no more calls, finish what was taken, close the records."""
        if self._subscription is not None:
            with contextlib.suppress(nats.errors.Error, OSError):
                await self._subscription.drain()  # what has arrived is still taken
        await end(self._followers)
        await self._asides.stop(_PATIENCE)  # before the lanes, which they may need
        for lane in (self._inbox, self._slow, self._acts, self._direct_states):
            lane.close()
        if self._lanes:
            await asyncio.wait(self._lanes, timeout=_PATIENCE)
        await end(self._lanes)

    async def wait_broken(self) -> None:
        """Return only by raising: a lane ended though nobody closed it.

        Raises:
            LogUnreachable: the log did not answer for minutes.

        """
        done, _ = await asyncio.wait(self._lanes, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
        raise LogUnreachable("a commit lane ended")

    def connected(self, uri: str, fingerprint: str, *, agent: str, refused: str = "") -> None:
        """Audit an attempt to connect; let all workers know the certificate of an ``agent`` let in."""
        call = Call(agent or uri, "connect", b"", "", target=self._namespace, type="connect")
        decision = Decision.AUTHZ_DENIED if refused else Decision.ALLOWED
        line = line_of(call, decision, refused or "certificate", Way.NONE, "", fingerprint)

        async def perform(_: str | None) -> Outcome:
            if agent and not refused:
                with contextlib.suppress(*UNANSWERED):
                    await self._registry.authenticated(agent, fingerprint)
            return Outcome.APPLIED

        self._acts.put(Act(perform, line, self._follower.revision))

    # -- calls ---------------------------------------------------------------------------------------
    async def _take(self, message: Any) -> None:
        try:
            call = Call.read(message)
        except ValueError:
            return  # no call subject: cannot come through an agent's account
        operation = self._ops.get(call.op)
        if operation is None:
            self._asides.tell(call, refusals.invalid("op", f"there is no call {call.op[:40]!r}"))
            return
        try:
            operation(call)
        except Exception:
            log.exception("%s of %s failed", call.op, call.sender)
            self._asides.tell(call, refusals.unavailable())

    def _judged(self, call: Call, table: Table) -> Refusal | None:
        room = self._nc.max_payload - _HEADER_ROOM
        if len(call.body) > room:  # the server would end the connection of whoever passes it on
            return refusals.too_large(len(call.body), room)
        return judge(call, table)

    def _table(self, call: Call) -> Table | Refusal:
        table = self._follower.table(self._namespace)
        if self._follower.stale or table is None:
            return refusals.policy_stale()
        if table.agent(call.sender) is None:
            return refusals.unknown_sender(call.sender)
        return table

    def _log_bytes(self) -> int | None:
        table = self._follower.table(self._namespace)
        return None if table is None else table.limits.log_bytes

    # -- send and request ------------------------------------------------------------------------------
    def _message(self, call: Call) -> None:
        if not self._inbox.put(call):
            self._asides.tell(call, refusals.busy())

    def _judge_message(self, call: Call) -> Judged:
        table = self._table(call)
        refusal = table if isinstance(table, Refusal) else self._judged(call, table)
        revision = self._follower.revision
        if refusal is not None:
            return Judged(call, self._refused_line(call, refusal), revision, refusal)
        salt = self._sealer.salt(call.sender, call.message_id)
        committed = commitment(salt, call.target, call.type, call.body)
        fields = self._envelope(call, salt) | {headers.TARGET: call.target}
        if call.op == Op.REQUEST:
            fields[headers.DEADLINE] = str(call.deadline)
            fields[headers.REPLY_TOKEN] = self._sealer.seal(
                ReplyCapability(
                    self._namespace,
                    call.sender,
                    call.instance,
                    correlation(call.message_id),
                    call.target,
                    call.message_id,
                    call.deadline,
                )
            )
        dedup = dedup_id(self._namespace, call.sender, call.message_id)
        fields[headers.MSG_ID] = dedup
        line = self._allowed_line(call, "permissions", Way.LONE, committed)
        outgoing = Outgoing(subjects.inbox(call.target), call.body, fields, dedup, committed, salt)
        return Judged(call, line, revision, outgoing=outgoing)

    # -- reply -----------------------------------------------------------------------------------------
    def _reply(self, call: Call) -> None:
        table = self._table(call)
        capability = table if isinstance(table, Refusal) else self._replies.capability(call)
        if not isinstance(capability, Refusal):
            call.target = capability.requester
            assert isinstance(table, Table)  # noqa: S101 - a refusal would have become the capability
            refusal = self._judged(call, table)
        else:
            refusal = capability
        if refusal is not None:
            self._refuse_act(call, refusal)
            return
        assert isinstance(capability, ReplyCapability)  # noqa: S101 - refusals were handled above
        granted = capability
        salt = self._sealer.salt(call.sender, call.message_id)
        line = self._allowed_line(
            call, "capability", Way.ACT, commitment(salt, call.target, call.type, call.body)
        )

        async def perform(reference: str | None) -> Outcome:
            if reference is None:
                await self._answer(call, refusals.log_full().verdict(call.message_id))
                return Outcome.FAILED
            fields = self._envelope(call, salt) | {headers.AUDIT: reference}
            ack = await self._replies.publish(granted, call.body, fields)
            await self._answer(call, accepted(call.message_id, duplicate=ack.duplicate))
            return Outcome.DUPLICATE if ack.duplicate else Outcome.APPLIED

        self._act(call, Act(perform, line, self._follower.revision))

    # -- state -----------------------------------------------------------------------------------------
    def _state(self, call: Call) -> None:
        table = self._table(call)
        call.target, call.type = call.sender, "state"
        if isinstance(table, Refusal):
            self._refuse_act(call, table)
            return
        if (refusal := well_formed(call)) is not None:
            self._refuse_act(call, refusal)
            return
        try:
            limit = min(table.limits.max_state, self._nc.max_payload - _HEADER_ROOM)
            wanted = StateCall.read(call.body, limit)
        except BadStateCall as error:
            self._refuse_act(call, refusals.invalid("state", str(error)))
            return
        if wanted.op == "get":
            self._asides.take(call, self._read_state)
            return
        salt = self._sealer.salt(call.sender, call.message_id)
        line = self._allowed_line(
            call, "own_state", Way.ACT, commitment(salt, call.target, call.type, wanted.value)
        )

        async def perform(reference: str | None) -> Outcome:
            if reference is None:
                await self._answer(call, refusals.log_full().verdict(call.message_id))
                return Outcome.FAILED
            verdict, outcome = await self._write_state(call, wanted, reference)
            await self._answer(call, verdict)
            return outcome

        self._act(call, Act(perform, line, self._follower.revision))

    async def _read_state(self, call: Call) -> Verdict:
        stored = await self._states.get(call.sender)
        return accepted(call.message_id, revision=stored.revision, value=stored.value, corrupt=stored.corrupt)

    async def _write_state(self, call: Call, wanted: StateCall, reference: str) -> tuple[Verdict, Outcome]:
        try:
            revision = await self._states.write(call.sender, wanted, call.message_id, reference)
        except Conflict:
            refusal = Refusal(
                Decision.STATE_CONFLICT,
                "state",
                "revision",
                f"the state of {call.sender} was changed by another instance",
                "Call refresh_state() and decide again",
            )
            return refusal.verdict(call.message_id), Outcome.FAILED
        return accepted(call.message_id, revision=revision), Outcome.APPLIED

    # -- decisions, envelopes, answers ---------------------------------------------------------------------
    def _act(self, call: Call, act: Act) -> None:
        perform = act.perform

        async def answered(reference: str | None) -> Outcome:
            try:
                return await perform(reference)
            except JetStreamError as error:
                log.warning("%s of %s was refused by its store: %s", call.op, call.sender, error)
                refusal = refusals.store_full(call.op) if error.code in NO_ROOM else refusals.unavailable()
                outcome = Outcome.FAILED
            except UNANSWERED as error:
                log.warning("%s of %s was not answered by its store: %r", call.op, call.sender, error)
                refusal, outcome = refusals.unavailable(), Outcome.UNKNOWN
            await self._answer(call, refusal.verdict(call.message_id))
            return outcome

        act.perform, act.sender, act.size = answered, call.sender, len(call.body)
        if not self._acts.put(act):
            self._asides.tell(call, refusals.busy())

    def _refuse_act(self, call: Call, refusal: Refusal) -> None:
        async def perform(_: str | None) -> Outcome:
            await self._answer(call, refusal.verdict(call.message_id))
            return Outcome.REFUSED

        self._act(call, Act(perform, self._refused_line(call, refusal), self._follower.revision))

    def _refused_line(self, call: Call, refusal: Refusal) -> DecisionLine:
        return line_of(call, refusal.decision, refusal.rule, Way.NONE, "", self._fingerprint(call))

    def _allowed_line(self, call: Call, rule: str, way: Way, committed: str) -> DecisionLine:
        return line_of(call, Decision.ALLOWED, rule, way, committed, self._fingerprint(call))

    def _fingerprint(self, call: Call) -> str:
        return self._registry.fingerprint(call.sender)

    def _envelope(self, call: Call, salt: bytes) -> dict[str, str]:
        fields = {
            headers.MESSAGE_ID: call.message_id,
            headers.SENDER: call.sender,
            headers.TYPE: call.type,
            headers.SENT: str(call.received),
            headers.SALT: salt.hex(),
        }
        if call.traceparent:
            fields[headers.TRACEPARENT] = call.traceparent
            if call.tracestate:
                fields[headers.TRACESTATE] = call.tracestate
        return fields

    async def _publish(self, subject: str, body: bytes) -> None:
        if subject:
            await self._nc.publish(subject, body)

    async def _answer(self, call: Call, verdict: Verdict) -> None:
        with contextlib.suppress(nats.errors.Error, OSError):  # the caller repeats, under the same id
            await self._publish(call.reply_to, verdict.encode())

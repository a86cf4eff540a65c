"""Calls that come: judged anew, then handed to the application at most once."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

import httpx2
import orjson

from mas_nats.errors import OutcomeUnknown, Refused, Reject, StreamCancelled, Unavailable
from mas_nats.message import AgentMessage, ReplyWriter
from mas_nats.sidecar import carriage, mcp
from mas_nats.sidecar.application import Settings
from mas_nats.sidecar.at_application import AtApplication, Stray, unknown
from mas_nats.sidecar.authority import Authority
from mas_nats.sidecar.call import Call, Protocol
from mas_nats.sidecar.carriage import Carried, Part
from mas_nats.sidecar.decision import decide
from mas_nats.sidecar.http_message import HttpRequest
from mas_nats.sidecar.in_flight import InFlight, new_traceparent, trace_of
from mas_nats.sidecar.refusal import OUTCOME_UNKNOWN, UNAVAILABLE, Refusal
from mas_nats.sidecar.registration import Registration
from mas_nats.sidecar.sessions import Sessions
from mas_nats.sidecar.signs_of_life import Broken, SignsOfLife

logger = logging.getLogger("mas_nats")

_REMEMBERED = 100_000
"""Ids of calls that were handed over: none is twice, even where the broker has lost an acknowledgement."""


class Inbound:
    """Hands calls to the application and its answers to whoever called."""

    def __init__(
        self,
        settings: Settings,
        authority: Authority,
        in_flight: InFlight,
        *,
        now: Callable[[], float],
        max_payload: Callable[[], int],
        ack_wait: Callable[[], float],
        registration: Registration | None = None,
    ) -> None:
        self._settings = settings
        self._authority = authority
        self._in_flight = in_flight
        self._registration = registration
        self._now = now  # unix time, in seconds
        self._ack_wait = ack_wait  # of the namespace, in seconds
        self._sessions = Sessions()
        self._standing = 0
        self._begun: OrderedDict[str, None] = OrderedDict()
        self._leaving = asyncio.Event()
        self._application = AtApplication(settings.own, settings.limits, max_payload)

    def leave(self) -> None:
        """End standing streams: whoever reads them opens them anew, at another instance or later."""
        self._leaving.set()

    async def close(self) -> None:
        """Close what is open to the application."""
        await self._application.close()

    async def handle(self, message: AgentMessage) -> None:
        """Run a call.

        Raises:
            Reject: nobody waits for its answer: no caller's sidecar sends that.

        """
        if not message.expects_reply:
            raise Reject("a sidecar takes calls that are requested, not messages that are sent")
        try:
            carried, call = await self._judge(message)
            await self._begin(message, call, carried)
        except Refusal as refusal:
            await self._refuse(message, refusal)
            return
        except (Unavailable, OutcomeUnknown) as error:
            # Not run, and not answered: the caller learns by its own limit that nothing is known.
            logger.warning("call %s was left: %s", message.message_id, error)
            return
        try:
            await self._run(message, call, carried)
        except Refusal as refusal:
            await self._refuse(message, refusal)
        except Refused as error:
            text = f"the answer was refused ({error.decision}, {error.verdict.rule}): {error.verdict.reason}"
            refused = Refusal("answer_refused", text, error.verdict.fix, 502, OUTCOME_UNKNOWN, ran="yes")
            await self._end(message, refused)
        except Broken as error:
            await self._end(message, unknown(str(error)))
        except Exception as error:
            if not message.course.acknowledged:
                raise  # it is delivered again, as the settings want it
            # Not its text, which may hold content.
            name = type(error).__name__
            logger.error("call %s could not be brought to its end: %s", message.message_id, name)
            if not message.course.told:
                await self._refuse(message, unknown(f"the sidecar of the application failed ({name})"))

    # -- before it is run --------------------------------------------------------------------------
    async def _judge(self, message: AgentMessage) -> tuple[Carried, Call]:
        """What the call is, looked at as if nobody had looked before."""
        carried = Carried.read(message.data)
        body = b"" if carried.body is None else orjson.dumps(carried.body)
        request = HttpRequest(carried.method, carried.path, carried.query, carried.headers, body)
        call = decide(request, caller=self._settings.known(message.sender), target=self._settings.own)
        if message.message_type != call.message_type:
            text = "the type of the message is not that of the call in it"
            raise Refusal("message_type", text, shape=call.shape, request_id=call.request_id)
        if session := request.header("mcp-session-id"):
            self._sessions.require(session, message.sender, call.request_id)
        if self._registration is not None:
            await self._registration.require(call)
        authorization = await self._authority.accept(call, message, carried.authorization)
        return carried.model_copy(update={"authorization": authorization}), call

    async def _begin(self, message: AgentMessage, call: Call, carried: Carried) -> None:
        """Make sure that a call is run at most once, and not too late."""
        if call.operation in self._settings.own.idempotent:
            return
        self._require_in_time(message, carried)
        if call.standing and self._standing >= self._settings.limits.standing:
            raise Refusal(
                "standing", "too many streams are open", "Close one", 503, UNAVAILABLE, retry_after=10
            )
        await message.acknowledge()
        self._require_in_time(message, carried)
        key = f"{message.sender}\n{message.message_id}"
        if key in self._begun:
            raise Refusal("again", "this call was run before", "", 504, OUTCOME_UNKNOWN, ran="unknown")
        self._begun[key] = None
        if len(self._begun) > _REMEMBERED:
            self._begun.popitem(last=False)

    def _require_in_time(self, message: AgentMessage, carried: Carried) -> None:
        """Look at the caller's limit, and at one's own since the policy service took the call."""
        # Half of what an apply made of it since the start: after all of it another sidecar may begin.
        begin = min(self._settings.limits.begin, self._ack_wait() / 2)
        latest = message.sent_at.timestamp() + begin
        if self._now() > min(carried.begin_by / 1000, latest):
            text = "the call came too late, and was not run"
            raise Refusal("expired", text, "Call again", 504, UNAVAILABLE)

    async def _end(self, message: AgentMessage, refusal: Refusal) -> None:
        """Tell the caller why there is no more, where the end of its stream did not: it may have had none."""
        if message.course.told:
            logger.warning("call %s from %s: %s", message.message_id, message.sender, refusal)
        else:
            await self._refuse(message, refusal)

    async def _refuse(self, message: AgentMessage, refusal: Refusal) -> None:
        """Tell the caller; the type of the reply has the rule, so that the audit has it."""
        logger.warning("call %s from %s: %s", message.message_id, message.sender, refusal)
        part = Part(refused=carriage.Refused.of(refusal))
        try:
            await message.reply(f"refused:{refusal.rule}", part.payload())
        except Refused as error:
            logger.info("call %s: the refusal was not delivered: %s", message.message_id, error.decision)

    # -- running it --------------------------------------------------------------------------------
    async def _run(self, message: AgentMessage, call: Call, carried: Carried) -> None:
        traceparent = carried.headers.get("traceparent", "")
        if not trace_of(traceparent):
            traceparent = new_traceparent()
        request = self._application.request(carried, traceparent)
        self._standing += call.standing
        try:
            async with message.reply_stream(call.message_type) as out:
                if call.causes:
                    with self._in_flight.working_on(message.message_id, traceparent):
                        await self._exchange(request, call, message, out)
                else:
                    await self._exchange(request, call, message, out)
        except StreamCancelled:
            logger.info("call %s: its caller has left", message.message_id)
        finally:
            self._standing -= call.standing

    async def _exchange(
        self, request: httpx2.Request, call: Call, message: AgentMessage, out: ReplyWriter
    ) -> None:
        leaving = self._leaving if call.standing else asyncio.Event()
        alive = SignsOfLife(out, self._settings.limits.heartbeat, leaving)
        try:
            await self._answered(request, call, message, alive, out)
        except Refusal as refusal:
            if not alive.said:
                raise
            # The answer has begun: this is its end.
            logger.warning("call %s from %s: %s", message.message_id, message.sender, refusal)
            await out.write(Part(refused=carriage.Refused.of(refusal)).payload())

    async def _seen(self, call: Call, data: Any) -> Any:
        if call.protocol is Protocol.MCP and mcp.strays(call, data):
            raise Stray
        return data if self._registration is None else await self._registration.shown(data)

    async def _answered(
        self,
        request: httpx2.Request,
        call: Call,
        message: AgentMessage,
        alive: SignsOfLife,
        out: ReplyWriter,
    ) -> None:
        async with self._application.sent(request, alive) as answer:
            head = self._application.head(answer)
            session = answer.headers.get("mcp-session-id")
            if session and call.operation == "initialize":
                self._sessions.opened(session, message.sender)
            if call.operation == "session.end" and answer.is_success:
                self._sessions.ended(request.headers["mcp-session-id"])
            if self._application.streams(head):
                await self._application.events(answer, head, alive, out, partial(self._seen, call))
                return
            parts = await self._application.whole(answer, head, call, alive, partial(self._seen, call))
        # Only now, with nothing to wait for any more: a short answer is one frame, and that is its last.
        for part in parts:
            await out.write(part)

"""Sending, requesting and replying through the policy service (DESIGN 5)."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import orjson

from mas_nats.calls import Calls
from mas_nats.due import Due
from mas_nats.errors import OutcomeUnknown, RequestFailed, RequestTimeout, error_of
from mas_nats.gathered_reply import GatheredReply
from mas_nats.message import AgentMessage, Payload, ReplyResult, ReplyWriter, read_message
from mas_nats.names import names
from mas_nats.payload import encode, invalid
from mas_nats.session import Session
from mas_nats.stream import Asked, Reader, Stream, failure_of
from mas_nats.streams import Streams
from mas_nats.telemetry.off import UNWATCHED
from mas_nats.telemetry.watching import Sending, Telemetry
from mas_nats.transport import Connection, Incoming, NoAnswer, NoResponders, NotSent, Subscription
from mas_nats.wire import headers, subjects
from mas_nats.wire.correlation import correlation, new_message_id
from mas_nats.wire.identity import namespace_of, split_target
from mas_nats.wire.subjects import Op
from mas_nats.wire.verdict import Decision, Verdict

logger = logging.getLogger("mas_nats")

MAX_REQUEST_TIMEOUT = 3600.0
"""Seconds a request may wait: as long as a reply capability holds (DESIGN 5)."""
_REPLY_CALL_TIMEOUT = 30.0
_MISSED_TIMEOUT, _MISSED_PAUSE = 5.0, 0.25
_TOKEN = re.compile(r"[!-~]{1,128}")


class _Stopped(Exception):
    """Nobody waits any more."""


@dataclass(frozen=True, slots=True)
class AgentInfo:
    """An agent that is alive and that the caller may reach."""

    agent_id: str
    capabilities: tuple[str, ...]
    metadata: dict[str, Any] = field(default_factory=dict)
    instances: int = 1


class Messenger:
    """What one instance says, and the replies it waits for."""

    def __init__(
        self,
        connection: Connection,
        calls: Calls,
        session: Session,
        agent: str,
        *,
        now: Callable[[], float],
        telemetry: Telemetry | None = None,
    ) -> None:
        self._now = now  # unix time, in seconds
        self._telemetry = telemetry
        self._connection = connection
        self._calls = calls
        self._session = session
        self._agent = agent
        self.busy: Callable[[], str] = str  # says so when this instance can take no message
        self._streams = Streams(connection, calls, agent, telemetry)
        self._waiting: dict[str, asyncio.Future[Incoming]] = {}  # reply subject -> its request
        self._looking: dict[str, asyncio.Task[None]] = {}  # for a reply that may be there already
        self._instance = ""
        self._subscription: Subscription | None = None

    async def start(self) -> None:
        """Listen for replies to this instance, also after reconnects and under a new instance name."""
        await self._connection.subscribe(
            subjects.replies_of(self._agent, subjects.EVERY_INSTANCE), self._streams.receive
        )
        await self._listen()
        self._connection.after_reconnect.append(self._resume)
        self._session.renamed.append(self._listen)

    async def send(
        self,
        target: str,
        message_type: str,
        data: Payload,
        *,
        message_id: str | None,
        timeout: float,
        due: Due | None = None,
    ) -> str:
        """Send, or have it held until it is ``due``; the id is returned once the message is durable."""
        known = _own_or_new(message_id)
        body, fields = self._compose(known, message_type, data)
        fields[headers.TARGET] = _target(target)
        if due is not None:
            fields[due.header] = str(due.milliseconds)
        op = Op.SEND if due is None else Op.DELAY
        if self._telemetry is None:
            verdict = _accepted(await self._calls.call(op, body, fields, timeout=timeout))
            return verdict.message_id or known
        with self._telemetry.sending(op, target, message_type, known, made_id=not message_id) as sending:
            fields.update(sending.headers)
            verdict = _accepted(await self._calls.call(op, body, fields, timeout=timeout))
            sending.accepted()
        return verdict.message_id or known

    async def cancel(self, message_id: str, *, timeout: float) -> bool:
        """Take a delayed message back; whether it was in time."""
        _require_token("message id", message_id)
        fields = {headers.MSG_ID: message_id}
        verdict = _accepted(await self._calls.call(Op.WITHDRAW, b"{}", fields, timeout=timeout))
        return bool(verdict.result.get("cancelled"))

    async def request(
        self, target: str, message_type: str, data: Payload, *, message_id: str | None, timeout: float
    ) -> AgentMessage:
        """Send a request and wait for its reply."""
        known = _own_or_new(message_id)
        body, fields = self._compose_request(target, message_type, data, known, timeout)
        if self._telemetry is None:
            return self._read_reply(await self._ask(body, fields, timeout), target, known)
        with self._telemetry.sending(
            Op.REQUEST, target, message_type, known, made_id=not message_id
        ) as sending:
            fields.update(sending.headers)
            answer = await self._ask(body, fields, timeout, sending)
            sending.answered(answer.headers)
            return self._read_reply(answer, target, known)

    async def _ask(
        self, body: bytes, fields: dict[str, str], timeout: float, sending: Sending = UNWATCHED
    ) -> Incoming:
        """Send a request and wait for what comes in answer to it."""
        end = asyncio.get_running_loop().time() + timeout
        target, message_id = fields[headers.TARGET], fields[headers.MSG_ID]
        self._address(fields, timeout)
        subject = self._reply_subject(self._instance, message_id, target)
        if subject in self._waiting:
            raise invalid("message_id", f"a request {message_id!r} is waiting already", "Use another id")
        reply: asyncio.Future[Incoming] = asyncio.get_running_loop().create_future()
        self._waiting[subject] = reply
        try:
            try:
                verdict = _accepted(await self._calls.call(Op.REQUEST, body, fields, timeout=timeout))
            except OutcomeUnknown:
                if not reply.done():
                    raise
            else:
                if verdict.duplicate:  # asked before: it may have been answered when nobody waited
                    self._look_for(subject)
            sending.accepted()
            async with asyncio.timeout_at(end):
                return await reply
        except _Stopped:
            text = "this agent was stopped before the reply came; it may be handled, and repeating it is safe"
            raise OutcomeUnknown(message_id, text) from None
        except TimeoutError:
            raise RequestTimeout(
                f"{target} did not answer {fields[headers.TYPE]!r} within {timeout:g} s "
                f"(request {message_id}){self.busy()}"
            ) from None
        finally:
            del self._waiting[subject]
            if reply.done() and not reply.cancelled():
                reply.exception()  # told by another error, where it was not awaited

    def stream(
        self,
        target: str,
        message_type: str,
        data: Payload,
        *,
        message_id: str | None,
        timeout: float,
        accepted_within: float | None = None,
    ) -> Stream:
        """A request whose reply is read in parts; it is sent when the reading begins.

        ``accepted_within``: seconds of the timeout in which policy has to accept it; all, when not given.
        """
        known = _own_or_new(message_id)
        body, fields = self._compose_request(target, message_type, data, known, timeout)
        fields[headers.STREAM] = "1"
        sending: Sending = UNWATCHED
        if self._telemetry is not None:
            sending = self._telemetry.sending(Op.REQUEST, target, message_type, known, made_id=not message_id)

        async def send() -> None:
            fields.update(sending.headers)
            within = timeout if accepted_within is None else min(accepted_within, timeout)
            _accepted(await self._calls.call(Op.REQUEST, body, fields, timeout=within))
            sending.accepted()

        def reader() -> Reader:
            self._address(fields, timeout)
            end = asyncio.get_running_loop().time() + timeout
            asked = Asked(known, target, message_type, timeout, end, send, self._away(target), sending)
            return self._streams.reader(asked, self._instance)

        return Stream(reader)

    def reply_stream(
        self, message: AgentMessage, message_type: str
    ) -> AbstractAsyncContextManager[ReplyWriter]:
        """Answer a request in parts; as one reply where the requester takes one."""
        _require_requested(message)
        _require_token("message type", message_type)
        limit = self._session.terms.max_payload
        if not message.streams:
            return GatheredReply(message, message_type, max_payload=limit)
        return self._streams.writer(
            message, message_type, instance=self._instance, max_payload=limit, now=self._now
        )

    async def close(self) -> None:
        """Wait for no more replies, read and write no more streams."""
        for looking in self._looking.values():
            looking.cancel()
        for reply in self._waiting.values():
            if not reply.done():
                reply.set_exception(_Stopped())
        await self._streams.close()

    async def reply(self, message: AgentMessage, message_type: str, data: Payload) -> ReplyResult:
        """Answer a request that was delivered to this agent."""
        _require_requested(message)
        body, fields = self._compose(message.reply_id, message_type, data)
        fields[headers.REPLY_TOKEN] = message.reply_token
        if self._telemetry is None:
            return await self._answer(body, fields)
        with self._telemetry.sending(
            Op.REPLY, message.sender, message_type, message.reply_id, made_id=True, answers=message
        ) as sending:
            fields.update(sending.headers)
            result = await self._answer(body, fields)
            sending.accepted()
            return result

    async def _answer(self, body: bytes, fields: dict[str, str]) -> ReplyResult:
        verdict = await self._calls.call(Op.REPLY, body, fields, timeout=_REPLY_CALL_TIMEOUT)
        if verdict.decision is Decision.REPLY_LATE:
            return ReplyResult(delivered=False, late=True)
        _accepted(verdict)
        return ReplyResult(delivered=True, duplicate=verdict.duplicate)

    async def discover(self, capabilities: Sequence[str], *, timeout: float) -> list[AgentInfo]:
        """Agents alive that have all ``capabilities`` and that this agent may reach."""
        body = orjson.dumps({"capabilities": names("capabilities", capabilities)})
        verdict = _accepted(await self._calls.call(Op.DISCOVER, body, timeout=timeout))
        return [
            AgentInfo(
                agent_id=str(each["agent_id"]),
                capabilities=tuple(each.get("capabilities", ())),
                metadata=dict(each.get("metadata", {})),
                instances=int(each.get("instances", 1)),
            )
            for each in verdict.result.get("agents", [])
        ]

    # -- composing ---------------------------------------------------------------------------------

    def _compose(self, message_id: str, message_type: str, data: Payload) -> tuple[bytes, dict[str, str]]:
        """Check what can be checked here, so that the error comes where the mistake is."""
        _require_token("message type", message_type)
        body = encode(data)
        limit = self._session.terms.max_payload
        if len(body) > limit:
            raise invalid(
                "max_payload",
                f"the payload has {len(body)} bytes, the limit is {limit}",
                "Send a reference to the data instead",
                Decision.TOO_LARGE,
            )
        return body, {headers.MSG_ID: message_id, headers.TYPE: message_type}

    def _compose_request(
        self, target: str, message_type: str, data: Payload, message_id: str, timeout: float
    ) -> tuple[bytes, dict[str, str]]:
        body, fields = self._compose(message_id, message_type, data)
        fields[headers.TARGET] = _target(target)
        if not 0 < timeout <= MAX_REQUEST_TIMEOUT:
            reason = (
                f"a request waits for more than 0 and at most {MAX_REQUEST_TIMEOUT:g} s, not {timeout:g} s"
            )
            raise invalid("timeout", reason, "Give a timeout in between")
        return body, fields

    def _address(self, fields: dict[str, str], timeout: float) -> None:
        """Say until when, and at which instance, the reply is waited for: from now on."""
        fields[headers.DEADLINE] = str(int((self._now() + timeout) * 1000))
        fields[headers.INSTANCE] = self._instance

    # -- replies -----------------------------------------------------------------------------------

    def _reply_subject(self, instance: str, message_id: str, target: str) -> str:
        token = correlation(message_id, self._away(target))
        return f"mas.reply.{self._agent}.{instance}.{token}.0"

    def _away(self, target: str) -> str:
        """The namespace of a target that is in another one."""
        namespace = namespace_of(target)
        return "" if namespace == self._session.terms.namespace else namespace

    async def _listen(self) -> None:
        """Subscribe for the instance's name; an older name keeps its subscription while requests wait."""
        instance = self._session.terms.instance
        if instance != self._instance:
            self._subscription = await self._connection.subscribe(
                subjects.replies_of(self._agent, instance), self._on_reply
            )
            self._instance = instance
        await self._connection.flush()

    def _on_reply(self, incoming: Incoming) -> None:
        waiting = self._waiting.get(incoming.subject)
        if waiting is not None and not waiting.done():
            waiting.set_result(incoming)
        elif waiting is None:
            self._streams.receive(incoming)

    async def _resume(self) -> None:
        """After a reconnect: fetch the replies that came meanwhile."""
        await self._listen()
        self._streams.resume()
        for subject in self._waiting:
            self._look_for(subject)

    def _look_for(self, subject: str) -> None:
        if subject not in self._looking:
            task = self._looking[subject] = asyncio.create_task(self._fetch_missed(subject))
            task.add_done_callback(lambda _: self._looking.pop(subject, None))

    async def _fetch_missed(self, subject: str) -> None:
        """Fetch a reply, if it is there; where that cannot be known, again while somebody waits for it."""
        _, _, agent, instance, token, _ = subject.split(".")
        stored = subjects.stored_reply(agent, instance, token, 0)
        pause = _MISSED_PAUSE
        while (waiting := self._waiting.get(subject)) is not None and not waiting.done():
            try:
                answer = await self._connection.exchange(stored, b"", None, _MISSED_TIMEOUT)
                break
            except (NotSent, NoAnswer, NoResponders) as error:
                logger.info("%s: a missed reply could not be looked up: %s", self._agent, error)
            await asyncio.sleep(pause)
            pause = min(_MISSED_TIMEOUT, 2 * pause)
        else:
            return
        if not answer.status and (headers.MESSAGE_ID in answer.headers or headers.FAILURE in answer.headers):
            self._on_reply(Incoming(subject, "", answer.headers, answer.data))

    def _read_reply(self, answer: Incoming, target: str, message_id: str) -> AgentMessage:
        try:
            data = orjson.loads(answer.data or b"{}")
        except orjson.JSONDecodeError as error:
            raise RequestFailed(Decision.INVALID, f"{target} sent a reply that cannot be read") from error
        if headers.FAILURE in answer.headers:
            raise failure_of(answer, data, target, message_id)
        return read_message(answer.headers, data, target=self._agent, body=answer.data)


def _require_requested(message: AgentMessage) -> None:
    if not message.reply_token:
        raise invalid(
            "reply_token",
            f"message {message.message_id} was sent, not requested: nobody waits for a reply",
            f"Use send({message.sender!r}, ...)",
        )


def _own_or_new(message_id: str | None) -> str:
    """The id that a program chose, or a new one, which needs no check."""
    if not message_id:
        return new_message_id()
    _require_token("message id", message_id)
    return message_id


def _require_token(what: str, value: object) -> None:
    if not isinstance(value, str) or len(value) > headers.MAX_ID_BYTES or not _is_token(value):
        raise invalid(
            what.replace(" ", "_"),
            f"the {what} is not made of 1 to 128 printable ASCII characters without spaces",
            "Use a short name such as 'ask' or 'order.created'",
        )


@lru_cache(maxsize=256)
def _is_token(value: str) -> bool:
    return _TOKEN.fullmatch(value) is not None


def _target(target: str) -> str:
    try:
        split_target(target)
    except ValueError as error:
        raise invalid("target", str(error), "Name an agent, or namespace/agent") from None
    except (AttributeError, TypeError):
        text = f"a target is the id of an agent, not a {type(target).__name__}"
        raise invalid("target", text, "Name an agent, or namespace/agent") from None
    return target


def _accepted(verdict: Verdict) -> Verdict:
    if not verdict.ok:
        raise error_of(verdict)
    return verdict

"""Deliveries: handled, acknowledged, reported when they fail, given back when not started (DESIGN 5)."""

from __future__ import annotations

import asyncio
import logging
import random
import traceback
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import orjson

from mas_nats.acknowledging import ACK, Acknowledgements
from mas_nats.calls import Calls
from mas_nats.errors import DataBlocked, MasError, OutcomeUnknown, Reject, StreamCancelled, Unavailable
from mas_nats.handlers import NotHandled
from mas_nats.message import AgentMessage, Replier, read_message
from mas_nats.pull import StandingPull
from mas_nats.scrub import MAX_TEXT, scrub
from mas_nats.session import Session
from mas_nats.telemetry.watching import Telemetry
from mas_nats.transport import (
    Connection,
    Incoming,
    NoAnswer,
    NoResponders,
    NotSent,
    SignsOfLife,
    unreachable,
)
from mas_nats.wire import headers, subjects
from mas_nats.wire.subjects import Op
from mas_nats.wire.verdict import Decision

logger = logging.getLogger("mas_nats")

NAK = b"-NAK"
_REPORT_TIMEOUT = 5.0
"""Seconds to wait for the policy service to take a failure report."""
_ACK_TIMEOUT = 5.0
"""Seconds to wait for the broker to confirm an acknowledgement, where a handler wants to know."""
_REMEMBERED = 4096
"""Acknowledged messages remembered, to recognise a redelivery whose ack was lost."""

Handle = Callable[[AgentMessage], Awaitable[None]]


@dataclass(slots=True, eq=False)
class _Delivery:
    """What an acknowledgement needs. Its message refers to it, so it does not refer to its message.

    A sequence alone names no message: after a restore, or where a stream is made anew, the log gives it to
    another one. The time at which the server stored it tells them apart.
    """

    ack_subject: str
    sequence: int
    stored: str
    attempt: int
    message_id: str
    task: asyncio.Task[None] | None = None  # None also while its first step runs
    replaced: bool = False  # its log is gone: what is said of its sequence is said of another message


@dataclass(frozen=True, slots=True)
class _Failure:
    error_class: str
    error: str
    retryable: bool
    handler_failed: bool  # and not the message, which did not fit or was rejected


class Inbox:
    """The messages of one agent, as this instance handles them."""

    def __init__(
        self,
        connection: Connection,
        calls: Calls,
        session: Session,
        keepalive: SignsOfLife,
        *,
        agent: str,
        handle: Handle,
        replier: Replier,
        now: Callable[[], float],
        telemetry: Telemetry | None = None,
    ) -> None:
        self._telemetry = telemetry
        self._connection = connection
        self._calls = calls
        self._session = session
        self._keepalive = keepalive
        self._agent = agent
        self._handle = handle
        self._replier = replier
        self._now = now  # unix time, in seconds
        self._running: dict[int, _Delivery] = {}  # by sequence
        self._replaced: set[_Delivery] = set()  # those that run though another one has their sequence
        self._acked: OrderedDict[int, str] = OrderedDict()  # when each was stored, by sequence
        self._acks = Acknowledgements(connection, agent, lambda: session.terms)
        self._loop = asyncio.get_running_loop()
        self._stopping = False
        self._giving_back: set[asyncio.Task[None]] = set()
        self._pull = StandingPull(
            connection,
            subjects.pull(agent),
            self._received,
            room=lambda: session.terms.in_flight,
            busy=self._in_hand,
            anew=self._acks.anew,
        )

    def _in_hand(self) -> int:
        return len(self._running) + len(self._replaced)

    def busy(self) -> str:
        """Why a request may have got no answer: this instance is full. Empty when it is not."""
        if (in_hand := self._in_hand()) < self._session.terms.in_flight:
            return ""
        return (
            f". All {in_hand} messages that this instance may have in flight are in hand: where "
            "the answer needs one more of them handled, raise limits.in_flight or start another instance"
        )

    async def start(self) -> None:
        """Begin to handle messages."""
        self._connection.at_loss.append(self._pull.lost)
        self._connection.before_reconnect.append(self._pull.pause)
        self._connection.after_reconnect.append(self._pull.restart)
        await self._pull.start()

    async def stop(self, timeout: float) -> None:
        """Stop asking for messages, give back what was not started, and let handlers finish.

        Handlers that still run after ``timeout`` seconds are cancelled and their messages given back.
        """
        self._stopping = True
        try:
            await self._pull.stop()
            if others := self._tasks() - {asyncio.current_task()}:
                await asyncio.wait(others, timeout=timeout)
        finally:
            try:
                await self._end()
            finally:
                await self._keepalive.stop()

    def handling(self) -> bool:
        """Whether this is asked by a handler."""
        return asyncio.current_task() in self._tasks()

    def _tasks(self) -> set[asyncio.Task[None]]:
        in_hand = (*self._running.values(), *self._replaced)
        return {each.task for each in in_hand if each.task is not None}

    async def _end(self) -> None:
        late = self._tasks() - {asyncio.current_task()}
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
        await asyncio.gather(*self._giving_back, return_exceptions=True)
        await self._acks.close()
        await self._connection.flush()

    # -- one delivery ------------------------------------------------------------------------------

    def _received(self, incoming: Incoming) -> None:
        try:
            delivery, message = self._read(incoming)
        except (ValueError, IndexError):
            logger.error("a delivery that cannot be read was left for the ack wait: %s", incoming.subject)
            return
        if self._stopping:
            self._spawn(self._give_back(delivery, 0))
        elif (acked := self._acked.get(delivery.sequence)) == delivery.stored:  # and the ack was lost
            self._acks.acknowledged(delivery.sequence)
            self._spawn(self._acks.say(delivery.ack_subject, ACK))
        elif (older := self._running.get(delivery.sequence)) is not None and older.stored == delivery.stored:
            # Redelivered while its handler still runs: the newest delivery is the one to acknowledge.
            self._keepalive.remove(older.ack_subject)
            older.ack_subject, older.attempt = delivery.ack_subject, delivery.attempt
            self._keepalive.add(older.ack_subject)
        else:
            if older is not None or acked is not None:
                self._replace(delivery.sequence)
            self._keepalive.add(delivery.ack_subject)
            self._running[delivery.sequence] = delivery
            task = self._loop.create_task(self._run(delivery, message, incoming.headers))
            if not task.done():  # a factory of the program's own may run it at once
                delivery.task = task

    def _replace(self, sequence: int) -> None:
        """Say nothing any more of an earlier log's message: another one has its sequence now."""
        self._acks.replaced(sequence)
        self._acked.pop(sequence, None)
        if (older := self._running.pop(sequence, None)) is not None:
            older.replaced = True
            self._replaced.add(older)
            self._keepalive.remove(older.ack_subject)

    def _read(self, incoming: Incoming) -> tuple[_Delivery, AgentMessage]:
        tokens = incoming.reply.split(".")
        # $JS.ACK.<stream>.<consumer>.<delivered>.<sequence>.<number>.<time>...; ADR-15: also with a domain
        first = 4 if len(tokens) < 11 else 6
        attempt, sequence, number = map(int, tokens[first : first + 3])
        stored = tokens[first + 3]
        self._acks.delivered(sequence, attempt, number)
        data: Any = orjson.loads(incoming.data)
        message_id = incoming.headers.get(headers.MESSAGE_ID, "")
        delivery = _Delivery(incoming.reply, sequence, stored, attempt, message_id)
        message = read_message(
            incoming.headers,
            data,
            target=self._agent,
            attempt=attempt,
            replier=self._replier,
            body=incoming.data,
            acknowledge=partial(self._acknowledge, delivery),
        )
        return delivery, message

    async def _run(self, delivery: _Delivery, message: AgentMessage, fields: Mapping[str, str]) -> None:
        try:
            failure = await self._attempt(message, fields)
            if message.course.acknowledged or delivery.replaced:
                if failure is not None:
                    self._log(message, failure, "")
            elif failure is None or await self._settled(delivery, message, failure):
                if not delivery.replaced:  # while its failure was reported
                    self._remember(delivery)
                    await self._acks.handled(
                        delivery.sequence, delivery.ack_subject, last=len(self._running) == 1
                    )
            else:
                await self._give_back(delivery, self._delay(delivery.attempt))
        except asyncio.CancelledError:
            if not message.course.acknowledged:
                await self._give_back(delivery, 0)
            raise
        finally:
            self._keepalive.remove(delivery.ack_subject)
            if delivery.replaced:
                self._replaced.discard(delivery)
            else:
                self._running.pop(delivery.sequence, None)
            delivery.task = None
            self._pull.more()

    async def _attempt(self, message: AgentMessage, fields: Mapping[str, str]) -> _Failure | None:
        if message.deadline is not None and message.deadline.timestamp() < self._now():
            return _Failure(Decision.EXPIRED, "", retryable=False, handler_failed=False)
        try:
            if self._telemetry is None:
                await self._handle(message)
            else:
                with self._telemetry.processing(message, fields, self._now()):
                    await self._handle(message)
        except StreamCancelled:
            return None  # nobody waits for what it did not finish
        except asyncio.CancelledError as error:
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise
            return _failure(error, message, retryable=True)
        except (Reject, NotHandled, DataBlocked) as error:
            return _failure(error, message, retryable=False, handler_failed=False)
        except (SystemExit, KeyboardInterrupt, GeneratorExit):  # of the program, or of whoever closes this
            raise
        except BaseException as error:  # noqa: BLE001 - whatever else a handler raises is a failed attempt
            return _failure(error, message, retryable=not message.course.told)
        return None

    async def _settled(self, delivery: _Delivery, message: AgentMessage, failure: _Failure) -> bool:
        """Report a failure; whether the policy service has taken the message over."""
        report = {
            "sequence": delivery.sequence,
            "attempt": delivery.attempt,
            "error_class": failure.error_class,
            "error": failure.error,
            "retryable": failure.retryable,
            "handler_failed": failure.handler_failed,
        }
        try:
            verdict = await self._calls.call(Op.FAIL, orjson.dumps(report), timeout=_REPORT_TIMEOUT)
        except MasError as error:
            self._log(message, failure, "")
            logger.warning("%s: a failure could not be reported: %s", self._agent, error)
            return False
        self._log(message, failure, str(verdict.result.get("error", "")))
        if not verdict.ok:
            logger.warning("%s: a failure report was refused: %s", self._agent, verdict.reason)
        return verdict.ok and bool(verdict.result.get("dead") or verdict.result.get("expired"))

    def _log(self, message: AgentMessage, failure: _Failure, cleaned: str) -> None:
        """Log a failure with the text that data-loss prevention left of it.

        What a handler raises may be secret though it stood in no message.
        """
        if failure.error_class != Decision.EXPIRED:
            logger.warning(
                "%s: handling %s from %s failed (attempt %d): %s%s",
                self._agent,
                message.message_type,
                message.sender,
                message.attempt,
                failure.error_class,
                f": {cleaned}" if cleaned else "",
            )

    # -- acknowledging -----------------------------------------------------------------------------

    def _delay(self, attempt: int) -> float:
        """Seconds until the next attempt: doubling, spread so that not all come at once, capped."""
        terms = self._session.terms
        longest = terms.retry_delay_max / (1 + terms.retry_spread)
        delay = min(terms.retry_delay * 2.0 ** min(attempt - 1, 30), longest)
        return delay * random.uniform(1 - terms.retry_spread, 1 + terms.retry_spread)

    async def _give_back(self, delivery: _Delivery, delay: float) -> None:
        if delivery.replaced:
            return
        self._acks.given_back(delivery.sequence, delivery.attempt, delay)
        await self._acks.say(delivery.ack_subject, _nak(delay))

    async def _acknowledge(self, delivery: _Delivery) -> None:
        """Acknowledge before the handler has ended, and wait until the broker has confirmed it."""
        if delivery.replaced:
            text = f"the log that message {delivery.message_id} was delivered from is gone"
            raise OutcomeUnknown(delivery.message_id, text)
        try:
            await self._connection.exchange(delivery.ack_subject, ACK, None, _ACK_TIMEOUT)
        except NotSent as error:
            raise unreachable(error) from error
        except NoResponders as error:
            raise Unavailable(f"{error}: the message will be delivered again") from error
        except NoAnswer as error:
            text = f"{error}: message {delivery.message_id} may be delivered again"
            raise OutcomeUnknown(delivery.message_id, text) from error
        if not delivery.replaced:
            self._keepalive.remove(delivery.ack_subject)
            self._acks.acknowledged(delivery.sequence)
            self._remember(delivery)

    def _spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._giving_back.add(task)
        task.add_done_callback(self._giving_back.discard)

    def _remember(self, delivery: _Delivery) -> None:
        self._acked[delivery.sequence] = delivery.stored
        if len(self._acked) > _REMEMBERED:
            self._acked.popitem(last=False)


def _nak(delay: float) -> bytes:
    return NAK + b" " + orjson.dumps({"delay": int(delay * 1e9)}) if delay > 0 else NAK


def _failure(
    error: BaseException, message: AgentMessage, *, retryable: bool, handler_failed: bool = True
) -> _Failure:
    try:
        text = _text(error, message, place=retryable)
    except Exception:  # noqa: BLE001 - whatever was raised, and by whatever payload, it is reported
        text = ""
    return _Failure(type(error).__name__, text, retryable, handler_failed)


def _text(error: BaseException, message: AgentMessage, *, place: bool) -> str:
    where = traceback.extract_tb(error.__traceback__)[-1:]
    text = scrub(error, message.data)
    if where and place:
        text = f"{text} (in {where[0].name}, line {where[0].lineno})"[:MAX_TEXT]
    return text.encode(errors="replace").decode()  # half a character of UTF-16 has no place in a report

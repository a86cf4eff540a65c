"""The two ways to an agent's durable state: through the policy service, or to the agent's own key itself.

Which one holds is said by policy, and may change while an agent runs. Both give the same guarantees to this
instance: an update is compare-and-set or an error, and one that is repeated because its answer was lost is
recognised by its id, also when the way changed in between.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from mas_nats.calls import MAX_TIMEOUT, Calls
from mas_nats.errors import (
    MasError,
    OutcomeUnknown,
    PermissionDenied,
    StateConflict,
    StateCorrupt,
    StateInvalid,
    Unavailable,
    error_of,
)
from mas_nats.patience import FIRST_TRY
from mas_nats.session import Session
from mas_nats.transport import Connection, Incoming, NoAnswer, NoResponders, NotSent, unreachable
from mas_nats.wire import headers, subjects
from mas_nats.wire.correlation import new_message_id
from mas_nats.wire.state_mode import StateMode
from mas_nats.wire.stored import WRONG_LAST_SEQUENCE, unsettled
from mas_nats.wire.subjects import Op
from mas_nats.wire.verdict import Decision, Verdict

_REFUSED_VALUE = frozenset({Decision.TOO_LARGE, Decision.INVALID})
_TOO_LARGE = 10054
_NO_ANSWER = "no answer from the state bucket in time; refresh_state() shows what is stored"
_PAUSE = 0.1
"""Seconds before something is asked for again: the way after it turned out to be closed, or a copy."""
_LOOKS = 10
"""How often a copy that is behind is read again."""


@dataclass(frozen=True, slots=True)
class Stored:
    """What is stored; ``value`` is None where there is nothing (any more)."""

    revision: int
    value: dict[str, Any] | None


class StateAccess:
    """Reads and writes the stored state of one agent. ``timeout`` is in seconds, for all tries together."""

    def __init__(self, connection: Connection, calls: Calls, session: Session, agent: str) -> None:
        self._connection = connection
        self._calls = calls
        self._session = session
        self._agent = agent

    async def get(self, timeout: float) -> Stored:
        """What is stored.

        Raises:
            StateCorrupt: it is no JSON object.
            Refused, Unavailable, OutcomeUnknown: it could not be read.

        """
        return await self._either("get", 0, None, timeout)

    async def put(self, revision: int, value: bytes, timeout: float) -> int:
        """Store ``value``, a JSON object, over ``revision`` (0: none); the new revision.

        Raises:
            StateConflict: another instance wrote first.
            StateInvalid: the value is refused.
            Refused, Unavailable: nothing was written.
            OutcomeUnknown: no answer came.

        """
        return (await self._either("put", revision, value, timeout)).revision

    async def delete(self, revision: int, timeout: float) -> int:
        """Delete what is stored as ``revision``; the new revision. Errors as ``put``."""
        return (await self._either("delete", revision, None, timeout)).revision

    async def _either(self, op: str, revision: int, value: bytes | None, timeout: float) -> Stored:
        # One id for all tries on either way: the service, or the bucket, recognises its own write when the
        # answer was lost.
        end = asyncio.get_running_loop().time() + min(timeout, MAX_TIMEOUT)
        message_id = new_message_id()
        unanswered = False
        while True:
            if self._session.terms.state is not StateMode.DIRECT:
                left = max(0.0, end - asyncio.get_running_loop().time())
                return await self._mediated(op, revision, value, message_id, left)
            direct = _Direct(self._connection, self._agent, message_id, end, unanswered=unanswered)
            try:
                return await direct.run(op, revision, value)
            except _Closed as closed:
                unanswered = direct.unanswered
                await self._ask_for_the_way(end, unanswered=unanswered)
                if closed.denied and self._session.terms.state is StateMode.DIRECT:
                    await self._connection.reconnect()  # this connection is older than the permission

    async def _mediated(
        self, op: str, revision: int, value: bytes | None, message_id: str, timeout: float
    ) -> Stored:
        body: dict[str, Any] = {"op": op}
        if op != "get":
            body["revision"] = revision
        if value is not None:
            body["value"] = orjson.Fragment(value)
        fields = {headers.MSG_ID: message_id}
        verdict = await self._calls.call(Op.STATE, orjson.dumps(body), fields, timeout=timeout)
        if verdict.decision in _REFUSED_VALUE and not verdict.ok and op == "put":
            raise StateInvalid(f"the state was refused: {verdict.reason}")
        return _read_verdict(verdict)

    async def _ask_for_the_way(self, end: float, *, unanswered: bool) -> None:
        """The own key is out of reach: policy may have changed its mind, or its mind may not be here yet."""
        await asyncio.sleep(_PAUSE)
        left = end - asyncio.get_running_loop().time()
        if left <= 0 and unanswered:
            raise OutcomeUnknown("", _NO_ANSWER)
        if left <= 0:
            raise Unavailable("this agent does not reach its own state in the bucket; nothing was written")
        try:
            await self._session.hello(left)
        except Unavailable as error:
            if unanswered:
                raise OutcomeUnknown("", _NO_ANSWER) from error
            raise


class _Closed(Exception):
    """This agent's account, or this connection (``denied``), does not reach the agent's own key."""

    def __init__(self, *, denied: bool) -> None:
        super().__init__()
        self.denied = denied


class _Direct:
    """One operation on the agent's own key, repeated under one id until it is answered."""

    def __init__(
        self, connection: Connection, agent: str, message_id: str, end: float, *, unanswered: bool
    ) -> None:
        self.unanswered = unanswered  # whether some try may have arrived
        self._connection = connection
        self._agent = agent
        self._id = message_id
        self._end = end

    async def run(self, op: str, revision: int, value: bytes | None) -> Stored:
        if op == "get":
            return _read_stored(await self._ask(subjects.stored_state(self._agent), b"", {}))
        fields = {
            headers.MSG_ID: f"{self._agent}.{self._id}",
            headers.EXPECTED_LAST_SUBJECT_SEQUENCE: str(revision),
        }
        if op == "delete":
            fields[headers.KV_OPERATION] = "DEL"
        subject = subjects.kv_key(subjects.STATE_BUCKET, self._agent)
        try:
            return Stored(_read_ack(await self._ask(subject, value or b"", fields)), None)
        except StateConflict:
            return Stored(await self._written_before(fields[headers.MSG_ID], revision), None)

    async def _written_before(self, message_id: str, expected: int) -> int:
        """The revision of an earlier try that was stored, and whose answer was lost.

        The server looks at the expected revision before the id, so it refuses the repetition of a write that
        it has stored (tried on nats-server 2.15.1).
        """
        answer = await self._ask(subjects.stored_state(self._agent), b"", {})
        for _ in range(_LOOKS):
            if int(answer.headers.get(headers.STORED_SEQUENCE, "0")) > expected:
                break
            await asyncio.sleep(_PAUSE)  # a copy that is behind: there must be something newer
            answer = await self._ask(subjects.stored_state(self._agent), b"", {})
        if answer.headers.get(headers.MSG_ID) == message_id:
            return int(answer.headers[headers.STORED_SEQUENCE])
        if self.unanswered:  # another instance may have written on top of it
            raise OutcomeUnknown(self._id, _NO_ANSWER)
        raise StateConflict("the state was changed by another instance")

    async def _ask(self, subject: str, body: bytes, fields: Mapping[str, str]) -> Incoming:
        loop = asyncio.get_running_loop()
        wait = FIRST_TRY
        while True:
            this_try = max(0.0, min(wait, self._end - loop.time()))
            try:
                answer = await self._connection.exchange(subject, body, fields, this_try)
                if not fields or not _unsettled(answer):
                    return answer
                self.unanswered = True
                await asyncio.sleep(_PAUSE)
            except NoAnswer:
                self.unanswered = True
                wait *= 2
            except NotSent as error:
                if loop.time() >= self._end and not self.unanswered:
                    raise unreachable(error) from error
            except (NoResponders, PermissionDenied) as error:
                raise _Closed(denied=isinstance(error, PermissionDenied)) from error
            if loop.time() >= self._end:
                raise OutcomeUnknown(self._id, _NO_ANSWER)


def _unsettled(answer: Incoming) -> bool:
    if b"error" not in answer.data:
        return False
    try:
        error = orjson.loads(answer.data).get("error")
    except (ValueError, AttributeError):
        return False
    return isinstance(error, dict) and unsettled(error)


def _read_ack(answer: Incoming) -> int:
    try:
        raw = orjson.loads(answer.data)
        error = raw.get("error")
        if not error:
            return int(raw["seq"])
    except (ValueError, KeyError, TypeError, AttributeError):
        raise Unavailable("the state bucket gave an answer that is none") from None
    code = error.get("err_code")
    if code in WRONG_LAST_SEQUENCE:
        raise StateConflict("the state was changed by another instance")
    if code == _TOO_LARGE:
        raise StateInvalid("the state was refused: it is larger than the bucket takes")
    raise Unavailable(f"the state bucket refused: {error.get('description')}. Nothing was written")


def _read_stored(answer: Incoming) -> Stored:
    if headers.STORED_SEQUENCE not in answer.headers:
        if answer.status == "404":
            return Stored(0, None)
        raise Unavailable(f"the state cannot be read at the moment ({answer.status or 'no status'})")
    revision = int(answer.headers[headers.STORED_SEQUENCE])
    if not answer.data:
        return Stored(revision, None)
    try:
        value = orjson.loads(answer.data)
    except orjson.JSONDecodeError:
        value = None
    if not isinstance(value, dict):
        raise _no_object(revision)
    return Stored(revision, value)


def _read_verdict(verdict: Verdict) -> Stored:
    if not verdict.ok:
        raise error_of(verdict)
    revision = int(verdict.result["revision"])
    if verdict.result.get("corrupt"):
        raise _no_object(revision)
    return Stored(revision, verdict.result.get("value"))


def _no_object(revision: int) -> MasError:
    return CorruptAt(
        revision,
        f"revision {revision} of the stored state is no JSON object. "
        "It was left as it is; reset_state() deletes it",
    )


class CorruptAt(StateCorrupt):
    """What is stored as ``revision`` is no JSON object."""

    def __init__(self, revision: int, text: str) -> None:
        super().__init__(text)
        self.revision = revision

    def __reduce__(self) -> tuple[Any, ...]:
        """How it is copied, and carried to another process."""
        return type(self), (self.revision, str(self))

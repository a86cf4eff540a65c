"""Replies, whole or in frames, and what the reader of frames says to their writer."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson

from mas_nats.policy import refusals
from mas_nats.policy.call import Call, Refusal
from mas_nats.testing.deciding import Deciding, seen
from mas_nats.testing.replies import Capability, Replies, ended
from mas_nats.transport import Incoming
from mas_nats.wire import headers, subjects
from mas_nats.wire.base64url import base64url
from mas_nats.wire.correlation import correlation
from mas_nats.wire.frames import Chunk, FrameMark, joined, split, units
from mas_nats.wire.verdict import Decision, Verdict, accepted

_INSTANCE = re.compile(r"[a-f0-9]{20}")


@dataclass(frozen=True, slots=True)
class _Cursor:
    """How far a streamed reply is; its token is worth something only with the capability it belongs to."""

    capability: Capability
    number: int = 0
    run: str = ""
    mac: str = ""


@dataclass(frozen=True, slots=True)
class _Frame:
    cursor: _Cursor
    chunks: list[Chunk]
    final: bool
    failed: str

    @property
    def capability(self) -> Capability:
        return self.cursor.capability

    def mac(self, chunks: list[Chunk]) -> str:
        content = f"{self.cursor.number}\0{self.cursor.mac}\0".encode() + orjson.dumps(chunks)
        return base64url(hashlib.sha256(content).digest())


class Answers:
    """Takes the ``reply``, ``frame``, ``flow`` and ``cancel`` calls."""

    def __init__(
        self,
        replies: Replies,
        deciding: Deciding,
        publish: Callable[[Incoming], None],
        abroad: Callable[[Call, Capability], Verdict],
    ) -> None:
        self._replies = replies
        self._abroad = abroad
        self._deciding = deciding
        self._publish = publish
        self._cursors: dict[str, _Cursor] = {}
        self._runs = itertools.count(1)

    def reply(self, call: Call) -> Verdict:
        """Store and deliver a whole reply."""
        capability = self._granted(call)
        if isinstance(capability, Refusal):
            return self._deciding.refuse(call, capability)
        if capability.namespace:
            return self._abroad(call, capability)
        fields = self._deciding.envelope(call) | {headers.AUDIT: self._deciding.allow(call, "capability")}
        first = self._replies.store(capability.answer(), call.body, fields)
        if first:
            self._deciding.ledger.replies.append(seen(call))
        return accepted(call.message_id, duplicate=not first)

    def _granted(self, call: Call) -> Capability | Refusal:
        capability = self._replies.capability(call)
        if isinstance(capability, Refusal):
            return capability
        away = capability.namespace
        call.target = f"{away}/{capability.requester}" if away else capability.requester
        return self._deciding.judge(call) or capability

    # -- frames (ADR 12) ---------------------------------------------------------------------------

    def frame(self, call: Call) -> Verdict:
        """Store and deliver a part of a reply."""
        frame = self._read(call)
        if isinstance(frame, Refusal):
            return self._deciding.refuse(call, frame)
        fields = self._deciding.envelope(call) | {headers.AUDIT: self._deciding.allow(call, "capability")}
        run, mac = frame.cursor.run or f"{next(self._runs):016x}", frame.mac(frame.chunks)
        fields[headers.FRAME] = str(FrameMark(run, units(frame.chunks), mac))
        if call.instance:
            fields[headers.INSTANCE] = call.instance
        body = orjson.dumps({"chunks": frame.chunks})
        if frame.failed:
            fields[headers.FAILURE] = Decision.DEAD
            body = orjson.dumps({"reason": f"its handler failed ({frame.failed})"})
        elif frame.final:
            fields[headers.END] = "1"
        if not self._replies.store(frame.capability.answer(frame.cursor.number), body, fields):
            return self._repeated(call, frame)
        self._deciding.ledger.replies.append(seen(call))
        if frame.failed or frame.final:
            return accepted(call.message_id, ended="failed" if frame.failed else "done")
        return accepted(call.message_id, cursor=self._token(frame, run, mac))

    def _streams(self, call: Call) -> Capability | Refusal:
        capability = self._replies.capability(call)
        if isinstance(capability, Refusal):
            return capability
        if not capability.stream:
            return refusals.not_a_stream()
        call.target = capability.requester
        return self._deciding.judge(call) or capability

    def _read(self, call: Call) -> _Frame | Refusal:
        capability = self._streams(call)
        if isinstance(capability, Refusal):
            return capability
        body: dict[str, Any] = orjson.loads(call.body)
        chunks, token = body.get("chunks", []), body.get("cursor", "")
        if not isinstance(chunks, list) or not all(isinstance(each, str | dict) for each in chunks):
            return refusals.invalid("frame", "the chunks of a frame are texts and objects")
        if not isinstance(token, str) or (call.instance and not _INSTANCE.fullmatch(call.instance)):
            return refusals.invalid("frame", "the frame's cursor or instance is none")
        cursor = self._cursors.get(token) if token else _Cursor(capability)
        if cursor is None or cursor.capability != capability:
            return refusals.invalid("cursor", "not a cursor of this answer")
        failed = str(body.get("failed") or "")
        return _Frame(cursor, joined(chunks), body.get("final") is True, failed)

    def _repeated(self, call: Call, frame: _Frame) -> Verdict:
        """The frame is there already; what counts is the beginning of what was sent this time."""
        stored = self._replies.fetch(frame.capability.answer(frame.cursor.number))
        if stored is None:
            return refusals.unavailable().verdict(call.message_id)
        if ended(stored):
            how = "failed" if headers.FAILURE in stored.headers else "done"
            return accepted(call.message_id, duplicate=True, ended=how)
        mark = FrameMark.read(stored.headers[headers.FRAME])
        assert mark is not None  # noqa: S101 - it was written here
        if units(frame.chunks) < mark.units and not (frame.final or frame.failed):
            return accepted(call.message_id, duplicate=True, short=mark.units)
        begins, _ = split(frame.chunks, mark.units)
        same = units(begins) == mark.units and frame.cursor.run in ("", mark.run)
        if same and frame.mac(begins) == mark.mac:
            cursor = self._token(frame, mark.run, mark.mac)
            return accepted(call.message_id, duplicate=True, cursor=cursor, taken=mark.units)
        return self._differs(call, frame)

    def _differs(self, call: Call, frame: _Frame) -> Verdict:
        if frame.failed:
            self._replies.give_up(frame.capability, Decision.DEAD, f"its handler failed ({frame.failed})")
            return accepted(call.message_id, ended="failed")
        reason = "it began to answer a second time, and not as before"
        self._replies.give_up(frame.capability, Decision.ID_REUSED, reason)
        return refusals.stream_differs().verdict(call.message_id)

    def _token(self, frame: _Frame, run: str, mac: str) -> str:
        token = f"cursor-{len(self._cursors) + 1}"
        self._cursors[token] = _Cursor(frame.capability, frame.cursor.number + 1, run, mac)
        return token

    # -- what a reader says ------------------------------------------------------------------------

    def flow(self, call: Call) -> Verdict:
        """Pass on how many frames were read. Nothing is decided by it."""
        to = self._instance(call)
        if isinstance(to, Refusal):
            return to.verdict(call.message_id)
        read = orjson.loads(call.body).get("read")
        if type(read) is not int or read < 0:
            return refusals.invalid("flow", "read is a number of frames").verdict(call.message_id)
        self._tell(call, to, {"requester": call.sender, "read": read})
        return accepted(call.message_id)

    def cancel(self, call: Call) -> Verdict:
        """Pass on that the reader has left."""
        to = self._instance(call)
        if isinstance(to, Refusal):
            return self._deciding.refuse(call, to)
        self._deciding.allow(call, "own_request")
        self._tell(call, subjects.EVERY_INSTANCE, {"requester": call.sender, "cancelled": True})
        return accepted(call.message_id)

    def _instance(self, call: Call) -> str | Refusal:
        if (refusal := self._deciding.judge(call)) is not None:
            return refusal
        to = orjson.loads(call.body).get("to") or subjects.EVERY_INSTANCE
        if to != subjects.EVERY_INSTANCE and not (isinstance(to, str) and _INSTANCE.fullmatch(to)):
            return refusals.invalid("to", "an instance has a name of 20 hexadecimal digits")
        return str(to)

    def _tell(self, call: Call, instance: str, what: dict[str, Any]) -> None:
        subject = subjects.flow(call.target, instance, correlation(call.message_id))
        self._publish(Incoming(subject, "", {}, orjson.dumps(what)))

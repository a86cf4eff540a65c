"""Frames of a streamed reply: screened, numbered by a sealed cursor, stored once (ADR 12)."""

from __future__ import annotations

import hmac
import re
import secrets
from dataclasses import dataclass
from typing import Any

import orjson

from broker_policy.audit.record import Outcome, Way
from broker_policy.calls.acting import Acting
from broker_policy.calls.deciding import Deciding
from broker_policy.calls.replies import Replies, ended
from broker_policy.dlp import LARGE
from broker_policy.printable import printable
from broker_policy.screen import MAX_HELD, Aside, Screen, Screened, at_once
from broker_policy.sealing import Cursor, ReplyCapability, SealBroken, commitment
from mas_nats.policy import refusals
from mas_nats.policy.call import Call, Refusal
from mas_nats.wire import headers
from mas_nats.wire.frames import Chunk, FrameMark, joined, split, units
from mas_nats.wire.verdict import Decision, Verdict, accepted

_INSTANCE = re.compile(r"[a-f0-9]{20}")


@dataclass(frozen=True, slots=True)
class Frame:
    """What a producer sends: a part of its answer, and whether that was all."""

    capability: ReplyCapability
    cursor: Cursor
    chunks: tuple[Chunk, ...]
    final: bool
    failed: str  # why there will be no more; "" where nothing failed

    @property
    def content(self) -> bytes:
        """What the frame commits to."""
        return orjson.dumps(self.chunks)


class FrameCalls:
    """Takes the ``frame`` calls of one namespace."""

    def __init__(
        self,
        replies: Replies,
        deciding: Deciding,
        acting: Acting,
        screen: Screen,
        aside: Aside | None = None,
    ) -> None:
        self._replies = replies
        self._deciding = deciding
        self._acting = acting
        self._screen = screen
        self._aside = aside

    def costly(self, call: Call) -> bool:
        """Whether there is so much to screen that it is searched before ``take``."""
        return self._aside is not None and len(call.body) > LARGE  # what was held back is in there, sealed

    async def search(self, call: Call) -> None:
        """Screen a frame before its turn."""
        frame = self._granted(call)
        if self._aside is None or isinstance(frame, Refusal) or frame.failed:
            return
        call.searched = await self._aside(frame.cursor.held, frame.chunks, final=frame.final)

    def take(self, call: Call) -> None:
        """Decide about a frame, and store it."""
        judged = self._judged(call)
        if isinstance(judged, Refusal):
            self._acting.refuse(call, judged)
            return
        frame, screened, body = judged
        call.finding = screened.finding
        salt = self._deciding.sealer.salt(call.sender, call.message_id)
        committed = commitment(salt, call.target, call.type, body)

        async def store(reference: str) -> tuple[Verdict, Outcome]:
            fields = self._deciding.envelope(call, salt) | {headers.AUDIT: reference}
            return await self._store(call, frame, screened, body, fields)

        self._acting.perform(call, self._deciding.allowed(call, "capability", Way.ACT, committed), store)

    # -- deciding ------------------------------------------------------------------------------------
    def _judged(self, call: Call) -> tuple[Frame, Screened, bytes] | Refusal:
        """The frame, what of it may go out, and that as a body."""
        frame = self._granted(call)
        if isinstance(frame, Refusal):
            return frame
        screened = self._screened(call, frame)
        if screened.refusal is not None:
            return screened.refusal
        body, room = orjson.dumps({"chunks": screened.out}), self._deciding.room()
        return refusals.too_large(len(body), room) if len(body) > room else (frame, screened, body)

    def _granted(self, call: Call) -> Frame | Refusal:
        table = self._deciding.table(call)
        if isinstance(table, Refusal):
            return table
        capability = self._replies.capability(call)
        if isinstance(capability, Refusal):
            return capability
        if not capability.stream:
            return refusals.not_a_stream()
        call.target = capability.requester
        return self._deciding.refusal(call, table) or self._read(call, capability)

    def _read(self, call: Call, capability: ReplyCapability) -> Frame | Refusal:
        body: dict[str, Any] = orjson.loads(call.body)
        chunks, token = body.get("chunks", []), body.get("cursor", "")
        if not isinstance(chunks, list) or not all(isinstance(each, str | dict) for each in chunks):
            return refusals.invalid("frame", "the chunks of a frame are texts and objects")
        try:
            orjson.dumps({"chunks": chunks})
        except orjson.JSONEncodeError:  # orjson reads deeper objects than it writes
            return refusals.invalid("frame", "the objects of a frame are nested too deeply")
        if not isinstance(token, str) or (call.instance and not _INSTANCE.fullmatch(call.instance)):
            return refusals.invalid("frame", "the frame's cursor or instance is none")
        try:
            cursor = self._deciding.sealer.open_cursor(capability, token) if token else Cursor()
        except SealBroken as error:
            return refusals.invalid("cursor", str(error))
        failed = printable(self._deciding.clean(str(body.get("failed") or "")[:1_000]), 100)
        return Frame(capability, cursor, tuple(joined(chunks)), body.get("final") is True, failed)

    def _screened(self, call: Call, frame: Frame) -> Screened:
        if frame.failed:
            return Screened(())  # what was held back is not said any more
        screened = call.searched
        if not isinstance(screened, Screened):
            screened = self._screen(frame.cursor.held, frame.chunks, final=frame.final)
        if (size := len(orjson.dumps(screened.held))) > MAX_HELD:
            return Screened((), refusal=refusals.too_large(size, MAX_HELD))
        return screened

    # -- storing -------------------------------------------------------------------------------------
    async def _store(
        self, call: Call, frame: Frame, screened: Screened, body: bytes, fields: dict[str, str]
    ) -> tuple[Verdict, Outcome]:
        run = frame.cursor.run or secrets.token_hex(8)
        mac = self._macs(frame)[0]
        fields[headers.FRAME] = str(FrameMark(run, units(frame.chunks), mac))
        if call.instance:
            fields[headers.INSTANCE] = call.instance
        if frame.failed:
            fields[headers.FAILURE] = Decision.DEAD
            body = orjson.dumps({"reason": f"its handler failed ({frame.failed})"})
        elif frame.final:
            fields[headers.END] = "1"
        ack = await self._replies.publish(frame.capability, body, fields, frame.cursor.number)
        if ack.duplicate:
            return await self._repeated(call, frame)
        if frame.failed or frame.final:
            return accepted(call.message_id, ended="failed" if frame.failed else "done"), Outcome.APPLIED
        following = Cursor(frame.cursor.number + 1, run, mac, screened.held)
        return accepted(call.message_id, cursor=self._sealed(frame, following)), Outcome.APPLIED

    async def _repeated(self, call: Call, frame: Frame) -> tuple[Verdict, Outcome]:
        """The frame is there already: from a try that was not answered, or an earlier attempt of the handler.

        The two may have been cut differently, so what counts is the beginning of what was sent this time.
        """
        stored = await self._replies.stored(frame.capability, frame.cursor.number)
        if stored is None:
            return refusals.unavailable().verdict(call.message_id), Outcome.UNKNOWN
        if ended(stored):
            how = "failed" if headers.FAILURE in stored.headers else "done"
            return accepted(call.message_id, duplicate=True, ended=how), Outcome.DUPLICATE
        mark = FrameMark.read(stored.headers[headers.FRAME])
        if mark is None:
            return refusals.unavailable().verdict(call.message_id), Outcome.UNKNOWN
        if units(frame.chunks) < mark.units and not (frame.final or frame.failed):
            return accepted(call.message_id, duplicate=True, short=mark.units), Outcome.DUPLICATE
        following = await self._follows(frame, mark)
        if following is None:
            return await self._end(call, frame)
        result = {"cursor": self._sealed(frame, following), "taken": mark.units}
        return accepted(call.message_id, duplicate=True, **result), Outcome.DUPLICATE

    async def _follows(self, frame: Frame, mark: FrameMark) -> Cursor | None:
        """The cursor behind the stored frame, when that is how ``frame`` begins."""
        chunks, _ = split(frame.chunks, mark.units)
        begins = Frame(frame.capability, frame.cursor, tuple(chunks), final=False, failed="")
        same = units(chunks) == mark.units and frame.cursor.run in ("", mark.run)
        if not (same and any(hmac.compare_digest(mac, mark.mac) for mac in self._macs(begins))):
            return None
        screen = self._aside or at_once(self._screen)
        screened = await screen(frame.cursor.held, chunks, final=False)
        return Cursor(frame.cursor.number + 1, mark.run, mark.mac, screened.held)

    async def _end(self, call: Call, frame: Frame) -> tuple[Verdict, Outcome]:
        if frame.failed:
            await self._replies.give_up(
                frame.capability, Decision.DEAD, f"its handler failed ({frame.failed})"
            )
            return accepted(call.message_id, ended="failed"), Outcome.APPLIED
        reason = "it began to answer a second time, and not as before"
        await self._replies.give_up(frame.capability, Decision.ID_REUSED, reason)
        return refusals.stream_differs().verdict(call.message_id), Outcome.FAILED

    def _macs(self, frame: Frame) -> list[str]:
        return self._deciding.sealer.frame_macs(frame.capability, frame.cursor, frame.content)

    def _sealed(self, frame: Frame, cursor: Cursor) -> str:
        return self._deciding.sealer.seal_cursor(frame.capability, cursor)

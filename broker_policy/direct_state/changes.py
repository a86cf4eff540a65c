"""The changes of direct state: as the server says them again, and as they lie in the bucket.

Everything that the agent chose is hostile: body, headers, even bytes that are no headers. Revision, time
and the revision before are the server's: in what is said again it puts them behind all others, and nats-py
takes the last of each name; in what is read they stand outside the message.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import nats.aio.client
from nats.aio.client import Client

from broker_policy.audit.record import DecisionLine, Way
from broker_policy.audit.state_marks import DIRECT_STATE, STATE_GAP
from broker_policy.direct_state.mark import Marker
from broker_policy.jetstream import JetStreamError, api
from broker_policy.sealing import Sealer, commitment
from mas_nats.wire import headers, subjects
from mas_nats.wire.subjects import Op
from mas_nats.wire.verdict import Decision

_LAST_HEADER_COUNTS = getattr(nats.aio.client, "parse_email", None) is None
"""nats-py reads headers by another rule where a certain package is installed: then nothing said counts."""
_NOT_FOUND = 10037
TYPE = "state"


@dataclass(frozen=True, slots=True)
class Change:
    """One revision. It has no lines where a worker wrote it, after a decision that is in the log."""

    revision: int
    previous: int  # the revision before it: 0 for the first, -1 when it is not known
    lines: tuple[DecisionLine, ...]


@dataclass(frozen=True, slots=True)
class Kept:
    """One revision as it lies in the bucket."""

    revision: int
    time: int  # unix milliseconds
    body: bytes
    mark: str
    claimed: int = 0  # the revision that its writer expected before it, if it can be believed
    message_id: str = ""  # under which it was written


class Lines:
    """Makes the audit line of a change."""

    def __init__(self, marker: Marker, sealer: Sealer, fingerprint: Callable[[str], str]) -> None:
        self._marker = marker
        self._sealer = sealer
        self.fingerprint = fingerprint  # of the certificate with which an agent came last

    def change(self, agent: str, kept: Kept, previous: int, fingerprint: str | None = None) -> Change:
        """``kept`` as a change of the state of ``agent`` right after revision ``previous``.

        ``fingerprint``: of the certificate that the agent had then, where that is known.
        """
        if self._marker.valid(kept.mark, agent, previous, kept.body):
            return Change(kept.revision, previous, ())
        message_id = str(kept.revision)
        committed = commitment(self._sealer.salt(agent, message_id), agent, TYPE, kept.body)
        return Change(
            kept.revision,
            previous,
            (
                DecisionLine(
                    op=Op.STATE,
                    message_id=message_id,
                    sender=agent,
                    target=agent,
                    type=TYPE,
                    size=len(kept.body),
                    decision=Decision.ALLOWED,
                    rule=DIRECT_STATE,
                    way=Way.NONE,
                    time=kept.time,
                    commitment=committed,
                    fingerprint=self.fingerprint(agent) if fingerprint is None else fingerprint,
                ),
            ),
        )

    def gap(self, agent: str, before: int, after: Kept) -> DecisionLine:
        """What was between two revisions: it had left the bucket before anybody saw it."""
        return DecisionLine(
            op=Op.STATE,
            message_id=f"{before}-{after.revision}",
            sender=agent,
            target=agent,
            type=TYPE,
            size=0,
            decision=Decision.ALERT,
            rule=STATE_GAP,
            way=Way.NONE,
            time=after.time,
            fingerprint=self.fingerprint(agent),
        )


def said(message: Any) -> tuple[Kept, int] | None:
    """A revision as the server said it again, and the one before it; None when that cannot be read."""
    fields = message.headers or {}
    try:
        revision = int(fields[headers.STORED_SEQUENCE])
        previous = int(fields[headers.STORED_PREVIOUS])
        time = _milliseconds(fields[headers.STORED_TIME])
    except (KeyError, ValueError):
        return None
    if not _LAST_HEADER_COUNTS:
        return None
    return Kept(revision, time, message.data, fields.get(headers.STATE_MAC, "")), previous


class History:
    """The revisions of direct state that are still kept."""

    def __init__(self, nc: Client) -> None:
        self._nc = nc

    async def first(self, agent: str, revision: int = 1) -> Kept | None:
        """The oldest that is kept, from ``revision`` on.

        Raises:
            JetStreamError, nats.errors.Error: the bucket did not answer.

        """
        return await self._get({"seq": max(revision, 1), "next_by_subj": _key(agent)})

    async def newest(self, agent: str) -> int:
        """The newest revision, 0 when there is none. Errors as ``first``."""
        kept = await self._get({"last_by_subj": _key(agent)})
        return kept.revision if kept else 0

    async def _get(self, request: dict[str, Any]) -> Kept | None:
        stream = subjects.kv_stream(subjects.STATE_BUCKET)
        try:
            stored = (await api(self._nc, f"STREAM.MSG.GET.{stream}", request))["message"]
        except JetStreamError as error:
            if error.code == _NOT_FOUND:
                return None
            raise
        raw = base64.b64decode(stored.get("hdrs", ""))
        claimed = _last(raw, headers.EXPECTED_LAST_SUBJECT_SEQUENCE)
        return Kept(
            int(stored["seq"]),
            _milliseconds(stored["time"]),
            base64.b64decode(stored.get("data", "")),
            _last(raw, headers.STATE_MAC),
            int(claimed) if claimed.isascii() and claimed.isdecimal() and len(claimed) < 20 else 0,
            _last(raw, headers.MSG_ID),
        )


def _last(raw: bytes, name: str) -> str:
    """The header ``name`` in raw headers, "" without one; the last counts, as in what is said again."""
    found = ""
    for line in raw.split(b"\r\n"):
        this, _, value = line.partition(b":")
        if this.strip() == name.encode():
            found = value.strip().decode("ascii", "replace")
    return found


def _key(agent: str) -> str:
    return subjects.kv_key(subjects.STATE_BUCKET, agent)


def _milliseconds(stamp: str) -> int:
    return int(datetime.fromisoformat(stamp).timestamp() * 1000)

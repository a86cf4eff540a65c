"""The state bucket: every agent's durable state, written by compare-and-set, mediated or direct."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from mas_nats.policy.document import Limits
from mas_nats.policy.state_call import StateCall
from mas_nats.wire import headers, subjects

_WRONG_LAST_SEQUENCE = 10071
_TOO_LARGE = 10054
_HEADER_ROOM = 4096
"""Bytes of headers that a direct state may have beside its JSON."""


class Conflict(Exception):
    """Somebody else wrote first."""


class Reused(Exception):
    """Something else was written under this id."""


@dataclass(frozen=True, slots=True)
class Revision:
    """One stored state; an empty body is a deletion."""

    number: int
    body: bytes
    message_id: str
    fields: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class StateBucket:
    """The states of all agents."""

    _last: int = 0
    _revisions: dict[str, list[Revision]] = field(default_factory=dict)

    def newest(self, agent: str) -> Revision | None:
        """What is stored; None where nothing ever was."""
        revisions = self._revisions.get(agent)
        return revisions[-1] if revisions else None

    def value(self, agent: str) -> dict[str, Any] | None:
        """The stored state as JSON; None where there is none, or none that is a JSON object."""
        newest = self.newest(agent)
        try:
            value = orjson.loads(newest.body) if newest is not None and newest.body else None
        except orjson.JSONDecodeError:
            return None
        return value if isinstance(value, dict) else None

    def put(self, agent: str, body: bytes, fields: Mapping[str, str], expected: int | None) -> Revision:
        """Store ``body`` over revision ``expected`` (0: none; None: whatever is there).

        Raises:
            Conflict: another revision is there.

        """
        newest = self.newest(agent)
        if expected is not None and expected != (newest.number if newest else 0):
            raise Conflict
        self._last += 1
        revision = Revision(self._last, body, fields.get(headers.MSG_ID, ""), dict(fields))
        self._revisions.setdefault(agent, []).append(revision)
        return revision

    def mediated(self, agent: str, call: StateCall, call_id: str) -> int:
        """What the policy service writes for ``agent``. A repetition returns the revision of the first.

        Raises:
            Conflict: another revision is there.
            Reused: the id was used for another write; nothing was stored.

        """
        fields = {headers.MSG_ID: f"{agent}.{call_id}"} if call_id else {}
        revisions = self._revisions.get(agent, [])
        later = [each for each in revisions if each.number > call.revision]
        if call_id and later and later[0].message_id == fields[headers.MSG_ID]:
            if later[0].body != call.value:
                raise Reused
            return later[0].number
        if call_id and not later and any(each.message_id == fields[headers.MSG_ID] for each in revisions):
            raise Reused
        return self.put(agent, call.value, fields, call.revision).number

    def direct(self, agent: str, body: bytes, fields: Mapping[str, str], limits: Limits) -> bytes:
        """The bucket's acknowledgement of what ``agent`` writes to its own key."""
        if len(body) > limits.max_state + _HEADER_ROOM:
            return _error(_TOO_LARGE, "message size exceeds maximum allowed")
        expected = fields.get(headers.EXPECTED_LAST_SUBJECT_SEQUENCE)
        try:
            revision = self.put(agent, body, fields, None if expected is None else int(expected))
        except Conflict:
            return _error(_WRONG_LAST_SEQUENCE, "wrong last sequence")
        return orjson.dumps({"stream": subjects.kv_stream(subjects.STATE_BUCKET), "seq": revision.number})


def _error(code: int, description: str) -> bytes:
    return orjson.dumps({"error": {"code": 400, "err_code": code, "description": description}})

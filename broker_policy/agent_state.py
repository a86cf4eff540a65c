"""Mediated state: an agent's durable state in the ``state`` bucket, written by compare-and-set.

What a worker writes is marked, so that the audit of direct state tells it from what an agent wrote itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson
from nats.aio.client import Client

from broker_policy.direct_state.changes import History
from broker_policy.direct_state.mark import Marker
from broker_policy.jetstream import JetStreamError, get_last, get_message, publish
from mas_nats.policy.state_call import StateCall
from mas_nats.wire import headers, subjects
from mas_nats.wire.stored import WRONG_LAST_SEQUENCE


class Conflict(Exception):
    """Another instance wrote first."""


class Reused(Exception):
    """Something else was written under this id."""


@dataclass(frozen=True, slots=True)
class StoredState:
    """A state as it is stored; ``value`` is None where there is none (any more)."""

    revision: int
    value: dict[str, Any] | None = None
    corrupt: bool = False  # it is no JSON object: an agent whose state was direct can leave anything


class StateBucket:
    """The states of one namespace's agents."""

    def __init__(self, nc: Client, marker: Marker) -> None:
        self._nc = nc
        self._marker = marker
        self._history = History(nc)
        self._stream = subjects.kv_stream(subjects.STATE_BUCKET)

    async def get(self, agent: str) -> StoredState:
        """What is stored."""
        stored = await get_last(self._nc, self._stream, _key(agent))
        if stored is None:
            return StoredState(0)
        if not stored.data:
            return StoredState(stored.sequence)
        try:
            value = orjson.loads(stored.data)
        except orjson.JSONDecodeError:
            value = None
        if not isinstance(value, dict):
            return StoredState(stored.sequence, corrupt=True)
        return StoredState(stored.sequence, value)

    async def write(self, agent: str, call: StateCall, call_id: str, reference: str) -> int:
        """Write or delete, if the current revision is the expected one; the new revision.

        A repetition under the same ``call_id`` returns the revision of the first. ``reference`` names the
        decision.

        Raises:
            Conflict: it is not.
            Reused: the id was used for another write; nothing was stored.

        """
        fields = {
            headers.EXPECTED_LAST_SUBJECT_SEQUENCE: str(call.revision),
            headers.AUDIT: reference,
            headers.STATE_MAC: self._marker.mark(agent, call.revision, call.value),
        }
        if call_id:
            fields[headers.MSG_ID] = f"{agent}.{call_id}"
        if call.op == "delete":
            fields[headers.KV_OPERATION] = "DEL"
        try:
            ack = await publish(self._nc, _key(agent), call.value, fields)
        except JetStreamError as error:
            if error.code not in WRONG_LAST_SEQUENCE:
                raise
            # The server looks at the revision before the id (tried on nats-server 2.15.1): what it refuses
            # may repeat what it stored. If so, that is what came right after the expected revision.
            following = await self._history.first(agent, call.revision + 1) if call_id else None
            if following is None or following.message_id != fields[headers.MSG_ID]:
                raise Conflict from error
            if following.body != call.value:
                raise Reused from error
            return following.revision
        if ack.duplicate:
            await self._require_same(_key(agent), call, ack.sequence)
        return ack.sequence

    async def _require_same(self, key: str, call: StateCall, sequence: int) -> None:
        """Raise ``Reused`` unless the message that the server knows by the id is this very write.

        The server stores nothing then. Where it looks at the id before the revision it says so of any
        repetition, else of what expects the right revision: a new write under an old id.
        """
        there = await get_message(self._nc, self._stream, sequence)
        if there is None:  # more was written since than is kept, if it was on top of this very write
            last = await get_last(self._nc, self._stream, key)
            same = last is not None and last.sequence > call.revision
        else:
            expected = there.headers.get(headers.EXPECTED_LAST_SUBJECT_SEQUENCE)
            same = (there.subject, there.data, expected) == (key, call.value, str(call.revision))
        if not same:
            raise Reused


def _key(agent: str) -> str:
    return subjects.kv_key(subjects.STATE_BUCKET, agent)

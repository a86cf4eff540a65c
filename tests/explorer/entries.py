"""Decisions that nobody made, put into an audit by the projector's own draft and store."""

from __future__ import annotations

import contextlib
import time

from broker_policy.audit import entry
from broker_policy.audit.record import DecisionLine, Record, RecordKind, Way
from broker_policy.audit.store import Store
from broker_policy.audit.tail import Overtaken, Tail
from tests.audit_fill import AGENTS, APPEND, STEP, Cast, fill


def a_line(kind: str, op: str, *, refused: str = "") -> DecisionLine:
    """A call of one application about another; ``refused``: by which rule."""
    return DecisionLine(
        op=op,
        message_id=f"{op}-{kind}-{refused}",
        sender="assistant",
        target="library",
        type=kind,
        size=20,
        decision="AUTHZ_DENIED" if refused else "ALLOWED",
        rule=refused or "permissions",
        way=Way.NONE,
        time=int(time.time() * 1000),
        commitment="",
        fingerprint="0" * 64,
    )


async def many(store: Store) -> None:
    """Append some 2000 decisions, one in ten refused: walking through them takes several steps."""
    now = int(time.time() * 1000)
    while True:
        with contextlib.suppress(Overtaken):  # it is one append: then nothing was added
            await fill(store, APPEND, cast=Cast(AGENTS, now - STEP * APPEND, logged=False))
            return


async def decided(store: Store, *lines: DecisionLine) -> None:
    """Append ``lines`` as one record, between what real projectors append."""
    tail = Tail(store, time.time)
    record = Record(store.layout.namespace, "w0123456789abi", 1, "", RecordKind.DECISIONS, lines[0].time, 12)
    while True:
        await tail.refresh()
        draft = tail.draft()
        for position, line in enumerate(lines):
            draft.add_decision(
                entry.decision(draft.next_index, draft.sequence + 1, record, position, line, 0, "")
            )
        with contextlib.suppress(Overtaken):
            await tail.append(draft)
            return

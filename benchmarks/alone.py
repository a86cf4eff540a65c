"""What each part of the policy service takes of a message of 1 KiB, alone, in one process that sends nothing.

``python -m benchmarks.alone`` prints microseconds of processor time: median of some rounds, least and most.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator

from benchmarks.traffic import PROSE
from broker_policy.audit import entry
from broker_policy.audit.draft import Draft, Head
from broker_policy.audit.layout import Layout
from broker_policy.audit.record import DecisionLine, Record, RecordKey, RecordKind, Way, digest
from broker_policy.commit.lines import line_of
from broker_policy.pipeline import judge
from broker_policy.pipeline.dlp import Inspection
from broker_policy.sealing import Sealer, commitment
from broker_policy.tenants.sealing_ring import SealingKey
from mas_nats.policy.authorize import authorize
from mas_nats.policy.call import Call
from mas_nats.policy.document import AgentPolicy, Document, Permissions
from mas_nats.policy.table import Table
from mas_nats.wire import headers
from mas_nats.wire.verdict import Decision

SIZE = 1024
AGENTS = 10_000
BATCH = 64
"""Decisions in a record."""
ROUNDS = 9
LEAST = 0.05
"""Seconds of a round, at least."""
ACCOUNT = "A" * 56
CERTIFICATE = "c0" * 32


def measured() -> dict[str, dict[str, float]]:
    """Microseconds of processor time of each part: ``us``, ``least`` and ``most``."""
    return {name: _microseconds(once, parts) for name, once, parts in _parts()}


def _parts() -> Iterator[tuple[str, Callable[[], object], int]]:
    """A name, what is done, and how many messages that are."""
    table = _table()
    inspection = Inspection()
    for what, ending in (("nothing found", ""), ("an e-mail address", "someone@example.com")):
        call, body = _call(_body(ending)), _body(ending)

        def inspect(call: Call = call, body: bytes = body) -> None:
            call.body, call.searched, call.finding = body, None, None
            inspection.inspect(call, table)

        yield f"dlp: {what}", inspect, 1

    call = _call(_body(""))
    yield "authorize: permissions", lambda: authorize(call, table), 1
    yield "authorize: form and permissions", lambda: judge(call, table), 1

    sealer = Sealer("w1", [SealingKey.create()])
    line = _line(sealer, call)
    yield "audit: commitment and line", lambda: _line(sealer, call), 1
    record = Record("default", "w1", 1, "", RecordKind.DECISIONS, line.time, 1, (line,) * BATCH)
    key = RecordKey(bytes(32))

    def written() -> None:
        body = record.encode()
        key.mac(body)
        digest(body)

    yield f"audit: record of {BATCH}", written, BATCH
    yield f"audit: entries of {BATCH}, chained and indexed", lambda: _chained(record), BATCH


def _table() -> Table:
    agents = {f"agent-{number:05}": AgentPolicy(account=ACCOUNT) for number in range(AGENTS)}
    permissions = {"agent-00001": Permissions(allowed_targets=("agent-00002",))}
    return Table.compile(
        Document(namespace="default", account=ACCOUNT, agents=agents, permissions=permissions), 1
    )


def _body(ending: str) -> bytes:
    text = (PROSE * (SIZE // len(PROSE) + 1))[: SIZE - len('{"text":""}') - len(ending)] + ending
    return f'{{"text":"{text}"}}'.encode()


def _call(body: bytes) -> Call:
    fields = {headers.MSG_ID: "0123456789abcdef" * 2, headers.TARGET: "agent-00002", headers.TYPE: "note"}
    return Call.of("agent-00001", "send", body, "_INBOX.reply", fields)


def _line(sealer: Sealer, call: Call) -> DecisionLine:
    committed = commitment(sealer.salt(call.sender, call.message_id), call.target, call.type, call.body)
    return line_of(call, Decision.ALLOWED, "permissions", Way.BATCH, committed, CERTIFICATE)


def _chained(record: Record) -> None:
    draft = Draft(Layout(record.namespace), Head(0, bytes(32), 0))
    for position, line in enumerate(record.decisions):
        draft.add_decision(entry.decision(draft.next_index, 1, record, position, line, position + 2, ""))
    list(draft.commands(record.time))


def _microseconds(once: Callable[[], object], parts: int) -> dict[str, float]:
    times = 1
    while _seconds(once, times) < LEAST:
        times *= 2
    found = sorted(_seconds(once, times) / times / parts * 1e6 for _ in range(ROUNDS))
    return {
        "us": round(statistics.median(found), 2),
        "least": round(found[0], 2),
        "most": round(found[-1], 2),
    }


def _seconds(once: Callable[[], object], times: int) -> float:
    begun = time.process_time()
    for _ in range(times):
        once()
    return time.process_time() - begun


if __name__ == "__main__":
    for name, took in measured().items():
        print(f"{name:45} {took['us']:8.2f} µs ({took['least']:.2f} to {took['most']:.2f})")

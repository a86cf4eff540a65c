"""Exporting an audit to a file of JSON lines, and verifying such a file with the public key alone.

    {"audit":"mas","namespace":…,"v":1}                   the first line
    {"checkpoint_keys":[…],"current":…,"signature":…}     the retired keys, signed by the current one, if any
    {"e":{…the entry…},"h":"…its hash…"}                  every entry, in order
    {"checkpoint":{…},"key":…,"signature":…}              after the entry it signs
    {"end":{"hash":…,"index":…}}                          the last line

The hash of an entry is over the RFC 8785 form of ``e``, so a file that was reformatted still verifies.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterable, AsyncIterator
from pathlib import Path
from typing import Any

import orjson
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from broker_policy.audit import chain
from broker_policy.audit.checkpoint import SignedCheckpoint
from broker_policy.audit.examination import Examination
from broker_policy.audit.findings import FindingKind, Report
from broker_policy.audit.key_history import CheckpointKeys
from broker_policy.audit.store import Store, StoredEntry
from broker_policy.audit.verify import OVERDUE


async def export(
    store: Store, checkpoints: AsyncIterable[SignedCheckpoint], path: Path, *, key_history: bytes = b""
) -> int:
    """Write the audit as it is now to ``path``, whole or not at all; returns the number of entries.

    ``key_history``: the encoded ``CheckpointKeys``.

    Raises:
        redis.exceptions.RedisError, OSError: Redis does not answer, or the file cannot be written.

    """
    head = await store.head()
    partial = path.with_name(path.name + ".part")
    signed_ones = aiter(checkpoints)
    signed = await anext(signed_ones, None)
    count = 0
    with partial.open("wb") as file:
        file.write(orjson.dumps({"audit": "mas", "namespace": store.layout.namespace, "v": 1}) + b"\n")
        if key_history:
            file.write(key_history + b"\n")
        async for stored in store.entries():
            if stored.index > head.index:
                break
            file.write(b'{"e":' + stored.body + b',"h":"' + stored.hash.encode() + b'"}\n')
            count += 1
            while signed is not None and signed.checkpoint.index <= stored.index:
                file.write(signed.encode() + b"\n")
                signed = await anext(signed_ones, None)
        # What was signed beyond the end must be in the file too, unless it was signed after we began.
        if signed is not None and (await store.head()).index < signed.checkpoint.index:
            async for later in _chained(signed, signed_ones):
                file.write(later.encode() + b"\n")
        file.write(orjson.dumps({"end": {"hash": head.hash.hex(), "index": head.index}}) + b"\n")
    partial.replace(path)
    return count


async def _chained(
    first: SignedCheckpoint, rest: AsyncIterator[SignedCheckpoint]
) -> AsyncIterator[SignedCheckpoint]:
    yield first
    async for signed in rest:
        yield signed


def verify_file(
    path: Path, key: Ed25519PublicKey, *, overdue: float = OVERDUE, now: float | None = None
) -> Report:
    """Verify an exported file, line by line, with the public half of the newest checkpoint key it knows.

    The report's ``signed_index`` and ``signed_time`` say up to where a signature vouches for it; whoever
    cuts the file after that, checkpoints included, is found only by knowing a later checkpoint.

    Raises:
        ValueError: it is no export.
        OSError: it cannot be read.

    """
    with path.open("rb") as file:
        first = _line(file.readline())
        if first is None or first.get("audit") != "mas":
            raise ValueError(f"{path} is not an exported audit: its first line does not say so")
        exam = Examination(str(first.get("namespace")), CheckpointKeys(key), numbered=False)
        end: dict[str, Any] | None = None
        for number, raw in enumerate(file, 2):
            line = _line(raw)
            if line is None:
                exam.report.add(FindingKind.CHANGED, 0, f"line {number} is damaged")
            elif "e" in line:
                exam.add(_stored(line))
            elif "checkpoint" in line:
                _checkpoint(exam, raw, number)
            elif "checkpoint_keys" in line:
                _key_history(exam, raw, key)
            elif "end" in line:
                end = line["end"]
    exam.flush()
    if isinstance(end, dict):
        exam.end_at(int(end.get("index", 0)), str(end.get("hash")), exam.index)
    else:
        exam.report.add(FindingKind.CUT, exam.index + 1, "the file has no end: its last lines are missing")
    exam.find_unsettled(int(((time.time() if now is None else now) - overdue) * 1000))
    exam.count_outcomes()
    return exam.report


def _key_history(exam: Examination, raw: bytes, key: Ed25519PublicKey) -> None:
    try:
        exam.keys = CheckpointKeys.decode(raw, key)
    except ValueError as error:
        exam.report.add(FindingKind.BAD_CHECKPOINT, 0, str(error))


def _line(raw: bytes) -> dict[str, Any] | None:
    try:
        line = orjson.loads(raw)
    except ValueError:
        return None
    return line if isinstance(line, dict) else None


def _stored(line: dict[str, Any]) -> StoredEntry:
    try:
        body = chain.canonical(line["e"])
    except TypeError:
        body = b""
    return StoredEntry("", body, str(line.get("h")))


def _checkpoint(exam: Examination, raw: bytes, number: int) -> None:
    try:
        signed = SignedCheckpoint.decode(raw)
    except ValueError:
        exam.report.add(FindingKind.BAD_CHECKPOINT, 0, f"the checkpoint in line {number} is damaged")
        return
    exam.checkpoint(signed)

"""Exporting an audit to a file of JSON lines, and verifying such a file with the public key alone.

    {"audit":"mas","namespace":…,"v":1}                   the first line; with "after":[index,hash] where the
                                                          entries up to there are in sealed segments
    {"checkpoint_keys":[…],"current":…,"signature":…}     the retired keys, signed by the current one, if any
    {"seal":{…},"signature":…}                            of each such segment
    {"e":{…the entry…},"h":"…its hash…"}                  every entry, in order
    {"checkpoint":{…},"key":…,"signature":…}              after the entry it signs
    {"end":{"hash":…,"index":…}}                          the last line

The hash of an entry is over the RFC 8785 form of ``e``, so a file that was reformatted still verifies.
"""

from __future__ import annotations

import contextlib
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
from broker_policy.audit.past import past
from broker_policy.audit.seal import SignedSeal, trusted
from broker_policy.audit.segments import Segments
from broker_policy.audit.store import Removed, Store, StoredEntry
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
        removed = await store.removed()
        header: dict[str, Any] = {"audit": "mas", "namespace": store.layout.namespace, "v": 1}
        if removed.index:
            header["after"] = [removed.index, removed.hash.hex()]
        file.write(orjson.dumps(header) + b"\n")
        if key_history:
            file.write(key_history + b"\n")
        if removed.index:
            for seal in await store.seals():
                file.write(seal.encode() + b"\n")
        while signed is not None and signed.checkpoint.index <= removed.index:
            file.write(signed.encode() + b"\n")
            signed = await anext(signed_ones, None)
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
    path: Path,
    key: Ed25519PublicKey,
    *,
    overdue: float = OVERDUE,
    now: float | None = None,
    segments: Segments | None = None,
) -> Report:
    """Verify an exported file, line by line, with the public half of the newest checkpoint key it knows.

    The report's ``signed_index`` and ``signed_time`` say up to where a signature vouches for it; whoever
    cuts the file after that, checkpoints included, is found only by knowing a later checkpoint. What was in
    segments when it was exported is examined in ``segments``; without, the report names them.

    Raises:
        ValueError: it is no export.
        OSError: it cannot be read.

    """
    with path.open("rb") as file:
        first = _line(file.readline())
        if first is None or first.get("audit") != "mas":
            raise ValueError(f"{path} is not an exported audit: its first line does not say so")
        exam = Examination(str(first.get("namespace")), CheckpointKeys(key), numbered=False)
        before = _Before(exam, _removed(first), segments)
        end: dict[str, Any] | None = None
        for number, raw in enumerate(file, 2):
            line = _line(raw)
            if line is None:
                exam.report.add(FindingKind.CHANGED, 0, f"line {number} is damaged")
            elif "e" in line:
                before.end()
                exam.add(_stored(line))
            elif "checkpoint" in line:
                before.checkpoint(raw, number)
            elif "seal" in line:
                before.seal(raw)
            elif "checkpoint_keys" in line:
                _key_history(exam, raw, key)
            elif "end" in line:
                end = line["end"]
    before.end()
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


def _removed(first: dict[str, Any]) -> Removed:
    if "after" not in first:
        return Removed(0, b"")
    try:
        index, digest = first["after"]
        return Removed(int(index), bytes.fromhex(digest))
    except (TypeError, ValueError):
        raise ValueError("not an exported audit: its first line is damaged") from None


class _Before:
    """What stands before the first entry: seals and checkpoints of what was in segments."""

    def __init__(self, exam: Examination, removed: Removed, segments: Segments | None) -> None:
        self._exam = exam
        self._removed = removed
        self._segments = segments
        self._seals: list[SignedSeal] = []
        self._waiting: list[SignedCheckpoint] = []
        self._ended = not removed.index

    def seal(self, raw: bytes) -> None:
        with contextlib.suppress(ValueError):
            self._seals.append(SignedSeal.decode(raw))

    def checkpoint(self, raw: bytes, number: int) -> None:
        try:
            signed = SignedCheckpoint.decode(raw)
        except ValueError:
            text = f"the checkpoint in line {number} is damaged"
            self._exam.report.add(FindingKind.BAD_CHECKPOINT, 0, text)
            return
        if self._ended:
            self._exam.checkpoint(signed)
        else:
            self._waiting.append(signed)

    def end(self) -> None:
        """The first entry comes: examine what was before it."""
        if self._ended:
            return
        self._ended = True
        exam = self._exam
        seals = trusted(exam.report.namespace, self._seals, exam.keys)
        for part in past(self._removed, seals, self._segments, exam.report):
            if isinstance(part, StoredEntry):
                exam.add(part)
                at = part.index
            else:
                exam.flush()
                exam.begin(*part)
                at = part[0]
            while self._waiting and self._waiting[0].checkpoint.index <= at:
                exam.checkpoint(self._waiting.pop(0))
        for signed in self._waiting:
            exam.checkpoint(signed)

"""The part of a chain that is in sealed segments only, for an examination."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from broker_policy.audit.findings import FindingKind, Report
from broker_policy.audit.seal import Seal, covering
from broker_policy.audit.segments import SegmentBroken, Segments
from broker_policy.audit.store import Removed, StoredEntry


def past(
    removed: Removed, seals: Sequence[Seal], segments: Segments | None, report: Report
) -> Iterator[StoredEntry | tuple[int, bytes]]:
    """The entries up to ``removed``; instead of those of a segment that is not there, where it ends.

    What is wrong, and what is not given, goes into ``report``.
    """
    at = 0
    for seal in covering(seals, removed.index):
        at = min(seal.last, removed.index)
        digest = bytes.fromhex(seal.hash) if seal.last <= removed.index else removed.hash
        if segments is None:
            report.unexamined.append(seal.row())
            yield at, digest
            continue
        rows: list[StoredEntry] | None = None
        with reported(report, seal):
            rows = segments.read(seal)
        if rows is None:
            yield at, digest
        else:
            yield from (row for row in rows if row.index <= at)
    if at < removed.index:
        text = f"entries {at + 1} to {removed.index} left Redis, and no valid seal says where to"
        report.add(FindingKind.REMOVED, at + 1, text, last=removed.index)
        yield removed.index, removed.hash
    elif at and seals[-1].last == at and bytes.fromhex(seals[-1].hash) != removed.hash:
        report.add(FindingKind.CHANGED, at, f"Redis says that entry {at} had another hash than was sealed")


@contextlib.contextmanager
def reported(report: Report, seal: Seal) -> Iterator[None]:
    """Make a finding of a segment that is broken or cannot be read."""
    try:
        yield
    except (SegmentBroken, OSError) as error:
        report.add(FindingKind.SEGMENT, seal.first, str(error), last=seal.last)

"""What a verification can find."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class FindingKind(StrEnum):
    """What is wrong."""

    CHANGED = "changed"  # an entry is not what was hashed, or does not follow the one before it
    REMOVED = "removed"  # entries are missing
    INSERTED = "inserted"  # an entry that the chain never had
    SWAPPED = "swapped"  # two entries stand in each other's place
    CUT = "cut"  # the end is missing
    HEAD = "head"  # the stored head is not the end of the chain
    REWRITTEN = "rewritten"  # the chain is consistent but is not the one that was signed
    BAD_CHECKPOINT = "checkpoint"  # a checkpoint without a valid signature, or of another namespace
    ALARM = "alarm"  # the projector found that the log had been tampered with
    INDEX = "index"  # an index does not list what the chain holds
    OUTCOME = "outcome"  # the stored outcome is not the one that the chain gives
    SEGMENT = "segment"  # a sealed segment is missing, altered, or in another's place
    UNSETTLED = "unsettled"  # a decision has no outcome after a long time


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong, at entry ``index`` (0: no certain place) up to ``last``."""

    kind: FindingKind
    index: int
    last: int
    text: str

    def row(self) -> dict[str, Any]:
        """As JSON."""
        return {"kind": self.kind, "index": self.index, "last": self.last, "text": self.text}


@dataclass(slots=True)
class Report:
    """What a verification saw."""

    namespace: str = ""
    entries: int = 0
    decisions: int = 0
    checkpoints: int = 0
    signed_index: int = 0  # up to here the chain is the one that was signed
    signed_time: int = 0  # unix milliseconds
    outcomes: dict[str, int] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    losses: list[dict[str, Any]] = field(default_factory=list)  # what was lost and accepted as that
    unexamined: list[dict[str, Any]] = field(default_factory=list)  # sealed segments that were not given
    more: int = 0  # findings beyond the first thousand

    @property
    def intact(self) -> bool:
        """Whether nothing was found."""
        return not self.findings

    def add(self, kind: FindingKind, index: int, text: str, *, last: int = 0) -> None:
        """Add a finding."""
        if len(self.findings) < _MOST:
            self.findings.append(Finding(kind, index, last or index, text))
        else:
            self.more += 1

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "namespace": self.namespace,
            "intact": self.intact,
            "entries": self.entries,
            "decisions": self.decisions,
            "checkpoints": self.checkpoints,
            "signed_index": self.signed_index,
            "signed_time": self.signed_time,
            "outcomes": self.outcomes,
            "findings": [finding.row() for finding in self.findings],
            "accepted_losses": self.losses,
            "unexamined_segments": self.unexamined,
            "more_findings": self.more,
        }


_MOST = 1000

"""What a backup says about itself: the last thing in it, written when everything else is known."""

from __future__ import annotations

from collections import defaultdict
from hashlib import sha256
from typing import Literal

from pydantic import BaseModel, ConfigDict


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)  # unknown keys are a newer version's, and do no harm


class Part(_Frozen):
    """One folder of the backup."""

    files: int
    bytes: int
    sha256: str  # over the digests and names of its files


class FileEntry(_Frozen):
    """One file of the backup."""

    bytes: int
    sha256: str


class StreamState(_Frozen):
    """One stream as it was at the backup's point."""

    account: str
    stream: str
    messages: int
    first: int
    last: int
    consumers: int


class NamespaceState(_Frozen):
    """The audit and the log of one namespace at the backup's point."""

    namespace: str
    entries: int  # index of the chain's head
    head: str  # its hash
    projected: int  # the log sequence up to which the chain holds the log
    log_last: int  # the last sequence of the log
    waiting: int  # records of the log that are not in the chain yet
    signed: int  # index of the last checkpoint


class Manifest(_Frozen):
    """Everything a person or a restore wants to know of a backup."""

    v: Literal[1] = 1
    taken: str  # ISO 8601, UTC: the point in time
    mas: str  # version
    durable: bool
    keys: bool  # whether secret keys are in it
    checkpoint_key: str  # names the key that signed the audit
    pause: float  # seconds for which the servers were halted
    files: dict[str, FileEntry]
    parts: dict[str, Part]
    streams: tuple[StreamState, ...]
    namespaces: tuple[NamespaceState, ...]
    findings: tuple[str, ...]  # what did not agree when it was taken


def parts_of(files: dict[str, FileEntry]) -> dict[str, Part]:
    """The parts that ``files`` make up, by their first folder."""
    grouped: dict[str, dict[str, FileEntry]] = defaultdict(dict)
    for name, entry in files.items():
        grouped[name.partition("/")[0]][name] = entry
    return {
        part: Part(
            files=len(entries),
            bytes=sum(entry.bytes for entry in entries.values()),
            sha256=sha256(
                "".join(f"{entry.sha256} {name}\n" for name, entry in sorted(entries.items())).encode()
            ).hexdigest(),
        )
        for part, entries in sorted(grouped.items())
    }

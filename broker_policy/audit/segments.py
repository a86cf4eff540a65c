"""Sealed segments in a folder: written whole, read with every doubt."""

from __future__ import annotations

import gzip
import hashlib
import os
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import orjson

from broker_policy.audit import chain
from broker_policy.audit.seal import Seal, SignedSeal
from broker_policy.audit.store import StoredEntry
from mas_nats.errors import MasError


class SegmentBroken(MasError):
    """A segment is missing, or is not what was sealed."""


@dataclass(frozen=True)
class Segments:
    """The folder of one or more namespaces' segments. Compressed JSON lines; beside each its seal.

    {"audit":"mas","namespace":…,"segment":[first,last],"before":hash,"v":1}
    {"e":{…the entry…},"h":"…its hash…"}
    """

    folder: Path

    def read(self, seal: Seal) -> list[StoredEntry]:
        """The entries of a segment, which are exactly those that were sealed.

        Raises:
            SegmentBroken: it is missing or altered.
            OSError: it cannot be read.

        """
        return _read(self.folder, seal)

    def require(self, seal: Seal) -> None:
        """Check that the file of ``seal`` is there and the one that was sealed, by its digest alone.

        Raises:
            SegmentBroken, OSError: as ``read``.

        """
        _digested(self.folder, seal)

    def write(self, namespace: str, first: int, before: bytes, entries: Iterable[StoredEntry]) -> Seal:
        """Write a segment whole, and check every link of what lies on the disk then; its seal, not signed.

        Raises:
            SegmentBroken: the entries do not follow one another.
            OSError: the folder cannot be written.

        """
        rows = list(entries)
        last = rows[-1].index
        head = {
            "audit": "mas",
            "namespace": namespace,
            "segment": [first, last],
            "before": before.hex(),
            "v": 1,
        }
        lines = [orjson.dumps(head)]
        lines += [b'{"e":%s,"h":"%s"}' % (stored.body, stored.hash.encode()) for stored in rows]
        packed = gzip.compress(b"\n".join(lines) + b"\n", mtime=0)
        times = [int(stored.entry()["at"]) for stored in rows]
        seal = Seal(
            namespace=namespace,
            first=first,
            last=last,
            before=before.hex(),
            hash=rows[-1].hash,
            file=hashlib.sha256(packed).hexdigest(),
            oldest=min(times),
            youngest=max(times),
        )
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._put(self.folder / seal.name, packed)
        self.read(seal)
        return seal

    def write_seal(self, signed: SignedSeal) -> None:
        """Put the seal beside its segment. Raises OSError."""
        self._put(self._seal_of(signed.seal), signed.encode() + b"\n")

    def seals(self, namespace: str) -> list[SignedSeal]:
        """All seals of ``namespace`` in the folder that can be read. Raises OSError."""
        found: list[SignedSeal] = []
        for path in sorted(self.folder.glob(f"{namespace}-*.seal")):
            try:
                signed = SignedSeal.decode(path.read_bytes())
            except ValueError:
                continue
            if signed.seal.namespace == namespace:
                found.append(signed)
        return found

    def _seal_of(self, seal: Seal) -> Path:
        return self.folder / f"{seal.name}.seal"

    def _put(self, path: Path, content: bytes) -> None:
        partial = path.with_name(f"{path.name}.part")
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the name too is on the disk
        finally:
            os.close(folder)


@dataclass(frozen=True, slots=True)
class Past:
    """What of one chain is in segments: ``seals`` that hold, in order."""

    segments: Segments
    seals: tuple[Seal, ...]

    def overlapping(self, first: int, last: int, since: int | None, until: int | None) -> list[Seal]:
        """The segments that hold an entry of this span and of this time (unix milliseconds)."""
        return [
            seal
            for seal in self.seals
            if seal.first <= last
            and first <= seal.last
            and (since is None or seal.youngest >= since)
            and (until is None or seal.oldest <= until)
        ]


def _digested(folder: Path, seal: Seal) -> bytes:
    path = folder / seal.name
    try:
        packed = path.read_bytes()
    except FileNotFoundError:
        raise SegmentBroken(f"segment {seal.name} is missing from {folder}") from None
    if hashlib.sha256(packed).hexdigest() != seal.file:
        raise SegmentBroken(f"segment {seal.name} is not the file that was sealed")
    return packed


def _read(folder: Path, seal: Seal) -> list[StoredEntry]:
    packed = _digested(folder, seal)
    try:
        head, *lines = gzip.decompress(packed).splitlines()
        if orjson.loads(head)["segment"] != [seal.first, seal.last]:
            raise SegmentBroken(f"segment {seal.name} holds other entries")
        rows = [_stored(orjson.loads(line)) for line in lines]
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError) as error:
        raise SegmentBroken(f"segment {seal.name} cannot be read: {type(error).__name__}") from None
    index, previous = seal.first - 1, bytes.fromhex(seal.before)
    for row in rows:
        index, previous = index + 1, chain.link(previous, row.body)
        if row.index != index or row.hash != previous.hex():
            raise SegmentBroken(f"segment {seal.name}: entry {index} does not follow the one before it")
    if (index, previous.hex()) != (seal.last, seal.hash):
        raise SegmentBroken(f"segment {seal.name} does not end as sealed")
    return rows


def _stored(line: dict[str, dict[str, object]]) -> StoredEntry:
    entry = line["e"]
    return StoredEntry(f"{entry['i']}-0", chain.canonical(entry), str(line["h"]))

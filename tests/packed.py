"""A folder as a backup that nobody has examined."""

from __future__ import annotations

from pathlib import Path

from broker_policy.audit.checkpoint import key_name, read_public_key
from broker_policy.backup.archive import ArchiveWriter
from broker_policy.backup.manifest import Manifest, parts_of
from broker_policy.backup.staging import files


def packed(folder: Path, to: Path) -> Path:
    with to.open("wb") as file:
        writer = ArchiveWriter(file, None)
        for name in files(folder):
            writer.add(name, folder / name)
        writer.close(manifest_of(writer, checkpoint_key(folder)))
    return to


def manifest_of(writer: ArchiveWriter, checkpoint_key: str = "") -> Manifest:
    """What ``writer`` holds, of which nothing is known."""
    return Manifest(
        taken="2026-01-01T00:00:00+00:00",
        mas="0",
        durable=True,
        keys=True,
        checkpoint_key=checkpoint_key,
        pause=0.0,
        files=writer.files,
        parts=parts_of(writer.files),
        streams=(),
        namespaces=(),
        findings=(),
    )


def checkpoint_key(folder: Path) -> str:
    return key_name(read_public_key((folder / "keys" / "public" / "checkpoint.pub").read_bytes()))

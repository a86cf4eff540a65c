"""The content of a backup file: a compressed tar of files, and the manifest as the last one."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, BinaryIO, cast

from pydantic import ValidationError

from broker_policy.backup.errors import BackupDamaged
from broker_policy.backup.manifest import FileEntry, Manifest, parts_of
from broker_policy.backup.sealed import SealedReader, SealedWriter
from broker_policy.identity.private_files import private_folder

_MANIFEST = "manifest.json"
_MANIFEST_MOST = 256 << 20
_PIECE = 1 << 20


class ArchiveWriter:
    """Writes files, then the manifest; remembers each file's digest."""

    def __init__(self, file: BinaryIO, passphrase: str | None) -> None:
        self.files: dict[str, FileEntry] = {}
        self._sealed = SealedWriter(file, passphrase)
        self._packed = gzip.GzipFile(
            filename="", fileobj=cast("BinaryIO", self._sealed), mode="wb", compresslevel=1, mtime=0
        )
        self._tar = tarfile.open(fileobj=self._packed, mode="w", format=tarfile.PAX_FORMAT)  # noqa: SIM115

    def add(self, name: str, path: Path) -> None:
        """Add the file at ``path`` as ``name``."""
        with path.open("rb") as file:
            digesting = _Digesting(file)
            member = _member(name, path.stat().st_size)
            self._tar.addfile(member, cast("BinaryIO", digesting))
        self.files[name] = FileEntry(bytes=member.size, sha256=digesting.digest.hexdigest())

    def close(self, manifest: Manifest) -> None:
        """Add the manifest and end the archive. The file beneath stays open."""
        body = manifest.model_dump_json().encode()
        self._tar.addfile(_member(_MANIFEST, len(body)), io.BytesIO(body))
        self._tar.close()
        self._packed.close()
        self._sealed.close()


def read(path: Path, passphrase: str | None, into: Path | None = None) -> Manifest:
    """Check every byte of a backup, and unpack it into the folder ``into`` if one is given.

    Raises:
        BackupDamaged: the file is no backup, altered or truncated.
        WrongPassphrase: it needs a passphrase, or another one.
        OSError: it cannot be read, or ``into`` not be written.

    """
    with path.open("rb") as file:
        sealed = SealedReader(file, passphrase)
        try:
            found, manifest = _members(sealed, into)
        except (tarfile.TarError, zlib.error, EOFError, gzip.BadGzipFile, ValueError, OverflowError) as error:
            raise BackupDamaged(f"the backup's content is damaged: {error}") from None
    if manifest is None:
        raise BackupDamaged("the backup has no manifest")
    wrong = sorted(name for name in {*found, *manifest.files} if found.get(name) != manifest.files.get(name))
    if wrong:
        raise BackupDamaged(f"{len(wrong)} files are missing or not those of the manifest: {wrong[0]} …")
    if parts_of(found) != manifest.parts:
        raise BackupDamaged("the parts are not those of the manifest")
    return manifest


def _members(sealed: SealedReader, into: Path | None) -> tuple[dict[str, FileEntry], Manifest | None]:
    found: dict[str, FileEntry] = {}
    manifest: Manifest | None = None
    with (
        gzip.GzipFile(fileobj=cast("BinaryIO", sealed), mode="rb") as packed,
        tarfile.open(fileobj=packed, mode="r|") as tar,
    ):
        for member in tar:
            name = _safe(member)
            source = tar.extractfile(member)
            if source is None or manifest is not None or name in found:
                raise BackupDamaged(f"{name} does not belong into the backup")
            if name == _MANIFEST:
                manifest = _manifest(source.read(_MANIFEST_MOST))
                continue
            target = None if into is None else into / name
            found[name] = FileEntry(bytes=member.size, sha256=_take(_pieces(source), target))
        while packed.read(_PIECE):
            pass  # the padding of tar: only at the end is the last chunk checked
    if sealed.read(1):
        raise BackupDamaged("something was appended to the backup's content")
    return found, manifest


def _take(pieces: Iterator[bytes], target: Path | None) -> str:
    """Digest ``pieces``, and write them to ``target`` if there is one."""
    digest = hashlib.sha256()
    if target is None:
        for piece in pieces:
            digest.update(piece)
        return digest.hexdigest()
    private_folder(target.parent)
    with target.open("xb") as file:
        target.chmod(0o600)
        for piece in pieces:
            digest.update(piece)
            file.write(piece)
    return digest.hexdigest()


def _pieces(source: IO[bytes]) -> Iterator[bytes]:
    while piece := source.read(_PIECE):
        yield piece


def _manifest(body: bytes) -> Manifest:
    try:
        return Manifest.model_validate_json(body)
    except ValidationError as error:
        raise BackupDamaged(f"the backup's manifest cannot be read ({error.error_count()} errors)") from None


def _member(name: str, size: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o600
    return member


def _safe(member: tarfile.TarInfo) -> str:
    path = PurePosixPath(member.name)
    plain = member.isreg() and not member.issparse() and "\0" not in member.name
    if not plain or path.is_absolute() or ".." in path.parts or not path.parts:
        raise BackupDamaged(f"{member.name!r} does not belong into a backup")
    return member.name


class _Digesting:
    """A file that is digested as it is read."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        piece = self._file.read(size)
        self.digest.update(piece)
        return piece

"""``mas backup`` and ``mas restore``: everything of a folder, to one point in time, in one file."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from broker_policy.backup import archive
from broker_policy.backup.manifest import Manifest
from broker_policy.backup.restore import require_empty
from broker_policy.backup.restore import restore as restore_to
from broker_policy.backup.take import MAX_PAUSE, Wanted, take
from broker_policy.cli.app import ExitCode, Folder, Json, Output, command
from broker_policy.embedded.layout import DEFAULT_FOLDER, Layout
from mas_nats.errors import ConfigurationError

_VARIABLE = "MAS_BACKUP_PASSPHRASE"
_SHORT = 12
PassphraseFile = Annotated[
    Path | None,
    typer.Option("--passphrase-file", help=f"A file with the passphrase; else ${_VARIABLE}."),
]


@command("backup", example="mas backup monday.backup --passphrase-file passphrase", tidies=True)
async def backup(
    file: Annotated[Path, typer.Argument(help="The file to write; with --verify: to check.")],
    *,
    passphrase_file: PassphraseFile = None,
    without_keys: Annotated[
        bool, typer.Option("--without-keys", help="Leave out keys, passwords, tokens: keep them elsewhere.")
    ] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Check a backup instead, every byte.")] = False,
    max_pause: Annotated[
        float, typer.Option("--max-pause", min=0.01, help="Seconds for which the servers may be halted.")
    ] = MAX_PAUSE,
    folder: Folder = DEFAULT_FOLDER,
    json: Json = False,
) -> None:
    """Back up messages, state, dead letters, audit, policy, keys and certificates to one point in time.

    Traffic goes on, but for a halt of some milliseconds. What was accepted before that moment is in the
    backup, what was accepted after it is not. The file is read back before it gets its name.
    """
    out = Output(json=json)
    passphrase = _passphrase(passphrase_file)
    if verify:
        manifest = await asyncio.to_thread(archive.read, file, passphrase)
    else:
        if passphrase is not None and len(passphrase) < _SHORT:
            raise ConfigurationError(f"the passphrase is shorter than {_SHORT} characters")
        if passphrase is None and without_keys:
            out.warn("without a passphrase whoever has the file can read every message in it")
        wanted = Wanted(Layout(folder.absolute()), file.absolute(), passphrase, not without_keys, max_pause)
        manifest = await take(wanted, out.progress)
    _tell(out, file, manifest, {"verified": True})
    if manifest.findings:
        raise typer.Exit(ExitCode.ALTERED)


@command(
    "restore", example="mas restore monday.backup --folder new --passphrase-file passphrase", tidies=True
)
async def restore(
    file: Annotated[Path, typer.Argument(help="The backup.")],
    *,
    folder: Annotated[Path, typer.Option("--folder", help="A new or empty folder to restore into.")],
    passphrase_file: PassphraseFile = None,
    keys: Annotated[
        Path | None,
        typer.Option("--keys", help="A folder with keys/, authority/ and certs/, for a backup without keys."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, write nothing.")] = False,
    json: Json = False,
) -> None:
    """Restore a backup into a new folder; `mas up` goes on from there.

    Nothing is written before every byte of the file was checked. Never run the old broker beside the
    restored one: both would take the same messages.
    """
    out = Output(json=json)
    passphrase, target = _passphrase(passphrase_file), folder.absolute()
    if dry_run:
        require_empty(target)
        manifest = await asyncio.to_thread(archive.read, file, passphrase)
    else:
        manifest = await restore_to(file, target, passphrase, keys=keys, say=out.progress)
    up = f"mas up --folder {folder}" + ("" if manifest.durable else " --relaxed")
    _tell(out, file, manifest, {"folder": str(target), "restored": not dry_run, "next": up})


def _passphrase(file: Path | None) -> str | None:
    if file is not None:
        text = file.read_text().rstrip("\r\n")
        if not text:
            raise ConfigurationError(f"{file} is empty: put the passphrase into it")
        return text
    return os.environ.pop(_VARIABLE, None) or None  # not for the servers that are started on the copy


def _tell(out: Output, file: Path, manifest: Manifest, more: dict[str, Any]) -> None:
    size = file.stat().st_size
    shown = manifest.model_dump(mode="json", exclude={"files"})
    messages = sum(stream.messages for stream in manifest.streams)
    entries = sum(space.entries for space in manifest.namespaces)
    keys = "included" if manifest.keys else "NOT included"
    lines = [
        f"{file}: {size / 1e6:.1f} MB, {len(manifest.files)} files, taken {manifest.taken}",
        f"  {messages} messages in {len(manifest.streams)} streams, {entries} audit entries, keys {keys}",
    ]
    lines += [f"  DOES NOT AGREE: {finding}" for finding in manifest.findings]
    if "next" in more:
        lines.append(f"Go on with: {more['next']}")
    document = {"file": str(file), "bytes": size, **shown, **more}
    out.result(document, "\n".join(lines))

"""Taking a backup, also under load."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import importlib.metadata
import os
import secrets
import shutil
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from broker_policy.audit.checkpoint import key_name
from broker_policy.backup import archive
from broker_policy.backup.errors import BackupError, PauseTooLong
from broker_policy.backup.examination import Examined, examine
from broker_policy.backup.frozen import Servers, frozen
from broker_policy.backup.manifest import Manifest, parts_of
from broker_policy.backup.staging import Staging, files, secret, size_of, stage_name
from broker_policy.embedded import lock
from broker_policy.embedded.durability import monitor
from broker_policy.embedded.errors import NotRunning
from broker_policy.embedded.layout import Broker, Layout
from broker_policy.identity import drafts
from broker_policy.identity.private_files import sync_folder
from broker_policy.keys.turns import PATIENCE, only_one
from broker_policy.tenants.material import PublicMaterial
from mas_nats.errors import ConfigurationError

_TRIES = 5
_MIDDLE = 200
"""Looks at the streams within which they must come to rest."""
MAX_PAUSE = 5.0
"""Seconds for which the servers may be halted, unless told otherwise."""

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to back up, and how."""

    layout: Layout
    file: Path
    passphrase: str | None
    keys: bool = True
    max_pause: float = MAX_PAUSE


async def take(wanted: Wanted, say: Say = lambda _: None) -> Manifest:
    """Write a backup of a folder to a file, whole or not at all, and read it back.

    While ``mas up`` runs in the folder, its servers are halted for as long as it takes to copy what has
    changed since a first copy: some milliseconds to tenths of a second.

    Raises:
        BackupError: nothing could be taken; the text says why.
        ConfigurationError: there is no installation in the folder, or no passphrase for its keys.
        OSError: no room, or the file cannot be written.

    """
    _require_sense(wanted)
    drafts.remove_abandoned(wanted.layout.root, stage_name(""))
    part = wanted.file.with_name(f".{wanted.file.name}.{secrets.token_hex(4)}.part")
    torn: set[str] = set()
    try:
        for attempt in range(1, _TRIES + 1):
            stage = wanted.layout.root / stage_name(secrets.token_hex(4))
            with drafts.filled(stage):
                point = await asyncio.to_thread(_stage_alone, wanted, stage, say)
                part.unlink(missing_ok=True)
                with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                    manifest = await _write(wanted, stage, file, point, torn, say)
            if manifest is not None:
                break
            say(f"try {attempt}: the copy holds half a batch, again")
        else:
            raise BackupError(
                f"in {_TRIES} tries each copy held half of another batch: workers write that do not belong "
                "to this mas up. Stop them for the backup, or run mas down first"
            )
        say("reading it back ...")
        if await asyncio.to_thread(archive.read, part, wanted.passphrase) != manifest:
            raise BackupError("what was written is not what is read: the disk may be failing")
        _require_new(wanted.file)
        part.replace(wanted.file)
        sync_folder(wanted.file.parent)
    finally:
        part.unlink(missing_ok=True)
    return manifest


def _require_sense(wanted: Wanted) -> None:
    if not (wanted.layout.keys / "public").is_dir():
        raise ConfigurationError(f"{wanted.layout.root} is not the folder of a mas up")
    if wanted.keys and not wanted.passphrase:
        raise ConfigurationError(
            "the backup holds secret keys, so it needs a passphrase: give a file with --passphrase-file, or "
            "MAS_BACKUP_PASSPHRASE; or leave the keys out with --without-keys"
        )
    _require_new(wanted.file)
    if wanted.layout.joined_redis.exists():
        place = wanted.layout.joined_redis.read_text()
        raise BackupError(
            f"the audit is in the Redis on {place}, which is not this folder's to halt "
            "and copy: back it up together with the folder, with both stopped"
        )
    if any(wanted.layout.root.glob("nats-[0-9]")):
        raise BackupError(
            "this folder holds a cluster of nats-servers, which mas backup cannot restore yet: see "
            "docs/backup.md for what to do instead"
        )


def _require_new(file: Path) -> None:
    if file.exists() or file.is_symlink():
        raise ConfigurationError(f"{file} exists: a backup never overwrites a file")


def _stage_alone(wanted: Wanted, stage: Path, say: Say) -> tuple[datetime, float, bool]:
    """As ``_stage``, while nobody rotates keys, and no other backup lets the servers go on."""
    with only_one(wanted.layout.keys, PATIENCE):
        return _stage(wanted, stage, say)


def _stage(wanted: Wanted, stage: Path, say: Say) -> tuple[datetime, float, bool]:
    """Copy the folder as it is at one moment; that moment, how long it was, and whether it is durable."""
    layout = wanted.layout
    size = size_of(layout.root)
    room = shutil.disk_usage(layout.root).free
    if room < size * 1.1:
        raise BackupError(f"{layout.root} has {size >> 20} MB, and its disk room for {room >> 20} MB only")
    staging = Staging(layout.root, stage)
    if lock.holder_of(layout.lock) is None:
        _require_stopped(layout)
        say(f"copying {size >> 20} MB; nothing runs here ...")
        since = datetime.now(UTC).isoformat(timespec="seconds")
        with lock.held(layout.lock, lock.LockHolder(os.getpid(), since, "a backup")):
            staging.copy()
            staging.complete()
        return datetime.now(UTC), 0.0, True
    broker = Broker.read(layout)
    say(f"copying {size >> 20} MB while everything runs ...")
    staging.copy()
    servers = Servers.of(broker.pid)
    begun = time.monotonic()
    late = threading.Timer(wanted.max_pause, _go_on, [servers])
    with frozen(servers, lambda: _come_to_rest(broker.monitor)):
        late.start()
        taken = datetime.now(UTC)
        try:
            staging.complete()
        finally:
            late.cancel()
    pause = time.monotonic() - begun
    if pause > wanted.max_pause:
        raise PauseTooLong(
            f"copying what had changed took longer than {wanted.max_pause:g} s, so the servers went on: "
            "allow more with --max-pause, choose a quieter time, or run mas down first"
        )
    say(f"halted for {pause * 1000:.0f} ms")
    return taken, pause, broker.durable


def _require_stopped(layout: Layout) -> None:
    """Where ``mas up`` was killed, its servers end with it on Linux, and elsewhere may not."""
    try:
        broker = Broker.read(layout)
        found = monitor(broker.monitor, "/varz").get("jetstream", {}).get("config", {}).get("store_dir")
        if not (found and Path(found).samefile(layout.node(1, 1) / "jetstream")):
            return  # another one
    except TimeoutError:
        pass  # it is there, and halted or busy
    except (NotRunning, ConfigurationError, OSError, ValueError, http.client.HTTPException):
        return
    raise BackupError(
        f"mas up has ended, and the nats-server of {layout.root} has not: end it first; its monitoring is at "
        f"{broker.monitor}"
    )


def _go_on(servers: Servers) -> None:
    for pid in (servers.redis, servers.nats, *servers.workers):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def _come_to_rest(url: str) -> None:
    """Wait until nats-server has stored what the halted workers had sent: then no batch is half there.

    The answer waits for a batch that is being stored.
    """
    before = _ends(url)
    for _ in range(_MIDDLE):
        time.sleep(0.005)
        now = _ends(url)
        if now == before:
            return
        before = now


def _ends(url: str) -> list[tuple[str, str, int]]:
    page: Any = monitor(url, "/jsz?accounts=true&streams=true")
    return [
        (account["name"], stream["name"], stream["state"]["last_seq"])
        for account in page.get("account_details") or ()
        for stream in account.get("stream_detail") or ()
        if stream["name"] == "INBOX"
    ]


async def _write(
    wanted: Wanted,
    stage: Path,
    file: BinaryIO,
    point: tuple[datetime, float, bool],
    torn: set[str],
    say: Say,
) -> Manifest | None:
    """Write everything to ``file``; None when the copy cannot be used, and another may.

    Where nothing ran while it was made, another one would be the same. Nor does one differ in what was
    ``torn`` in an earlier copy: nothing writes that batch any more. What is torn in this one is added.
    """
    writer = archive.ArchiveWriter(file, wanted.passphrase)
    names = [name for name in files(stage) if wanted.keys or not secret(name)]
    say(f"writing {len(names)} files ...")

    def add() -> None:
        for name in names:
            writer.add(name, stage / name)

    await asyncio.to_thread(add)
    say("bringing servers up on the copy ...")
    examined = await examine(Layout(stage))
    _, pause, _ = point
    again = pause and not torn.issuperset(examined.torn)
    torn.update(examined.torn)
    if again:
        return None
    manifest = _manifest(wanted, Layout(stage), writer, point, examined)
    writer.close(manifest)
    file.flush()
    os.fsync(file.fileno())
    return manifest


def _manifest(
    wanted: Wanted,
    copy: Layout,
    writer: archive.ArchiveWriter,
    point: tuple[datetime, float, bool],
    examined: Examined,
) -> Manifest:
    taken, pause, durable = point
    return Manifest(
        taken=taken.isoformat(timespec="milliseconds"),
        mas=importlib.metadata.version("mas-nats"),
        durable=durable,
        keys=wanted.keys,
        checkpoint_key=key_name(PublicMaterial.load(copy.keys).checkpoint),
        pause=round(pause, 4),
        files=writer.files,
        parts=parts_of(writer.files),
        streams=examined.streams,
        namespaces=examined.namespaces,
        findings=examined.disagreements,
    )

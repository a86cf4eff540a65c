"""Restoring a backup into a folder where nothing is."""

from __future__ import annotations

import asyncio
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path

from broker_policy.audit.checkpoint import key_name
from broker_policy.backup import archive
from broker_policy.backup.errors import BackupDamaged, BackupError, BackupInconsistent, FolderInUse
from broker_policy.backup.examination import examine, remove_traces
from broker_policy.backup.manifest import Manifest
from broker_policy.backup.staging import secret
from broker_policy.embedded.layout import Layout
from broker_policy.identity import drafts
from broker_policy.identity.private_files import private_folder, sync_folder, sync_tree
from broker_policy.keys.agreement import strangers
from broker_policy.tenants.material import PublicMaterial
from mas_nats.errors import ConfigurationError

Say = Callable[[str], None]
_WITH_KEYS = ("keys", "authority", "route-authority", "certs")


async def restore(
    file: Path, folder: Path, passphrase: str | None, *, keys: Path | None = None, say: Say = lambda _: None
) -> Manifest:
    """Unpack a backup into ``folder``, which appears whole or not at all; ``mas up`` goes on from there.

    ``keys`` is a folder with ``keys``, ``authority`` and ``certs`` of the installation, for a backup that
    was taken without them.

    Raises:
        BackupDamaged: the file is no backup, altered or truncated; nothing was written.
        WrongPassphrase: it needs a passphrase, or another one.
        FolderInUse: ``folder`` is not empty.
        BackupError: there is no room for it.
        BackupInconsistent: the audit and the log in it are not of the same moment.
        ConfigurationError: it needs keys, or other ones.

    """
    require_empty(folder)
    say("checking every byte of it ...")
    manifest = await asyncio.to_thread(archive.read, file, passphrase)
    if not manifest.keys and keys is None:
        raise ConfigurationError(
            "this backup was taken without keys: name the folder that has keys/, authority/ and certs/ of "
            "the installation with --keys"
        )
    private_folder(folder.parent)
    _require_room(folder.parent, manifest)
    start = f".{folder.name}."
    drafts.remove_abandoned(folder.parent, start)
    draft = folder.with_name(start + secrets.token_hex(4))
    with drafts.filled(draft):
        say(f"unpacking {len(manifest.files)} files ...")
        if await asyncio.to_thread(archive.read, file, passphrase, draft) != manifest:
            raise BackupDamaged(f"{file} became another file while it was restored")
        if not manifest.keys and keys is not None:
            _add_keys(keys, draft)
        _require_key(draft, manifest)
        _require_same_age(draft)
        say("bringing its servers up once ...")
        await _require_agreement(Layout(draft), manifest)
        await asyncio.to_thread(sync_tree, draft)
        if folder.exists():
            folder.rmdir()
        draft.rename(folder)
    sync_folder(folder.parent)
    return manifest


def require_empty(folder: Path) -> None:
    """Check that there is nothing at ``folder``.

    Raises:
        FolderInUse: there is.

    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FolderInUse(f"{folder} is not empty: a backup is restored into a new folder only")


def _require_room(folder: Path, manifest: Manifest) -> None:
    size, room = sum(file.bytes for file in manifest.files.values()), shutil.disk_usage(folder).free
    if size > room:
        raise BackupError(
            f"the backup unpacks to {size >> 20} MB, and {folder} has room for {room >> 20} MB only"
        )


def _add_keys(keys: Path, draft: Path) -> None:
    for part in _WITH_KEYS:
        for path in (keys / part).rglob("*") if (keys / part).is_dir() else ():
            name = path.relative_to(keys).as_posix()
            if path.is_file() and secret(name) and not (draft / name).exists():
                private_folder((draft / name).parent)
                shutil.copyfile(path, draft / name)
                (draft / name).chmod(0o600)


def _require_key(draft: Path, manifest: Manifest) -> None:
    keys = PublicMaterial.load(draft / "keys").checkpoint_keys  # it may have been rotated since
    found = key_name(keys.current)
    if manifest.checkpoint_key not in (found, *(key_name(each.public) for each in keys.retired)):
        raise ConfigurationError(
            f"these keys are of another installation: their checkpoint key is {found}, the backup's "
            f"{manifest.checkpoint_key}"
        )


def _require_same_age(draft: Path) -> None:
    if others := strangers(draft / "keys"):
        raise ConfigurationError(
            f"these keys are not those of the backup: {', '.join(others)}. They were rotated since, or "
            "belong to another installation: name the keys as they were when it was taken"
        )


async def _require_agreement(layout: Layout, manifest: Manifest) -> None:
    examined = await examine(layout)
    remove_traces(layout)
    if new := sorted(set(examined.disagreements) - set(manifest.findings)):
        raise BackupInconsistent(
            "the audit and the log in this backup are not of the same moment: " + "; ".join(new)
        )

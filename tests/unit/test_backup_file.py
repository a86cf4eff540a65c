"""The file of a backup: what was changed is found, and without the passphrase nothing of it can be read."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
from datetime import UTC, datetime
from pathlib import Path

import pytest

from broker_policy.backup import archive, sealed, take
from broker_policy.backup.archive import ArchiveWriter
from broker_policy.backup.errors import BackupDamaged, BackupError, WrongPassphrase
from broker_policy.backup.examination import Examined
from broker_policy.backup.manifest import Manifest, parts_of
from broker_policy.backup.restore import restore
from broker_policy.backup.sealed import SealedReader, SealedWriter
from broker_policy.backup.staging import Staging, belongs, files, secret
from broker_policy.cli.backup import _passphrase
from broker_policy.containers.setup import set_up
from broker_policy.embedded.layout import Layout
from broker_policy.tenants.material import create_material
from mas_nats.telemetry.settings import PREFIX
from tests.packed import manifest_of

PASSPHRASE = "correct horse battery"
CONTENT = b"attack at dawn " * 40


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealed, "_SCRYPT_N", 1 << 4)
    monkeypatch.setattr(sealed, "CHUNK", 100)


def written(passphrase: str | None, content: bytes = CONTENT) -> bytes:
    file = io.BytesIO()
    writer = SealedWriter(file, passphrase)
    for first in range(0, len(content), 37):
        writer.write(content[first : first + 37])
    writer.close()
    return file.getvalue()


def opened(raw: bytes, passphrase: str | None) -> bytes:
    return SealedReader(io.BytesIO(raw), passphrase).read()


@pytest.mark.parametrize("passphrase", [None, PASSPHRASE])
@pytest.mark.parametrize("size", [0, 1, 99, 100, 101, 200, 600])
def test_what_is_written_is_read(passphrase: str | None, size: int) -> None:
    assert opened(written(passphrase, CONTENT[:size]), passphrase) == CONTENT[:size]


@pytest.mark.parametrize("passphrase", [None, PASSPHRASE])
def test_every_altered_byte_is_found(passphrase: str | None) -> None:
    raw = written(passphrase)
    for place in range(len(raw)):
        altered = bytearray(raw)
        altered[place] ^= 1
        with pytest.raises((BackupDamaged, WrongPassphrase)):
            opened(bytes(altered), passphrase)


@pytest.mark.parametrize("passphrase", [None, PASSPHRASE])
def test_every_truncation_is_found(passphrase: str | None) -> None:
    raw = written(passphrase)
    for length in range(len(raw)):
        with pytest.raises(BackupDamaged):
            opened(raw[:length], passphrase)


def test_an_addition_and_a_swap_are_found() -> None:
    raw = written(PASSPHRASE)
    with pytest.raises(BackupDamaged, match="appended"):
        opened(raw + b"x", PASSPHRASE)
    start = raw.index(b"\n", raw.index(b"\n") + 1) + 1
    one = 5 + 100 + 16
    first, second = raw[start : start + one], raw[start + one : start + 2 * one]
    with pytest.raises(BackupDamaged, match="chunk 0"):
        opened(raw[:start] + second + first + raw[start + 2 * one :], PASSPHRASE)


def test_without_the_passphrase_nothing_is_read() -> None:
    raw = written(PASSPHRASE)
    assert b"attack" not in raw
    assert b"attack" in written(None)  # the control
    with pytest.raises(WrongPassphrase, match="is encrypted"):
        opened(raw, None)
    with pytest.raises(WrongPassphrase, match="not the passphrase"):
        opened(raw, PASSPHRASE + "!")


def packed(tmp_path: Path, change=lambda manifest: manifest, names=("nats/a", "redis/b")) -> Path:
    source, target = tmp_path / "source", tmp_path / "backup"
    source.write_bytes(CONTENT)
    with target.open("wb") as file:
        writer = ArchiveWriter(file, PASSPHRASE)
        for name in names:
            writer.add(name, source)
        writer.close(change(manifest_of(writer)))
    return target


def test_files_come_back_for_their_owner_only(tmp_path: Path) -> None:
    found = archive.read(packed(tmp_path), PASSPHRASE, tmp_path / "out")
    assert set(found.parts) == {"nats", "redis"}
    for name in ("nats/a", "redis/b"):
        path = tmp_path / "out" / name
        assert path.read_bytes() == CONTENT
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.parent.stat().st_mode & 0o777 == 0o700


def test_a_missing_part_is_found(tmp_path: Path) -> None:
    def lacking(whole: Manifest) -> Manifest:
        more = {**whole.files, "redis/gone": whole.files["redis/b"]}
        return whole.model_copy(update={"files": more, "parts": parts_of(more)})

    with pytest.raises(BackupDamaged, match="redis/gone"):
        archive.read(packed(tmp_path, lacking), PASSPHRASE)


def test_a_file_of_another_content_is_found(tmp_path: Path) -> None:
    def other(whole: Manifest) -> Manifest:
        changed = {**whole.files, "nats/a": whole.files["nats/a"].model_copy(update={"sha256": "0" * 64})}
        return whole.model_copy(update={"files": changed})

    with pytest.raises(BackupDamaged, match="nats/a"):
        archive.read(packed(tmp_path, other), PASSPHRASE)


@pytest.mark.parametrize("name", ["../out", "/etc/x", "nats/../../x"])
def test_nothing_is_written_outside_the_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(BackupDamaged, match="does not belong"):
        archive.read(packed(tmp_path, names=(name,)), PASSPHRASE, tmp_path / "out")


def test_links_are_no_files_of_a_backup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(name: str, size: int) -> tarfile.TarInfo:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        return member

    monkeypatch.setattr(archive, "_member", link)
    with pytest.raises(BackupDamaged, match="does not belong"):
        archive.read(packed(tmp_path), PASSPHRASE, tmp_path / "out")


def test_what_belongs_into_a_backup() -> None:
    for name in ("keys/worker/sealing.key", "nats/jetstream/A/streams/S/msgs/1.blk", "redis/a.aof", "x/new"):
        assert belongs(name), name
    for name in ("logs/w1.log", "lock", "run/w1.ready", "redis/redis.conf", ".backup-1/nats/a", "keys/.x.ab"):
        assert not belongs(name), name
    for name in (".keys.0123abcd/controller/operator.nk", ".ports.json.0123abcd"):  # of who was killed
        assert not belongs(name), name
    for name in (
        "keys/worker/sealing.key",
        "authority/ca.key",
        "certs/a/b.key",
        "redis/password",
        "redis/reader-password",
        "telemetry.json",
        "grafana/password",
        "prometheus/token",
    ):
        assert secret(name), name
    for name in ("keys/public/checkpoint.pub", "certs/a/b.pem", "nats/accounts/A.jwt", "ports.json"):
        assert not secret(name), name


def test_without_keys_nothing_secret_of_an_installation_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one in containers, which has every kind of secret there is."""
    monkeypatch.setenv(f"{PREFIX}HEADERS", '{"Authorization": "Bearer otlp-secret"}')
    root, parts = tmp_path / ".mas", tmp_path / "parts"
    (parts / "agent-one").mkdir(parents=True)
    set_up(Layout(root), parts, lambda _: None)
    there = {name: (root / name).read_bytes() for name in files(root)}
    left = b"\n".join(content for name, content in there.items() if not secret(name))
    kept = {
        name: content
        for name, content in there.items()
        if name.endswith((".key", ".nk", "password", "token"))
    }
    assert {"keys/worker/sealing.key", "certs/default/agent/one.key", "prometheus/token"} <= kept.keys()
    for name, content in {**kept, "telemetry.json": b"otlp-secret"}.items():
        assert content in there[name]
        assert content.rpartition(b":")[2] not in left, name
    assert b"PRIVATE KEY" not in left


def test_the_second_pass_brings_everything_up_to_date(tmp_path: Path) -> None:
    source, stage = tmp_path / "source", tmp_path / "stage"
    (source / "redis").mkdir(parents=True)
    (source / "nats").mkdir()
    log, same, grown, gone = (
        source / name for name in ("redis/a.aof", "nats/same", "nats/grown", "nats/gone")
    )
    for path in (log, same, grown, gone):
        path.write_bytes(b"one")
    staging = Staging(source, stage)
    staging.copy()
    with log.open("ab") as file:
        file.write(b"two")
    same.write_bytes(b"two")  # as long as before, and maybe within one tick of the clock
    grown.write_bytes(b"one and two")
    gone.unlink()
    (source / "nats/new").write_bytes(b"new")
    staging.complete()
    assert {name: (stage / name).read_bytes() for name in files(stage)} == {
        name: (source / name).read_bytes() for name in files(source)
    }


def test_data_that_lies_on_another_disk_is_part_of_it(tmp_path: Path) -> None:
    root, disk = tmp_path / ".mas", tmp_path / "disk"
    (root / "keys").mkdir(parents=True)
    (disk / "jetstream").mkdir(parents=True)
    (disk / "jetstream" / "1.blk").write_bytes(b"one")
    (root / "nats").symlink_to(disk)
    (disk / "round").symlink_to(root)  # a loop ends
    assert list(files(root)) == ["nats/jetstream/1.blk"]
    staging = Staging(root, tmp_path / "stage")
    staging.copy()
    staging.complete()
    assert (tmp_path / "stage/nats/jetstream/1.blk").read_bytes() == b"one"


@pytest.mark.parametrize("field", ["GNU.sparse.map", "GNU.sparse.size", "path"])
def test_a_tar_that_nobody_wrote_so_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, field: str
) -> None:
    def odd(name: str, size: int) -> tarfile.TarInfo:
        member = tarfile.TarInfo(name)
        member.size = size
        member.pax_headers = {field: "nats/x\0y"}
        return member

    monkeypatch.setattr(archive, "_member", odd)
    with pytest.raises(BackupDamaged):
        archive.read(packed(tmp_path), PASSPHRASE, tmp_path / "out")


async def test_a_file_that_is_swapped_while_it_is_restored(tmp_path: Path) -> None:
    file = packed(tmp_path)
    (tmp_path / "two").mkdir()
    other = packed(tmp_path / "two", names=("nats/other",))

    def say(line: str) -> None:
        if line.startswith("unpacking"):
            other.replace(file)

    with pytest.raises(BackupDamaged, match="became another"):
        await restore(file, tmp_path / "new", PASSPHRASE, say=say)
    assert not (tmp_path / "new").exists()


async def test_a_backup_that_is_too_big_is_not_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(2000, 1000, 1000))
    with pytest.raises(BackupError, match="has room for"):
        await restore(packed(tmp_path), tmp_path / "new", PASSPHRASE)
    assert not (tmp_path / "new").exists()


async def taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *torn: list[str]) -> Manifest:
    """A backup of a running folder, each copy of which holds part of the batches in ``torn``."""
    layout = Layout(tmp_path / ".mas")
    layout.create()
    create_material(layout.keys)
    looks = iter(torn)

    async def examine(_: Layout) -> Examined:
        return Examined((), (), (), tuple(next(looks)))

    def stage(wanted: take.Wanted, stage: Path, _: take.Say) -> tuple[datetime, float, bool]:
        shutil.copytree(wanted.layout.keys, stage / "keys")
        return datetime.now(UTC), 0.01, True

    monkeypatch.setattr(take, "examine", examine)
    monkeypatch.setattr(take, "_stage_alone", stage)
    manifest = await take.take(take.Wanted(layout, tmp_path / "backup", None, keys=False))
    assert next(looks, None) is None, "fewer copies"
    return manifest


@pytest.mark.parametrize("torn", [(["1"], ["2"], []), (["1"], ["1"])])
async def test_a_copy_made_in_the_middle_of_a_batch_is_made_again_and_a_batch_that_stays_torn_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torn: tuple[list[str], ...]
) -> None:
    manifest = await taken(tmp_path, monkeypatch, *torn)
    assert list(manifest.findings) == torn[-1]


async def test_copies_that_are_each_made_in_the_middle_of_another_batch_are_no_backup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(take, "_TRIES", 2)
    with pytest.raises(BackupError, match="half of another batch"):
        await taken(tmp_path, monkeypatch, ["1"], ["2"], ["3"])
    assert [each.name for each in tmp_path.iterdir()] == [".mas"]


def test_the_passphrase_is_not_handed_to_the_servers_that_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAS_BACKUP_PASSPHRASE", PASSPHRASE)
    assert _passphrase(None) == PASSPHRASE
    assert "MAS_BACKUP_PASSPHRASE" not in os.environ

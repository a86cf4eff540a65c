"""Backup under load, the machine lost, restored elsewhere; and what makes a restore refuse."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import orjson
import pytest
from redis.asyncio import Redis

from broker_policy.audit.entry import unranged
from broker_policy.audit.store import Store
from broker_policy.backup import archive
from broker_policy.backup.errors import BackupInconsistent
from broker_policy.backup.restore import restore
from broker_policy.embedded.halt import halt
from broker_policy.embedded.layout import Layout
from broker_policy.embedded.redis_server import RedisServer
from mas_nats import AgentMessage, Reject, TlsClientConfig
from mas_nats.wire.correlation import new_message_id
from tests.load import UNSURE, Handling, audit_of
from tests.packed import packed
from tests.parts import parts
from tests.processes import children
from tests.system import System, mas, mas_json

AGENTS = ["sender", "receiver", "sleeper"]


class Working(Handling):
    """Handles, rejects every tenth."""

    async def on_message(self, message: AgentMessage) -> None:
        await super().on_message(message)
        if message.data["n"] % 10 == 0:
            raise Reject("every tenth")


@dataclass
class Load:
    """What was sent, and when it was begun and accepted, in unix seconds."""

    begun: dict[str, float] = field(default_factory=dict)
    accepted: dict[str, float] = field(default_factory=dict)
    stopped: bool = False

    async def send(self, sender: Handling) -> None:
        while not self.stopped:
            message_id = new_message_id()
            number = len(self.begun)
            target = "sleeper" if number % 5 == 1 else "receiver"
            self.begun[message_id] = time.time()
            while not self.stopped:
                try:
                    await sender.send(target, "work", {"n": number}, id=message_id)
                except UNSURE:
                    await asyncio.sleep(0.05)
                    continue
                self.accepted[message_id] = time.time()
                break


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[System]:
    running = System.up(tmp_path / "machine" / ".mas")
    yield running
    if running.layout.root.exists():
        mas("down", "--folder", str(running.layout.root), check=False)


@pytest.fixture
def passphrase(tmp_path: Path) -> Path:
    path = tmp_path / "passphrase"
    path.write_text("a passphrase of some length\n")
    return path


@pytest.mark.slow
async def test_a_lost_machine(victim: System, passphrase: Path, tmp_path: Path) -> None:
    """Load, backup, everything killed and deleted, restore: the point holds on both sides."""
    namespace = await victim.namespace(AGENTS, {"sender": ["receiver", "sleeper"]})
    certificates = {name: keep(victim.tls(name, namespace), tmp_path / "agents" / name) for name in AGENTS}
    load = Load()
    async with AsyncExitStack() as stack:
        sender, receiver = [
            await stack.enter_async_context(kind(name, server_addr=victim.broker.url, tls=certificates[name]))
            for name, kind in (("sender", Handling), ("receiver", Working))
        ]
        await receiver.update_state({"colour": "blue"})
        sending = [asyncio.create_task(load.send(sender)) for _ in range(32)]
        await reached(load, 1_500)
        file = tmp_path / "backup"
        arguments = ("--passphrase-file", str(passphrase), "--folder", str(victim.layout.root))
        taken = await asyncio.to_thread(mas_json, "backup", str(file), *arguments)
        await reached(load, len(load.accepted) + 500)
        load.stopped = True
        await asyncio.gather(*sending)
        kill_all(victim)
    shutil.rmtree(victim.layout.root)

    assert secrets_in(file) == []
    restored_to = tmp_path / "elsewhere" / "folder"
    mas("restore", str(file), "--folder", str(restored_to), "--passphrase-file", str(passphrase))
    before = await chain_of(restored_to, namespace)
    restored = System.up(restored_to)
    try:
        await compare(restored, namespace, certificates, load, taken, before, receiver.handled.keys())
    finally:
        restored.down()


async def compare(
    restored: System,
    namespace: str,
    certificates: dict[str, TlsClientConfig],
    load: Load,
    taken: dict[str, object],
    before: set[str],
    handled: AbstractSet[str],
) -> None:
    point = parse(str(taken["taken"]))
    pause = float(str(taken["pause"]))
    assert 0 < pause < 5
    earlier = {one for one, when in load.accepted.items() if when < point}
    later = {one for one, when in load.begun.items() if when > point + pause}
    assert len(earlier) > 1_000
    assert len(later) > 300
    async with AsyncExitStack() as stack:

        async def enter(name: str, kind: type[Handling]) -> Handling:
            agent = kind(name, server_addr=restored.broker.url, tls=certificates[name])
            return await stack.enter_async_context(agent)

        sender, receiver = await enter("sender", Handling), await enter("receiver", Working)
        waiting = next(one for number, one in enumerate(load.begun) if number % 5 == 1 and one in earlier)
        # The id of a message that waits is known still: not a second message.
        await sender.send("sleeper", "work", {"n": list(load.begun).index(waiting)}, id=waiting)
        sleeper = await enter("sleeper", Handling)
        assert await receiver.refresh_state() == {"colour": "blue"}
        # What was acknowledged, and of whose delivery the copied server does not know, waits half a minute.
        audit = await audit_of(restored, namespace, earlier)
        decisions = audit["decisions"]
        outcomes = {
            one: {each["outcome"] for each in decisions[one] if each["o"] == "send"} for one in earlier
        }
        assert {one for one, found in outcomes.items() if not found & {"h", "d", "?"}} == set()
        # Acknowledged and removed, when the copied server had not noted yet that it was delivered: it writes
        # that down some ten times a second, so only the last moments' messages can be among them.
        unseen = {one for one, found in outcomes.items() if not found & {"h", "d"}}
        assert unseen <= handled
        ages = sorted(point - load.accepted[one] for one in unseen)
        assert not ages or ages[-1] < 0.5, f"{len(ages)}, up to {ages[-1]:.2f} s before the point"
        assert set(decisions) & later == set()
        # Handled again only what was under way at the point: acknowledged, and not yet on disk.
        again = {one for one in before if receiver.handled[one] or sleeper.handled[one]}
        assert len(again) <= 16, f"{len(again)} of {len(before)} were handled before the point"
        slept = {one for one in earlier if decisions[one][0]["t"] == "sleeper"}
        assert await sleeper.wait_handled(slept, 30) == set()
        assert sleeper.handled[waiting] == 1
        # One whose outcome was unknown may come again and be dead after that.
        async with asyncio.timeout(30), restored.tenant(namespace) as tenant:
            dead, letters = 0, -1
            while letters != dead:
                letters = (await tenant.jetstream().stream_info("DLQ")).state.messages
                decisions = (await audit_of(restored, namespace, earlier, 30))["decisions"]
                dead = Counter(each["outcome"] for found in decisions.values() for each in found)["d"]
        assert dead > 0
    verified = mas(
        "audit", "verify", "--folder", str(restored.layout.root), "--namespace", namespace, check=False
    )
    assert verified.returncode == 0, verified.stdout


async def reached(load: Load, count: int) -> None:
    async with asyncio.timeout(60):
        while len(load.accepted) < count:
            await asyncio.sleep(0.02)


def keep(tls: TlsClientConfig, folder: Path) -> TlsClientConfig:
    """The certificate on the agent's own machine."""
    folder.mkdir(parents=True)
    paths = [
        shutil.copy(path, folder) for path in (tls.root_ca_path, tls.client_cert_path, tls.client_key_path)
    ]
    return TlsClientConfig(*(Path(path) for path in paths))


def kill_all(system: System) -> None:
    parent = system.broker.pid
    pids = [parent, *children(parent).values()]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    for pid in pids:
        while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2]:
            time.sleep(0.01)


def secrets_in(file: Path) -> list[str]:
    raw = file.read_bytes()
    assert file.stat().st_mode & 0o777 == 0o600
    return [
        mark for mark in ("PRIVATE KEY", "sender", "operator", "SOAA", "requirepass") if mark.encode() in raw
    ]


async def chain_of(folder: Path, namespace: str) -> set[str]:
    """The ids of the messages that the restored chain, before anything runs, says were handled."""
    server = RedisServer(Layout(folder).redis)
    await server.start()
    try:
        async with Redis.from_url(server.url) as client:
            entries = [stored.entry() async for stored in Store(client, namespace).entries()]
    finally:
        await server.stop()
    handled = {
        i for entry in entries if entry["k"] == "o" and entry["o"] == "h" for i in unranged(entry["x"])
    }
    return {entry["id"] for entry in entries if entry["i"] in handled}


def parse(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


# -- what makes it refuse --------------------------------------------------------------------------------
@pytest.fixture
async def two_moments(victim: System, tmp_path: Path) -> tuple[Path, Path]:
    """Two backups of one system with traffic between them, unpacked."""
    namespace = await victim.namespace(AGENTS, {"sender": ["receiver"]})
    unpacked = []
    async with AsyncExitStack() as stack:
        sender, receiver = [
            await stack.enter_async_context(
                Handling(name, server_addr=victim.broker.url, tls=victim.tls(name, namespace))
            )
            for name in ("sender", "receiver")
        ]
        for moment in ("old", "new"):
            ids = {new_message_id() for _ in range(50)}
            for one in ids:
                await sender.send("receiver", "work", {}, id=one)
            assert await receiver.wait_handled(ids, 20) == set()
            await audit_of(victim, namespace, ids, 20)
            await signed(victim, namespace)
            file = tmp_path / f"{moment}.backup"
            environment = {**os.environ, "MAS_BACKUP_PASSPHRASE": "a passphrase of some length"}
            await asyncio.to_thread(
                subprocess.run,
                [
                    sys.executable,
                    "-m",
                    "broker_policy.cli",
                    "backup",
                    str(file),
                    "--folder",
                    str(victim.layout.root),
                ],
                env=environment,
                check=True,
                capture_output=True,
            )
            archive.read(file, "a passphrase of some length", tmp_path / moment)
            unpacked.append(tmp_path / moment)
    return unpacked[0], unpacked[1]


async def signed(system: System, namespace: str) -> None:
    """Wait until everything in the chain is signed."""
    async with asyncio.timeout(20):
        while True:
            document = orjson.loads(
                mas(
                    "audit", "verify", "--json", "--namespace", namespace, "--folder", str(system.layout.root)
                ).stdout
            )
            if document["signed_index"] == document["entries"]:
                return
            await asyncio.sleep(0.2)


def test_a_folder_in_which_nothing_runs(passphrase: Path, tmp_path: Path) -> None:
    stopped = System.up(tmp_path / "stopped")
    stopped.down()
    secret, file = ("--passphrase-file", str(passphrase)), str(tmp_path / "backup")
    mas("backup", file, "--folder", str(stopped.layout.root), *secret)
    mas("backup", "--verify", file, *secret)


@pytest.mark.parametrize("halted", [False, True])
async def test_servers_that_outlive_their_mas_up_are_not_copied_as_if_nothing_ran(
    tmp_path: Path, halted: bool
) -> None:
    async with parts(tmp_path, workers=0) as up:
        (tmp_path / "other").symlink_to(up.layout.root.parent)
        folder = tmp_path / "other" / up.layout.root.name
        if halted:
            halt(up.nats.pid)
        options = ("--folder", str(folder), "--without-keys")
        refused = await asyncio.to_thread(mas, "backup", str(tmp_path / "b"), *options, check=False)
    assert refused.returncode != 0
    assert "mas up has ended, and the nats-server of" in refused.stderr
    assert not (tmp_path / "b").exists()


async def test_an_audit_and_a_log_of_different_moments_are_refused(
    two_moments: tuple[Path, Path], tmp_path: Path
) -> None:
    old, new = two_moments
    for name, log, audit, problem in (
        ("behind", new, old, "was signed, and the audit ends at"),
        ("ahead", old, new, "and the log ends at"),
    ):
        mixed = tmp_path / name
        shutil.copytree(log, mixed)
        shutil.rmtree(mixed / "redis")
        shutil.copytree(audit / "redis", mixed / "redis")
        file = packed(mixed, tmp_path / f"{name}.backup")
        target = tmp_path / "restored" / name
        with pytest.raises(BackupInconsistent, match=problem):
            await restore(file, target, None)
        assert list((tmp_path / "restored").iterdir()) == []
    # The control: the same way, unmixed.
    await restore(packed(new, tmp_path / "same.backup"), tmp_path / "restored" / "same", None)
    assert (tmp_path / "restored" / "same" / "keys").is_dir()


def test_what_a_person_does_wrong_is_said(victim: System, passphrase: Path, tmp_path: Path) -> None:
    folder, file = str(victim.layout.root), tmp_path / "backup"
    secret = ("--passphrase-file", str(passphrase))
    refused(mas("backup", str(file), "--folder", folder, check=False), "needs a passphrase")
    assert not file.exists()
    mas("backup", str(file), "--folder", folder, *secret)
    refused(mas("backup", str(file), "--folder", folder, *secret, check=False), "never overwrites")
    refused(mas("restore", str(file), "--folder", folder, *secret, check=False), "is not empty")
    new = tmp_path / "new"
    wrong = tmp_path / "wrong"
    wrong.write_text("another passphrase")
    wrongly = ("--folder", str(new), "--passphrase-file", str(wrong))
    refused(mas("restore", str(file), *wrongly, check=False), "not the passphrase")
    altered = tmp_path / "altered"
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    altered.write_bytes(raw)
    refused(mas("restore", str(altered), "--folder", str(new), *secret, check=False), "altered")
    cut = tmp_path / "cut"
    cut.write_bytes(file.read_bytes()[:-40])
    refused(mas("backup", "--verify", str(cut), *secret, check=False), "truncated")
    mas("backup", "--verify", str(file), *secret)
    shown = mas_json("restore", str(file), "--folder", str(new), "--dry-run", *secret)
    assert shown["restored"] is False
    assert not new.exists()
    assert [path.name for path in tmp_path.glob(".new*")] == []


def test_keys_that_are_kept_elsewhere(victim: System, tmp_path: Path) -> None:
    folder, file = victim.layout.root, tmp_path / "backup"
    mas("backup", str(file), "--folder", str(folder), "--without-keys")
    assert secrets_of_keys(folder, file) == []
    new = tmp_path / "new"
    refused(mas("restore", str(file), "--folder", str(new), check=False), "without keys")
    kept = tmp_path / "kept"
    for part in ("keys", "authority", "certs"):
        shutil.copytree(folder / part, kept / part)
    other = System.up(tmp_path / "other")
    other.down()
    with_other = mas(
        "restore", str(file), "--folder", str(new), "--keys", str(tmp_path / "other"), check=False
    )
    refused(with_other, "error")
    assert not new.exists()
    mas("restore", str(file), "--folder", str(new), "--keys", str(kept))
    restored = System.up(new)
    restored.down()


def secrets_of_keys(folder: Path, file: Path) -> list[str]:
    return [name for name in archive.read(file, None).files if name.endswith((".nk", ".key", "password"))]


def refused(done: subprocess.CompletedProcess[str], text: str) -> None:
    assert done.returncode == 1, done.stdout
    assert text in " ".join(done.stderr.split())


async def test_a_backup_that_is_killed_leaves_nobody_halted(victim: System) -> None:
    """kill -9 while the servers are halted."""
    parent = victim.broker.pid
    program = (
        "import sys, time\n"
        "from broker_policy.backup.frozen import Servers, frozen\n"
        f"with frozen(Servers.of({parent}), lambda: None):\n"
        "    print('halted', flush=True)\n"
        "    time.sleep(60)\n"
    )
    backup = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert backup.stdout is not None
    assert await asyncio.to_thread(backup.stdout.readline) == b"halted\n"
    halted = [pid for name, pid in children(parent).items() if name != "signer"]
    assert {state(pid) for pid in halted} == {"T"}
    backup.kill()
    backup.wait()
    backup.stdout.close()
    async with asyncio.timeout(10):
        while "T" in {state(pid) for pid in halted}:
            await asyncio.sleep(0.02)


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]

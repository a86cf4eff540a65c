"""Two operators at once: keys rotated, manifests applied, backups taken, certificates revoked meanwhile."""

from __future__ import annotations

import asyncio
import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from broker_policy.audit.checkpoint import key_name
from broker_policy.audit.store import Store
from broker_policy.backup.restore import restore
from broker_policy.backup.take import Wanted, take
from broker_policy.keys import followers
from broker_policy.keys.rotate import rotate
from broker_policy.keys.site import Site
from broker_policy.keys.turns import only_one, unchanged
from broker_policy.tenants.apply import apply
from broker_policy.tenants.material import PublicMaterial
from mas_nats import Agent, IdentityRefused
from mas_nats.errors import ConfigurationError
from tests.load import Handling, audit_of
from tests.system import REPOSITORY, System, mas, mas_json, wanted

MANIFEST = "agents:\n  - {agent_id: alice, class_path: nowhere:Alice}\n"


@pytest.fixture(scope="module")
def rotating(tmp_path_factory):
    """A broker of our own: its keys are changed under everybody."""
    system = System.up(tmp_path_factory.mktemp("atonce") / ".mas")
    yield system
    system.down()


def site_of(system: System) -> Site:
    return Site(system.layout, lambda _: None)


def agent(system: System, namespace: str, name: str = "alice") -> Agent:
    return Agent(name, server_addr=system.broker.url, tls=system.tls(name, namespace))


async def test_a_manifest_applied_amid_a_rotation_locks_nobody_out(rotating, monkeypatch):
    """On another machine, where no lock is seen: its controller knows the keys of before."""
    namespace = await rotating.namespace(("alice", "bob"), {"alice": ("bob",)})
    wait = followers.workers
    async with rotating.control() as (controller, store):

        async def meanwhile(*arguments: Any) -> None:
            await wait(*arguments)
            await apply(controller, store, wanted(namespace, ("alice", "bob", "carol"), {"alice": ("bob",)}))

        monkeypatch.setattr(followers, "workers", meanwhile)
        await rotate(site_of(rotating), "tenant-signing")
    async with agent(rotating, namespace) as alice, agent(rotating, namespace, "carol"):
        await alice.send("bob", "work", {})


@pytest.mark.parametrize("command", ["apply", "backup"])
async def test_who_reads_keys_waits_for_who_changes_them(rotating, command, tmp_path):
    (tmp_path / "mas.yaml").write_text(MANIFEST)
    arguments = {
        "apply": ("apply", str(tmp_path / "mas.yaml")),
        "backup": ("backup", str(tmp_path / "file"), "--without-keys"),
    }[command]
    program = [sys.executable, "-m", "broker_policy.cli", *arguments, "--folder", str(rotating.layout.root)]
    with only_one(rotating.layout.keys):
        with pytest.raises(ConfigurationError, match="at work"):
            await rotate(site_of(rotating), "tls-worker")
        running = subprocess.Popen(program, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True)
        async with asyncio.timeout(30):
            while not has_open(running.pid, ".rotating"):
                assert running.poll() is None, "it did not wait"
                await asyncio.sleep(0.02)
        assert not (tmp_path / "file").exists()
    _, said = await asyncio.to_thread(running.communicate, timeout=60)
    assert running.returncode == 0, said
    with unchanged(rotating.layout.keys), unchanged(rotating.layout.keys, 0):
        pass  # two manifests at once: policy itself keeps them apart


def has_open(pid: int, name: str) -> bool:
    for descriptor in Path(f"/proc/{pid}/fd").glob("*"):
        try:
            if descriptor.readlink().name == name:
                return True
        except OSError:
            continue
    return False


async def test_a_certificate_is_out_whatever_namespace_was_named(rotating):
    namespace = await rotating.namespace(("alice", "bob"), {"alice": ("bob",)})
    async with agent(rotating, namespace) as alice:
        await alice.send("bob", "work", {})  # the control
        async with rotating.control() as (controller, _):
            [shown] = await controller.certificates_of(f"spiffe://mas/ns/{namespace}/agent/alice")
        folder = ("--folder", str(rotating.layout.root))
        done = await asyncio.to_thread(mas_json, "certs", "revoke", "--fingerprint", shown, *folder)
        assert (done["namespace"], done["disconnected"], done["unseen_nodes"]) == ("default", 1, 0)
        async with asyncio.timeout(20):
            while not await is_out(alice):
                pass


async def is_out(alice: Agent) -> bool:
    try:
        await alice.send("bob", "work", {})
    except IdentityRefused:
        return True
    return False


async def test_a_revocation_says_when_a_node_was_not_asked(rotating):
    namespace = await rotating.namespace(("alice",), {})
    rotating.tls("alice", namespace)
    broker = rotating.broker
    arguments = ("--folder", str(rotating.layout.root), "-n", namespace)
    dataclasses.replace(broker, nodes=2).write(rotating.layout)  # the other one is away
    try:
        done = await asyncio.to_thread(mas, "certs", "revoke", "alice", *arguments, check=False)
        assert done.returncode == 1
        assert "1 nodes do not answer" in done.stderr
    finally:
        broker.write(rotating.layout)


async def test_who_writes_redis_cannot_lengthen_the_life_of_a_checkpoint_key(rotating):
    namespace = await rotating.namespace(("alice", "bob"), {"alice": ("bob",)})
    bob = Handling("bob", server_addr=rotating.broker.url, tls=rotating.tls("bob", namespace))
    async with bob, agent(rotating, namespace) as alice:
        sent = await alice.send("bob", "work", {})
        await audit_of(rotating, namespace, {sent})
    async with rotating.redis() as redis:
        store = Store(redis, namespace)
        head = await store.head()
        await redis.hset(store.layout.head, "i", "1000000")
        try:
            await rotate(site_of(rotating), "checkpoint")
        finally:
            await redis.hset(store.layout.head, "i", str(head.index))
    retired = PublicMaterial.load(rotating.layout.keys).checkpoint_keys.retired[-1]
    assert retired.last["default"] > 0
    assert retired.last[namespace] <= head.index


async def test_a_backup_names_the_keys_that_are_in_it(rotating, tmp_path):
    """The checkpoint key is replaced after the copy was made, and before it is described."""
    public = rotating.layout.keys / "public" / "checkpoint.pub"
    history = rotating.layout.keys / "public" / PublicMaterial.HISTORY
    before, expected = public.read_bytes(), key_name(PublicMaterial.load(rotating.layout.keys).checkpoint)
    other = Ed25519PrivateKey.generate().public_key()
    bystander = tmp_path / "bystander"
    bystander.write_text("kept")
    (tmp_path / "file.part").symlink_to(bystander)

    def say(line: str) -> None:
        if line.startswith("writing"):
            public.write_bytes(other.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))

    try:
        manifest = await take(Wanted(rotating.layout, tmp_path / "file", None, keys=False), say)
    finally:
        public.write_bytes(before)
    assert history.exists() == ("keys/public/" + PublicMaterial.HISTORY in manifest.files)
    assert manifest.checkpoint_key == expected
    assert bystander.read_text() == "kept", "a link that somebody laid there is not followed"
    assert not (tmp_path / "file").is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bystander", "file", "file.part"]


async def test_keys_that_were_rotated_since_a_backup_without_keys(rotating, tmp_path):
    root, file, kept = rotating.layout.root, tmp_path / "file", tmp_path / "kept"
    await take(Wanted(rotating.layout, file, None, keys=False))
    for part in ("keys", "authority", "certs"):
        shutil.copytree(root / part, kept / part)
    await rotate(site_of(rotating), "auth-signing")
    with pytest.raises(ConfigurationError, match="not those of the backup: auth-signing"):
        await restore(file, tmp_path / "new", None, keys=root)
    assert not (tmp_path / "new").exists()
    await restore(file, tmp_path / "new", None, keys=kept)  # the control
    assert (tmp_path / "new" / "keys").is_dir()

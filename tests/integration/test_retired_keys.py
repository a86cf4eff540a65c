"""What a retired key is still good for: nothing. Each attack first works with the key, as the control."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from datetime import timedelta

import pytest
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from broker_policy.audit.checkpoint import Checkpoint, SignedCheckpoint
from broker_policy.audit.checkpoint_stream import CheckpointStream
from broker_policy.audit.store import Store
from broker_policy.identity import jwt
from broker_policy.identity.nkeys import KeyPair, Kind
from broker_policy.identity.pki import CertificateAuthority
from broker_policy.keys import signing
from broker_policy.keys.inventory import BY_NAME
from broker_policy.keys.resolver import Resolver
from broker_policy.keys.rotate import rotate
from broker_policy.keys.site import Site
from broker_policy.keys.staged import Staged
from broker_policy.tenants.connect import Credentials, _connect, connect_control_admin, connect_tenant
from broker_policy.tenants.material import WorkerKeys
from mas_nats import Agent, IdentityRefused, IdReused, MasError, TlsClientConfig, Unavailable
from mas_nats.errors import ConfigurationError
from mas_nats.wire.identity import DEFAULT_TRUST_DOMAIN, Identity, Role
from tests.load import Handling, audit_of
from tests.system import System, mas, mas_json


@pytest.fixture(scope="module")
def rotating(tmp_path_factory):
    """A broker of our own: its keys are changed under everybody."""
    system = System.up(tmp_path_factory.mktemp("retired") / ".mas")
    yield system
    system.down()


def site_of(system: System) -> Site:
    return Site(system.layout, lambda _: None)


def agent(system: System, namespace: str, name: str = "alice") -> Agent:
    return Agent(name, server_addr=system.broker.url, tls=system.tls(name, namespace))


async def opens(system: System, keys: WorkerKeys, account: str) -> bool:
    endpoint = system.broker.connection(system.layout, "worker")
    try:
        client = await connect_tenant(endpoint, keys, account, name="thief", patience=3)
    except IdentityRefused:
        return False
    await client.close()
    return True


async def test_a_jwt_of_a_retired_signing_key_opens_nothing(rotating):
    namespace = await rotating.namespace(("alice", "bob"), {"alice": ("bob",)})
    stolen = WorkerKeys.load(rotating.layout.keys)
    async with rotating.control() as (_, store):
        document = (await store.get(namespace)).document
    accounts = [document.account, document.agents["alice"].account]
    assert [await opens(rotating, stolen, account) for account in accounts] == [True, True], "the control"
    endpoint = rotating.broker.connection(rotating.layout, "worker")
    inside = await connect_tenant(endpoint, stolen, document.account, name="thief")
    gone = asyncio.Event()

    async def lost() -> None:
        gone.set()

    inside._disconnected_cb = lost
    await rotate(site_of(rotating), "tenant-signing")
    await asyncio.wait_for(gone.wait(), 5)
    await inside.close()
    assert [await opens(rotating, stolen, account) for account in accounts] == [False, False]
    fresh = await rotating.namespace(("carol",), {})
    async with rotating.control() as (_, store):
        document = (await store.get(fresh)).document
    assert not await opens(rotating, stolen, document.account), "nor where mas apply came later"
    async with agent(rotating, namespace) as alice:
        await alice.send("bob", "work", {})


@pytest.mark.parametrize(
    "crash", ["before the accounts", "after the accounts", "amid the turn", "at the end"]
)
async def test_a_rotation_that_died_anywhere_goes_on(rotating, crash):
    namespace = await rotating.namespace(("alice", "bob"), {"alice": ("bob",)})
    site, staged = site_of(rotating), Staged(BY_NAME["tenant-signing"].path(rotating.layout))
    old = staged.current.public
    staged.begin()
    new = staged.new.public
    if crash != "before the accounts":
        signing.write_tenant_signing(site, old, new)
        await signing._change(site, lambda claims: signing.with_key(claims, old, new), "")
    if crash == "amid the turn":
        shutil.copy(staged.path, staged._old)
    if crash == "at the end":
        staged.turn()
    async with agent(rotating, namespace) as alice:
        await alice.send("bob", "work", {"at": crash})
        with pytest.raises(ConfigurationError, match="tenant-signing is not finished"):
            await rotate(site, "auth-signing")
        await rotate(site, "tenant-signing")
        await alice.send("bob", "work", {"after": crash})
    assert staged.current.public == new
    assert not staged.under_way
    async with Resolver(site) as resolver:
        assert await resolver.change_all(lambda claims: signing.without_key(claims, old)) == 0, (
            "no trace of it"
        )


async def test_a_repetition_after_a_rotation_is_known(rotating):
    namespace = await rotating.namespace(("alice", "bob"), {"alice": ("bob",)})
    async with (
        Handling("bob", server_addr=rotating.broker.url, tls=rotating.tls("bob", namespace)) as bob,
        agent(rotating, namespace) as alice,
    ):
        await alice.send("bob", "work", {"n": 1}, id="m1")
        assert await bob.wait_handled({"m1"}, 20) == set()
        await audit_of(rotating, namespace, {"m1"})
        await rotate(site_of(rotating), "sealing")
        for _ in range(8):  # whichever worker takes it
            await alice.send("bob", "work", {"n": 1}, id="m1")
        with pytest.raises(IdReused):
            await alice.send("bob", "work", {"n": 2}, id="m1")
        await rotate(site_of(rotating), "sealing", now=True)
        for _ in range(8):
            with pytest.raises(IdReused):  # the control: without the old keys it cannot be told any more
                await alice.send("bob", "work", {"n": 1}, id="m1")
        assert bob.handled["m1"] == 1


async def test_replies_to_requests_of_before_a_rotation(rotating):
    namespace = await rotating.namespace(("alice", "bob"), {"alice": ("bob",)})
    asked, answer = asyncio.Event(), asyncio.Event()

    class Slow(Agent):
        async def on_message(self, message):
            asked.set()
            await answer.wait()
            await message.reply("answer", {})

    async with (
        Slow("bob", server_addr=rotating.broker.url, tls=rotating.tls("bob", namespace)),
        agent(rotating, namespace) as alice,
    ):
        for now, outcome in ((False, None), (True, MasError)):
            asked.clear()
            answer.clear()
            waiting = asyncio.create_task(alice.request("bob", "ask", {}, timeout=8))
            await asyncio.wait_for(asked.wait(), 10)
            await rotate(site_of(rotating), "sealing", now=now)
            answer.set()
            if outcome is None:
                await waiting
            else:
                with pytest.raises(outcome):
                    await waiting


async def test_a_checkpoint_of_a_retired_key(rotating, tmp_path):
    layout, folder = rotating.layout, str(rotating.layout.root)
    namespace = await rotating.namespace(("alice", "bob"), {"alice": ("bob",)})
    stolen = load_pem_private_key(BY_NAME["checkpoint"].path(layout).read_bytes(), None)

    async def traffic(beyond: int = 0) -> int:
        async with agent(rotating, namespace) as alice:
            for _ in range(5):
                await alice.send("bob", "work", {})
        endpoint = rotating.broker.connection(layout, "controller")
        client = await connect_control_admin(endpoint, rotating.material.controller)
        async with asyncio.timeout(30), rotating.redis() as redis:
            while True:
                head = await Store(redis, namespace).head()
                signed, _ = await CheckpointStream(client, namespace).last()
                if signed is not None and signed.checkpoint.index == head.index > beyond:
                    break
                await asyncio.sleep(0.1)
        await client.close()
        return head.index

    async def verified(*more: str) -> dict[str, object]:
        done = await asyncio.to_thread(
            mas, "audit", "verify", "--folder", folder, "-n", namespace, *more, "--json", check=False
        )

        return json.loads(done.stdout)

    async def forge(index: int) -> None:
        endpoint = rotating.broker.connection(layout, "controller")
        client = await connect_control_admin(endpoint, rotating.material.controller)
        stream = CheckpointStream(client, namespace)
        async with rotating.redis() as redis:
            entry = (await Store(redis, namespace).entries_at([index]))[index]
        checkpoint = Checkpoint(namespace, index, entry.hash, 1, int(time.time() * 1000))
        _, after = await stream.last()
        await stream.append(SignedCheckpoint.sign(checkpoint, stolen), after)
        await client.close()

    before = await traffic()
    await rotate(site_of(rotating), "checkpoint")
    async with rotating.redis() as redis:
        before = max(before, (await Store(redis, namespace).head()).index)
    await traffic(before)
    report = await verified()
    assert report["intact"], report
    export = tmp_path / "audit.jsonl"
    public = layout.keys / "public" / "checkpoint.pub"
    await asyncio.to_thread(mas, "audit", "export", str(export), "--folder", folder, "-n", namespace)
    alone = await verified("--file", str(export), "--public-key", str(public))
    assert alone["intact"], "offline with the newest public key alone"
    assert alone["checkpoints"] > 1
    lines = export.read_text().splitlines()
    (tmp_path / "cut").write_text("\n".join(line for line in lines if "checkpoint_keys" not in line) + "\n")
    assert not (await verified("--file", str(tmp_path / "cut"), "--public-key", str(public)))["intact"]
    await forge(int(report["signed_index"]))
    findings = (await verified())["findings"]
    assert [finding["kind"] for finding in findings] == ["checkpoint"], findings


async def test_a_revoked_certificate_stays_out(rotating, tmp_path):
    folder = str(rotating.layout.root)
    namespace = await rotating.namespace(("alice", "bob"), {"alice": ("bob",)})
    tls = rotating.tls("alice", namespace)
    copy = TlsClientConfig(*(shutil.copy(path, tmp_path) for path in tls.paths))
    thief = Agent("alice", server_addr=rotating.broker.url, tls=copy)
    async with thief, agent_with(rotating, "bob", namespace):
        await thief.send("bob", "work", {})  # the control
        done = await asyncio.to_thread(
            mas_json, "certs", "revoke", "alice", "--folder", folder, "-n", namespace
        )
        assert done["disconnected"] == 1
        with pytest.raises(MasError):
            await thief.send("bob", "work", {}, timeout=3)
    renewed = rotating.tls("alice", namespace)
    async with Agent("alice", server_addr=rotating.broker.url, tls=renewed) as alice:
        await alice.send("bob", "work", {})
        kicked = await asyncio.to_thread(mas_json, "kick", "alice", "--folder", folder, "-n", namespace)
        assert kicked["disconnected"] == 1
        await alice.send("bob", "work", {})
    for where in (("alicia", "-n", namespace), ("alice", "-n", "elsewhere"), ("bob", "-n", namespace)):
        done = await asyncio.to_thread(mas, "kick", *where, "--folder", folder, check=False)
        assert (done.returncode == 0) == (where[0] == "bob"), "who is away, and nobody"
        assert done.returncode == 0 or f"there is no agent '{where[0]}'" in done.stderr
    rotating.down()
    await asyncio.to_thread(mas, "up", "--detach", "--folder", folder)
    with pytest.raises(IdentityRefused):
        async with Agent("alice", server_addr=rotating.broker.url, tls=copy):
            pass
    async with Agent("alice", server_addr=rotating.broker.url, tls=renewed) as alice:
        await alice.send("bob", "work", {})


def agent_with(system: System, name: str, namespace: str) -> Agent:
    return Handling(name, server_addr=system.broker.url, tls=system.tls(name, namespace))


async def test_a_certificate_of_the_retired_ca(rotating, tmp_path):
    layout = rotating.layout
    namespace = await rotating.namespace(("alice", "bob"), {"alice": ("bob",)})
    shutil.copytree(layout.authority, tmp_path / "stolen")
    stolen = CertificateAuthority.load(tmp_path / "stolen")
    identity = Identity(DEFAULT_TRUST_DOMAIN, namespace, Role.AGENT, "alice")
    paths = stolen.issue(identity, tmp_path / "made", lifetime=timedelta(hours=1))
    forged = TlsClientConfig(layout.ca, paths.cert, paths.key)
    await rotate(site_of(rotating), "ca")
    async with Agent("alice", server_addr=rotating.broker.url, tls=forged) as inside:
        await inside.send("bob", "work", {})  # the control: both are trusted for a while
        await rotate(site_of(rotating), "ca", now=True)
        with pytest.raises(MasError):
            await inside.send("bob", "work", {}, timeout=3)
    with pytest.raises(IdentityRefused):
        async with Agent("alice", server_addr=rotating.broker.url, tls=forged):
            pass
    async with agent(rotating, namespace) as alice:
        await alice.send("bob", "work", {})


async def test_an_account_that_a_thief_of_the_operator_key_made(rotating):
    site = site_of(rotating)
    stolen = rotating.material.controller.operator_signing
    before, after = KeyPair.create(Kind.ACCOUNT), KeyPair.create(Kind.ACCOUNT)

    async def push(account: KeyPair) -> None:
        async with Resolver(site) as resolver:
            body = jwt.encode(stolen, jwt.Account(account.public, "forged").claims()).encode()
            await resolver._system.request("$SYS.REQ.CLAIMS.UPDATE", body, timeout=5)

    async def enters(account: KeyPair) -> bool:
        user = KeyPair.create(Kind.USER)
        claims = jwt.user_claims(user.public, "thief", jwt.EVERYTHING)
        endpoint = rotating.broker.connection(rotating.layout, "worker")
        try:
            client = await _connect(
                endpoint, lambda: Credentials(user, account, claims), name="thief", patience=3
            )
        except (IdentityRefused, Unavailable):
            return False
        await client.close()
        return True

    await push(before)
    assert await enters(before), "the control"
    await rotate(site, "operator-signing")
    await push(after)
    assert not await enters(after)
    assert not await enters(before), "nor what was made before the key was replaced"


async def test_the_accounts_secret_says_why_not(rotating):
    done = mas("keys", "rotate", "accounts", "--folder", str(rotating.layout.root), check=False)
    assert done.returncode == 1
    assert "cannot be rotated in place" in done.stderr


async def test_keys_are_listed_without_what_is_in_them(rotating):
    done = mas("keys", "list", "--folder", str(rotating.layout.root), "--json")
    for key in BY_NAME.values():
        secret = key.path(rotating.layout).read_text()
        assert f'"{key.name}"' in done.stdout
        assert secret.strip() not in done.stdout
        assert f'"{key.path(rotating.layout)}"' in done.stdout

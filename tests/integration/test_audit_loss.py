"""Redis lost what was signed: the signer refuses until somebody accepts that, by name; and only then."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from nats.aio.client import Client
from redis.asyncio import Redis

from broker_policy.audit.checkpoint import Checkpoint, Loss, SignedCheckpoint
from broker_policy.audit.checkpoint_stream import CheckpointStream
from broker_policy.audit.export import export, verify_file
from broker_policy.audit.findings import FindingKind, Report
from broker_policy.audit.key_history import CheckpointKeys
from broker_policy.audit.loss import NotALoss, NothingLost, accept, find
from broker_policy.audit.projector import Projector
from broker_policy.audit.record import Way
from broker_policy.audit.signer import ChainAltered, Signer
from broker_policy.audit.store import Store
from broker_policy.audit.verify import verify
from broker_policy.embedded.nats_server import NatsServer
from broker_policy.embedded.redis_server import RedisServer
from broker_policy.identity.pki import CertificateAuthority
from mas_nats.wire.identity import DEFAULT_TRUST_DOMAIN, Identity, Role
from tests.audit_log import KEY, NAMESPACE, LogWriter, connect, line, make_streams


class Audit:
    """A log, its chain, and a signer."""

    def __init__(self, nc: Client, redis: Redis) -> None:
        self.redis = redis
        self.store = Store(redis, NAMESPACE)
        self.stream = CheckpointStream(nc, NAMESPACE)
        self.key = Ed25519PrivateKey.generate()
        self.keys = CheckpointKeys(self.key.public_key())
        self.signer = Signer(self.store, self.stream, self.key)
        self._nc = nc
        self._writer = LogWriter(nc)

    async def project(self) -> None:
        projector = Projector(NAMESPACE, self._nc, self.redis, KEY)
        while await projector.project_once():
            pass
        await projector.remove_projected()

    async def go_on(self) -> None:
        """More decisions, in the chain."""
        if not self._writer.number:
            await self._writer.open()
        for _ in range(3):
            await self._writer.batch([line(Way.BATCH), line()])
        await self.project()

    async def signed(self) -> int:
        await self.go_on()
        checkpoint = await self.signer.sign_once()
        assert checkpoint is not None
        return checkpoint.index

    async def verify(self) -> Report:
        return await verify(self.store, self.stream.standing(self.keys), self.keys)

    async def dump(self) -> dict[bytes, bytes]:
        return {name: await self.redis.dump(name) async for name in self.redis.scan_iter()}

    async def load(self, dump: dict[bytes, bytes]) -> None:
        await self.redis.flushall()
        for name, value in dump.items():
            await self.redis.restore(name, 0, value)


@pytest.fixture
async def audit(
    nats_server: NatsServer, redis_server: RedisServer, ca: CertificateAuthority, tmp_path: Path
) -> AsyncIterator[Audit]:
    worker = Identity(DEFAULT_TRUST_DOMAIN, NAMESPACE, Role.POLICY, "worker")
    nc = await connect(nats_server, ca.issue(worker, tmp_path / "certificate"))
    await make_streams(nc)
    redis = Redis.from_url(redis_server.url, socket_timeout=5)
    yield Audit(nc, redis)
    await redis.aclose()
    await nc.close()


@pytest.mark.parametrize("older", [False, True], ids=["everything", "the end"])
async def test_a_loss_is_named_accepted_and_signed_onward(audit: Audit, tmp_path: Path, older: bool) -> None:
    kept = await audit.signed()
    dump = await audit.dump() if older else {}
    last = await audit.signed()
    await audit.load(dump)
    await audit.go_on()
    with pytest.raises(ChainAltered):
        await audit.signer.sign_once()
    kinds = {finding.kind for finding in (await audit.verify()).findings}
    assert kinds & {FindingKind.CUT, FindingKind.REWRITTEN}

    missing = await find(audit.store, audit.stream, audit.keys)
    assert (missing.first, missing.last) == (kept + 1 if older else 1, last)
    await accept(audit.store, audit.stream, audit.key, missing, "the disk broke")
    await audit.go_on()
    assert await audit.signer.sign_once() is not None
    report = await audit.verify()
    assert report.findings == []
    [lost] = report.losses
    assert (lost["first"], lost["last"], lost["reason"]) == (missing.first, last, "the disk broke")
    entries = [stored.entry() async for stored in audit.store.entries()]
    assert [entry["to"] for entry in entries if entry["k"] == "l"] == [last]
    with pytest.raises(NothingLost):
        await find(audit.store, audit.stream, audit.keys)
    file = tmp_path / "audit.jsonl"
    await export(audit.store, audit.stream.standing(audit.keys), file)
    exported = verify_file(file, audit.key.public_key())
    assert exported.intact
    assert exported.losses == report.losses
    # The control: nobody who looks at all checkpoints misses it.
    everything = await verify(audit.store, audit.stream.all(), audit.keys)
    assert not everything.intact


async def test_what_is_there_or_altered_cannot_be_given_up(audit: Audit) -> None:
    with pytest.raises(NothingLost):
        await find(audit.store, audit.stream, audit.keys)
    last = await audit.signed()
    with pytest.raises(NothingLost):
        await find(audit.store, audit.stream, audit.keys)
    await audit.redis.xdel(audit.store.layout.chain, f"{last}-0")
    with pytest.raises(NotALoss):
        await find(audit.store, audit.stream, audit.keys)


async def test_a_loss_that_another_key_signed_counts_nothing(audit: Audit) -> None:
    await audit.signed()
    last = await audit.signed()
    await audit.redis.flushall()
    await audit.go_on()
    missing = await find(audit.store, audit.stream, audit.keys)
    head = await audit.store.head()
    lost = Loss(1, last, missing.hash, "nothing to see")
    forged = Checkpoint(NAMESPACE, head.index, head.hash.hex(), head.sequence, 0, lost)
    signed = SignedCheckpoint.sign(forged, Ed25519PrivateKey.generate())
    await audit.stream.append(signed, missing.after)
    report = await audit.verify()
    assert not report.intact
    assert report.losses == []
    with pytest.raises(ChainAltered):
        await audit.signer.sign_once()

"""Sealed segments: nothing is lost on the way, nothing can be changed there, both stores are one chain."""

from __future__ import annotations

import gzip
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import orjson
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from redis.asyncio import Redis

from broker_policy.audit.checkpoint import Checkpoint, SignedCheckpoint
from broker_policy.audit.compliance import compliance
from broker_policy.audit.export import export, verify_file
from broker_policy.audit.findings import FindingKind, Report
from broker_policy.audit.key_history import CheckpointKeys
from broker_policy.audit.query import Question, ask
from broker_policy.audit.retention import OtherSegments, Retention
from broker_policy.audit.seal import SignedSeal, trusted
from broker_policy.audit.segments import Past, SegmentBroken, Segments
from broker_policy.audit.signer import ChainAltered, Signer
from broker_policy.audit.store import Store
from broker_policy.audit.verify import verify
from broker_policy.embedded.redis_server import RedisServer
from tests.audit_fill import AGENTS, START, STEP, fill

AT_ONCE = 300
NOW = (START + STEP * 100_000) / 1000


class Checkpoints:
    """The checkpoint stream's part in this, without a server."""

    def __init__(self) -> None:
        self.signed: list[SignedCheckpoint] = []

    async def last(self) -> tuple[SignedCheckpoint | None, int]:
        return (self.signed[-1] if self.signed else None), len(self.signed)

    async def append(self, signed: SignedCheckpoint, after: int) -> int:
        assert after == len(self.signed)
        self.signed.append(signed)
        return len(self.signed)

    async def standing(self, keys: CheckpointKeys) -> AsyncIterator[SignedCheckpoint]:
        for signed in self.signed:
            yield signed


class Audit:
    """A chain of 1,200 decisions with two checkpoints, the last at its end."""

    def __init__(self, store: Store, folder: Path) -> None:
        self.store = store
        self.key = Ed25519PrivateKey.generate()
        self.keys = CheckpointKeys(self.key.public_key())
        self.stream = Checkpoints()
        self.folder = folder
        self.segments = Segments(folder)
        self.decisions = 0

    @property
    def work(self) -> Retention:
        return Retention(self.store, self.stream, self.keys, self.key, self.segments, at_once=AT_ONCE)  # type: ignore[arg-type]

    async def grow(self, count: int = 600) -> None:
        await fill(self.store, count, seed=self.decisions, first=self.decisions)
        self.decisions += count
        assert await Signer(self.store, self.stream, self.key).sign_once() is not None  # type: ignore[arg-type]

    async def verify(self, *, folder: bool = True) -> Report:
        segments = self.segments if folder else None
        standing = self.stream.standing(self.keys)
        return await verify(self.store, standing, self.keys, now=NOW, segments=segments)

    async def past(self) -> Past:
        seals = trusted("default", await self.store.seals(), self.keys)
        return Past(self.segments, tuple(seals))

    async def head(self) -> int:
        return (await self.store.head()).index


@pytest.fixture
async def audit(redis_server: RedisServer, tmp_path: Path) -> AsyncIterator[Audit]:
    redis = Redis.from_url(redis_server.url, socket_timeout=30)
    made = Audit(Store(redis, "default"), tmp_path / "segments")
    await made.grow()
    await made.grow()
    yield made
    await redis.aclose()


def kinds(report: Report) -> set[FindingKind]:
    return {finding.kind for finding in report.findings}


# -- the plain way -------------------------------------------------------------------------------------------
async def test_sealed_removed_and_one_chain(audit: Audit) -> None:
    before = await audit.verify()
    assert before.intact
    made = await audit.work.seal(1000)
    assert [(seal.first, seal.last) for seal in made] == [(1, 300), (301, 600), (601, 900), (901, 1000)]
    assert (await audit.verify()).intact  # sealed, not removed
    used = (await audit.store.redis.info("memory"))["used_memory"]
    assert await audit.work.remove(1000) == 1000
    assert (await audit.store.redis.info("memory"))["used_memory"] < used - 200_000
    assert await audit.store.redis.xlen(audit.store.layout.chain) == await audit.head() - 1000
    after = await audit.verify()
    assert after.findings == []
    assert (after.entries, after.decisions, after.outcomes) == (
        before.entries,
        before.decisions,
        before.outcomes,
    )
    assert (after.signed_index, after.unexamined) == (before.signed_index, [])


async def test_without_the_folder_it_says_what_it_lacks(audit: Audit) -> None:
    await audit.work.seal(700)
    await audit.work.remove(700)
    report = await audit.verify(folder=False)
    assert report.intact
    assert [(each["first"], each["last"]) for each in report.unexamined] == [(1, 300), (301, 600), (601, 700)]
    assert report.entries == await audit.head() - 700
    assert report.signed_index == await audit.head()


async def test_the_chain_goes_on_and_is_sealed_on(audit: Audit) -> None:
    await audit.work.seal(500)
    await audit.work.remove(500)
    await audit.grow()
    assert (await audit.verify()).intact
    made = await audit.work.seal(10**9)
    assert made[0].first == 501
    assert made[-1].last == await audit.head() - 1  # the signer goes on from the entry of its checkpoint
    await audit.work.remove(10**9)
    await audit.grow()
    assert (await audit.verify()).intact
    assert await audit.work.seal(5) == []


async def test_questions_and_reports_span_both(audit: Audit) -> None:
    questions = [
        Question(),
        Question(sender=AGENTS[1]),
        Question(decision="AUTHZ_DENIED"),
        Question(since=START + STEP * 200, until=START + STEP * 900),
        Question(outcome="d"),
    ]
    some = await ask(audit.store, Question(), limit=1, oldest_first=True)
    questions.append(Question(message_id=some[0].entry["id"]))
    expected = [await ask(audit.store, question, limit=5000) for question in questions]
    report = (await compliance(audit.store, START + STEP * 200, START + STEP * 900)).document()
    await audit.work.seal(700)
    await audit.work.remove(700)
    past = await audit.past()
    for question, rows in zip(questions, expected, strict=True):
        assert rows
        assert await ask(audit.store, question, limit=5000, past=past) == rows
        assert await ask(audit.store, question, limit=5000, past=past, oldest_first=True) == rows[::-1]
        paged = []
        while page := await ask(
            audit.store, question, limit=70, past=past, cursor=paged[-1].index if paged else None
        ):
            paged += page
        assert paged == rows
    assert len(await ask(audit.store, Question(), limit=5000)) < len(expected[0])  # the control
    again = await compliance(audit.store, START + STEP * 200, START + STEP * 900, past)
    assert again.document() == report


async def test_an_export_after_it_verifies_offline(audit: Audit, tmp_path: Path) -> None:
    await audit.work.seal(700)
    await audit.work.remove(700)
    file, public = tmp_path / "audit.jsonl", audit.key.public_key()
    await export(audit.store, audit.stream.standing(audit.keys), file)
    whole = verify_file(file, public, now=NOW, segments=audit.segments)
    assert whole.findings == []
    assert whole.entries == await audit.head()
    part = verify_file(file, public, now=NOW)
    assert part.intact
    assert [each["last"] for each in part.unexamined] == [300, 600, 700]
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(line for line in lines if not line.startswith(b'{"seal"')))
    assert FindingKind.REMOVED in kinds(verify_file(file, public, now=NOW))


async def test_only_what_is_settled_and_signed_leaves(audit: Audit) -> None:
    """A decision whose outcome the projector still looks for stays, and so does the last signed entry."""
    await audit.store.redis.sadd(audit.store.layout.unsettled, "w9")
    await audit.store.redis.hset(
        audit.store.layout.pending("w9"), "1.0", orjson.dumps([450, "lone", "bob", 1])
    )
    await audit.work.seal(10**9)
    assert await audit.work.remove(10**9) == 300
    await audit.store.redis.delete(audit.store.layout.pending("w9"))
    last = audit.stream.signed[-1].checkpoint.index
    assert await audit.work.remove(10**9) == last - 1
    assert await Signer(audit.store, audit.stream, audit.key).sign_once() is None  # type: ignore[arg-type]


# -- crashes -------------------------------------------------------------------------------------------------
class Crash(BaseException):
    """The process ends here."""


async def test_a_crash_at_any_point_loses_nothing(audit: Audit, monkeypatch) -> None:
    """Sealing and removing end after every single effect on disk or Redis, and begin again."""
    decisions = await ask(audit.store, Question(), limit=5000)
    left = 0

    def counted(owner: type, name: str) -> None:
        real = getattr(owner, name)
        asynchronous = name in ("add_seal", "_remove")

        def step() -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise Crash

        async def later(*args, **kwargs):
            step()
            result = await real(*args, **kwargs)
            step()
            return result

        def now(*args, **kwargs):
            step()
            result = real(*args, **kwargs)
            step()
            return result

        monkeypatch.setattr(owner, name, later if asynchronous else now)

    counted(Segments, "_put")
    counted(Store, "add_seal")
    counted(Retention, "_remove")
    crashes = 0
    chosen = random.Random(11)
    for _ in range(500):
        left = chosen.randint(0, 9)
        work = Retention(audit.store, audit.stream, audit.keys, audit.key, audit.segments, at_once=100)  # type: ignore[arg-type]
        try:
            await work.seal(1000)
            await work.remove(1000)
        except Crash:
            crashes += 1
            left = 10**9
            if crashes % 3 == 0:
                report = await audit.verify()
                assert report.findings == []
                assert await ask(audit.store, Question(), limit=5000, past=await audit.past()) == decisions
            continue
        break
    assert crashes > 10
    left = 10**9
    assert (await audit.store.removed()).index == 1000
    assert (await audit.verify()).findings == []
    assert await ask(audit.store, Question(), limit=5000, past=await audit.past()) == decisions


async def test_a_half_written_segment_removes_nothing(audit: Audit) -> None:
    made = await audit.work.seal(600)
    path = audit.folder / made[1].name
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(SegmentBroken):
        await audit.work.remove(600)
    assert (await audit.store.removed()).index == 300  # the first is whole
    path.unlink()
    with pytest.raises(SegmentBroken):
        await audit.work.remove(600)
    assert (await audit.store.removed()).index == 300
    assert await audit.store.redis.xlen(audit.store.layout.chain) == await audit.head() - 300


# -- attacks -------------------------------------------------------------------------------------------------
def rewritten(packed: bytes, change: Callable[[list[bytes]], list[bytes]]) -> bytes:
    return gzip.compress(b"\n".join(change(gzip.decompress(packed).splitlines())) + b"\n", mtime=0)


def other(audit: Audit, place: int) -> Path:
    return sorted(audit.folder.glob("*.gz"))[place]


async def missing(audit: Audit) -> None:
    other(audit, 1).unlink()


async def swapped(audit: Audit) -> None:
    one, two = other(audit, 0), other(audit, 1)
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)


async def an_entry_changed(audit: Audit) -> None:
    path = other(audit, 1)
    path.write_bytes(
        rewritten(path.read_bytes(), lambda lines: [line.replace(b"agent-01", b"agent-02") for line in lines])
    )


async def an_entry_removed(audit: Audit) -> None:
    path = other(audit, 1)
    path.write_bytes(rewritten(path.read_bytes(), lambda lines: lines[:50] + lines[51:]))


async def packed_anew(audit: Audit) -> None:
    """The same entries in another file: what was sealed is the file."""
    path = other(audit, 1)
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()), compresslevel=1))


async def damaged(audit: Audit) -> None:
    other(audit, 2).write_bytes(b"nothing")


async def sealed_by_another_key(audit: Audit) -> None:
    """Rewritten segment with a seal of the attacker's own, in the folder and in Redis."""
    path = other(audit, 2)
    signed = SignedSeal.decode(path.with_name(f"{path.name}.seal").read_bytes())
    forged = SignedSeal.sign(signed.seal, Ed25519PrivateKey.generate())
    await audit.store.add_seal(forged)


async def a_seal_taken_from_redis(audit: Audit) -> None:
    await audit.store.redis.hdel(audit.store.layout.seals, "600")


async def more_removed_than_sealed(audit: Audit) -> None:
    redis, layout = audit.store.redis, audit.store.layout
    entry = (await audit.store.entries_at([950]))[950]
    await redis.xtrim(layout.chain, minid="951-0", approximate=False)
    await redis.hset(layout.removed, mapping={"i": "950", "h": entry.hash})


async def removed_mark_moved(audit: Audit) -> None:
    await audit.store.redis.hset(audit.store.layout.removed, mapping={"i": "800"})


async def the_hash_there_changed(audit: Audit) -> None:
    await audit.store.redis.hset(audit.store.layout.removed, mapping={"h": "ab" * 32})


ATTACKS: list[tuple[Callable[[Audit], Awaitable[None]], set[FindingKind]]] = [
    (missing, {FindingKind.SEGMENT}),
    (swapped, {FindingKind.SEGMENT}),
    (an_entry_changed, {FindingKind.SEGMENT}),
    (an_entry_removed, {FindingKind.SEGMENT}),
    (packed_anew, {FindingKind.SEGMENT}),
    (damaged, {FindingKind.SEGMENT}),
    (sealed_by_another_key, {FindingKind.REMOVED}),
    (a_seal_taken_from_redis, {FindingKind.REMOVED}),
    (more_removed_than_sealed, {FindingKind.REMOVED}),
    (removed_mark_moved, {FindingKind.CHANGED, FindingKind.REMOVED}),
    (the_hash_there_changed, {FindingKind.CHANGED}),
]


@pytest.mark.parametrize(("attack", "expected"), ATTACKS, ids=lambda each: getattr(each, "__name__", ""))
async def test_an_attack_is_found(audit: Audit, attack, expected: set[FindingKind]) -> None:
    await audit.work.seal(900)
    await audit.work.remove(900)
    assert (await audit.verify()).findings == []  # the control
    await attack(audit)
    assert kinds(await audit.verify()) & expected


async def test_who_holds_redis_alone_cannot_remove_under_a_seal_of_his_own(audit: Audit) -> None:
    audit_key = Ed25519PrivateKey.generate()
    thief = Retention(
        audit.store,
        audit.stream,  # type: ignore[arg-type]
        CheckpointKeys(audit_key.public_key(), ()),
        audit_key,
        Segments(audit.folder.with_name("elsewhere")),
    )
    with pytest.raises(Exception, match="nothing was signed"):
        await thief.seal(600)


async def test_an_altered_chain_is_not_sealed(audit: Audit) -> None:
    await audit.store.redis.xdel(audit.store.layout.chain, "100-0")
    with pytest.raises(ChainAltered):
        await audit.work.seal(50)  # also when the edit lies behind what would be sealed
    assert not audit.folder.exists()


async def test_a_chain_that_was_rewritten_whole_is_not_sealed(audit: Audit) -> None:
    """Every hash is right again; only the checkpoint says otherwise."""
    signed = audit.stream.signed[-1].checkpoint
    other_hash = Checkpoint("default", signed.index, "cd" * 32, 1, 1)
    audit.stream.signed[-1] = SignedCheckpoint.sign(other_hash, audit.key)
    with pytest.raises(ChainAltered):
        await audit.work.seal(50)


async def test_segments_of_another_chain_are_not_overwritten(audit: Audit) -> None:
    """Redis lost everything, a new chain begins at entry 1: its segments have the names of the old ones."""
    made = await audit.work.seal(600)
    kept = (audit.folder / made[0].name).read_bytes()
    await audit.store.redis.flushall()
    audit.stream.signed.clear()
    audit.decisions = 5000
    await audit.grow()
    with pytest.raises(OtherSegments):
        await audit.work.seal(300)
    assert (audit.folder / made[0].name).read_bytes() == kept

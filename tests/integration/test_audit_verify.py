"""Whoever edits the audit in Redis, or an export of it, is found; an untouched audit is intact."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import orjson
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from nats.errors import BadSubjectError
from redis.asyncio import Redis
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeout
from typer.testing import CliRunner

from broker_policy.audit import chain, entry, signer
from broker_policy.audit.checkpoint import Checkpoint, SignedCheckpoint
from broker_policy.audit.checkpoint_stream import CheckpointStream, SignedNamespaces
from broker_policy.audit.entry import Entry, WorkerEvent
from broker_policy.audit.export import export, verify_file
from broker_policy.audit.findings import FindingKind, Report
from broker_policy.audit.key_history import CheckpointKeys
from broker_policy.audit.layout import NAMESPACES, SHARDS, id_place
from broker_policy.audit.query import Question, ask
from broker_policy.audit.record import Outcome, Record, RecordKind, Way
from broker_policy.audit.settled import Settled
from broker_policy.audit.signer import ChainAltered, Signer, SigningRound
from broker_policy.audit.store import Store
from broker_policy.audit.tail import Tail
from broker_policy.audit.verify import verify
from broker_policy.cli.app import ExitCode, app
from broker_policy.embedded.nats_server import NatsServer
from broker_policy.identity.pki import CertificateAuthority
from broker_policy.jetstream import JetStreamError, publish
from broker_policy.printable import told
from mas_nats.wire import subjects
from mas_nats.wire.identity import DEFAULT_TRUST_DOMAIN, Identity, Role
from tests.audit_log import NAMESPACE, connect, line, make_streams

KEY = Ed25519PrivateKey.generate()
KEYS = CheckpointKeys(KEY.public_key())
Checkpoints = list[SignedCheckpoint]
Rows = list[tuple[bytes, str]]  # canonical entry and hash


@pytest.fixture
async def store(redis: Redis) -> Store:
    """An audit of 300 entries, with every kind of decision and outcome."""
    store = Store(redis, NAMESPACE)
    await grow(store, 300)
    return store


async def grow(store: Store, count: int) -> None:
    """Append ``count`` entries, the last of them an outcome."""
    tail = Tail(store, time.time)
    await tail.refresh()
    draft, settled = tail.draft(), Settled()
    record = Record(NAMESPACE, "w1i", 1 + draft.next_index, "", RecordKind.DECISIONS, 1, 3)
    draft.add(entry.worker(draft.next_index, 1, tail.now(), WorkerEvent.OPEN, "w1i", 1))
    for position in range(count - 2):
        index = draft.next_index
        way = Way.NONE if position % 5 == 0 else Way.LONE if position % 5 == 1 else Way.BATCH
        draft.add_decision(entry.decision(index, 2, record, position, line(way), 0, ""))
        if way is Way.LONE:
            settled.add(index, Outcome.COMMITTED, message=index)
    draft.sequence += 1000
    settled.write(draft, tail.now())
    await tail.append(draft)


async def all_of(checkpoints: Checkpoints) -> AsyncIterator[SignedCheckpoint]:
    for signed in checkpoints:
        yield signed


async def sign(store: Store, *, at: int = 0) -> SignedCheckpoint:
    """A checkpoint of the head, or of the entry at ``at``."""
    head = await store.head()
    index = at or head.index
    digest = (await store.entries_at([index]))[index].hash
    return SignedCheckpoint.sign(Checkpoint(NAMESPACE, index, digest, head.sequence, 1_000), KEY)


async def examine(store: Store, checkpoints: Checkpoints | None = None) -> Report:
    return await verify(store, None if checkpoints is None else all_of(checkpoints), KEYS)


def found(report: Report) -> set[FindingKind]:
    return {finding.kind for finding in report.findings}


# -- rewriting Redis ---------------------------------------------------------------------------------------
async def rows(store: Store) -> Rows:
    return [(stored.body, stored.hash) async for stored in store.entries()]


async def rewrite(store: Store, new: Rows) -> None:
    """Put another chain in the place of the one there, as somebody with the Redis password could."""
    await store.redis.delete(store.layout.chain)
    for index, (body, digest) in enumerate(new, 1):
        await store.redis.xadd(store.layout.chain, {"e": body, "h": digest}, id=f"{index}-0")


async def rewrite_head(store: Store, new: Rows) -> None:
    await store.redis.hset(store.layout.head, mapping={"i": len(new), "h": new[-1][1]})


def rehash(new: Rows) -> Rows:
    """All hashes right again: only a checkpoint can tell."""
    previous = chain.genesis(NAMESPACE)
    out: Rows = []
    for body, _ in new:
        previous = chain.link(previous, body)
        out.append((body, previous.hex()))
    return out


def edited(body: bytes, **fields: Any) -> bytes:
    made: Entry = orjson.loads(body) | fields
    return chain.canonical(made)


async def changed_field(store: Store) -> None:
    new = await rows(store)
    new[99] = (edited(new[99][0], t="mallory"), new[99][1])
    await rewrite(store, new)


async def removed_entry(store: Store) -> None:
    assert await store.redis.xdel(store.layout.chain, "100-0")


async def removed_and_renumbered(store: Store) -> None:
    new = await rows(store)
    del new[99]
    await rewrite(store, new)
    await rewrite_head(store, new)


async def inserted_entry(store: Store) -> None:
    new = await rows(store)
    new.insert(99, (edited(new[99][0], f="mallory"), new[99][1]))
    await rewrite(store, new)
    await rewrite_head(store, new)


async def swapped_pair(store: Store) -> None:
    new = await rows(store)
    new[99], new[100] = new[100], new[99]
    await rewrite(store, new)


async def cut_tail(store: Store) -> None:
    for index in range(290, 301):
        await store.redis.xdel(store.layout.chain, f"{index}-0")


async def cut_tail_and_head(store: Store) -> None:
    """Redis still remembers the last id that the stream had."""
    await cut_tail(store)
    await rewrite_head(store, await rows(store))


async def head_with_another_hash(store: Store) -> None:
    await store.redis.hset(store.layout.head, "h", "ab" * 32)


async def head_further_back(store: Store) -> None:
    new = await rows(store)
    await rewrite_head(store, new[:290])


async def deleted_index(store: Store) -> None:
    assert await store.redis.delete(store.layout.by("sender:alice"))


async def shortened_index(store: Store) -> None:
    await store.redis.lpop(store.layout.by("violation:default"))


async def replaced_in_index(store: Store) -> None:
    await store.redis.lset(store.layout.by("decision:ALLOWED"), 3, "300")


async def swapped_in_index(store: Store) -> None:
    """The same entries, but bisection goes wrong from its first step on."""
    key = store.layout.by("sender:alice")
    first, last = await store.redis.lindex(key, 0), await store.redis.lindex(key, -1)
    await store.redis.lset(key, 0, last)
    await store.redis.lset(key, -1, first)


async def beyond_the_head_in_index(store: Store) -> None:
    """One more, which no reading of the chain has come to yet; behind it nothing is found."""
    key = store.layout.by("sender:alice")
    middle = (await store.redis.lrange(key, 150, 150))[0]
    await store.redis.linsert(key, "BEFORE", middle, "1000000")


async def twice_beyond_the_head_in_index(store: Store) -> None:
    await store.redis.rpush(store.layout.by("sender:alice"), "1000000", "1000000")


async def removed_message_id(store: Store) -> None:
    made = orjson.loads((await rows(store))[99][0])
    assert await store.redis.hdel(store.layout.shard(id_place(made["id"])[0]), "100")


async def added_message_id(store: Store) -> None:
    """Where the chain has none, so that another entry is found by it."""
    taken = {id_place(orjson.loads(body)["id"])[0] for body, _ in (await rows(store)) if b'"id":' in body}
    shard = next(each for each in range(SHARDS) if each not in taken)
    await store.redis.hset(store.layout.shard(shard), "100", "AAAAAAAA")


async def changed_outcome(store: Store) -> None:
    await store.redis.setrange(store.layout.outcomes(0), 104, "d")


async def removed_outcomes(store: Store) -> None:
    await store.redis.delete(store.layout.outcomes(0))


EDITS: list[tuple[Callable[[Store], Awaitable[None]], FindingKind]] = [
    (changed_field, FindingKind.CHANGED),
    (removed_entry, FindingKind.REMOVED),
    (removed_and_renumbered, FindingKind.REMOVED),
    (inserted_entry, FindingKind.INSERTED),
    (swapped_pair, FindingKind.SWAPPED),
    (cut_tail, FindingKind.CUT),
    (cut_tail_and_head, FindingKind.CUT),
    (head_with_another_hash, FindingKind.HEAD),
    (head_further_back, FindingKind.HEAD),
    (deleted_index, FindingKind.INDEX),
    (shortened_index, FindingKind.INDEX),
    (replaced_in_index, FindingKind.INDEX),
    (swapped_in_index, FindingKind.INDEX),
    (beyond_the_head_in_index, FindingKind.INDEX),
    (twice_beyond_the_head_in_index, FindingKind.INDEX),
    (removed_message_id, FindingKind.INDEX),
    (added_message_id, FindingKind.INDEX),
    (changed_outcome, FindingKind.OUTCOME),
    (removed_outcomes, FindingKind.OUTCOME),
]


async def test_untouched(store):
    checkpoints = [await sign(store, at=150), await sign(store)]
    report = await examine(store, checkpoints)
    assert report.intact
    assert (report.entries, report.decisions, report.checkpoints) == (300, 298, 2)
    assert report.signed_index == 300
    assert report.outcomes == {"r": 60, "c": 238}


async def test_an_empty_audit_is_intact(redis):
    assert (await examine(Store(redis, NAMESPACE), [])).intact


@pytest.mark.parametrize(("edit", "kind"), EDITS, ids=lambda each: getattr(each, "__name__", str(each)))
async def test_an_edit_is_found_without_any_checkpoint(store, edit, kind):
    await edit(store)
    assert kind in found(await examine(store))


async def test_an_index_out_of_order_hides_answers_and_is_named(store):
    everything = await ask(store, Question(sender="alice"), limit=1000)
    await swapped_in_index(store)
    assert len(await ask(store, Question(sender="alice"), limit=1000)) < len(everything)  # the control
    [finding] = (await examine(store)).findings
    assert finding.kind is FindingKind.INDEX
    assert "sender:alice " in finding.text


# -- what only a checkpoint can tell -----------------------------------------------------------------------
async def test_a_rewritten_chain_is_found_by_its_checkpoint(store):
    checkpoints = [await sign(store)]
    new = await rows(store)
    body = edited(new[99][0], f="mallory") if b'"f":"alice"' in new[99][0] else new[99][0]
    new[99] = (edited(body, v=4), "")
    new = rehash(new)
    await rewrite(store, new)
    await rewrite_head(store, new)
    assert FindingKind.CHANGED not in found(await examine(store))  # the control: consistent in itself
    assert FindingKind.REWRITTEN in found(await examine(store, checkpoints))


async def test_a_cut_of_chain_head_and_all_traces_is_found_by_its_checkpoint(store):
    checkpoints = [await sign(store, at=150), await sign(store)]
    new = (await rows(store))[:200]
    await rewrite(store, new)
    await rewrite_head(store, new)
    report = await examine(store, checkpoints)
    assert FindingKind.CUT in found(report)
    assert report.signed_index == 150


async def test_an_audit_that_was_wiped_is_found_by_its_checkpoint(store):
    checkpoints = [await sign(store)]
    await store.redis.flushall()
    assert found(await examine(store, checkpoints)) == {FindingKind.CUT}


async def test_a_checkpoint_by_another_key_is_found(store):
    signed = await sign(store)
    forged = SignedCheckpoint.sign(signed.checkpoint, Ed25519PrivateKey.generate())
    assert found(await examine(store, [forged])) == {FindingKind.BAD_CHECKPOINT}


async def test_a_checkpoint_of_another_namespace_is_found(store):
    signed = await sign(store)
    moved = Checkpoint("other", signed.checkpoint.index, signed.checkpoint.hash, 1, 1)
    assert found(await examine(store, [SignedCheckpoint.sign(moved, KEY)])) == {FindingKind.BAD_CHECKPOINT}


# -- while it goes on ----------------------------------------------------------------------------------------
async def test_verifying_while_the_chain_grows_finds_nothing(store):
    checkpoints: Checkpoints = []

    async def grow_on() -> None:
        while True:
            await grow(store, 50)
            checkpoints.append(await sign(store))
            await asyncio.sleep(0)

    async def growing() -> AsyncIterator[SignedCheckpoint]:
        place = 0
        while place < len(checkpoints):
            yield checkpoints[place]
            place += 1

    writing = asyncio.create_task(grow_on())
    for _ in range(5):
        report = await verify(store, growing(), KEYS)
        assert report.findings == []
    writing.cancel()
    assert (await examine(store, checkpoints)).intact


async def test_a_decision_without_an_outcome_is_found_when_it_is_old(store):
    tail = Tail(store, time.time)
    await tail.refresh()
    draft = tail.draft()
    record = Record(NAMESPACE, "w1i", 9, "", RecordKind.DECISIONS, 1, 3)
    draft.add_decision(entry.decision(draft.next_index, 2, record, 0, line(Way.ACT), 0, ""))
    await tail.append(draft)
    assert (await examine(store)).intact
    report = await verify(store, None, KEYS, now=time.time() + 1000)
    assert found(report) == {FindingKind.UNSETTLED}


# -- exports -------------------------------------------------------------------------------------------------
@pytest.fixture
async def exported(store: Store, tmp_path: Path) -> Path:
    path = tmp_path / "audit.jsonl"
    count = await export(store, all_of([await sign(store, at=150), await sign(store)]), path)
    assert count == 300
    return path


def test_an_export_verifies_offline_with_the_public_key_alone(exported):
    report = verify_file(exported, KEYS.current)
    assert report.intact
    assert (report.entries, report.checkpoints, report.signed_index) == (300, 2, 300)


def change_line(lines: list[bytes]) -> FindingKind:
    lines[100] = lines[100].replace(b"alice", b"mallory").replace(b'"w1i"', b'"w2i"')
    return FindingKind.CHANGED


def remove_line(lines: list[bytes]) -> FindingKind:
    del lines[100]
    return FindingKind.REMOVED


def insert_line(lines: list[bytes]) -> FindingKind:
    lines.insert(100, lines[100])
    return FindingKind.INSERTED


def swap_lines(lines: list[bytes]) -> FindingKind:
    lines[100], lines[101] = lines[101], lines[100]
    return FindingKind.SWAPPED


def damage_line(lines: list[bytes]) -> FindingKind:
    lines[100] = lines[100][:50]
    return FindingKind.CHANGED


def cut_lines(lines: list[bytes]) -> FindingKind:
    del lines[200:]
    return FindingKind.CUT


def cut_entries(lines: list[bytes]) -> FindingKind:
    del lines[250:-3]
    return FindingKind.CUT


def rewrite_lines(lines: list[bytes]) -> FindingKind:
    """Every hash made right again, without the key."""
    previous = chain.genesis(NAMESPACE)
    for place, raw in enumerate(lines):
        made = orjson.loads(raw)
        if "e" in made:
            body = chain.canonical(made["e"] | {"at": 7})
            previous = chain.link(previous, body)
            lines[place] = b'{"e":' + body + b',"h":"' + previous.hex().encode() + b'"}'
    return FindingKind.REWRITTEN


@pytest.mark.parametrize(
    "edit",
    [change_line, remove_line, insert_line, swap_lines, damage_line, cut_lines, cut_entries, rewrite_lines],
)
def test_an_edited_export_is_found(exported, edit):
    lines = exported.read_bytes().splitlines()
    kind = edit(lines)
    exported.write_bytes(b"\n".join(lines) + b"\n")
    assert kind in found(verify_file(exported, KEYS.current))


def test_a_reformatted_export_still_verifies(exported):
    lines = [orjson.dumps(orjson.loads(raw)) for raw in exported.read_bytes().splitlines()]
    exported.write_bytes(b"\n".join(lines))
    assert verify_file(exported, KEYS.current).intact


def test_mas_audit_verify_of_a_file(exported, tmp_path):
    from broker_policy.cli import audit  # noqa: F401, PLC0415 - registers the commands

    public = tmp_path / "checkpoint.pub"
    public.write_bytes(KEYS.current.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    arguments = ["audit", "verify", "--file", str(exported), "--public-key", str(public)]
    runner = CliRunner()
    good = runner.invoke(app, [*arguments, "--json"])
    assert good.exit_code == 0
    assert orjson.loads(good.stdout)["intact"]
    lines = exported.read_bytes().splitlines()
    change_line(lines)
    exported.write_bytes(b"\n".join(lines))
    bad = runner.invoke(app, [*arguments, "--json"])
    assert bad.exit_code == ExitCode.ALTERED
    assert orjson.loads(bad.stdout)["findings"][0]["kind"] == "changed"
    told = runner.invoke(app, arguments)
    assert "NOT INTACT" in told.stdout
    exported.write_bytes(b"hello")
    assert runner.invoke(app, arguments).exit_code == ExitCode.FAILED
    nowhere = ["audit", "verify", "--folder", str(tmp_path / "nothing")]
    assert runner.invoke(app, nowhere).exit_code == ExitCode.UNREACHABLE


# -- the signer ----------------------------------------------------------------------------------------------
@pytest.fixture
async def stream(
    nats_server: NatsServer, ca: CertificateAuthority, tmp_path: Path
) -> AsyncIterator[CheckpointStream]:
    paths = ca.issue(Identity(DEFAULT_TRUST_DOMAIN, NAMESPACE, Role.POLICY, "signer"), tmp_path)
    nc = await connect(nats_server, paths)
    await make_streams(nc)
    stream = CheckpointStream(nc, NAMESPACE)
    yield stream
    await nc.close()


async def test_the_signer_signs_each_new_head_once(store, stream):
    signer = Signer(store, stream, KEY)
    first = await signer.sign_once()
    assert first is not None
    assert (first.index, first.hash) == (300, (await store.head()).hash.hex())
    assert await signer.sign_once() is None
    await grow(store, 10)
    successor = Signer(store, stream, KEY)
    second = await successor.sign_once()
    assert second is not None
    assert second.index > first.index
    assert [signed.checkpoint async for signed in stream.all()] == [first, second]
    assert (await verify(store, stream.all(), KEYS)).signed_index == second.index


@pytest.mark.parametrize(
    "edit", [changed_field, removed_entry, swapped_pair, cut_tail_and_head, head_with_another_hash]
)
async def test_the_signer_refuses_a_chain_that_was_edited(store, stream, edit):
    signer = Signer(store, stream, KEY)
    await edit(store)
    with pytest.raises(ChainAltered):
        await signer.sign_once()


async def test_the_signer_refuses_a_chain_that_does_not_continue_its_last_checkpoint(store, stream):
    signer = Signer(store, stream, KEY)
    await signer.sign_once()
    new = await rows(store)
    new[99] = (edited(new[99][0], v=4), "")
    new = rehash(new)
    await rewrite(store, new)
    await rewrite_head(store, new)
    await grow(store, 10)
    with pytest.raises(ChainAltered, match="300"):
        await signer.sign_once()
    await store.redis.flushall()
    with pytest.raises(ChainAltered, match="empty"):
        await signer.sign_once()


async def test_a_refusal_is_loud(store, stream, caplog):
    await changed_field(store)
    signing = SigningRound(store.redis, stream._nc, KEY)
    with caplog.at_level(logging.CRITICAL):
        await signing.sign()
        await signing.sign()
    [message] = [record.getMessage() for record in caplog.records if record.levelno == logging.CRITICAL]
    assert "REFUSED" in message
    assert [signed async for signed in stream.all()] == []


async def test_an_old_chain_that_was_never_signed_is_said_once(store, stream, caplog):
    begin = (await store.entries_at([1]))[1].entry()["at"] / 1000
    young = Signer(store, CheckpointStream(stream._nc, "young"), KEY, clock=lambda: begin + 60)
    assert await young.sign_once()
    assert caplog.messages == []
    old = Signer(store, stream, KEY, clock=lambda: begin + 3600)
    assert await old.sign_once()
    await grow(store, 10)
    assert await old.sign_once()
    [message] = caplog.messages
    assert f"the audit of {NAMESPACE} has 300 entries since {told(int(begin * 1000))}" in message
    assert "no checkpoint" in message


@pytest.mark.parametrize("asked", ["namespaces", "end"])
async def test_a_redis_that_runs_a_script_is_no_altered_audit(store, stream, caplog, monkeypatch, asked):
    """It answers BUSY then, and says nothing of what it holds; in a transaction that is said differently."""
    signing = SigningRound(store.redis, stream._nc, KEY)
    await signing.sign()
    await grow(store, 10)
    await store.redis.config_set("lua-time-limit", 50)
    end = Store.end
    async with Redis(**store.redis.connection_pool.connection_kwargs) as other, AsyncExitStack() as after:

        async def run_a_script() -> None:
            running = asyncio.create_task(other.eval("while true do end", 0))
            after.push_async_callback(asyncio.gather, running, return_exceptions=True)
            after.push_async_callback(store.redis.script_kill)
            async with asyncio.timeout(20):
                while not await _busy(store.redis):
                    await asyncio.sleep(0.02)

        async def end_of_a_busy_one(store: Store) -> object:
            await run_a_script()
            return await end(store)

        if asked == "end":
            monkeypatch.setattr(Store, "end", end_of_a_busy_one)
        else:
            await run_a_script()
        with caplog.at_level(logging.CRITICAL), contextlib.suppress(ResponseError):
            await signing.sign()
    monkeypatch.undo()
    await store.redis.config_set("lua-time-limit", 5000)
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.CRITICAL] == []
    await signing.sign()
    assert [signed.checkpoint.index async for signed in stream.all()] == [300, 310]


async def test_a_redis_without_memory_is_no_altered_audit(store, stream, caplog):
    """It refuses writes, and whatever is in a transaction; the chain is verified and signed all the same."""
    signing = SigningRound(store.redis, stream._nc, KEY)
    await signing.sign()
    await grow(store, 10)
    await store.redis.config_set("maxmemory", 1)
    with caplog.at_level(logging.WARNING):
        await signing.sign()
        report = await verify(store, stream.all(), KEYS)
    await store.redis.config_set("maxmemory", 0)
    assert [record.getMessage() for record in caplog.records] == []
    assert (report.findings, report.signed_index) == ([], 310)


async def test_the_end_of_a_chain_that_grows_is_of_one_moment(store):
    async def growing() -> None:
        for _ in range(30):
            await grow(store, 1)

    task = asyncio.create_task(growing())
    while not task.done():
        end = await store.end()
        assert end.head.index == end.last == end.highest
    await task


async def test_who_may_not_ask_redis_has_found_no_altered_audit(store, stream, caplog):
    await store.redis.execute_command("ACL", "SETUSER", "blind", "on", "nopass", "~*", "+smembers", "+client")
    login = {"username": "blind", "password": "any"}
    async with Redis(**store.redis.connection_pool.connection_kwargs | login) as blind:
        with caplog.at_level(logging.WARNING):
            await SigningRound(blind, stream._nc, KEY).sign()
    await store.redis.execute_command("ACL", "DELUSER", "blind")
    [said] = caplog.records
    assert said.levelno == logging.WARNING
    assert f"the audit of {NAMESPACE} is not signed for now: NoPermissionError: " in said.getMessage()
    assert [signed async for signed in stream.all()] == []


async def _busy(redis: Redis) -> bool:
    try:
        await redis.execute_command("PING")
    except ResponseError as error:
        return str(error).startswith("BUSY")
    return False


async def test_a_chain_that_stands_still_is_looked_at_now_and_then(store, stream, monkeypatch):
    looked = []
    sign_once = Signer.sign_once

    async def counted(self):
        looked.append(await sign_once(self))

    monkeypatch.setattr(Signer, "sign_once", counted)
    signing = SigningRound(store.redis, stream._nc, KEY)
    for _ in range(3):
        await signing.sign()
    assert [checkpoint.index for checkpoint in looked] == [300]
    await grow(store, 10)
    await signing.sign()
    assert [checkpoint.index for checkpoint in looked] == [300, 310]
    other = Ed25519PrivateKey.generate()
    signing.use(other, KEYS.followed_by(other.public_key(), {NAMESPACE: 310}))
    await signing.sign()
    assert [checkpoint.index for checkpoint in looked] == [300, 310, 310], "by the new key, at once"
    monkeypatch.setattr(signer, "LOOK_EVERY", 0.0)
    await signing.sign()
    assert looked[3:] == [None]


async def test_what_is_refused_is_looked_at_in_every_round(store, stream, monkeypatch):
    await changed_field(store)
    signing = SigningRound(store.redis, stream._nc, KEY)
    await signing.sign()
    monkeypatch.setattr(signer, "follow", unchecked)  # somebody has put it right
    await signing.sign()
    assert [signed.checkpoint.index async for signed in stream.all()] == [300]


@pytest.mark.parametrize("damage", ["a text", "not hexadecimal", "too large a number"])
async def test_a_damaged_head_concerns_its_namespace_only(store, stream, damage, caplog):
    other = Store(store.redis, "aside")
    await grow(other, 10)
    if damage == "a text":
        await store.redis.set(other.layout.head, "x")
    elif damage == "not hexadecimal":
        await store.redis.hset(other.layout.head, "h", "x")
    else:
        await store.redis.hset(other.layout.head, "s", 10**30)
    signing = SigningRound(store.redis, stream._nc, KEY)
    with caplog.at_level(logging.CRITICAL):
        await signing.sign()
    assert (await signing.reaches())[NAMESPACE] == 300, "the key can be changed all the same"
    assert "aside" in caplog.text
    assert [signed.checkpoint.index async for signed in stream.all()] == [300]


async def signed_at(stream: CheckpointStream) -> list[int]:
    return [signed.checkpoint.index async for signed in stream.all()]


def said(caplog, text: str) -> list[str]:
    return [each for each in map(logging.LogRecord.getMessage, caplog.records) if text in each]


@pytest.mark.parametrize("name", [b"a b", b"\xff", b"", b"a" * 64, b"*", b"_namespaces", b"a\nb"])
async def test_what_cannot_be_a_namespace_is_told_once_and_passed_over(store, stream, caplog, name):
    await store.redis.sadd(NAMESPACES, name)
    signing = SigningRound(store.redis, stream._nc, KEY)
    for _ in range(3):
        await signing.sign()
    assert await signing.reaches() == {NAMESPACE: 300}
    assert await signed_at(stream) == [300]
    assert [record.levelno for record in caplog.records] == [logging.CRITICAL]
    await store.redis.sadd(NAMESPACES, *(f"no {place}" for place in range(50)))
    await grow(store, 10)
    await signing.sign()
    assert len(said(caplog, "cannot be any")) == 2
    assert "and 40 more" in caplog.text
    assert "REFUSED" not in caplog.text


@pytest.mark.parametrize("error", [BadSubjectError(), JetStreamError(10071, "wrong"), RedisTimeout()])
async def test_what_fails_in_one_namespace_keeps_no_other_from_being_signed(
    store, stream, caplog, monkeypatch, error
):
    for name in ("a", "b", "c"):  # all sorted before the one that is well
        await grow(Store(store.redis, name), 10)
    tried, sign_once = [], Signer.sign_once

    async def failing(self):
        tried.append(self._store.layout.namespace)
        if self._store.layout.namespace in ("a", "b", "c"):
            raise error
        return await sign_once(self)

    monkeypatch.setattr(Signer, "sign_once", failing)
    signing = SigningRound(store.redis, stream._nc, KEY)
    await signing.sign()
    await signing.sign()
    assert await signed_at(stream) == [300]
    await grow(store, 10)
    await signing.sign()
    assert await signed_at(stream) == [300, 310], "first, since it did not fail"
    assert tried == ["a", "b", "c", NAMESPACE, "a", NAMESPACE, "b", "c"]
    assert len(said(caplog, type(error).__name__)) == 3, "once of each"
    monkeypatch.setattr(Signer, "sign_once", sign_once)
    await signing.sign()
    assert await signed_at(CheckpointStream(stream._nc, "b")) == [10]


@pytest.mark.parametrize("fresh", [False, True], ids=["the same signer", "one that starts"])
@pytest.mark.parametrize("hide", ["taken from the list", "no list", "another kind"])
async def test_what_was_signed_is_signed_on_though_redis_does_not_list_it(store, stream, caplog, hide, fresh):
    signing = SigningRound(store.redis, stream._nc, KEY)
    await signing.sign()
    await grow(store, 10)
    await store.redis.srem(NAMESPACES, NAMESPACE)
    if hide == "another kind":
        await store.redis.set(NAMESPACES, "x")
    elif hide == "taken from the list":
        await grow(Store(store.redis, "aside"), 10)
    if fresh:
        signing = SigningRound(store.redis, stream._nc, KEY)
    for _ in range(2):
        await signing.sign()
    assert await signed_at(stream) == [300, 310]
    assert (await signing.reaches())[NAMESPACE] == 310
    assert len(said(caplog, "no longer lists")) == 1
    await changed_field(store)
    await store.redis.hincrby(store.layout.head, "s", 1)
    await store.redis.hset(store.layout.head, "h", "ab" * 32)
    await signing.sign()
    assert said(caplog, "REFUSED"), "as if it were listed"


async def test_which_namespaces_are_signed_is_kept_by_whoever_signs_them(store, stream, caplog):
    kept = SignedNamespaces(stream._nc)
    signers = [SigningRound(store.redis, stream._nc, KEY) for _ in range(2)]
    for each in signers:
        await each.sign()
    await grow(Store(store.redis, "aside"), 10)
    await store.redis.sadd(NAMESPACES, "empty")
    for each in signers:  # the second does not know that the first one added it
        await each.sign()
        await each.sign()
    assert await kept.names() == {NAMESPACE, "aside"}
    await publish(stream._nc, subjects.SIGNED_NAMESPACES, b'{"namespaces":[1]}', {})
    await SigningRound(store.redis, stream._nc, KEY).sign()
    assert await SignedNamespaces(stream._nc).names() == {NAMESPACE, "aside"}, "damaged, and made anew"
    assert await signed_at(stream) == [300]


async def unchecked(*_: object) -> None:
    """What is followed holds."""


# -- size ----------------------------------------------------------------------------------------------------
async def test_a_hundred_thousand_entries(redis, capsys):
    """Bounded memory and time; prints what it measured."""
    store = Store(redis, NAMESPACE)
    before = (await redis.info("memory"))["used_memory"]
    for _ in range(50):
        await grow(store, 2000)
    used = (await redis.info("memory"))["used_memory"] - before
    started = time.process_time()  # what others do on the machine says nothing
    report = await examine(store, [await sign(store)])
    took = time.process_time() - started
    assert report.intact
    assert used / report.entries < 500
    with capsys.disabled():
        print(f"\nverified {report.entries} entries in {took:.1f} s, {used / report.entries:.0f} bytes each")
    assert took < 30

"""A worker's view of policy on a real server: fails closed, for as little as possible, and never ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import nats.errors
import pytest
from nats.aio.client import Client

from broker_policy.jetstream import Ack, StoredMessage, Unsettled, get_last, publish
from broker_policy.policy.follower import STALE_AFTER, PolicyFollower
from broker_policy.policy.store import PolicyConflict, PolicyStore
from broker_policy.tenants.streams import ensure_control_streams
from mas_nats.policy.document import Document, Revocation
from mas_nats.wire import subjects

STREAM = subjects.kv_stream(subjects.POLICY_BUCKET)


class Clock:
    """A clock that can be put forward."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return asyncio.get_running_loop().time() + self.ahead


@pytest.fixture
async def store(nc: Client) -> PolicyStore:
    await ensure_control_streams(nc.jetstream())
    return PolicyStore(nc)


@pytest.fixture
async def follower(nc: Client, store: PolicyStore) -> AsyncIterator[PolicyFollower]:
    follower = PolicyFollower(nc, "w1", clock=Clock())
    await follower.start()
    yield follower
    await follower.stop()


async def until(condition: Callable[[], object], timeout: float = 5.0) -> None:
    async with asyncio.timeout(timeout):
        while not condition():
            await asyncio.sleep(0.02)


def policy(namespace: str, **content: object) -> Document:
    return Document(namespace=namespace, account="A", **content)  # type: ignore[arg-type]


async def raw(nc: Client, key: str, body: bytes) -> int:
    return (await publish(nc, subjects.kv_key(subjects.POLICY_BUCKET, key), body, {})).sequence


async def test_follows_and_confirms(follower: PolicyFollower, store: PolicyStore):
    assert (follower.revision, follower.stale, follower.table("a")) == (0, False, None)
    revision = await store.put(policy("a"), expected=0)
    await store.wait_confirmed(revision)
    assert follower.revision == revision
    assert [table.namespace for table in follower.tables()] == ["a"]
    with pytest.raises(PolicyConflict):
        await store.put(policy("a"), expected=0)


async def test_a_policy_waits_until_somebody_leads_its_bucket(nc: Client, monkeypatch: pytest.MonkeyPatch):
    """As in a cluster whose nodes have not elected its leader yet: then nobody answers."""
    unanswered = asyncio.Event()

    async def noticed(*arguments: Any) -> Ack:
        try:
            return await publish(*arguments)
        except nats.errors.NoRespondersError:
            unanswered.set()
            raise

    monkeypatch.setattr("broker_policy.policy.store.publish", noticed)
    storing = asyncio.create_task(PolicyStore(nc).put(policy("a"), expected=0))
    async with asyncio.timeout(5):
        await unanswered.wait()
    await ensure_control_streams(nc.jetstream())
    assert await storing == 1


async def test_who_is_no_worker_follows_without_a_heartbeat(store: PolicyStore):
    """Nobody waits for the explorer to confirm a revision."""
    follower = PolicyFollower(store._nc)
    await follower.start()
    revoked = {"f" * 64: Revocation(identity="", at=1)}
    await store.put(policy("a", revoked=revoked), expected=0)
    await until(lambda: follower.table("a") is not None)
    assert follower.revoked("f" * 64)
    assert not follower.revoked("e" * 64)
    assert await store.beats() == {}
    await follower.stop()


@pytest.mark.parametrize("error", [TimeoutError, nats.errors.TimeoutError, Unsettled])
async def test_a_policy_is_read_once_somebody_leads_its_bucket(
    store: PolicyStore, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
):
    await store.put(policy("a"), expected=0)
    failed: list[str] = []

    async def leaderless(nc: Client, stream: str, subject: str) -> StoredMessage | None:
        if not failed:
            failed.append(subject)
            raise error
        return await get_last(nc, stream, subject)

    monkeypatch.setattr("broker_policy.policy.store.get_last", leaderless)
    found = await store.get("a")
    assert found is not None
    assert (found.document.namespace, len(failed)) == ("a", 1)


async def test_a_policy_whose_bucket_nobody_leads_for_long_is_not_stored(
    nc: Client, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("broker_policy.policy.store._LEADERLESS", 0.3)
    with pytest.raises(nats.errors.NoRespondersError):
        await PolicyStore(nc).put(policy("a"), expected=0)


@pytest.mark.parametrize(
    "body",
    [
        b"no json",
        b"{}",
        b"[]",
        b'{"version":2,"namespace":"a","account":"A"}',
        b'{"namespace":"A.>","account":"A"}',
        b'{"namespace":"b","account":"A"}',
        b"\xff",
        b"",
    ],
)
async def test_a_document_that_cannot_be_read_closes_its_namespace_only(
    follower: PolicyFollower, store: PolicyStore, nc: Client, body: bytes
):
    await store.put(policy("a"), expected=0)
    await store.wait_confirmed(await store.put(policy("b", operators=("olga",)), expected=0))
    await store.wait_confirmed(await raw(nc, "ns.a", body))
    assert follower.table("a") is None
    other = follower.table("b")
    assert other is not None
    assert other.document.operators == ("olga",)
    assert not follower.stale


async def test_an_entry_of_another_kind_is_ignored(follower: PolicyFollower, store: PolicyStore, nc: Client):
    await store.put(policy("a"), expected=0)
    await store.wait_confirmed(await raw(nc, "settings", b'{"anything":1}'))
    assert follower.table("a") is not None


async def test_a_bucket_made_anew_with_the_same_revision(
    follower: PolicyFollower, store: PolicyStore, nc: Client
):
    """Sequences begin again: the number alone does not say that nothing has changed."""
    revision = await store.put(policy("a", operators=("olga",)), expected=0)
    await store.wait_confirmed(revision)
    await nc.jetstream().delete_stream(STREAM)
    await ensure_control_streams(nc.jetstream())
    assert await store.put(policy("a"), expected=0) == revision
    await until(lambda: (table := follower.table("a")) and table.document.operators == ())


async def test_a_bucket_made_anew_and_empty_closes_everything(
    follower: PolicyFollower, store: PolicyStore, nc: Client
):
    await store.wait_confirmed(await store.put(policy("a"), expected=0))
    await nc.jetstream().delete_stream(STREAM)
    await ensure_control_streams(nc.jetstream())
    await until(lambda: follower.table("a") is None)


async def test_stale_without_the_bucket_and_well_again(
    follower: PolicyFollower, store: PolicyStore, nc: Client
):
    await store.wait_confirmed(await store.put(policy("a"), expected=0))
    await nc.jetstream().delete_stream(STREAM)
    assert not follower.stale
    follower._clock.ahead = STALE_AFTER + 1  # type: ignore[attr-defined]
    assert follower.stale
    await asyncio.sleep(1)
    assert follower.stale
    await ensure_control_streams(nc.jetstream())
    await until(lambda: not follower.stale)


async def test_whatever_a_listener_does_the_follower_goes_on(follower: PolicyFollower, store: PolicyStore):
    async def fail(_: object) -> None:
        raise KeyError("a fault")

    follower.on_change(fail)
    await store.put(policy("a"), expected=0)
    await until(lambda: follower.table("a") is not None)
    revision = await store.put(policy("b"), expected=0)
    await store.wait_confirmed(revision)
    assert follower.table("b") is not None


async def test_a_deleted_namespace_is_none(follower: PolicyFollower, store: PolicyStore, nc: Client):
    await store.put(policy("a"), expected=0)
    await store.put(policy("b"), expected=0)
    await raw(nc, "ns.a", b"")
    assert await store.get("a") is None
    assert [stored.document.namespace for stored in await store.namespaces()] == ["b"]

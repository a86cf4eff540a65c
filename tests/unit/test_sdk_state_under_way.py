"""Updates of a state that end in another way than they were made: cancelled, or given up."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from mas_nats import Unavailable
from mas_nats.state import StateShape, StateStore


class Bucket:
    """Stores when it may."""

    def __init__(self) -> None:
        self.stored: list[bytes] = []
        self.asked = asyncio.Event()
        self.may = asyncio.Event()
        self.refusal: Exception | None = None

    async def put(self, revision: int, value: bytes, timeout: float) -> int:
        self.asked.set()
        await self.may.wait()
        if self.refusal is not None:
            raise self.refusal
        self.stored.append(value)
        return revision + 1


@pytest.fixture
async def bucket() -> Bucket:
    return Bucket()


@pytest.fixture
async def store(bucket: Bucket) -> StateStore[dict[str, object]]:
    session: Any = SimpleNamespace(terms=SimpleNamespace(max_state=1000))
    access: Any = bucket
    return StateStore(access, session, StateShape[dict[str, object]](None))


def updating(store: StateStore[dict[str, object]]) -> asyncio.Task[dict[str, object]]:
    return asyncio.create_task(store.update({"n": 1}, timeout=5))


async def test_one_whose_maker_is_cancelled_is_written(
    store: StateStore[dict[str, object]], bucket: Bucket
) -> None:
    maker = updating(store)
    await bucket.asked.wait()
    maker.cancel()
    with pytest.raises(asyncio.CancelledError):
        await maker
    bucket.may.set()
    await store.settle(5)
    assert bucket.stored == [b'{"n":1}']
    assert store.state == {"n": 1}


async def test_nobody_hears_of_a_failure_whose_maker_is_cancelled(
    store: StateStore[dict[str, object]], bucket: Bucket, caplog: pytest.LogCaptureFixture
) -> None:
    maker = updating(store)
    await bucket.asked.wait()
    maker.cancel()
    await asyncio.wait([maker])
    bucket.refusal = Unavailable("away")
    bucket.may.set()
    await store.settle(5)
    assert store.state == {}
    assert caplog.records == []


async def test_one_that_is_given_up_ends_who_waits_for_it(
    store: StateStore[dict[str, object]], bucket: Bucket
) -> None:
    makers = [updating(store) for _ in range(3)]
    await bucket.asked.wait()
    await store.settle(0)
    _, waiting = await asyncio.wait(makers, timeout=5)
    assert not waiting
    assert all(maker.cancelled() for maker in makers)


async def test_one_that_is_cancelled_before_it_began_ends_who_waits_for_it(
    store: StateStore[dict[str, object]], bucket: Bucket
) -> None:
    known = asyncio.all_tasks()
    maker = updating(store)
    await asyncio.sleep(0)
    (writing,) = asyncio.all_tasks() - known - {maker}
    writing.cancel()
    _, waiting = await asyncio.wait([maker], timeout=5)
    assert not waiting
    assert maker.cancelled()
    assert not bucket.asked.is_set()

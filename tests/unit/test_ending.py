"""Tasks are ended, whatever happens to who ends them."""

from __future__ import annotations

import asyncio

import pytest

from broker_policy.ending import end


async def stubborn(left: int) -> None:
    """Takes ``left`` cancellations for its own affair."""
    while True:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if not left:
                raise
            left -= 1


async def begun(*tasks: asyncio.Task[None]) -> None:
    await asyncio.sleep(0)
    assert not any(task.done() for task in tasks)


async def test_what_takes_a_cancellation_for_its_own_is_cancelled_again() -> None:
    tasks = [asyncio.create_task(stubborn(left)) for left in (0, 2)]
    await begun(*tasks)
    async with asyncio.timeout(10):
        await end(tasks)
    assert all(task.cancelled() for task in tasks)


@pytest.mark.parametrize("left", [0, 1, 3])
async def test_who_is_cancelled_while_it_ends_others_ends_them_first(left: int) -> None:
    inner = asyncio.create_task(stubborn(left))

    async def lead() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await end([inner])

    outer = asyncio.create_task(lead())
    await begun(inner, outer)
    async with asyncio.timeout(10):
        await end([outer])
    assert outer.cancelled()
    assert inner.cancelled()


async def test_a_limit_of_time_holds_when_they_have_ended() -> None:
    inner = asyncio.create_task(stubborn(1))
    await begun(inner)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await end([inner])
    assert inner.cancelled()

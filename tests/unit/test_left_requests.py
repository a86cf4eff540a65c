"""Requests that were left: when a consumer's leader is asked to step down, and when not.

What comes of it on three nodes is in ``tests/cluster/test_pull.py``.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from nats.aio.client import Client

from broker_policy import left_requests
from broker_policy.ending import end
from broker_policy.jetstream import JetStreamError, Unsettled
from broker_policy.left_requests import LeftRequests
from mas_nats.policy.document import Limits
from tests.audit_log import make_streams

Asked = list[str]


@pytest.fixture
async def left(nc: Client) -> AsyncIterator[LeftRequests]:
    await make_streams(nc, ("bob", "carol"), Limits())
    requests = LeftRequests(nc)
    task = asyncio.create_task(requests.run())
    yield requests
    await end([task])


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """The subjects asked of the server, which still answers them."""
    subjects: Asked = []
    ask = left_requests.api

    async def noting(nc: Client, subject: str, request: dict[str, Any], **options: Any) -> dict[str, Any]:
        subjects.append(subject.rpartition("STEPDOWN.INBOX.")[2])
        return await ask(nc, subject, request, **options)

    monkeypatch.setattr(left_requests, "api", noting)
    monkeypatch.setattr(left_requests, "_PAUSE", 0.05)
    return subjects


def answering(monkeypatch: pytest.MonkeyPatch, asked: Asked, *answers: Exception | None) -> None:
    """As a cluster would: with these in turn, then with success."""
    coming = list(answers)

    async def answer(_: Client, subject: str, *__: object, **___: object) -> None:
        asked.append(subject.rpartition("STEPDOWN.INBOX.")[2])
        await asyncio.sleep(0)
        if coming and (error := coming.pop(0)) is not None:
            raise error

    monkeypatch.setattr(left_requests, "api", answer)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(8):
        while not condition():
            await asyncio.sleep(0.01)


async def test_a_server_that_is_alone_is_asked_once(asked: Asked, left: LeftRequests):
    left.forget("bob")
    await until(lambda: left._alone)
    left.forget("bob")
    left.forget("carol")
    await asyncio.sleep(0.2)
    assert asked == ["bob"]


async def test_what_comes_together_is_done_together(
    monkeypatch: pytest.MonkeyPatch, asked: Asked, left: LeftRequests
):
    answering(monkeypatch, asked)
    for _ in range(5):
        left.forget("bob")
        left.forget("carol")
    await until(lambda: len(asked) == 2)
    left.forget("bob")
    left.forget("bob")
    await until(lambda: len(asked) == 3)
    await asyncio.sleep(0.2)
    assert asked == ["bob", "carol", "bob"]


@pytest.mark.parametrize("error", [TimeoutError(), Unsettled("x"), JetStreamError(10008, "not now")])
async def test_an_election_ends_nothing(
    monkeypatch: pytest.MonkeyPatch, asked: Asked, left: LeftRequests, error: Exception
):
    answering(monkeypatch, asked, error)
    left.forget("bob")
    left.forget("carol")
    await until(lambda: asked == ["bob", "carol"])


async def test_what_nobody_can_have_open_any_more_is_not_asked_for(
    monkeypatch: pytest.MonkeyPatch, asked: Asked, left: LeftRequests
):
    answering(monkeypatch, asked)
    monkeypatch.setattr(left_requests, "_OPEN", 0.0)
    left.forget("bob")
    await until(lambda: not left._agents)
    monkeypatch.setattr(left_requests, "_OPEN", 30.0)
    left.forget("carol")
    await until(lambda: asked)
    assert asked == ["carol"]

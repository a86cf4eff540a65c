"""Token calls of a worker without a key, and of whom policy says nothing: answered, and given nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from nats.aio.client import Client

from mas_nats.wire import headers
from tests.serving import Serving, serving

EXCHANGE = {"do": "exchange", "purpose": "tool_call", "target": "bob", "tool": "pay"}


@pytest.fixture
async def here(nc: Client) -> AsyncIterator[Serving]:
    async with serving(nc) as up:
        yield up


@pytest.mark.parametrize(
    ("body", "rule"),
    [
        ({"do": "keys"}, "no_key"),
        ({"do": "present", "token": "a.b.c", "presentation": "p"}, "no_key"),
        ({"do": "selected", "token": "a.b.c", "tools": ["pay"]}, "no_key"),
        ({"do": "issue", "target": "bob", "prompt": "pay"}, "token:no_input"),
        (EXCHANGE, "token:application_type"),
        ({**EXCHANGE, "purpose": "llm_access"}, "token:application_type"),
        ({**EXCHANGE, "purpose": "user_input"}, "token"),
        ({**EXCHANGE, "tool": "a tool"}, "token"),
        ({}, "token"),
        (b"\xff", "token"),
    ],
)
async def test_nothing_is_given(here: Serving, body: object, rule: str):
    verdict = await here.call("alice", "token", body, **{headers.MSG_ID: "m1"})
    assert not verdict.ok
    assert verdict.rule == rule
    assert not verdict.result


async def test_without_an_id(here: Serving):
    assert (await here.call("alice", "token", {"do": "keys"})).rule == "message_id"

"""Failure reports as any agent may have made them up, on a real server."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from nats.aio.client import Client

from mas_nats.wire.verdict import Decision
from tests.serving import Serving, serving

GOOD = {"attempt": 1, "error_class": "ValueError", "error": "no", "retryable": True}


@pytest.fixture
async def here(nc: Client) -> AsyncIterator[Serving]:
    async with serving(nc) as up:
        yield up


@pytest.mark.parametrize(
    "change",
    [
        {"attempt": 1e30},
        {"attempt": "9" * 40},
        {"attempt": 2**63},
        {"attempt": -1},
        {"attempt": 0},
        {"attempt": 1.5},
        {"attempt": None},
        {"attempt": [1]},
        {"sequence": 1e30},
        {"sequence": 0},
        {"sequence": -5},
        {"sequence": "1"},
        {"sequence": True},
        {"error_class": None},
        {"error_class": 7},
        {"error": {}},
        {"retryable": "perhaps"},
    ],
    ids=repr,
)
async def test_a_report_that_is_none_is_told_so_and_stops_nobody(here: Serving, change: dict[str, object]):
    await here.send("alice", "bob")
    sequence = (await here.log())[-1].sequence
    verdict = await here.call("bob", "fail", {"sequence": sequence, **GOOD, **change})
    assert (verdict.ok, verdict.decision) == (False, Decision.INVALID)
    assert (await here.call("bob", "fail", {"sequence": sequence, **GOOD})).ok


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b'{"sequence":1e999}', b"[" * 5000, b"\xff"])
async def test_a_body_that_is_none_is_told_so(here: Serving, body: bytes):
    verdict = await here.call("bob", "fail", body)
    assert (verdict.ok, verdict.decision) == (False, Decision.INVALID)


async def test_a_report_about_the_message_of_another_is_refused_and_audited(here: Serving):
    await here.send("alice", "bob")
    sequence = (await here.log())[-1].sequence
    verdict = await here.call("alice", "fail", {"sequence": sequence, **GOOD})
    assert (verdict.decision, verdict.rule) == (Decision.AUTHZ_DENIED, "own_inbox")
    (line,) = [each for record in await here.records() for each in record.decisions if each.op == "fail"]
    said = (line.sender, line.target, line.message_id, line.decision, line.rule)
    assert said == ("alice", "alice", str(sequence), "AUTHZ_DENIED", "own_inbox")
    assert (await here.call("bob", "fail", {"sequence": sequence, **GOOD})).ok


async def test_a_message_that_cannot_be_found_is_not_called_dead(
    here: Serving, monkeypatch: pytest.MonkeyPatch
):
    """An agent acknowledges what is dead, and a node that leads no more, or not yet, may not know of it."""
    await here.send("alice", "bob")
    sequence = (await here.log())[-1].sequence

    async def behind(*_: object, **__: object) -> None:
        return None

    with monkeypatch.context() as patched:
        patched.setattr("broker_policy.dead_letters.undertaker.get_message", behind)
        verdict = await here.call("bob", "fail", {"sequence": sequence, **GOOD, "retryable": False})
    assert (verdict.ok, verdict.result["dead"]) == (True, False)
    verdict = await here.call("bob", "fail", {"sequence": sequence, **GOOD, "retryable": False})
    assert verdict.result["dead"] is True
    verdict = await here.call("bob", "fail", {"sequence": sequence, **GOOD, "retryable": False})
    assert verdict.result["dead"] is False

"""Data-loss prevention in every kind of call, on a real server: what is delivered, stored and recorded."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest
from nats.aio.client import Client

from broker_policy.audit.record import DecisionLine
from broker_policy.dead_letters.letters import Wanted, letters
from broker_policy.jetstream import StoredMessage, direct_get_page
from broker_policy.sealing import ReplyCapability, Sealer, commitment
from mas_nats.policy.governance import Dlp, DlpAction, Governance
from mas_nats.wire import headers, subjects
from mas_nats.wire.correlation import correlation
from mas_nats.wire.verdict import Decision, Verdict
from tests.audit_log import NAMESPACE
from tests.serving import SEALING_KEY, Serving, document, serving

SSN = "219-09-9999"
CARD = "4111 1111 1111 1111"
MAIL = "someone@example.com"
INSTANCE = "0" * 20
ANOTHER_WORKER = Sealer("w9", [SEALING_KEY])


@pytest.fixture
async def here(nc: Client) -> AsyncIterator[Serving]:
    async with serving(nc) as up:
        yield up


async def lines(here: Serving) -> list[DecisionLine]:
    return [line for record in await here.records() for line in record.decisions]


async def everything(here: Serving) -> bytes:
    """All that lies in any stream: subjects, headers, bodies."""
    out = b""
    for info in await here.nc.jetstream().streams_info():
        for each in await direct_get_page(here.nc, info.config.name, ">", 1, batch=1000):
            out += each.subject.encode() + orjson.dumps(dict(each.headers)) + each.data
    return out


async def inbox(here: Serving, agent: str = "bob") -> list[StoredMessage]:
    return await direct_get_page(here.nc, subjects.INBOX_STREAM, subjects.inbox(agent), 1, batch=100)


def asked(op: str, **more: str) -> dict[str, str]:
    fields = {headers.MSG_ID: "m1", headers.TARGET: "bob", headers.TYPE: "work"}
    if op == "request":
        fields |= {headers.INSTANCE: INSTANCE, headers.DEADLINE: str(time.time_ns() // 1_000_000 + 9_000)}
    if op == "delay":
        fields[headers.DELAY] = "1"
    if op in ("reply", "frame"):
        fields[headers.REPLY_TOKEN] = ANOTHER_WORKER.seal(capability())
    return fields | more


def capability() -> ReplyCapability:
    deadline = time.time_ns() // 1_000_000 + 30_000
    return ReplyCapability(
        NAMESPACE, "bob", INSTANCE, correlation("q1"), "alice", "q1", deadline, stream=True
    )


def body_of(op: str, text: str) -> dict[str, Any]:
    if op == "frame":
        return {"chunks": [text], "final": True}
    if op == "state":
        return {"op": "put", "revision": 0, "value": {"note": text}}
    if op == "hello":
        return {"capabilities": ["qa"], "metadata": {"note": text}}
    return {"note": text}


async def take(here: Serving, op: str, text: str) -> Verdict:
    return await here.call("alice", op, body_of(op, text), **asked(op))


EVERY_WAY = ["send", "request", "reply", "frame", "delay", "state"]


@pytest.mark.parametrize("op", [*EVERY_WAY, "hello"])
async def test_blocked_and_nowhere(here: Serving, op: str):
    verdict = await take(here, op, f"it is {CARD}.")
    assert (verdict.ok, verdict.decision, verdict.step, verdict.rule) == (
        False,
        Decision.DLP_BLOCKED,
        "dlp",
        "dlp:credit_card",
    )
    assert verdict.fix
    assert "1111" not in verdict.encode().decode().replace(verdict.message_id, "")
    (line,) = [each for each in await lines(here) if each.op == op]
    assert (line.decision, line.rule, line.commitment) == ("DLP_BLOCKED", "dlp:credit_card", "")
    stored = await everything(here)  # four digits alone may stand in a salt
    assert not any(digits in stored for digits in (b"4111 ", b"4111-", b"41111111"))
    assert await inbox(here) == []


@pytest.mark.parametrize("op", EVERY_WAY)
async def test_redacted_on_the_way(here: Serving, op: str):
    verdict = await take(here, op, f"it is {SSN}.")
    assert (verdict.ok, verdict.decision, verdict.rule) == (True, Decision.DLP_REDACTED, "dlp:ssn")
    (line,) = [each for each in await lines(here) if each.op == op]
    assert (line.decision, line.rule) == ("DLP_REDACTED", "dlp:ssn")
    stored = await everything(here)
    assert SSN.encode() not in stored
    assert b"it is [REDACTED:ssn]." in stored


@pytest.mark.parametrize("op", EVERY_WAY)
async def test_alerted_and_delivered(here: Serving, op: str):
    verdict = await take(here, op, f"write to {MAIL}.")
    assert (verdict.ok, verdict.decision, verdict.rule) == (True, Decision.ALERT, "dlp:email")
    (line,) = [each for each in await lines(here) if each.op == op]
    assert (line.decision, line.rule) == ("ALERT", "dlp:email")
    assert MAIL.encode() in await everything(here)


@pytest.mark.parametrize("op", EVERY_WAY)
async def test_the_control_where_it_is_off(nc: Client, op: str):
    async with serving(nc, document(governance=Governance(dlp=Dlp(enabled=False)))) as here:
        verdict = await take(here, op, f"it is {CARD} and {SSN}.")
        assert (verdict.ok, verdict.decision) == (True, Decision.ALLOWED)
        assert CARD.encode() in await everything(here)


async def test_the_commitment_is_to_what_was_delivered(here: Serving):
    await take(here, "send", f"it is {SSN}.")
    (stored,) = await inbox(here)
    (line,) = [each for each in await lines(here) if each.op == "send"]
    salt = bytes.fromhex(stored.headers[headers.SALT])
    assert line.commitment == commitment(salt, "bob", "work", stored.data)
    assert line.size == len(stored.data)


async def test_what_is_sent_again_is_a_repetition(here: Serving):
    first, again = await take(here, "send", f"it is {SSN}."), await take(here, "send", f"it is {SSN}.")
    assert [(each.ok, each.duplicate) for each in (first, again)] == [(True, False), (True, True)]
    other = await take(here, "send", "it is something else.")
    assert other.decision is Decision.ID_REUSED


async def test_many_at_once_keep_their_decisions(here: Serving):
    """In one batch, and judged a second time where the batch was full."""

    async def one(number: int) -> Verdict:
        text = [f"{SSN}", CARD, MAIL, "nothing"][number % 4]
        return await here.send("alice", "bob", {"n": text}, id=f"m{number}")

    told = await asyncio.gather(*(one(number) for number in range(200)))
    expected = ["DLP_REDACTED", "DLP_BLOCKED", "ALERT", "ALLOWED"] * 50
    assert [each.decision for each in told] == expected
    by_id = {line.message_id: line.decision for line in await lines(here) if line.op == "send"}
    assert [by_id[f"m{number}"] for number in range(200)] == expected


async def test_a_reply_that_is_blocked_may_be_corrected(here: Serving):
    token = ANOTHER_WORKER.seal(capability())
    fields = {headers.MSG_ID: "r1", headers.TYPE: "answer", headers.REPLY_TOKEN: token}
    first = await here.call("alice", "reply", {"n": CARD}, **fields)
    assert first.decision is Decision.DLP_BLOCKED
    second = await here.call("alice", "reply", {"n": "sorry"}, **fields)
    assert (second.ok, second.duplicate) == (True, False)
    (stored,) = await direct_get_page(here.nc, subjects.REPLIES_STREAM, ">", 1)
    assert orjson.loads(stored.data) == {"n": "sorry"}


@pytest.mark.parametrize("op", ["send", "request", "reply", "frame", "delay"])
@pytest.mark.parametrize("name", [headers.TYPE, headers.MSG_ID, headers.TRACESTATE])
async def test_headers_are_judged(here: Serving, op: str, name: str):
    fields = asked(op) | {headers.TRACEPARENT: "00-" + "a" * 32 + "-" + "b" * 16 + "-01", name: f"v={SSN}"}
    verdict = await here.call("alice", op, body_of(op, "nothing"), **fields)
    assert (verdict.decision, verdict.rule) == (Decision.DLP_BLOCKED, "dlp:header")
    assert SSN.encode() not in await everything(here)


async def test_what_an_earlier_step_refuses_is_not_recorded_in_clear(here: Serving):
    fields = asked("send") | {headers.TYPE: f"n-{SSN}", headers.TARGET: f"no_{CARD.replace(' ', '-')}"}
    verdict = await here.call("alice", "send", {"n": 1}, **fields)
    assert verdict.decision in (Decision.INVALID, Decision.AUTHZ_DENIED, Decision.UNKNOWN_TARGET)
    assert SSN.encode() not in await everything(here)


async def test_a_failure_is_reported_without_secrets(here: Serving):
    await take(here, "send", "nothing")
    sequence = (await inbox(here))[0].sequence
    report = {
        "sequence": sequence,
        "attempt": 1,
        "error_class": "ValueError",
        "error": f"bad card {CARD} of {SSN}",
        "retryable": False,
    }
    told = (await here.call("bob", "fail", report)).result
    assert told == {"dead": True, "error": "bad card [REDACTED:credit_card] of [REDACTED:ssn]"}
    (letter,) = [each async for each in letters(here.nc, Wanted())]
    assert letter.text(headers.DEAD_ERROR) == "ValueError: bad card [REDACTED:credit_card] of [REDACTED:ssn]"
    assert b"1111" not in await everything(here)


async def test_a_frame_that_gives_up_says_no_secret(here: Serving):
    verdict = await here.call("alice", "frame", {"chunks": ["so"], "failed": f"Bad {SSN}"}, **asked("frame"))
    assert verdict.ok
    assert SSN.encode() not in await everything(here)


async def test_a_secret_cut_over_two_frames(here: Serving):
    fields = asked("frame")
    first = await here.call("alice", "frame", {"chunks": ["it is 219-0"]}, **fields)
    assert first.ok
    rest = {"chunks": ["9-9999, yes"], "cursor": first.result["cursor"], "final": True}
    second = await here.call("alice", "frame", rest, **fields)
    assert (second.ok, second.decision) == (True, Decision.DLP_REDACTED)
    frames = await direct_get_page(here.nc, subjects.REPLIES_STREAM, ">", 1)
    said = [chunk for each in frames for chunk in orjson.loads(each.data)["chunks"]]
    assert "".join(said) == "it is [REDACTED:ssn], yes"


async def test_a_delayed_message_is_judged_by_the_rules_of_its_day(here: Serving):
    fields = asked("delay") | {headers.DELAY: "1500"}
    assert (await here.call("alice", "delay", {"n": MAIL}, **fields)).decision is Decision.ALERT
    stored = await here.store.get(NAMESPACE)
    assert stored is not None
    strict = document(governance=Governance(dlp=Dlp(policy_overrides={"email": DlpAction.BLOCK})))
    await here.store.put(strict, expected=stored.sequence)

    async with asyncio.timeout(15):
        while not (found := [each async for each in letters(here.nc, Wanted())]):
            await asyncio.sleep(0.05)
    (letter,) = found
    assert letter.text(headers.DEAD_REASON) == "DLP_BLOCKED"
    assert letter.body == b""
    assert await inbox(here) == []
    assert MAIL.encode() not in letter.body + orjson.dumps(dict(letter.fields))


async def test_placeholders_may_make_a_body_too_large(nc: Client):
    rules = Dlp(policy_overrides={"cvv": DlpAction.REDACT})
    async with serving(nc, document(governance=Governance(dlp=rules))) as here:
        half = nc.max_payload // 2
        many = orjson.dumps({"cvv": ["111"] * (half // 6)})
        verdict = await here.call("alice", "send", many, **asked("send"))
        assert (verdict.ok, verdict.decision) == (False, Decision.TOO_LARGE)
        assert (await here.send("alice", "bob")).ok, "the connection lives"


@pytest.mark.parametrize("before", [0, 270, 280, 290, 299])
async def test_the_text_of_a_failure_comes_back_cleaned_and_half_a_secret_is_not_left(
    here: Serving, before: int
):
    key = "ghp_" + "1aB2" * 9
    report = {"sequence": 9999, "attempt": 1, "error_class": "E", "retryable": True}
    verdict = await here.call("bob", "fail", report | {"error": f"{'w' * before} {key} and so on"})
    assert verdict.result["error"].startswith("w" * before)
    assert "ghp_1" not in verdict.result["error"]
    assert len(verdict.result["error"]) <= 300


async def test_the_control_where_it_is_off_the_text_of_a_failure_is_as_it_was(nc: Client):
    async with serving(nc, document(governance=Governance(dlp=Dlp(enabled=False)))) as here:
        report = {
            "sequence": 9999,
            "attempt": 1,
            "error_class": "E",
            "retryable": True,
            "error": f"no {CARD}",
        }
        assert (await here.call("bob", "fail", report)).result["error"] == f"no {CARD}"

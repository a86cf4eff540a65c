"""Redriving and purging on a real server: nothing lost, nothing twice, wherever it was interrupted."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from typing import Any

import orjson
import pytest
from nats.aio.client import Client

from broker_policy import dedup
from broker_policy.audit.probe import Prober
from broker_policy.audit.record import DecisionLine, Outcome
from broker_policy.dead_letters import redrive
from broker_policy.dead_letters.letters import Letter, Wanted, letters
from broker_policy.ending import end
from broker_policy.jetstream import StoredMessage, direct_get_page, publish
from broker_policy.sealing import ReplyCapability, Sealer
from mas_nats.policy.document import Document, Limits, Permissions
from mas_nats.wire import headers, subjects
from mas_nats.wire.correlation import correlation
from mas_nats.wire.subjects import AdminOp
from mas_nats.wire.verdict import Verdict
from tests.audit_log import KEY, NAMESPACE
from tests.lossy import Lossy, messages, records
from tests.serving import SEALING_KEY, Serving, document, serving

AGENTS = ("alice", "bob", "carol")
SECRET = "no word of this"


@pytest.fixture
def lossy(nc: Client) -> Lossy:
    return Lossy(nc)


@pytest.fixture
async def here(nc: Client, lossy: Lossy) -> AsyncIterator[Serving]:
    async with serving(nc, document(AGENTS), through=lossy) as up:
        yield up


async def ask(nc: Client, op: AdminOp, timeout: float = 10, **body: object) -> Verdict:
    answer = await nc.request(subjects.admin(op), orjson.dumps({"by": "olga", **body}), timeout=timeout)
    return Verdict.decode(answer.data)


async def redriven(nc: Client, *sequences: int, **more: object) -> list[dict[str, Any]]:
    verdict = await ask(nc, AdminOp.REDRIVE, letters=sequences, **more)
    assert verdict.ok, verdict
    rows: list[dict[str, Any]] = verdict.result["letters"]
    return rows


async def dead(nc: Client, number: int = 1, agent: str = "bob", **more: str) -> int:
    """A dead letter as an undertaker leaves it; its sequence."""
    fields = {
        headers.MESSAGE_ID: f"m{number}",
        headers.SENDER: "alice",
        headers.TYPE: "work",
        headers.SENT: "1700000000000",
        headers.DEAD_REASON: "EXHAUSTED",
        headers.DEAD_TIME: "1700000009000",
    }
    body = orjson.dumps({"n": number, "note": SECRET})
    return (await publish(nc, subjects.dead_letter(agent), body, fields | more)).sequence


async def in_inbox(nc: Client, agent: str = "*") -> list[StoredMessage]:
    return await direct_get_page(nc, subjects.INBOX_STREAM, subjects.inbox(agent), 1)


async def left(nc: Client) -> list[int]:
    return [letter.sequence async for letter in letters(nc, Wanted())]


async def lines(here: Serving) -> list[DecisionLine]:
    return [line for record in await here.records() for line in record.decisions]


# -- the way through ------------------------------------------------------------------------------------
async def test_a_redriven_message_is_the_senders_own_again(here: Serving, nc: Client):
    sequence = await dead(nc)
    (row,) = await redriven(nc, sequence)
    assert (row["status"], row["message_id"], row["target"]) == ("redriven", "m1", "bob")
    (message,) = await in_inbox(nc)
    fields = message.headers
    assert message.subject == subjects.inbox("bob")
    assert orjson.loads(message.data) == {"n": 1, "note": SECRET}
    assert (fields[headers.MESSAGE_ID], fields[headers.SENDER], fields[headers.TYPE]) == (
        "m1",
        "alice",
        "work",
    )
    assert (fields[headers.SENT], fields[headers.REDRIVES]) == ("1700000000000", "1")
    assert not [name for name in fields if name.startswith("Mas-Dead")]
    assert await left(nc) == []
    (line,) = await lines(here)
    said = (line.op, line.sender, line.target, line.message_id, line.decision, line.by, line.letter)
    assert said == ("redrive", "alice", "bob", "m1", "ALLOWED", "olga", str(sequence))
    (record,) = [each for each in await here.log() if b"redrive" in each.data]
    assert record.sequence < message.sequence
    assert fields[headers.AUDIT].startswith(f"{record.subject.split('.')[2]}.")


async def test_its_senders_id_stays_the_senders(here: Serving, nc: Client):
    """The dedup id is another: the message's own may still be known to the stream, or be wanted again."""
    assert (await here.send("alice", "bob", {"n": 1}, id="m1")).ok
    await redriven(nc, await dead(nc))
    assert len(await in_inbox(nc)) == 2
    assert (await here.send("alice", "bob", {"n": 1}, id="m1")).duplicate


async def test_many_are_redriven_in_their_order(here: Serving, nc: Client):
    sequences = [await dead(nc, number) for number in range(40)]
    rows = await redriven(nc, *sequences)
    assert [row["sequence"] for row in rows] == sequences
    assert {row["status"] for row in rows} == {"redriven"}
    assert [orjson.loads(each.data)["n"] for each in await in_inbox(nc)] == list(range(40))
    assert await left(nc) == []


async def test_to_another_agent(here: Serving, nc: Client):
    (row,) = await redriven(nc, await dead(nc, agent="gone"), to="carol")
    assert (row["status"], row["target"]) == ("redriven", "carol")
    (message,) = await in_inbox(nc)
    assert (message.subject, message.headers[headers.TARGET]) == (subjects.inbox("carol"), "carol")


async def test_what_policy_refuses_stays_and_is_told_and_audited(here: Serving, nc: Client):
    policy = document(AGENTS, {"alice": ("bob",)})
    await here.store.wait_confirmed(await here.store.put(policy, expected=here.follower.revision))
    first, second, third = (
        await dead(nc, 1),
        await dead(nc, 2),
        await dead(nc, 3, **{headers.SENDER: "ghost"}),
    )
    (row,) = await redriven(nc, first, to="carol")
    assert (row["status"], row["decision"], row["rule"]) == ("kept", "AUTHZ_DENIED", "deny_by_default")
    (row,) = await redriven(nc, third)
    assert (row["decision"], row["rule"]) == ("AUTHZ_DENIED", "unknown_sender")
    (row,) = await redriven(nc, second, to="nobody")
    assert row["status"] == "kept"
    assert await left(nc) == [first, second, third]
    assert await in_inbox(nc) == []
    said = [(line.op, line.sender, line.target, line.decision, line.by) for line in await lines(here)]
    assert said == [
        ("redrive", "alice", "carol", "AUTHZ_DENIED", "olga"),
        ("redrive", "ghost", "bob", "AUTHZ_DENIED", "olga"),
        ("redrive", "alice", "nobody", "AUTHZ_DENIED", "olga"),
    ]


async def test_a_dry_run_says_what_would_be_and_does_nothing(here: Serving, nc: Client):
    first = await dead(nc)
    rows = await redriven(nc, first, dry_run=True)
    rows += await redriven(nc, first, dry_run=True, to="nobody")
    assert [(row["status"], row["decision"]) for row in rows] == [
        ("would be redriven", "ALLOWED"),
        ("kept", "UNKNOWN_TARGET"),
    ]
    assert (await left(nc), await in_inbox(nc), await lines(here)) == ([first], [], [])


async def test_one_that_is_not_there(here: Serving, nc: Client):
    assert await redriven(nc, 77) == [{"sequence": 77, "status": "gone"}]


# -- requests -------------------------------------------------------------------------------------------
async def test_a_request_comes_back_without_its_deadline_and_may_be_answered(here: Serving, nc: Client):
    """Its requester was told; the handler that answers is told that it is late, and does not fail."""
    sealer = Sealer("w9", [SEALING_KEY])
    asked = ReplyCapability(NAMESPACE, "alice", "0" * 20, correlation("m1"), "bob", "m1", 1700000001000)
    fields = {headers.DEADLINE: "1700000001000", headers.REPLY_TOKEN: sealer.seal(asked), headers.STREAM: "1"}
    broken = fields | {headers.REPLY_TOKEN: "sealed under a key of long ago"}
    await redriven(nc, await dead(nc, 1, **fields), to="carol")
    await redriven(nc, await dead(nc, 2, **broken), to="carol")
    for message in await in_inbox(nc, "carol"):
        assert headers.DEADLINE not in message.headers
        assert message.headers[headers.STREAM] == "1"
        said = {
            headers.MSG_ID: "r" + message.headers[headers.MESSAGE_ID],
            headers.TYPE: "answer",
            headers.REPLY_TOKEN: message.headers[headers.REPLY_TOKEN],
        }
        assert (await here.call("carol", "reply", {}, **said)).decision == "REPLY_LATE"
        assert (await here.call("bob", "reply", {}, **said)).decision == "REPLY_FOREIGN"


# -- interrupted between every two steps, and done again ------------------------------------------------
def removal(subject: str, _: dict[str, str]) -> bool:
    return subject.startswith("$JS.API.STREAM.MSG.DELETE.DLQ")


@pytest.mark.parametrize("fault", ["lose", "swallow"])
@pytest.mark.parametrize("point", [records, messages, removal])
@pytest.mark.parametrize("again", ["the same worker", "another worker"])
async def test_interrupted_and_done_again(
    here: Serving, lossy: Lossy, nc: Client, fault: str, point: Callable[..., bool], again: str
):
    """A lost answer is as a worker's death there: the next try finds what is done and goes on."""
    sequence = await dead(nc)
    getattr(lossy, fault)(point)
    verdict = await ask(nc, AdminOp.REDRIVE, letters=[sequence])
    assert lossy.happened.is_set()
    if point is removal:
        assert (verdict.ok, verdict.retry) == (False, True)
    if again == "another worker":
        await here.service.stop()
        async with serving(nc, document(AGENTS)):
            rows = await redriven(nc, sequence)
    else:
        rows = await redriven(nc, sequence)
    assert rows[0]["status"] in ("redriven", "gone")
    assert len(await in_inbox(nc)) == 1
    assert await left(nc) == []


async def test_two_that_redrive_the_same_letter_deliver_it_once(here: Serving, nc: Client):
    """By two workers at the same time, to two agents."""
    sequences = [await dead(nc, number) for number in range(32)]
    async with serving(nc, document(AGENTS)):
        asked = (redriven(nc, *sequences, to=to) for to in ("bob", "carol") * 2)
        rows = [row for rows in await asyncio.gather(*asked) for row in rows]
    assert {row["status"] for row in rows} <= {"redriven", "gone"}
    ids = [message.headers[headers.MESSAGE_ID] for message in await in_inbox(nc)]
    assert sorted(ids) == sorted(f"m{number}" for number in range(32))
    assert await left(nc) == []


async def test_the_control_an_id_of_its_own_each_time_delivers_twice(
    here: Serving, lossy: Lossy, nc: Client, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(dedup, "redrive_dedup_id", lambda *_: secrets.token_hex())
    sequence = await dead(nc)
    lossy.swallow(removal)
    await ask(nc, AdminOp.REDRIVE, letters=[sequence])
    await redriven(nc, sequence)
    assert len(await in_inbox(nc)) == 2


@pytest.mark.parametrize("point", [records, messages, removal])
async def test_a_worker_that_is_gone_between_two_steps(
    here: Serving, lossy: Lossy, nc: Client, point: Callable[..., bool], monkeypatch: pytest.MonkeyPatch
):
    """From ``point`` on nothing of the first worker arrives any more; another does it again."""
    monkeypatch.setattr(redrive, "PATIENCE", 0.5)
    sequence = await dead(nc)
    lossy.swallow(point, times=10_000)
    asking = asyncio.create_task(ask(nc, AdminOp.REDRIVE, letters=[sequence]))
    await asyncio.wait_for(lossy.happened.wait(), 5)
    lossy.swallow(lambda *_: True, times=10_000)
    await here.service._operators.stop()
    await end(here.service._lanes)
    await asyncio.wait({asking}, timeout=5)
    async with serving(nc, document(AGENTS)):
        (row,) = await redriven(nc, sequence)
        assert row["status"] == "redriven"
        assert len(await in_inbox(nc)) == 1
        assert await left(nc) == []
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)


async def test_a_redrive_that_the_audit_gave_up_gets_another_id(here: Serving, nc: Client):
    """A probe has taken the first id of the letter: nothing was stored under it and never will be."""
    sequence = await dead(nc)
    prober = Prober(nc, NAMESPACE, KEY)
    assert (await prober.probe("alice", "m1", str(sequence))).sequence == 0
    (row,) = await redriven(nc, sequence)
    assert row["status"] == "redriven"
    (message,) = await in_inbox(nc)
    assert [line.letter for line in await lines(here) if line.decision == "ALLOWED"][-1] == f"{sequence}.1"
    found = await prober.probe("alice", "m1", f"{sequence}.1")
    assert found.sequence == message.sequence


async def test_what_was_redriven_long_ago_is_only_removed(here: Serving, nc: Client):
    """The stream forgets an id after ten minutes, or when the server starts anew; the audit does not."""
    here.recall.letters = {sequence := await dead(nc)}
    (row,) = await redriven(nc, sequence)
    assert (row["status"], row["duplicate"]) == ("redriven", True)
    assert (await in_inbox(nc), await left(nc)) == ([], [])


async def test_while_the_audit_cannot_tell_nothing_is_redriven(here: Serving, nc: Client):
    here.recall.letters = None
    sequence = await dead(nc)
    (row,) = await redriven(nc, sequence)
    assert (row["status"], row["rule"], row["retry"]) == ("kept", "redriven_before", True)
    assert (await in_inbox(nc), await left(nc)) == ([], [sequence])


async def test_a_full_inbox_keeps_the_rest(nc: Client):
    async with serving(nc, document(AGENTS, limits=Limits(inbox_messages=10))):
        sequences = [await dead(nc, number) for number in range(16)]
        rows = await redriven(nc, *sequences)
        statuses = [row["status"] for row in rows]
        assert (statuses.count("redriven"), statuses.count("kept")) == (10, 6)
        assert {row["decision"] for row in rows} == {"ALLOWED", "INBOX_FULL"}
        assert await left(nc) == [row["sequence"] for row in rows if row["status"] == "kept"]


# -- purge ----------------------------------------------------------------------------------------------
async def test_a_purge_is_audited_and_says_no_word_of_the_payload(here: Serving, nc: Client):
    kept, gone = await dead(nc, 1), await dead(nc, 2)
    verdict = await ask(nc, AdminOp.PURGE, letters=[gone, 99])
    assert [row["status"] for row in verdict.result["letters"]] == ["purged", "gone"]
    assert await left(nc) == [kept]
    (line,) = await lines(here)
    said = (line.op, line.sender, line.target, line.message_id, line.by, line.letter)
    assert said == ("purge", "alice", "bob", "m2", "olga", str(gone))
    assert SECRET.encode() not in b"".join(each.data for each in await here.log())


@pytest.mark.parametrize("fault", ["lose", "swallow"])
@pytest.mark.parametrize("point", [records, removal])
async def test_a_purge_interrupted_and_done_again(
    here: Serving, lossy: Lossy, nc: Client, fault: str, point: Callable[..., bool]
):
    sequence = await dead(nc)
    getattr(lossy, fault)(point)
    await ask(nc, AdminOp.PURGE, letters=[sequence])
    await ask(nc, AdminOp.PURGE, letters=[sequence])
    assert await left(nc) == []


# -- asked wrongly --------------------------------------------------------------------------------------
WRONG = [
    b"",
    b"[]",
    b'{"letters":[1]}',
    b'{"by":"","letters":[1]}',
    b'{"by":"o","letters":[]}',
    b'{"by":"o","letters":["1"]}',
    b'{"by":"o","letters":[1],"to":"mas.>"}',
    b'{"by":"o","letters":[1],"all":true}',
    orjson.dumps({"by": "o", "letters": list(range(1, 70))}),
]


async def test_what_was_asked_wrongly_is_told_so(here: Serving, nc: Client):
    for subject in (subjects.admin(AdminOp.REDRIVE), "mas.admin.anything"):
        for body in WRONG:
            verdict = Verdict.decode((await nc.request(subject, body, timeout=5)).data)
            assert (verdict.ok, verdict.decision) == (False, "INVALID"), body


async def test_letters_are_found_by_what_they_say(nc: Client, here: Serving):
    await dead(nc, 1)
    await dead(nc, 2, "carol")
    await dead(nc, 3, **{headers.DEAD_REASON: "ValueError", headers.TYPE: "note"})
    await dead(nc, 4, **{headers.SENDER: "carol", headers.DEAD_TIME: "1700000010000"})

    async def found(**wanted: object) -> list[str]:
        return [each.text(headers.MESSAGE_ID) async for each in letters(nc, Wanted(**wanted))]  # type: ignore[arg-type]

    assert await found() == ["m1", "m2", "m3", "m4"]
    assert await found(agent="carol") == ["m2"]
    assert await found(reason="ValueError") == ["m3"]
    assert await found(type="note") == ["m3"]
    assert await found(sender="carol") == ["m4"]
    assert await found(since=1700000010000) == ["m4"]
    assert await found(after=2) == ["m3", "m4"]


def test_a_letter_does_not_show_its_payload():
    letter = Letter(1, "bob", {headers.DEAD_ERROR: "x"}, b'{"secret": 1}')
    assert "secret" not in repr(letter)
    assert "secret" not in str(letter.row())


# -- the inbox of a removed agent -----------------------------------------------------------------------
async def remove(here: Serving, *agents: str) -> int:
    before = await here.store.get(NAMESPACE)
    assert before is not None
    left = {name: policy for name, policy in before.document.agents.items() if name not in agents}
    allowed = {name: Permissions(allowed_targets=("*",)) for name in left}
    policy: Document = before.document.model_copy(update={"agents": left, "permissions": allowed})
    revision = await here.store.put(policy, expected=before.sequence)
    await here.store.wait_confirmed(revision)
    return revision


async def test_the_backlog_of_a_removed_agent_becomes_dead_letters(here: Serving, nc: Client):
    for number in range(70):
        assert (await here.send("alice", "bob", {"n": number})).ok
    assert (await here.send("alice", "carol")).ok
    revision = await remove(here, "bob")
    verdict = await ask(nc, AdminOp.RETIRE, agent="bob", revision=revision)
    assert (verdict.result["buried"], verdict.result["empty"]) == (70, True)
    assert len(await in_inbox(nc)) == 1
    found = [letter async for letter in letters(nc, Wanted(agent="bob", reason="AGENT_REMOVED"))]
    assert sorted(orjson.loads(letter.body)["n"] for letter in found) == list(range(70))
    reports = [report for record in await here.records() for report in record.reports]
    assert {(report.agent, report.outcome, report.reason) for report in reports} == {
        ("bob", "d", "AGENT_REMOVED")
    }
    assert len(reports) == 70
    retired = [line for line in await lines(here) if line.op == "retire"]
    assert [(line.target, line.decision, line.by) for line in retired] == [("bob", "ALLOWED", "olga")]

    assert await here.outcomes_of_acts() == [Outcome.APPLIED]


async def test_the_inbox_of_an_agent_in_the_policy_is_its_own(here: Serving, nc: Client):
    assert (await here.send("alice", "bob")).ok
    verdict = await ask(nc, AdminOp.RETIRE, agent="bob", revision=here.follower.revision)
    assert (verdict.ok, verdict.rule) == (False, "still_declared")
    await remove(here, "bob")
    verdict = await ask(nc, AdminOp.RETIRE, agent="bob", revision=here.follower.revision + 1)
    assert (verdict.decision, verdict.retry) == ("POLICY_STALE", True)
    assert len(await in_inbox(nc)) == 1

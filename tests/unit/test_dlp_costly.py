"""Content that is costly to search: the loop stays free, order is kept, and nothing passes unsearched.

What is measured is the computing of this thread between two ticks, so that other processes do not disturb.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import orjson
import pytest
from nats.aio.client import Client

from broker_policy.calls.searching import MOST_BYTES_OF_ONE
from broker_policy.dlp import Apart, SearchFailed, judge, ruleset
from broker_policy.dlp.judging import LARGE
from broker_policy.embedded.halt import halt
from broker_policy.jetstream import direct_get_page
from broker_policy.pipeline import Call
from broker_policy.pipeline.dlp import Searched
from broker_policy.sealing import ReplyCapability
from mas_nats.policy.governance import Dlp, DlpAction, DlpRule, Governance
from mas_nats.wire import headers, subjects
from mas_nats.wire.verdict import Decision, Verdict
from tests.audit_log import NAMESPACE
from tests.nasty import CONTENTS
from tests.serving import Serving, document, serving
from tests.unit.test_dlp_calls import EVERY_WAY, asked, body_of

MEGABYTE = 900_000
RULES = ruleset(Dlp())
PROMISED = 0.1
"""Seconds for which no content may hold the loop."""


class Gaps:
    """The longest computing between two ticks, in seconds."""

    def __init__(self) -> None:
        self.longest = 0.0

    async def tick(self) -> None:
        before = time.thread_time()
        while True:
            await asyncio.sleep(0)
            now = time.thread_time()
            self.longest = max(self.longest, now - before)
            before = now
            await asyncio.sleep(0.001)


@contextlib.asynccontextmanager
async def gaps() -> AsyncIterator[Gaps]:
    found = Gaps()
    ticking = asyncio.create_task(found.tick())
    await asyncio.sleep(0.01)
    try:
        yield found
        await asyncio.sleep(0.01)
    finally:
        ticking.cancel()


@pytest.fixture
async def here(nc: Client) -> AsyncIterator[Serving]:
    async with serving(nc) as up:
        yield up


def objects(content: bytes) -> bytes:
    return content if content[:1] == b"{" else b'{"content":' + content + b"}"


@pytest.mark.alone
@pytest.mark.parametrize(
    "name", ["3-2-4", "api keys that are none", "numbers", "base64", "digits of another script"]
)
async def test_the_loop_stays_free_while_a_megabyte_is_searched(here: Serving, name: str):
    body = objects(CONTENTS[name](MEGABYTE))
    async with gaps() as direct:
        expected = judge(RULES, body)
    async with gaps() as served:
        verdict = await here.call("alice", "send", body, timeout=60, **asked("send"))
    assert verdict.decision is (expected.decision if expected else Decision.ALLOWED)
    assert direct.longest > PROMISED, "searched on the loop it is held: the measure notices"
    assert served.longest < PROMISED, (served.longest, direct.longest)


@pytest.mark.alone
async def test_many_that_are_not_large_hold_nobody_up_either(here: Serving):
    body = objects(CONTENTS["3-2-4"](LARGE - 500))
    async with gaps() as direct:
        for _ in range(200):
            judge(RULES, body)
    async with gaps() as served:
        verdicts = await asyncio.gather(*(here.send("alice", "bob", orjson.loads(body)) for _ in range(200)))
    assert {verdict.decision for verdict in verdicts} == {Decision.DLP_REDACTED}
    # The callers are in this loop, too: they take most of what is left.
    assert served.longest < direct.longest / 5


FILLING = "3 1 4 1 5 9 2 6 " * 2_000


@pytest.mark.parametrize("op", EVERY_WAY)
async def test_the_same_is_found_in_what_is_large(here: Serving, op: str):
    card, number = "4111 1111 1111 1111", "219-09-9999"
    said = [f"{FILLING}. {number}", f"{FILLING}. someone@example.com", f"{FILLING}. {card}"]
    decisions = [Decision.DLP_REDACTED, Decision.ALERT, Decision.DLP_BLOCKED]
    for place, (text, decision) in enumerate(zip(said, decisions, strict=True)):
        fields = asked(op) | {headers.MSG_ID: f"m{place}"}
        body = body_of(op, text)
        if op == "state":
            body["revision"] = (await here.call("alice", "state", {"op": "get"}, **fields)).result["revision"]
        verdict = await here.call("alice", op, body, timeout=30, **fields)
        if op in ("reply", "frame") and place == 1:  # only the first answer counts
            continue
        assert verdict.decision is decision, verdict
    stored = b""
    for info in await here.nc.jetstream().streams_info():
        stored += b"".join(
            each.data for each in await direct_get_page(here.nc, info.config.name, ">", 1, batch=1000)
        )
    assert number.encode() not in stored
    assert card.encode() not in stored
    assert b"[REDACTED:ssn]" in stored


async def test_a_senders_messages_stay_in_their_order_and_others_do_not_wait(here: Serving):
    large = {"text": CONTENTS["3-2-4"](MEGABYTE).decode()}
    sent = [asyncio.create_task(here.send("alice", "bob", large if n == 0 else {"n": n})) for n in range(4)]
    await asyncio.sleep(0)
    other = await here.send("bob", "alice", {"n": 0})
    assert other.ok
    assert not any(task.done() for task in sent)
    assert all(verdict.ok for verdict in await asyncio.gather(*sent))
    stored = await direct_get_page(here.nc, subjects.INBOX_STREAM, subjects.inbox("bob"), 1, batch=10)
    assert [orjson.loads(each.data).get("n", 0) for each in stored] == [0, 1, 2, 3]


async def test_replies_of_another_namespace_wait_in_their_senders_line(nc: Client):
    """Who answers one request again and again has one content searched at a time, like everybody."""
    capability = ReplyCapability(NAMESPACE, "alice", "a" * 20, "c" * 32, "other/bob", "m", 9 * 10**12)
    body = orjson.dumps({"numbers": "4111-1111 " * 90_000})
    begun, free = 0, asyncio.Event()

    async def judge_once(*_: object) -> None:
        nonlocal begun
        begun += 1
        await free.wait()

    async with serving(nc) as here:
        entrance = here.service.arriving
        assert entrance is not None
        here.service._searching._apart.judge = judge_once

        def reply(number: int) -> asyncio.Task[Verdict]:
            call = Call(
                "other/bob", "reply", body, "", message_id=f"r{number}", target="alice", type="answer"
            )
            call.origin = "other"
            return asyncio.create_task(entrance.reply(call, capability))

        replies = [reply(number) for number in range(30)]
        refused, waiting = await asyncio.wait(replies, return_when=asyncio.FIRST_COMPLETED)
        assert begun == 1
        assert {task.result().rule for task in refused} == {"busy"}
        assert sum(len(body) + 1024 for _ in waiting) <= MOST_BYTES_OF_ONE
        free.set()
        await asyncio.wait(waiting)
        assert begun == len(waiting)


async def test_what_takes_too_long_is_refused_and_said_so(nc: Client):
    apart = Apart(budget=0.05)
    async with serving(nc, apart=apart) as here:
        verdict = await here.send("alice", "bob", orjson.loads(objects(CONTENTS["3-2-4"](MEGABYTE))))
        assert (verdict.decision, verdict.rule, verdict.retry) == (Decision.DLP_BLOCKED, "dlp:cost", False)
        assert "too long" in verdict.reason
        assert verdict.fix
        process = apart.pid
        assert (await here.send("alice", "bob", {"text": f"{FILLING[:10_000]} a@b.org"})).ok
        assert apart.pid == process, "the time is over for a content, not for the process"
    await apart.stop()


async def test_a_process_that_ends_lets_nothing_pass(nc: Client):
    apart = Apart()
    async with serving(nc, apart=apart) as here:
        large = {"text": f"{FILLING} a@b.org"}
        assert (await here.send("alice", "bob", large)).decision is Decision.ALERT
        assert apart.pid is not None
        halt(apart.pid)
        waiting = asyncio.create_task(here.send("alice", "bob", large))
        while not here.service._searching._waiting:
            await asyncio.sleep(0)
        os.kill(apart.pid, signal.SIGKILL)
        verdict = await waiting
        assert (verdict.ok, verdict.decision, verdict.retry) == (False, Decision.UNAVAILABLE, True)
        assert (await here.send("alice", "bob", large)).decision is Decision.ALERT, "another one is begun"
    await apart.stop()


async def test_one_that_does_not_answer_is_given_up():
    apart = Apart()
    assert await apart.judge(RULES, b"{}") is None
    assert apart.pid is not None
    halt(apart.pid)
    apart.patience = 0.1
    with pytest.raises(SearchFailed):
        await apart.judge(RULES, b"{}")
    assert apart.pid is None
    await apart.stop()


async def test_rules_of_a_users_own_hold_there_too(nc: Client):
    own = DlpRule(id="p", type="project", pattern=r"\bPRJ-\d{4}\b", action=DlpAction.BLOCK)
    async with serving(nc, document(governance=Governance(dlp=Dlp(rules=(own,))))) as here:
        verdict = await here.send("alice", "bob", {"text": f"{FILLING} PRJ-1234"})
        assert verdict.rule == "dlp:project"


async def test_it_says_what_a_search_in_place_says():
    apart = Apart()
    for name, make in CONTENTS.items():
        body = make(60_000)
        assert await apart.judge(RULES, body) == judge(RULES, body), name
    await apart.stop()


BEGINNING = """
import asyncio
from broker_policy.calls.searching import MOST_BYTES_OF_ONE
from broker_policy.dlp import Apart, ruleset
from mas_nats.policy.governance import Dlp

async def main():
    apart = Apart()
    await apart.judge(ruleset(Dlp()), b"{}")
    print(apart.pid, flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


async def test_it_ends_with_its_worker_however_that_ends():
    worker = await asyncio.create_subprocess_exec(
        sys.executable, "-c", BEGINNING, stdout=asyncio.subprocess.PIPE
    )
    assert worker.stdout is not None
    process = int(await worker.stdout.readline())
    worker.kill()
    await worker.wait()
    async with asyncio.timeout(10):
        with contextlib.suppress(ProcessLookupError):
            while not zombie(process):
                os.kill(process, 0)
                await asyncio.sleep(0.02)


def zombie(process: int) -> bool:
    """Whether it has ended and nobody has asked how: in a container nobody may."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.parametrize("op", EVERY_WAY)
@pytest.mark.parametrize(
    "body", [b"4 " * LARGE, b'{"a": "4 ' * LARGE, b'{"a":' * 2_000 + b"1" + b"}" * 2_000]
)
async def test_what_is_large_and_cannot_be_read_is_refused_as_ever(here: Serving, op: str, body: bytes):
    verdict = await here.call("alice", op, body, timeout=30, **asked(op))
    assert not verdict.ok
    assert verdict.decision in (Decision.INVALID, Decision.DLP_BLOCKED)


@pytest.mark.alone
async def test_what_a_redrive_would_do_is_found_out_without_holding_the_loop(here: Serving):
    body = objects(CONTENTS["3-2-4"](MEGABYTE))
    call = Call("alice", "send", body, "", message_id="m1", target="bob", type="work")
    async with gaps() as searched:
        assert await here.service._searching.search(call) is None
    async with gaps() as served:
        verdict = await here.send("alice", "bob", {"n": 1})
    assert verdict.ok
    assert isinstance(call.searched, Searched)
    assert call.searched.judgement is not None
    assert searched.longest < PROMISED
    assert served.longest < PROMISED

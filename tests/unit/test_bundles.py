"""Calls that go together: each gets its own verdict, and what is no bundle reaches nothing."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import orjson
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from sdk_worker import ScriptedWorker, endpoint

from broker_policy.calls.bundles import Bundle
from broker_policy.embedded.nats_server import NatsServer
from broker_policy.identity.pki import CertificateAuthority
from mas_nats.calls import Calls
from mas_nats.connection import NatsConnection
from mas_nats.wire import bundle, headers
from mas_nats.wire.bundle import Part
from mas_nats.wire.headers import BUNDLE, MSG_ID, TARGET, TYPE
from mas_nats.wire.subjects import Op
from mas_nats.wire.verdict import Decision, Verdict, accepted
from tests.serving import Serving, document, serving


def part(number: int, *, target: str = "bob", body: bytes = b"{}", op: str = Op.SEND) -> Part:
    return Part(op, {MSG_ID: f"m{number}", TARGET: target, TYPE: "work"}, body)


@pytest.fixture
async def here(nc: Client) -> AsyncIterator[Serving]:
    async with serving(nc, document(("alice", "bob", "carol"), {"alice": ("bob",)})) as up:
        yield up


async def ask(here: Serving, parts: list[Part]) -> list[Verdict]:
    answer = await here.call("alice", Op.SEND, bundle.encode(parts), **{BUNDLE: "1"})
    verdicts = bundle.decode_verdicts(answer, len(parts))
    assert verdicts is not None
    return verdicts


def test_round_trip():
    parts = [part(1, body=b'{"a":1}'), part(2, body=b""), part(3, body=b"\xff\x00", op=Op.REQUEST)]
    assert bundle.decode(bundle.encode(parts)) == parts


def test_verdicts_round_trip():
    said = [accepted("a"), accepted("b", duplicate=True), Verdict(Decision.INVALID, ok=False, reason="r")]
    encoded = bundle.encode_verdicts(said)
    assert bundle.decode_verdicts(Verdict.decode(encoded), 3) == [bundle.PLAIN, *said[1:]]
    with pytest.raises(ValueError, match="not an answer to this bundle"):
        bundle.decode_verdicts(Verdict.decode(encoded), 4)


def test_nothing_of_a_bundle_that_was_answered_stays():
    """Its calls know it: left like that, a thousand bodies would wait for the garbage collector."""
    message = Msg(None, subject="mas.call.alice.send", reply="r", data=bundle.encode([part(1), part(2)]))
    gc.disable()
    try:
        read = Bundle.read(message, lambda: 0)
        first, second = read.calls
        gone = weakref.ref(read)
        assert read.answered(first, bundle.PLAIN) is None
        refused = Verdict(Decision.INVALID, ok=False)
        assert read.answered(first, refused) is None  # told already
        whole = read.answered(second, refused)
        assert whole == ([first, second], [bundle.PLAIN, refused])
        assert read.answered(second, bundle.PLAIN) is None  # once
        del read, first, second, whole
        assert gone() is None
    finally:
        gc.enable()


@pytest.mark.parametrize(
    "more", [{"duplicate": True}, {"rule": "r"}, {"result": {"a": 1}}, {"reason": "r"}, {"retry_after": 1.0}]
)
def test_only_a_plain_acceptance_is_told_without_words(more):
    said = replace(accepted("a"), **more)
    assert not said.plain
    assert bundle.decode_verdicts(Verdict.decode(bundle.encode_verdicts([said])), 1) == [said]


async def test_each_has_a_verdict_of_its_own_in_order(here: Serving):
    parts = [part(1), part(2, target="carol"), part(3, body=b"no json"), part(4), part(1)]
    verdicts = await ask(here, parts)
    assert [each.decision for each in verdicts] == [
        Decision.ALLOWED,
        Decision.AUTHZ_DENIED,
        Decision.INVALID,
        Decision.ALLOWED,
        Decision.ALLOWED,
    ]
    assert [each.message_id for each in verdicts] == ["", "m2", "m3", "", "m1"]  # plain ones name none
    assert [each.duplicate for each in verdicts] == [False, False, False, False, True]
    stored = [each for each in await here.log() if each.subject == "mas.inbox.bob"]
    assert [each.headers[headers.MESSAGE_ID] for each in stored] == ["m1", "m4"]
    assert {each.headers[headers.SENDER] for each in stored} == {"alice"}
    decided = [line for record in await here.records() for line in record.decisions]
    assert sorted(line.message_id for line in decided) == ["m1", "m1", "m2", "m3", "m4"]


async def test_the_most_that_a_bundle_holds(here: Serving):
    parts = [part(number) for number in range(bundle.MOST_CALLS)]
    assert all(each.ok for each in await ask(here, parts))
    assert len([each for each in await here.log() if each.subject == "mas.inbox.bob"]) == bundle.MOST_CALLS


def listed(calls: object, rest: bytes = b"") -> bytes:
    text = calls if isinstance(calls, bytes) else orjson.dumps(calls)
    return len(text).to_bytes(4) + text + rest


FIELDS = {MSG_ID: "m1", TARGET: "bob", TYPE: "work"}
NO_BUNDLES = {
    "empty": b"",
    "a length only": b"\xff\xff\xff\xff",
    "no JSON": listed(b"[", b""),
    "deep": listed(b"[" * 100_000),
    "an object": listed({}),
    "no call": listed([]),
    "too many": listed([[Op.SEND, FIELDS, 0]] * (bundle.MOST_CALLS + 1)),
    "another operation": listed([["hello", FIELDS, 2]], b"{}"),
    "an operation inside": listed([[["send"], FIELDS, 2]], b"{}"),
    "headers that are a list": listed([[Op.SEND, [], 2]], b"{}"),
    "a header that is no text": listed([[Op.SEND, FIELDS | {TYPE: 1}, 2]], b"{}"),
    "a header of two lines": listed([[Op.SEND, FIELDS | {TYPE: "a\r\nMas-Sender: root"}, 2]], b"{}"),
    "a header with an end": listed([[Op.SEND, FIELDS | {TYPE: "a\x00"}, 2]], b"{}"),
    "a negative length": listed([[Op.SEND, FIELDS, -1]], b"{}"),
    "a length beyond the end": listed([[Op.SEND, FIELDS, 3]], b"{}"),
    "a huge length": listed([[Op.SEND, FIELDS, 1 << 60]], b"{}"),
    "no number": listed([[Op.SEND, FIELDS, "2"]], b"{}"),
    "something behind": listed([[Op.SEND, FIELDS, 2]], b"{}{}"),
}


@pytest.mark.parametrize("body", NO_BUNDLES.values(), ids=NO_BUNDLES.keys())
async def test_what_is_no_bundle_is_refused_whole(here: Serving, body: bytes):
    before = [each for each in await here.log() if each.subject == "mas.inbox.bob"]
    verdict = await here.call("alice", Op.SEND, body, **{BUNDLE: "1"})
    assert (verdict.decision, verdict.rule) == (Decision.INVALID, "bundle")
    assert [each for each in await here.log() if each.subject == "mas.inbox.bob"] == before
    assert (await ask(here, [part(99), part(100)]))[1].ok  # the control: this is one


async def test_a_part_cannot_name_its_sender(here: Serving):
    forged = Part(Op.SEND, FIELDS | {headers.SENDER: "carol", "sender": "carol"}, b"{}")
    (verdict, _) = await ask(here, [forged, part(2)])
    assert verdict.ok
    (first, *_) = [each for each in await here.log() if each.subject == "mas.inbox.bob"]
    assert first.headers[headers.SENDER] == "alice"


# -- the SDK's side ------------------------------------------------------------------------------------------
@pytest.fixture
async def worker(
    ca: CertificateAuthority, nats_server: NatsServer, tmp_path: Path
) -> AsyncIterator[ScriptedWorker]:
    worker = await ScriptedWorker(endpoint(ca, tmp_path / "w", nats_server, "w"), ["b"]).start()
    yield worker
    await worker.stop()


@pytest.fixture
async def calls(ca: CertificateAuthority, nats_server: NatsServer, tmp_path: Path) -> AsyncIterator[Calls]:
    connection = NatsConnection(endpoint(ca, tmp_path / "a", nats_server, "a"), name="a")
    await connection.open(5)
    yield Calls(connection, "a")
    await connection.close()


def sends(calls: Calls, count: int) -> list[asyncio.Future[Verdict]]:
    fields = [{MSG_ID: f"s{number}", TARGET: "b", TYPE: "t"} for number in range(count)]
    return [asyncio.ensure_future(calls.call(Op.SEND, b"{}", each)) for each in fields]


async def test_what_is_called_at_once_goes_together_and_what_is_alone_alone(nc: Client, calls: Calls):
    async with serving(nc, document(("a", "b"))) as here:
        heard: list[int] = []

        async def hear(message: object) -> None:
            fields = getattr(message, "headers", None) or {}
            heard.append(len(bundle.decode(message.data)) if BUNDLE in fields else 1)  # type: ignore[attr-defined]

        await here.nc.subscribe("mas.call.a.send", cb=hear)
        await here.nc.flush()
        calls.bundles.most = 50
        assert all(each.ok for each in await asyncio.gather(*sends(calls, 120)))
        assert (await calls.call(Op.SEND, b"{}", {MSG_ID: "alone", TARGET: "b", TYPE: "t"})).ok
        await here.nc.flush()
        assert heard == [50, 50, 20, 1]


async def test_who_does_not_know_bundles_gets_each_on_its_own(worker: ScriptedWorker, calls: Calls):
    calls.bundles.most = 50
    refused = Verdict(Decision.INVALID, ok=False, rule="message_id")
    worker.refuse_bundles = refused
    verdicts = await asyncio.gather(*sends(calls, 3))
    assert [each.message_id for each in verdicts] == ["s0", "s1", "s2"]
    assert all(each.ok for each in verdicts)
    assert calls.bundles.most == 0


async def test_a_bundle_that_is_not_answered_is_repeated_call_by_call(nc: Client, calls: Calls):
    calls.bundles.most = 50
    async with serving(nc, document(("a", "b"))) as here:
        answers = 0
        original = here.service._nc.publish

        async def lossy(subject: str, *rest: object, **more: object) -> None:
            nonlocal answers
            if subject.startswith("_INBOX.") and (answers := answers + 1) == 1:
                return
            await original(subject, *rest, **more)

        here.service._nc.publish = lossy
        try:
            verdicts = await asyncio.gather(*sends(calls, 3))
        finally:
            here.service._nc.publish = original
        assert all(each.ok for each in verdicts)
        assert [each.duplicate for each in verdicts] == [True] * 3


async def test_one_that_gives_up_takes_nobody_with_it(nc: Client, calls: Calls):
    calls.bundles.most = 50
    async with serving(nc, document(("a", "b"))):
        first, second, third = sends(calls, 3)
        await asyncio.sleep(0)
        second.cancel()
        assert (await first).ok
        assert (await third).ok

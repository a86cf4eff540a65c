from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sdk_worker import ScriptedWorker, endpoint, eventually

from broker_policy.embedded.nats_server import NatsServer
from broker_policy.identity.pki import CertificateAuthority
from mas_nats import calls as calls_module
from mas_nats.calls import Calls
from mas_nats.connection import NatsConnection
from mas_nats.errors import OutcomeUnknown, Unavailable
from mas_nats.patience import Patience
from mas_nats.wire.headers import MSG_ID, TARGET, TYPE
from mas_nats.wire.subjects import Op
from mas_nats.wire.verdict import Decision, Verdict, accepted

FIELDS = {MSG_ID: "id-1", TARGET: "b", TYPE: "t"}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls_module, "Patience", lambda: Patience(0.2))


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


async def test_verdict(worker: ScriptedWorker, calls: Calls):
    verdict = await calls.call(Op.SEND, b"{}", FIELDS)
    assert (verdict.ok, verdict.message_id, verdict.duplicate) == (True, "id-1", False)


async def test_no_worker_is_unavailable_soon(worker: ScriptedWorker, calls: Calls):
    await worker.leave()
    before = time.monotonic()
    with pytest.raises(Unavailable, match="nothing was sent"):
        await calls.call(Op.SEND, b"{}", FIELDS)
    assert time.monotonic() - before < 2


async def test_workers_away_for_a_moment_are_waited_for(worker: ScriptedWorker, calls: Calls):
    await worker.leave()
    calling = asyncio.ensure_future(calls.call(Op.SEND, b"{}", FIELDS))
    await asyncio.wait([calling], timeout=0.3)
    assert not calling.done()
    await worker.listen()
    assert (await calling).ok
    assert len(worker.calls) == 1


async def test_lost_answer_is_repeated_with_the_same_id(worker: ScriptedWorker, calls: Calls):
    worker.mute[Op.SEND] = 2
    verdict = await calls.call(Op.SEND, b"{}", FIELDS)
    assert verdict.ok
    assert verdict.duplicate
    assert [fields[MSG_ID] for _, _, fields, _ in worker.calls] == ["id-1"] * 3


async def test_no_answer_at_all_is_outcome_unknown(worker: ScriptedWorker, calls: Calls):
    worker.lose[Op.SEND] = 100
    with pytest.raises(OutcomeUnknown) as caught:
        await calls.call(Op.SEND, b"{}", FIELDS, timeout=0.7)
    assert caught.value.message_id == "id-1"
    assert worker.count(Op.SEND) >= 2


async def test_worker_gone_after_a_try_is_never_called_unavailable(worker: ScriptedWorker, calls: Calls):
    worker.lose[Op.SEND] = 1
    calling = asyncio.ensure_future(calls.call(Op.SEND, b"{}", FIELDS, timeout=1))
    await eventually(lambda: worker.calls)
    await worker.leave()
    with pytest.raises(OutcomeUnknown):
        await calling


async def test_worker_back_within_the_timeout_answers(worker: ScriptedWorker, calls: Calls):
    worker.lose[Op.SEND] = 1
    calling = asyncio.ensure_future(calls.call(Op.SEND, b"{}", FIELDS, timeout=10))
    await eventually(lambda: worker.calls)
    await worker.leave()
    await asyncio.sleep(0.5)
    await worker.listen()
    assert (await calling).ok


@pytest.mark.parametrize("decision", [Decision.UNAVAILABLE, Decision.POLICY_STALE])
async def test_busy_worker_is_asked_again(worker: ScriptedWorker, calls: Calls, decision: Decision):
    busy = Verdict(decision, ok=False, reason="too much to do", retry=True)
    worker.say[Op.SEND] = lambda: busy
    assert await calls.call(Op.SEND, b"{}", FIELDS, timeout=0.5) == busy
    tries = worker.count(Op.SEND)
    assert tries > 1
    worker.say[Op.SEND] = lambda: busy if worker.count(Op.SEND) < tries + 3 else accepted("id-1")
    assert (await calls.call(Op.SEND, b"{}", FIELDS)).ok


async def test_busy_after_a_lost_answer_is_never_called_unavailable(worker: ScriptedWorker, calls: Calls):
    worker.lose[Op.SEND] = 1
    worker.say[Op.SEND] = lambda: Verdict(Decision.UNAVAILABLE, ok=False, retry=True)
    with pytest.raises(OutcomeUnknown):
        await calls.call(Op.SEND, b"{}", FIELDS, timeout=0.7)


async def test_broker_away_is_unavailable(worker: ScriptedWorker, calls: Calls, nats_server: NatsServer):
    await nats_server.process.stop()
    async with asyncio.timeout(10):
        while calls._connection._ready.is_set():  # type: ignore[attr-defined]
            await asyncio.sleep(0.01)
    with pytest.raises(Unavailable, match="away"):
        await calls.call(Op.SEND, b"{}", FIELDS, timeout=0.5)


async def test_broker_back_within_the_timeout(worker: ScriptedWorker, calls: Calls, nats_server: NatsServer):
    await nats_server.process.stop()
    calling = asyncio.ensure_future(calls.call(Op.HELLO, b'{"instance": null}', timeout=10))
    await nats_server.start()
    try:
        assert (await calling).ok
    except Unavailable:  # the worker came back later than we did
        await asyncio.sleep(0.5)
        assert (await calls.call(Op.HELLO, b'{"instance": null}')).ok


async def test_refused_for_the_moment_after_a_lost_answer_is_not_refused(
    worker: ScriptedWorker, calls: Calls
):
    """The first try may be stored, and the inbox full because of it."""
    full = Verdict(Decision.INBOX_FULL, ok=False, retry=True)
    worker.say[Op.SEND] = lambda: full
    assert await calls.call(Op.SEND, b"{}", FIELDS) == full
    worker.mute[Op.SEND] = 1
    with pytest.raises(OutcomeUnknown) as unknown:
        await calls.call(Op.SEND, b"{}", FIELDS | {MSG_ID: "id-2"}, timeout=1.5)
    assert unknown.value.message_id == "id-2"


async def test_refused_for_good_after_a_lost_answer(worker: ScriptedWorker, calls: Calls):
    reused = Verdict(Decision.ID_REUSED, ok=False)
    worker.say[Op.SEND] = lambda: reused
    worker.mute[Op.SEND] = 1
    assert await calls.call(Op.SEND, b"{}", FIELDS) == reused

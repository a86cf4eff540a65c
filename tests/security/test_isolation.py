"""Promise 4: an agent is only itself, whatever it publishes and whatever reply subject or header it chooses.

Every test asserts that a snapshot of all streams, consumers, buckets, their contents and all accounts is the
same afterwards. ``test_negative_control.py`` shows that the same attacks are seen where isolation is missing.
"""

from __future__ import annotations

import attacks
import pytest
import snapshot
from attacks import ATTACKER, SOURCES, VICTIM
from installation import LIMITS, SECRET, Installation, Peer, everything
from waiting import until

from mas_nats.wire import subjects

pytestmark = pytest.mark.timeout(60)

PERMISSIONS = ("listed permissions", "open permissions")


@pytest.fixture(params=PERMISSIONS)
async def mallory(installation: Installation, request: pytest.FixtureRequest) -> Peer:
    """The attacker; with open permissions its account's imports must hold alone."""
    if request.param == "open permissions":
        installation.change = lambda identity, grant: (
            everything(grant) if identity.name == ATTACKER else grant
        )
    peer = await installation.connect(installation.identity(ATTACKER))
    await peer.listen("_INBOX.mallory")
    if request.param == "open permissions":
        await peer.listen(">")
    await peer.pull(ATTACKER, 3)
    return peer


@pytest.fixture
async def victim(installation: Installation) -> Peer:
    peer = await installation.connect(installation.identity(VICTIM))
    await peer.listen(f"mas.reply.{VICTIM}.>", "_INBOX.victim.*")
    return peer


async def unchanged(installation: Installation, before: dict, victim: Peer, mallory: Peer) -> None:
    after = await snapshot.settled(installation, own=ATTACKER)
    assert snapshot.differences(before, after) == []
    assert victim.received == []
    assert victim.client.stats["reconnects"] == 0
    assert not [message for message in mallory.received if SECRET in message.data]


async def test_direct_publishes_change_nothing(installation, mallory, victim):
    before = await snapshot.settled(installation, own=ATTACKER)
    assert await attacks.direct(mallory, installation) > 1500
    await unchanged(installation, before, victim, mallory)


@pytest.mark.parametrize("source", SOURCES)
async def test_redirected_answers_change_nothing(installation, mallory, victim, source):
    before = await snapshot.settled(installation, own=ATTACKER)
    assert await attacks.redirected(mallory, installation, source) > 1500
    await unchanged(installation, before, victim, mallory)


async def test_acknowledging_what_others_have_changes_nothing(installation, mallory, victim):
    before = await snapshot.settled(installation, own=ATTACKER)
    await attacks.forged_acks(mallory)
    await unchanged(installation, before, victim, mallory)


async def test_acknowledging_what_others_have_exhausted_changes_nothing(installation, mallory, victim):
    """A message that used up its attempts is no longer pending; it must stay until it is dead-lettered."""
    await installation.controller.ensure_agent("alpha", VICTIM, LIMITS.model_copy(update={"max_deliver": 1}))
    for message in await victim.pull(VICTIM, 2):
        await message.nak()
    await installation.admins["alpha"].publish(subjects.inbox(VICTIM), b"one more")
    (message,) = await victim.pull(VICTIM, 1)
    await message.ack_sync()
    before = await snapshot.settled(installation, own=ATTACKER)
    assert len([m for m in before["alpha INBOX messages"] if m[1] == subjects.inbox(VICTIM)]) == 3
    await attacks.forged_acks(mallory)
    await unchanged(installation, before, victim, mallory)


async def test_asking_for_what_others_have_yields_nothing(installation, mallory, victim):
    before = await snapshot.settled(installation, own=ATTACKER)
    await attacks.foreign_gets(mallory)
    await unchanged(installation, before, victim, mallory)


async def test_listening_hears_nothing_of_others(installation, mallory, victim):
    await mallory.listen(
        ">", "mas.>", f"mas.reply.{VICTIM}.>", f"mas.inbox.{VICTIM}", "$KV.>", "$JS.>", "$SYS.>", "_INBOX.>"
    )
    await victim.client.request(subjects.call(VICTIM, "send"), SECRET, timeout=2)
    await installation.admins["alpha"].publish(subjects.answer(VICTIM, "i1", "c9", 0), SECRET)
    await installation.admins["alpha"].publish(subjects.inbox(VICTIM), SECRET)
    await installation.admins["alpha"].flush()
    await attacks.arrived(mallory)
    assert [message.data for message in victim.received] == [SECRET]
    assert not [message for message in mallory.received if SECRET in message.data]


async def test_its_own_is_in_reach(installation, mallory, victim):
    """Without this the tests above would also pass for an agent that can do nothing at all."""
    answer = await mallory.client.request(subjects.call(ATTACKER, "send"), b"hello", timeout=2)
    stored = await mallory.client.request(subjects.stored_reply(ATTACKER, "i1", "c1", 0), timeout=2)
    await mallory.listen(f"mas.reply.{ATTACKER}.>")
    await installation.admins["alpha"].publish(subjects.answer(ATTACKER, "i1", "c2", 0), b"reply")
    await installation.admins["alpha"].publish(subjects.inbox(ATTACKER), b"message")
    (pulled,) = await mallory.pull(ATTACKER, 1)
    acked = await mallory.client.request(pulled.reply, b"+ACK", timeout=2)
    assert (answer.data, stored.data, pulled.data, acked.data) == (b"hello", b"mine", b"message", b"")
    await until(lambda: b"reply" in [message.data for message in mallory.received])

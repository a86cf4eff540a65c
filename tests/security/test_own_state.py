"""An agent whose state is direct reaches its own key and nothing else, whatever it puts on what it writes."""

from __future__ import annotations

import attacks
import orjson
import pytest
import snapshot
from attacks import ATTACKER, STATES, VICTIM
from installation import LIMITS, SECRET, Installation, Peer, everything

from broker_policy.jetstream import direct_get_page
from mas_nats.wire import subjects
from mas_nats.wire.state_mode import StateMode

pytestmark = pytest.mark.timeout(60)

OWN = subjects.kv_key(subjects.STATE_BUCKET, ATTACKER)


async def switch(installation: Installation, state: StateMode) -> None:
    """What ``apply`` does, but for disconnecting who is there."""
    policy = installation.documents["alpha"]
    await installation.controller.ensure_agent("alpha", ATTACKER, LIMITS, state)
    agents = {**policy.agents, ATTACKER: policy.agents[ATTACKER].model_copy(update={"state": state})}
    installation.documents["alpha"] = policy.model_copy(update={"agents": agents})


@pytest.fixture(params=("listed permissions", "open permissions"))
async def mallory(installation: Installation, request: pytest.FixtureRequest) -> Peer:
    await switch(installation, StateMode.DIRECT)
    if request.param == "open permissions":
        installation.change = lambda identity, grant: (
            everything(grant) if identity.name == ATTACKER else grant
        )
    peer = await installation.connect(installation.identity(ATTACKER))
    await peer.listen("_INBOX.mallory")
    await peer.pull(ATTACKER, 3)
    return peer


async def acknowledged(mallory: Peer) -> None:
    """Return when the bucket has answered all that mallory wrote: it does so in order."""
    await mallory.client.request(OWN, b"{}", timeout=30)


async def unchanged(installation: Installation, before: dict, mallory: Peer) -> None:
    after = await snapshot.settled(installation, own=ATTACKER, own_state=True)
    assert snapshot.differences(before, after) == []
    assert not [message for message in mallory.received if SECRET in message.data]


async def test_direct_publishes_change_nothing_of_others(installation, mallory):
    before = await snapshot.settled(installation, own=ATTACKER, own_state=True)
    await attacks.direct(mallory, installation)
    await acknowledged(mallory)
    await unchanged(installation, before, mallory)


async def test_redirected_answers_change_nothing_of_others(installation, mallory):
    before = await snapshot.settled(installation, own=ATTACKER, own_state=True)
    assert await attacks.redirected(mallory, installation, STATES) > 1500
    await acknowledged(mallory)
    await unchanged(installation, before, mallory)


async def test_the_control_inside_the_tenant_account_they_do(installation):
    await switch(installation, StateMode.DIRECT)
    tenant = installation.documents["alpha"].account
    installation.change = lambda _, grant: type(grant)(tenant, grant.permissions)
    peer = await installation.connect(installation.identity(ATTACKER))
    before = await snapshot.settled(installation, own=ATTACKER, own_state=True)
    await peer.client.publish(OWN, b"{}", reply=subjects.kv_key(subjects.STATE_BUCKET, VICTIM))
    await acknowledged(peer)
    after = await snapshot.settled(installation, own=ATTACKER, own_state=True)
    assert snapshot.differences(before, after) == ["alpha KV_state messages"]


async def test_asking_for_the_state_of_others_yields_nothing(installation, mallory):
    foreign = subjects.kv_key(subjects.STATE_BUCKET, VICTIM)
    for body in (
        {"seq": 1},
        {"last_by_subj": foreign},
        {"multi_last": ["$KV.state.>"]},
        {"seq": 1, "next_by_subj": "$KV.state.>", "batch": 9},
    ):
        for subject in (subjects.stored_state(ATTACKER), subjects.stored_state(VICTIM)):
            await mallory.client.publish(subject, orjson.dumps(body), reply="_INBOX.mallory")
    await attacks.arrived(mallory)
    assert {message.data for message in mallory.received if message.data} <= {b"mine"}


async def test_its_own_is_in_reach_and_limited(installation, mallory):
    put = orjson.loads((await mallory.client.request(OWN, b'{"n":1}', timeout=2)).data)
    got = await mallory.client.request(subjects.stored_state(ATTACKER), b"", timeout=2)
    assert (got.data, got.headers["Nats-Sequence"]) == (b'{"n":1}', str(put["seq"]))
    large = orjson.loads((await mallory.client.request(OWN, b"x" * 1_100_000, timeout=5)).data)
    assert large["error"]["err_code"] == 10054
    for _ in range(200):
        await mallory.client.publish(OWN, b"flood")
    await attacks.arrived(mallory)
    kept = await direct_get_page(installation.admins["alpha"], "KV_state", ">", 1)
    assert [message.data for message in kept if message.subject.endswith(VICTIM)] == [SECRET]


async def test_what_is_taken_away_is_gone_at_once(installation, mallory):
    """Also for a connection that is still there, with the permissions of before."""
    await mallory.client.request(OWN, b'{"n":1}', timeout=2)
    await switch(installation, StateMode.MEDIATED)
    before = await snapshot.settled(installation, own=ATTACKER)
    for fields in attacks.HEADERS:
        await mallory.client.publish(OWN, b'{"n":2}', reply="_INBOX.mallory", headers=fields or None)
    await attacks.arrived(mallory)
    assert snapshot.differences(before, await snapshot.settled(installation, own=ATTACKER)) == []


async def test_what_is_given_is_there_after_the_next_connect_only(installation):
    peer = await installation.connect(installation.identity(ATTACKER))
    before = await snapshot.settled(installation, own=ATTACKER)
    await switch(installation, StateMode.DIRECT)
    await peer.client.publish(OWN, b'{"n":2}', reply="_INBOX.mallory")
    await attacks.arrived(peer)
    after = await snapshot.settled(installation, own=ATTACKER)
    assert [d for d in snapshot.differences(before, after) if d != "accounts"] == []

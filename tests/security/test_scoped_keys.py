"""What each holder's keys are good for, and that they are good for nothing else (DESIGN 3)."""

from __future__ import annotations

import orjson
import pytest
import snapshot
from installation import Installation
from waiting import until

from broker_policy.audit.checkpoint_stream import SignedNamespaces
from broker_policy.identity import jwt
from broker_policy.identity.nkeys import KeyPair, Kind
from broker_policy.jetstream import api, direct_get_page, last_by_subject, publish
from broker_policy.policy.follower import PolicyFollower
from broker_policy.tenants import accounts, connect
from mas_nats.errors import IdentityRefused, Unavailable
from mas_nats.resilient import ResilientClient

POLICY = "$KV.policy.ns.alpha"
READS = (
    ("$JS.API.STREAM.INFO.KV_policy", b""),
    ("$JS.API.DIRECT.GET.KV_policy", b'{"seq":1}'),
    ("$JS.API.DIRECT.GET.KV_policy", b'{"seq":1,"next_by_subj":">","batch":9}'),
    (f"$JS.API.DIRECT.GET.KV_policy.{POLICY}", b""),
    ("$KV.workers.w7", b'{"revision":9}'),
)
TARGETS = (
    POLICY,
    "$KV.policy.ns.new",
    "$KV.workers.other",
    "mas.checkpoint.alpha",
    "$JS.API.STREAM.PURGE.KV_policy",
    "$JS.API.STREAM.DELETE.KV_policy",
    "$JS.API.STREAM.DELETE.CHECKPOINTS",
    "$JS.API.STREAM.MSG.DELETE.KV_policy",
    "$SYS.REQ.CLAIMS.UPDATE",
    "$SYS.REQ.SERVER.PING.CONNZ",
)


async def worker(installation: Installation) -> ResilientClient:
    material = installation.material
    return await installation.adopt(
        connect.connect_control(installation.endpoint, material.worker, material.public, name="w7")
    )


async def test_a_worker_reads_and_follows_policy_and_beats_its_heart(installation):
    client = await worker(installation)
    follower = PolicyFollower(client, "w7")
    await follower.start()
    try:
        assert follower.revision == 2
        assert not follower.stale
        beat = await last_by_subject(installation.admins["CONTROL"], "KV_workers", "$KV.workers.w7")
        assert beat is not None
        assert orjson.loads(beat.data)["revision"] == 2
    finally:
        await follower.stop()


async def test_the_explorer_follows_policy_and_may_do_no_more(installation, caplog):
    """It asks for nothing that it is denied, either: no heartbeat, nothing but reading."""
    keys = installation.material.controller
    client = await installation.adopt(
        connect.connect_control_reader(installation.endpoint, keys, name="explorer")
    )
    before = await snapshot.settled(installation, own="")
    follower = PolicyFollower(client)
    await follower.start()
    try:
        await client.flush()
        assert (follower.revision, follower.stale) == (2, False)
        assert "permissions violation" not in caplog.text.lower()
        for target in TARGETS:
            await client.publish(target, b'{"forged":true}', reply="_INBOX.x")
        await client.flush()
        assert caplog.text.lower().count("permissions violation") == len(TARGETS)  # the control
    finally:
        await follower.stop()
    assert snapshot.differences(before, await snapshot.settled(installation, own="")) == []


async def test_a_worker_cannot_write_policy(installation):
    client = await worker(installation)
    before = await snapshot.settled(installation, own="")
    beats = installation.admins["CONTROL"]
    for target in TARGETS:
        await client.publish(target, b'{"forged":true}', reply="_INBOX.x")
        for subject, body in READS:
            await client.publish(subject, body, reply=target)
    await client.flush()
    assert (await api(client, "STREAM.INFO.KV_policy", {}))["state"]["last_seq"] == 2
    assert snapshot.differences(before, await snapshot.settled(installation, own="")) == []
    assert {message.subject for message in await direct_get_page(beats, "KV_workers", ">", 1)} == {
        "$KV.workers.w7"
    }


async def test_the_control_inside_control_the_same_requests_roll_policy_back(installation):
    """Why workers have an account of their own: with the very same permissions, but in CONTROL."""
    keys = installation.material.controller
    user, account = KeyPair.create(Kind.USER), keys.account("CONTROL")
    claims = jwt.user_claims(user.public, "w7", accounts.worker_permissions())
    client = await installation.adopt(
        connect._connect(
            installation.endpoint,
            lambda: connect.Credentials(user, account, claims),
            name="w7",
            patience=3,
        )
    )
    before = await snapshot.settled(installation, own="")
    await client.publish("$JS.API.DIRECT.GET.KV_policy", b'{"seq":1}', reply=POLICY)
    await client.flush()
    after = await snapshot.settled(installation, own="")
    assert snapshot.differences(before, after) == ["CONTROL KV_policy messages"]


async def test_a_scoped_user_may_not_ask_for_more(installation):
    material = installation.material
    user = KeyPair.create(Kind.USER)
    account = material.public.accounts["WORKERS"]
    claims = jwt.user_claims(user.public, "w7", jwt.EVERYTHING, issuer_account=account)
    with pytest.raises(IdentityRefused):
        await connect._connect(
            installation.endpoint,
            lambda: connect.Credentials(user, material.worker.control_worker, claims),
            name="w7",
            patience=3,
        )


@pytest.mark.parametrize("account", ["CONTROL", "SYS", "AUTH", "WORKERS", "SIGNER"])
async def test_the_tenant_signing_key_opens_no_fixed_account(installation, account):
    material = installation.material
    with pytest.raises((IdentityRefused, Unavailable)):  # for AUTH the server waits in vain, and closes
        await connect.connect_tenant(
            installation.endpoint, material.worker, material.public.accounts[account], name="w7", patience=1
        )


async def test_an_observer_may_ask_for_settings_and_nothing_else(installation):
    material = installation.material
    client = await installation.adopt(
        connect.connect_observer(installation.endpoint, material.worker, material.public, name="w7")
    )
    answer = await client.request("$SYS.REQ.SERVER.PING.JSZ", b'{"config":true}', timeout=2)
    assert orjson.loads(answer.data)["data"]["config"]["max_storage"] > 0
    before = await snapshot.settled(installation, own="")
    for target in TARGETS:
        await client.publish(target, b"{}", reply="_INBOX.x")
        await client.publish("$SYS.REQ.SERVER.PING.VARZ", b"", reply=target)
    await client.flush()
    assert snapshot.differences(before, await snapshot.settled(installation, own="")) == []


async def test_a_signer_appends_checkpoints_and_cannot_remove_them(installation):
    material = installation.material
    client = await installation.adopt(
        connect.connect_checkpoints(installation.endpoint, material.signer, material.public)
    )
    await publish(client, "mas.checkpoint.alpha", b"one", {})
    stored = await last_by_subject(client, "CHECKPOINTS", "mas.checkpoint.alpha")
    assert stored is not None
    assert stored.data == b"one"
    kept = SignedNamespaces(client)
    await kept.add({"alpha"})
    assert await SignedNamespaces(client).names() == {"alpha"}
    before = await snapshot.settled(installation, own="")
    for target in TARGETS:
        if target != "mas.checkpoint.alpha":
            await client.publish(target, b"", reply="_INBOX.x")
            await client.publish("$JS.API.DIRECT.GET.CHECKPOINTS.mas.checkpoint.alpha", b"", reply=target)
    await client.flush()
    assert snapshot.differences(before, await snapshot.settled(installation, own="")) == []


async def test_a_callout_connection_can_only_answer(installation):
    material = installation.material
    errors: list[str] = []
    client = await installation.adopt(
        connect.connect_callout(installation.endpoint, material.worker, material.public, name="w9")
    )

    async def on_error(error: Exception) -> None:
        errors.append(str(error).lower())

    client._error_cb = on_error
    await client.publish("mas.call.mallory.send", b"x")
    await client.subscribe("mas.>")
    await client.subscribe("$SYS.>")
    await until(lambda: len([error for error in errors if "permissions violation" in error]) == 3)

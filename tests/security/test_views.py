"""An inspector's consumers show what is there; what it asks of them reaches nobody else and takes nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import orjson
import pytest
import snapshot
from installation import Installation, Peer, everything
from nats.aio.msg import Msg
from waiting import until

from broker_policy.jetstream import api, publish
from mas_nats.wire import subjects
from mas_nats.wire.identity import Role

INBOX = "_INBOX.mine"
PUSH: dict[str, Any] = {"deliver_subject": INBOX, "deliver_policy": "all", "ack_policy": "none"}
HOSTILE: tuple[dict[str, Any], ...] = (
    {**PUSH, "deliver_subject": subjects.CENSUS},
    {**PUSH, "deliver_subject": subjects.CIRCUIT},
    {**PUSH, "deliver_subject": subjects.admin(subjects.AdminOp.REDRIVE)},
    {**PUSH, "deliver_subject": subjects.inbox("victim")},
    {**PUSH, "deliver_subject": subjects.audit_record("w1", 4)},
    {**PUSH, "deliver_subject": subjects.call("victim", "send")},
    {**PUSH, "deliver_subject": "$KV.state.victim"},
    {**PUSH, "deliver_subject": "$JS.API.STREAM.PURGE.DLQ"},
    {**PUSH, "deliver_subject": "_INBOX.a.b"},
    {**PUSH, "deliver_subject": "_INBOX.*"},
    {**PUSH, "deliver_subject": "_INBOX.>"},
    {**PUSH, "deliver_subject": subjects.viewed("somebody", "x")},
    {"durable_name": "stays", "ack_policy": "explicit", "max_deliver": 1, "ack_wait": 1},
    {"durable_name": "victim", "ack_policy": "explicit", "backoff": [1], "sample_freq": "100"},
    {"name": "AUDIT", "ack_policy": "all", "filter_subject": subjects.AUDIT_SUBJECTS},
    {"ack_policy": "explicit", "priority_groups": ["a"], "priority_policy": "pinned_client"},
    {"num_replicas": 3, "mem_storage": False, "inactive_threshold": 0, "metadata": {"_nats.x": "y"}},
)


@pytest.fixture(params=["listed permissions", "open permissions"])
async def watcher(installation: Installation, request: pytest.FixtureRequest) -> Peer:
    if request.param == "open permissions":
        installation.change = lambda _, grant: everything(grant)
    return await installation.connect(installation.identity("watcher", role=Role.INSPECTOR))


async def ask(peer: Peer, stream: str, config: dict[str, Any], name: str = "x") -> dict[str, Any]:
    body = orjson.dumps({"stream_name": stream, "config": config, "action": ""})
    answer = await peer.client.request(f"$JS.API.CONSUMER.CREATE.{stream}.{name}", body, timeout=10)
    told: dict[str, Any] = orjson.loads(answer.data)
    return told


async def test_it_shows_what_is_in_a_bucket(installation, watcher):
    await watcher.listen(INBOX)
    made = await ask(watcher, "KV_state", {**PUSH, "filter_subject": "$KV.state.>", "flow_control": True})
    assert made["config"]["deliver_subject"] == INBOX
    await until(lambda: len(watcher.received) >= 2)
    assert {message.subject for message in watcher.received} == {"$KV.state.mallory", "$KV.state.victim"}


async def test_it_pages_a_stream_and_goes(installation, watcher):
    made = await ask(watcher, "DLQ", {"durable_name": "pager", "ack_policy": "explicit"})
    await watcher.listen("_INBOX.page")
    await watcher.client.publish(
        f"$JS.API.CONSUMER.MSG.NEXT.DLQ.{made['name']}", b'{"batch":9,"no_wait":true}', reply="_INBOX.page"
    )
    await until(lambda: len([message for message in watcher.received if message.data]) >= 2)
    gone = await watcher.client.request(f"$JS.API.CONSUMER.DELETE.DLQ.{made['name']}", timeout=10)
    assert orjson.loads(gone.data)["success"]
    assert not (await api(installation.admins["alpha"], "CONSUMER.NAMES.DLQ", {}))["consumers"]


async def overheard(installation: Installation) -> list[Msg]:
    """What arrives where workers listen: a consumer delivers only to a subscription without wildcards."""
    found: list[Msg] = []

    async def hear(message: Msg) -> None:
        found.append(message)

    for subject in (subjects.CENSUS, subjects.CIRCUIT):
        await installation.admins["alpha"].subscribe(subject, cb=hear)
    await installation.admins["alpha"].flush()
    return found


async def test_whatever_it_asks_for_it_changes_nothing_and_reaches_nobody(installation, watcher):
    heard = await overheard(installation)
    before = await snapshot.settled(installation, own="")
    for stream in ("INBOX", "DLQ", "KV_state", "KV_leases", "DELAYED", "ADVISORIES", "nowhere", "NONE-x"):
        for config in HOSTILE:
            await ask(watcher, stream, config)
    changed = snapshot.differences(before, await snapshot.settled(installation, own=""))
    assert not [name for name in changed if " consumer VIEW-watcher-" not in name]
    assert not heard
    for stream in ("DLQ", "KV_state", "KV_leases", "DELAYED", "ADVISORIES"):
        listed = await api(installation.admins["alpha"], f"CONSUMER.LIST.{stream}", {})
        assert listed["consumers"]  # some of them it gets, made harmless
        for made in listed["consumers"]:
            assert made["config"]["ack_policy"] == "none"
            assert not made["config"].get("durable_name")
            assert made["config"]["inactive_threshold"] == 300 * 10**9
            assert made["config"].get("deliver_subject", "mas.view.watcher.").startswith("mas.view.watcher.")


async def test_the_control_inside_the_tenant_account_the_same_reaches_the_workers(installation):
    installation.change = lambda identity, grant: replace(
        everything(grant), account=installation.documents[identity.namespace].account
    )
    peer = await installation.connect(installation.identity("watcher", role=Role.INSPECTOR))
    heard = await overheard(installation)
    for number, config in enumerate(HOSTILE):
        await ask(peer, "DLQ", config, f"x{number}")
    await until(lambda: len(heard) >= 2)


async def test_it_has_so_many_on_a_stream_and_no_more(installation, watcher):
    for _ in range(subjects.MOST_VIEWS):
        assert "error" not in await ask(watcher, "DLQ", {})
    refused = await ask(watcher, "DLQ", {})
    assert refused["error"]["code"] == 403
    assert f"{subjects.MOST_VIEWS} consumers on DLQ already" in refused["error"]["description"]
    assert "error" not in await ask(watcher, "KV_state", {})


@pytest.mark.parametrize("name", ["theirs", "VIEW-other-1", "VIEW-watcher-9"])
async def test_the_consumers_of_others_are_not_its_own_to_use(installation, watcher, name):
    admin = installation.admins["alpha"]
    config = {"name": name, "durable_name": name, "ack_policy": "explicit"}
    await api(admin, f"CONSUMER.CREATE.DLQ.{name}", {"stream_name": "DLQ", "config": config})
    before = await snapshot.settled(installation, own="")
    await watcher.listen("_INBOX.theft")
    for verb in ("MSG.NEXT", "DELETE", "PAUSE", "UNPIN"):
        await watcher.client.publish(
            f"$JS.API.CONSUMER.{verb}.DLQ.{name}", b'{"batch":1,"no_wait":true}', reply="_INBOX.theft"
        )
    await watcher.client.publish(f"$JS.ACK.DLQ.{name}.1.1.1.1.0", b"+TERM")
    await watcher.client.request("$JS.API.INFO", b"", timeout=30)
    await publish(admin, subjects.dead_letter("victim"), b"a mark that all has arrived", {})
    after = await snapshot.settled(installation, own="")
    changed = set(snapshot.differences(before, after)) - {"alpha DLQ messages", f"alpha DLQ consumer {name}"}
    assert not changed
    told = after[f"alpha DLQ consumer {name}"]
    assert told["delivered"]["consumer_seq"] == 0
    answers = [message for message in watcher.received if (message.headers or {}).get("Status") != "503"]
    assert not answers  # 503: nobody hears the request


async def test_whom_policy_does_not_know_any_more_gets_none(installation, watcher):
    assert "error" not in await ask(watcher, "DLQ", {})
    policy = installation.documents["alpha"]
    installation.documents["alpha"] = policy.model_copy(update={"inspectors": {}})
    refused = await ask(watcher, "DLQ", {})
    assert "policy knows no inspector watcher" in refused["error"]["description"]


async def test_what_cannot_be_read_is_told_by_its_place_and_never_repeated(installation, watcher):
    told = await ask(watcher, "DLQ", {"filter_subject": ["secret"], "opt_start_seq": "secret"})
    assert "config.filter_subject" in told["error"]["description"]
    assert "secret" not in told["error"]["description"]

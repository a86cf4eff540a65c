"""An inspector reads everything of its namespace and changes nothing, also through redirected answers."""

from __future__ import annotations

from dataclasses import replace

import attacks
import orjson
import pytest
import snapshot
from installation import Installation, Peer, everything
from waiting import until

from broker_policy.tenants import accounts
from mas_nats.wire import subjects
from mas_nats.wire.identity import Role

READS = (
    ("$JS.API.INFO", b""),
    ("$JS.API.STREAM.LIST", b"{}"),
    ("$JS.API.STREAM.NAMES", b"{}"),
    ("$JS.API.STREAM.INFO.INBOX", b'{"subjects_filter":">"}'),
    ("$JS.API.STREAM.MSG.GET.INBOX", b'{"seq":1}'),
    ("$JS.API.STREAM.MSG.GET.KV_state", b'{"last_by_subj":"$KV.state.victim"}'),
    ("$JS.API.CONSUMER.LIST.INBOX", b"{}"),
    ("$JS.API.CONSUMER.NAMES.INBOX", b"{}"),
    ("$JS.API.CONSUMER.INFO.INBOX.victim", b""),
    ("$JS.API.DIRECT.GET.INBOX", b'{"seq":1}'),
    ("$JS.API.DIRECT.GET.KV_state.$KV.state.victim", b""),
)


@pytest.fixture(params=["listed permissions", "open permissions"])
async def watcher(installation: Installation, request: pytest.FixtureRequest) -> Peer:
    if request.param == "open permissions":
        installation.change = lambda _, grant: everything(grant)
    return await installation.connect(installation.identity("watcher", role=Role.INSPECTOR))


async def test_it_reads(installation, watcher):
    await watcher.listen("_INBOX.watcher.*")
    for subject, body in READS:
        await watcher.client.publish(subject, body, reply=f"_INBOX.watcher.{len(subject)}")
    await until(lambda: len(watcher.received) >= len(READS))
    await _done(watcher)
    assert len(watcher.received) == len(READS)  # one answer each, none of them from its own account
    assert not [message.data for message in watcher.received if b'"error"' in message.data]
    assert all(
        (message.headers or {}).get("Status") is None for message in watcher.received if not message.data
    )


async def test_it_reads_again_after_the_server_restarted(installation, watcher):
    """The server answers the JetStream API of an account by itself unless the import takes its place."""
    await installation.server.stop()
    await installation.server.start()
    clients = (watcher.client, *installation.admins.values())
    await until(lambda: all(client.is_connected for client in clients), within=10)
    for _ in range(3):
        answer = await watcher.client.request("$JS.API.STREAM.INFO.INBOX", b"{}", timeout=5)
        assert orjson.loads(answer.data)["state"]["messages"] == 9


async def test_it_changes_nothing(installation, watcher):
    before = await snapshot.settled(installation, own="")
    await _attack(watcher, installation)
    assert snapshot.differences(before, await snapshot.settled(installation, own="")) == []


async def test_the_control_inside_the_tenant_account_it_would(installation):
    installation.change = lambda identity, grant: replace(
        grant, account=installation.documents[identity.namespace].account
    )
    watcher = await installation.connect(installation.identity("watcher", role=Role.INSPECTOR))
    before = await snapshot.settled(installation, own="")
    await _attack(watcher, installation)
    assert snapshot.differences(before, await snapshot.settled(installation, own=""))


def test_its_list_holds_no_verb_that_changes():
    changing = ("CREATE", "UPDATE", "DELETE", "PURGE", "RESTORE", "SNAPSHOT", "NEXT", "PAUSE", "STEPDOWN")
    listed = [use.subject for use in accounts.inspector("watcher")]
    found = {subject for subject in listed for verb in changing if verb in subject}
    own = subjects.view_consumers("watcher")
    assert found == {f"$JS.API.CONSUMER.{verb}.*.{name}" for verb in ("MSG.NEXT", "DELETE") for name in own}


async def _attack(watcher: Peer, installation: Installation) -> None:
    for target in attacks.targets(installation):
        for fields in attacks.HEADERS:
            await watcher.client.publish(
                target.subject, target.body, reply="_INBOX.x", headers=fields or None
            )
        for subject, body in READS:
            await watcher.client.publish(subject, body, reply=target.subject)
    await _done(watcher)


async def _done(watcher: Peer) -> None:
    await watcher.client.flush(timeout=30)
    await watcher.client.request("$JS.API.INFO", b"", timeout=30)

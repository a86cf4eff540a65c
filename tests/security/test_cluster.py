"""Promise 4 on three nodes: mallory on one, the victim on another, the policy side wherever it likes.

The attacks are those of ``test_isolation.py``, all of them, with the attacker's own permissions opened, so
that its account's imports must hold alone.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import attacks
import orjson
import pytest
import snapshot
from attacks import ATTACKER, SOURCES, VICTIM
from installation import SECRET, Installation, everything
from waiting import until

from broker_policy.embedded.certify import certify, certify_routes
from broker_policy.embedded.layout import Layout
from broker_policy.embedded.nodes import Ports, servers, until_formed
from broker_policy.identity.pki import CertificateAuthority
from broker_policy.tenants.material import Material
from mas_nats.wire import subjects
from mas_nats.wire.identity import Role

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
async def installation(material: Material, tmp_path: Path) -> AsyncIterator[Installation]:
    """Two tenants with two agents each on three nodes, and something in every stream."""
    layout = Layout(tmp_path / ".mas")
    layout.create()
    certify(layout)
    certify_routes(layout)
    ports = Ports.choose(layout, 0, 3)
    nodes = servers(layout, material.public, ports, relaxed=True)
    ca = CertificateAuthority.load(layout.authority)
    try:
        for node in nodes:
            await node.start()
        await until_formed([node.monitor_url for node in nodes])
        async with AsyncExitStack() as stack:
            running = Installation(nodes, ca, material, tmp_path / "certificates", stack)
            await running.open()
            yield running
    finally:
        for node in nodes:
            node.kill()


async def test_no_attack_reaches_another_node(installation: Installation) -> None:
    installation.change = lambda identity, grant: everything(grant) if identity.name == ATTACKER else grant
    mallory = await installation.connect(installation.identity(ATTACKER), node=0)
    victim = await installation.connect(installation.identity(VICTIM), node=1)
    await mallory.listen("_INBOX.mallory", ">")
    await mallory.pull(ATTACKER, 3)
    await victim.listen(f"mas.reply.{VICTIM}.>", "_INBOX.victim.*")
    before = await snapshot.settled(installation, own=ATTACKER)

    assert await attacks.direct(mallory, installation) > 1500
    for source in SOURCES:
        assert await attacks.redirected(mallory, installation, source) > 1500
    await attacks.forged_acks(mallory)
    await attacks.foreign_gets(mallory)
    await mallory.listen("mas.>", f"mas.reply.{VICTIM}.>", "$KV.>", "$JS.>", "$SYS.>", "_INBOX.>")

    after = await snapshot.settled(installation, own=ATTACKER)
    assert snapshot.differences(before, after) == []
    assert victim.received == []
    assert victim.client.stats["reconnects"] == 0
    await victim.client.request(subjects.call(VICTIM, "send"), SECRET, timeout=5)
    await installation.admins["alpha"].publish(subjects.inbox(VICTIM), SECRET)
    await installation.admins["alpha"].flush()
    await attacks.arrived(mallory)
    assert not [message for message in mallory.received if SECRET in message.data]


async def test_inside_the_tenant_account_they_do_harm(installation: Installation) -> None:
    """The negative control."""
    installation.change = lambda identity, grant: replace(
        everything(grant), account=installation.documents[identity.namespace].account
    )
    mallory = await installation.connect(installation.identity(ATTACKER), node=0)
    before = await snapshot.settled(installation, own=ATTACKER)
    await attacks.direct(mallory, installation)
    changed = snapshot.differences(before, await snapshot.settled(installation, own=ATTACKER))
    assert {"alpha INBOX config", "alpha KV_state messages", "alpha INBOX consumer victim"} <= set(changed)
    assert not [name for name in changed if name.startswith(("beta", "CONTROL"))]


async def test_an_inspector_sees_the_same_from_each_node(installation: Installation) -> None:
    """Wherever its consumers are placed, and whichever node the worker that makes them is connected to."""
    for node in range(3):
        watcher = await installation.connect(installation.identity("watcher", role=Role.INSPECTOR), node=node)
        await watcher.listen("_INBOX.mine", "_INBOX.page")
        pushed = orjson.dumps({"stream_name": "KV_state", "config": {"deliver_subject": "_INBOX.mine"}})
        made = await watcher.client.request("$JS.API.CONSUMER.CREATE.KV_state.x", pushed, timeout=30)
        assert b'"error"' not in made.data
        pulled = orjson.dumps({"stream_name": "DLQ", "config": {}})
        made = await watcher.client.request("$JS.API.CONSUMER.CREATE.DLQ.x", pulled, timeout=30)
        name = orjson.loads(made.data)["name"]
        await watcher.client.publish(
            f"$JS.API.CONSUMER.MSG.NEXT.DLQ.{name}", b'{"batch":2,"expires":20000000000}', reply="_INBOX.page"
        )
        wanted = {f"{place}.{name}" for place in ("$KV.state", "mas.dlq") for name in (ATTACKER, VICTIM)}
        seen = watcher.received
        await until(lambda seen=seen, all_=wanted: all_ <= {each.subject for each in seen}, within=30)
        await watcher.client.close()

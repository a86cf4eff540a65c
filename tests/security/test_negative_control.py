"""The negative control: where agents share the tenant account, the very same attacks are seen.

So the suite can fail, and DESIGN 2 has its evidence: permissions alone do not contain a JetStream client.
"""

from __future__ import annotations

from dataclasses import replace

import attacks
import pytest
import snapshot
from attacks import ATTACKER, SOURCES
from installation import Installation, Peer, everything

pytestmark = pytest.mark.timeout(60)


async def inside(installation: Installation, *, open_permissions: bool = False) -> Peer:
    """Mallory, put inside the tenant account."""

    def misplace(identity, grant):
        tenant = installation.documents[identity.namespace].account
        return replace(everything(grant) if open_permissions else grant, account=tenant)

    installation.change = misplace
    peer = await installation.connect(installation.identity(ATTACKER))
    await peer.listen("_INBOX.mallory")
    await peer.pull(ATTACKER, 3)
    return peer


@pytest.mark.parametrize("source", SOURCES)
async def test_redirected_answers_do_harm(installation, source):
    mallory = await inside(installation)
    before = await snapshot.settled(installation, own=ATTACKER)
    await attacks.redirected(mallory, installation, source)
    changed = snapshot.differences(before, await snapshot.settled(installation, own=ATTACKER))
    assert "operator calls" in changed
    assert len(changed) > 1


async def test_open_permissions_do_harm(installation):
    mallory = await inside(installation, open_permissions=True)
    before = await snapshot.settled(installation, own=ATTACKER)
    await attacks.direct(mallory, installation)
    changed = snapshot.differences(before, await snapshot.settled(installation, own=ATTACKER))
    assert {"alpha INBOX config", "alpha KV_state messages", "alpha INBOX consumer victim"} <= set(changed)
    assert "operator calls" in changed
    assert not [name for name in changed if name.startswith(("beta", "CONTROL"))]


async def test_without_its_guard_an_audit_record_can_be_acknowledged_away(installation):
    mallory = await installation.connect(installation.identity(ATTACKER))
    await mallory.pull(ATTACKER, 3)
    await installation.admins["alpha"].jetstream().delete_consumer("INBOX", "AUDIT")
    before = await snapshot.settled(installation, own=ATTACKER)
    await attacks.forged_acks(mallory)
    changed = snapshot.differences(before, await snapshot.settled(installation, own=ATTACKER))
    assert changed == ["alpha INBOX messages"]

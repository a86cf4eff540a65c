"""Development certificates of ``mas run``: who gets one, and when it is replaced."""

from __future__ import annotations

import asyncio
import io
import json
from datetime import timedelta

import pytest

from broker_policy.embedded.agent_certificates import DevelopmentCertificates
from broker_policy.embedded.layout import Layout
from broker_policy.identity.pki import CertificateAuthority, identity_from_chain
from mas_nats.runner.plan import Plan
from mas_nats.runner.printing import JsonLines
from mas_nats.wire.identity import DEFAULT_TRUST_DOMAIN, Identity, Role

MANIFEST = """\
namespace: shop
agents:
  - {agent_id: desk, class_path: "agents:Desk"}
  - {agent_id: till, class_path: "agents:Till", tls_cert_path: till.pem, tls_key_path: till.key}
  - {agent_id: other}
"""


@pytest.fixture
def layout(tmp_path, monkeypatch):
    (tmp_path / "mas.yaml").write_text(MANIFEST)
    monkeypatch.chdir(tmp_path)
    layout = Layout(tmp_path / ".mas")
    layout.create()
    CertificateAuthority.create(layout.authority)
    return layout


@pytest.fixture
def issue(layout):
    """Issue what is due; the agents that got one."""

    def run():
        shown = io.StringIO()
        plan = Plan(layout.root.parent / "mas.yaml")
        DevelopmentCertificates().issue(plan, JsonLines(output=shown))
        return [json.loads(line)["agent"] for line in shown.getvalue().splitlines()]

    return run


def issued(layout, lifetime):
    """A certificate for the desk that was made for ``lifetime``."""
    identity = Identity(DEFAULT_TRUST_DOMAIN, "shop", Role.AGENT, "desk")
    return CertificateAuthority.load(layout.authority).issue(identity, layout.certs, lifetime=lifetime)


def test_only_who_has_none_and_names_none_gets_one(layout, issue):
    assert issue() == ["desk"]
    holder = identity_from_chain((layout.certs / "shop" / "agent" / "desk.pem").read_bytes())
    assert holder.identity.uri == "spiffe://mas/ns/shop/agent/desk"
    assert issue() == []  # once


@pytest.mark.parametrize(("lifetime", "due"), [(timedelta(hours=8), []), (timedelta(seconds=1), ["desk"])])
def test_one_that_expires_soon_is_replaced(layout, issue, lifetime, due):
    issued(layout, lifetime)
    assert issue() == due


def test_nothing_is_issued_without_a_ca_or_beside_a_given_one(layout, issue):
    layout.given_tls.touch()
    assert issue() == []
    layout.given_tls.unlink()
    (layout.authority / "ca.key").unlink()
    assert issue() == []


async def test_it_is_replaced_while_agents_run(layout):
    paths = issued(layout, timedelta(seconds=1))
    before = paths.cert.read_bytes()
    plan = Plan(layout.root.parent / "mas.yaml")
    renewing = asyncio.create_task(
        DevelopmentCertificates(every=0.01).renew(plan, JsonLines(output=io.StringIO()))
    )
    async with asyncio.timeout(30):
        while paths.cert.read_bytes() == before:
            await asyncio.sleep(0.01)
    renewing.cancel()
    await asyncio.gather(renewing, return_exceptions=True)

"""Development certificates for the agents of ``mas run``, from the CA in the broker's folder.

Only for agents whose manifest names no certificate, and only where the folder's own CA is the one that agents
have: a server with given certificates has agents whose issuer is elsewhere.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

from cryptography import x509

from broker_policy.embedded.layout import Layout
from broker_policy.identity.pki import CertificateAuthority
from mas_nats.runner.plan import Plan
from mas_nats.runner.run import Show
from mas_nats.runner.where import Certificate
from mas_nats.wire.identity import DEFAULT_TRUST_DOMAIN, Identity, Role

LIFETIME = timedelta(days=30)
_EVERY = 600.0
"""Seconds between two looks at whether one expires soon."""


class DevelopmentCertificates:
    """Issues what is missing, and what has less than a third of its life left."""

    def __init__(self, *, every: float = _EVERY) -> None:
        self._every = every

    def due(self, plan: Plan) -> list[str]:
        """The agents that have none, or one that expires soon; none where the folder has no CA of its own."""
        if plan.broker is None:
            return []
        layout = Layout(plan.broker)
        if not (layout.authority / "ca.key").is_file() or layout.given_tls.exists():
            return []
        return [agent for agent, files in plan.unnamed() if files.missing or _old(files)]

    def issue(self, plan: Plan, show: Show) -> None:
        """Make those that are due."""
        if plan.broker is None or not (due := self.due(plan)):
            return
        layout = Layout(plan.broker)
        authority = CertificateAuthority.load(layout.authority)
        for agent in due:
            identity = Identity(DEFAULT_TRUST_DOMAIN, plan.manifest.namespace, Role.AGENT, agent)
            paths = authority.issue(identity, layout.certs, lifetime=LIFETIME)
            text = f"{agent} has a development certificate for {LIFETIME.days} days: {paths.cert}"
            show.event("certificate", text, agent=agent, cert=str(paths.cert), days=LIFETIME.days)

    async def renew(self, plan: Plan, show: Show) -> None:
        """Do the same again and again, until cancelled; agents follow their files."""
        while True:
            await asyncio.sleep(self._every)
            try:
                await asyncio.to_thread(self.issue, plan, show)
            except (OSError, ValueError) as error:
                show.event("certificate", f"a certificate cannot be renewed: {error}")


def _old(files: Certificate) -> bool:
    found = x509.load_pem_x509_certificate(files.cert.read_bytes())
    life = found.not_valid_after_utc - found.not_valid_before_utc
    return found.not_valid_after_utc - datetime.now(UTC) < life / 3

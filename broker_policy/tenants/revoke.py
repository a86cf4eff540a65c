"""Revoking certificates without a revocation list of the CA: policy names them, the callout refuses them.

Policy is durable, so a revoked certificate stays out after any restart; a worker that cannot confirm policy
lets nobody in.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from broker_policy.policy.store import PolicyStore
from broker_policy.tenants.apply import edit
from broker_policy.tenants.controller import TenantController
from mas_nats.policy.document import Document, Revocation


@dataclass(frozen=True, slots=True)
class Revoked:
    """What a revocation did."""

    revision: int
    fingerprints: tuple[str, ...]
    disconnected: int


async def revoke(
    controller: TenantController,
    store: PolicyStore,
    namespace: str,
    certificates: Mapping[str, Revocation],
    *,
    confirm: float = 5.0,
) -> Revoked:
    """Revoke ``certificates`` (by SHA-256); returns when every live worker refuses them and nobody uses one.

    Raises:
        KeyError: there is no such namespace.
        NotConfirmed: a live worker did not confirm within ``confirm`` seconds.

    """

    def add(document: Document) -> Document:
        return document.model_copy(update={"revoked": _current(document.revoked) | dict(certificates)})

    revision = await edit(store, namespace, add, confirm)
    disconnected = [await controller.kick_certificate(fingerprint) for fingerprint in certificates]
    return Revoked(revision, tuple(certificates), sum(disconnected))


def _current(revoked: Mapping[str, Revocation]) -> dict[str, Revocation]:
    """Without those that have expired by themselves, more than a day ago."""
    now = time.time() - 86_400
    return {name: each for name, each in revoked.items() if not each.until or each.until > now}

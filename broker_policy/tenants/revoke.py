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

_LOOKS = 10
"""Until nobody is found: who was just being let in, or moved to another page of the list, is seen then."""


@dataclass(frozen=True, slots=True)
class Revoked:
    """What a revocation did."""

    revision: int
    fingerprints: tuple[str, ...]
    disconnected: int
    unseen: int = 0  # nodes that did not answer: connections that they have go on


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
    disconnected, unseen = 0, 0
    for fingerprint in certificates:
        for _ in range(_LOOKS):
            kicked = await controller.kick_certificate(fingerprint)
            disconnected, unseen = disconnected + kicked, max(unseen, controller.unseen)
            if not kicked:
                break
    return Revoked(revision, tuple(certificates), disconnected, unseen)


def _current(revoked: Mapping[str, Revocation]) -> dict[str, Revocation]:
    """Without those that have expired by themselves, more than a day ago."""
    now = time.time() - 86_400
    return {name: each for name, each in revoked.items() if not each.until or each.until > now}

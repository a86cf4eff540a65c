"""Rotating the key that signs tokens: every worker believes the new one before the first signs with it."""

from __future__ import annotations

from broker_policy.keys import ring
from broker_policy.keys.inventory import BY_NAME
from broker_policy.keys.site import Site
from broker_policy.tenants.sealing_ring import SealingKey, SealingRing
from broker_policy.tokens.keys import BELIEVED_MS

_TURN = ring.Turn(
    "token-signing",
    taking=("believes-tokens", "believed"),
    using=("signs-tokens", "signs"),
    kept_ms=BELIEVED_MS,
    kept="is believed",
)


async def rotate(site: Site, *, now: bool) -> None:
    """Rotate it. ``now``: believe the old key no more; tokens of before are refused.

    Raises:
        Unavailable: a worker does not follow; call again.

    """
    path = BY_NAME[_TURN.name].path(site.layout)
    if not path.exists():  # an installation that is older than tokens
        SealingRing(SealingKey.create()).write(path)
    await ring.rotate(site, _TURN, now=now)

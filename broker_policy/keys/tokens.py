"""Rotating the key that signs tokens: every worker believes the new one before the first signs with it."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import UTC, datetime

from broker_policy.keys import followers
from broker_policy.keys.inventory import BY_NAME
from broker_policy.keys.site import Site
from broker_policy.tenants.sealing_ring import SealingKey, SealingRing
from broker_policy.tokens.keys import BELIEVED_MS


async def rotate(site: Site, *, now: bool) -> None:
    """Rotate it. ``now``: believe the old key no more; tokens of before are refused.

    Raises:
        Unavailable: a worker does not follow; call again.

    """
    path = BY_NAME["token-signing"].path(site.layout)
    if not path.exists():  # an installation that is older than tokens
        SealingRing(SealingKey.create()).write(path)
    ring = SealingRing.read(path).pruned(_now())
    if ring.next is None:
        ring = ring.staged(SealingKey.create())
        ring.write(path)
    assert ring.next is not None  # noqa: S101 - staged above
    old, new = ring.current.key_id, ring.next.key_id
    site.say(f"token-signing: {old} is replaced by {new}")
    await followers.workers(site, lambda keys: new in keys.get("believes-tokens", ()), f"{new} believed")
    ring = ring.turned(_now())
    ring.write(path)
    await followers.workers(site, lambda keys: keys.get("signs-tokens") == new, f"{new} signs")
    if now:
        ring = replace(ring, retired=())
        ring.write(path)
        await followers.workers(site, lambda keys: keys.get("believes-tokens") == [new], f"{old} forgotten")
        return
    until = datetime.fromtimestamp((_now() + BELIEVED_MS) / 1000, UTC).isoformat(timespec="minutes")
    site.say(f"{old} is believed until {until}, then no more")


def _now() -> int:
    return time.time_ns() // 1_000_000

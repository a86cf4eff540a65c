"""Rotating a key that lies in a ring: every worker takes the new one before the first uses it."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from broker_policy.keys import followers
from broker_policy.keys.inventory import BY_NAME
from broker_policy.keys.site import Site
from broker_policy.tenants.sealing_ring import SealingKey, SealingRing


@dataclass(frozen=True, slots=True)
class Turn:
    """A ring, by its key's name in the inventory.

    ``taking`` and ``using`` are where a worker says which keys it takes and which it uses, each with the word
    for it. A retired key is taken for ``kept_ms`` more; ``kept`` says of it until when.
    """

    name: str
    taking: tuple[str, str]
    using: tuple[str, str]
    kept_ms: int
    kept: str


async def rotate(
    site: Site, turn: Turn, *, now: bool, before_forgetting: Callable[[], Awaitable[None]] | None = None
) -> None:
    """Rotate it. ``now``: forget the old key at once, after ``before_forgetting``.

    Raises:
        Unavailable: a worker does not follow; call again.

    """
    path = BY_NAME[turn.name].path(site.layout)
    (takes, taken), (uses, used) = turn.taking, turn.using
    ring = SealingRing.read(path).pruned(_now())
    if ring.next is None:
        ring = ring.staged(SealingKey.create())
        ring.write(path)
    assert ring.next is not None  # noqa: S101 - staged above
    old, new = ring.current.key_id, ring.next.key_id
    site.say(f"{turn.name}: {old} is replaced by {new}")
    await followers.workers(site, lambda keys: new in keys.get(takes, ()), f"{new} {taken}")
    ring = ring.turned(_now())
    ring.write(path)
    await followers.workers(site, lambda keys: keys.get(uses) == new, f"{new} {used}")
    if now:
        if before_forgetting is not None:
            await before_forgetting()
        ring = replace(ring, retired=())
        ring.write(path)
        await followers.workers(site, lambda keys: keys.get(takes) == [new], f"{old} forgotten")
        return
    until = datetime.fromtimestamp((_now() + turn.kept_ms) / 1000, UTC).isoformat(timespec="minutes")
    site.say(f"{old} {turn.kept} until {until}, then no more")


def _now() -> int:
    return time.time_ns() // 1_000_000

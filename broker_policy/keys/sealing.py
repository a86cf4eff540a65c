"""Rotating the sealing key.

Every worker knows the new one before the first seals with it; the old one is kept for what it has sealed.
"""

from __future__ import annotations

from redis.asyncio import Redis

from broker_policy.audit import log
from broker_policy.audit.store import Store
from broker_policy.jetstream import stream_info
from broker_policy.keys import ring
from broker_policy.keys.site import Site
from broker_policy.tenants.connect import connect_tenant_admin
from broker_policy.tenants.material import ControllerKeys
from broker_policy.tenants.sealing_ring import OPENS_MS
from mas_nats.wire import subjects

_TURN = ring.Turn(
    "sealing",
    taking=("accepts", "accepted"),
    using=("seals", "seals"),
    kept_ms=OPENS_MS,
    kept="opens replies to earlier requests",
)


async def rotate(site: Site, *, now: bool) -> None:
    """Rotate it. ``now``: forget the old key at once; replies to requests of before are refused.

    Even then records that were written under the old key enter the audit first.

    Raises:
        Unavailable: a worker does not follow; call again.

    """
    await ring.rotate(site, _TURN, now=now, before_forgetting=lambda: _projected(site))


async def _projected(site: Site) -> None:
    """Wait until every record written so far is in the audit.

    Raises:
        Unavailable: that takes too long.

    """
    endpoint, keys = site.broker.connection(site.layout, "controller"), ControllerKeys.load(site.keys)
    async with site.control() as (_, store):
        names = [stored.document.namespace for stored in await store.namespaces()]
    redis = Redis.from_url(site.broker.redis_url(), socket_timeout=5, socket_connect_timeout=2)
    try:
        for name in names:
            client = await connect_tenant_admin(endpoint, keys, name)
            try:
                info = await stream_info(client, subjects.INBOX_STREAM)
                last, audit = int(info["state"]["last_seq"]), Store(redis, name)

                async def waiting(
                    client: object = client, last: int = last, audit: Store = audit, name: str = name
                ) -> str:
                    page = await log.read(client, (await audit.head()).sequence + 1, most=1)  # type: ignore[arg-type]
                    behind = page.messages and page.messages[0].sequence <= last
                    return f"records of {name} wait for projection" if behind else ""

                await site.until(waiting, "records of before are in the audit")
            finally:
                await client.close()
    finally:
        await redis.aclose()
    site.say("records of before are in the audit")

"""Have the holders followed? Workers say so in their heartbeats, servers in their settings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import nats.errors

from broker_policy.keys.resolver import Resolver
from broker_policy.keys.site import Site
from mas_nats.errors import MasError

Names = dict[str, Any]


async def workers(site: Site, follows: Callable[[Names], bool], what: str) -> None:
    """Wait until every live worker's keys satisfy ``follows``.

    Raises:
        Unavailable: some do not in time.

    """
    async with site.control() as (_, store):

        async def lacking() -> str:
            beats = await store.beats()
            behind = sorted(name for name, beat in beats.items() if not follows(beat.get("keys") or {}))
            if behind:
                return f"{', '.join(behind)} do not use it (on other machines: copy keys/worker there)"
            return "" if beats else "no worker is alive"

        await site.until(lacking, what)
    site.say(f"{what}: every live worker")


async def loads(site: Site) -> dict[str, str]:
    """When each server last read its configuration."""
    async with Resolver(site) as resolver:
        settings = await resolver.ask_all("$SYS.REQ.SERVER.PING.VARZ", {})
    return {each["server_id"]: each["config_load_time"] for each in settings}


def reloaded(before: dict[str, str]) -> Callable[[dict[str, Any]], bool]:
    """Whether a server has read its configuration since ``before``."""
    return lambda settings: before.get(settings["server_id"]) != settings["config_load_time"]


async def servers(site: Site, loaded: Callable[[dict[str, Any]], bool], what: str) -> None:
    """Wait until the settings of every server satisfy ``loaded``. Errors as ``workers``."""

    async def lacking() -> str:
        try:
            async with Resolver(site) as resolver:
                settings = await resolver.ask_all("$SYS.REQ.SERVER.PING.VARZ", {})
        except (MasError, nats.errors.Error, OSError) as error:  # it is just being started again
            return f"the server does not answer ({error or type(error).__name__})"
        behind = sorted(each["server_name"] for each in settings if not loaded(each))
        if behind:
            return f"{', '.join(behind)} have not loaded it"
        return "" if settings else "no server answers"

    await site.until(lacking, what)
    site.say(f"{what}: every server")

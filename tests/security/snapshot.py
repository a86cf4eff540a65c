"""What an attack may not change: everything, except what is the attacker's own to change."""

from __future__ import annotations

import asyncio
from typing import Any

from installation import Installation
from nats.aio.client import Client

from broker_policy.jetstream import JetStreamError, api, direct_get_page

_VOLATILE = {"KV_workers"}  # its messages expire by themselves
_PAGING = {"Nats-Last-Sequence", "Nats-Num-Pending"}  # said by the get, not stored with the message
_COUNTERS = ("ts", "cluster", "push_bound", "paused", "priority_groups")


async def take(installation: Installation, *, own: str, own_state: bool = False) -> dict[str, Any]:
    """Streams, consumers, their configuration and contents in every account, and the accounts themselves.

    ``own`` is the attacking agent: what it does with its own inbox is left out, and with its own state where
    that is direct (``own_state``).
    """
    snapshot: dict[str, Any] = {}
    for name, client in installation.admins.items():
        for key, value in (await _account(client, own, own_state=own_state)).items():
            snapshot[f"{name} {key}"] = value
        snapshot[f"{name} disconnects"] = client.stats["reconnects"]
    snapshot["operator calls"] = list(installation.operator_calls)
    snapshot["accounts"] = await installation.accounts()
    return snapshot


async def settled(installation: Installation, *, own: str, own_state: bool = False) -> dict[str, Any]:
    """A snapshot after everything that is under way has arrived: two in a row are equal."""
    before = await take(installation, own=own, own_state=own_state)
    for _ in range(40):
        await asyncio.sleep(0.05)
        after = await take(installation, own=own, own_state=own_state)
        if after == before:
            return after
        before = after
    raise AssertionError("the streams do not come to rest")


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """The names of what differs."""
    return sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))


async def _account(client: Client, own: str, *, own_state: bool) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for stream in (await api(client, "STREAM.LIST", {}))["streams"] or []:
        name = stream["config"]["name"]
        out[f"{name} config"] = stream["config"]
        if name not in _VOLATILE:
            out[f"{name} messages"] = await _messages(client, name, own, own_state=own_state)
        consumers = await api(client, f"CONSUMER.LIST.{name}", {})
        for consumer in consumers["consumers"] or []:
            if consumer["name"] != own:
                out[f"{name} consumer {consumer['name']}"] = {
                    key: value for key, value in consumer.items() if key not in _COUNTERS
                }
    return out


async def _messages(client: Client, stream: str, own: str, *, own_state: bool) -> list[Any]:
    try:
        messages = await direct_get_page(client, stream, ">", 1)
    except JetStreamError:
        return ["cannot be read any more"]
    return [
        (
            message.sequence,
            message.subject,
            sorted(item for item in message.headers.items() if item[0] not in _PAGING),
            message.data,
        )
        for message in messages
        if not _is_own(message.subject, own) and not (own_state and message.subject == f"$KV.state.{own}")
    ]


def _is_own(subject: str, own: str) -> bool:
    return subject == f"mas.inbox.{own}" or (
        subject.startswith("$JS.EVENT.ADVISORY.CONSUMER.") and subject.endswith(f".{own}")
    )

"""What there is in a namespace at this moment: its agents with what waits for them, and its streams."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import orjson
from nats.aio.client import Client

from broker_policy.dead_letters.inboxes import consumers, counts, waiting
from broker_policy.jetstream import api, get_last_of_each
from mas_nats.manifest.app_type import AppType
from mas_nats.policy.document import AgentPolicy, Document
from mas_nats.wire import subjects

_NANOSECONDS = 1e9


@dataclass(frozen=True, slots=True)
class AgentRow:
    """One agent. ``capabilities`` are declared; ``announced`` are those of them that an instance offers.

    ``pending`` messages wait in its inbox, ``in_flight`` others were delivered and are not finished.
    """

    namespace: str
    agent: str
    type: str
    instances: int
    capabilities: tuple[str, ...]
    announced: tuple[str, ...]
    pending: int
    in_flight: int
    dead_letters: int

    def row(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class StreamRow:
    """One stream. A limit of -1 is none; ages are seconds, 0 is for ever."""

    namespace: str
    stream: str
    storage: str
    messages: int
    bytes: int
    consumers: int
    max_messages: int
    max_messages_per_subject: int
    max_bytes: int
    max_age: float
    copies: int

    def row(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


async def agents(nc: Client, document: Document) -> list[AgentRow]:
    """Every agent that policy knows, and every other that left messages or dead letters, by name.

    Raises:
        JetStreamError, nats.errors.Error: no stream, or no answer.

    """
    pending, handling = await waiting(nc), await consumers(nc)
    dead = await counts(nc, subjects.DLQ_STREAM, subjects.DLQ_SUBJECTS)
    alive = await _alive(nc)
    rows: list[AgentRow] = []
    for name in sorted({*document.agents, *pending, *dead}):
        declared = document.agents.get(name)
        said = alive.get(name, [])
        offered = {capability for each in said for capability in each}
        without_consumer = {"num_pending": pending.get(name, 0)}  # all of it waits
        inbox = handling.get(name, without_consumer)
        known = declared.capabilities if declared is not None else ()
        rows.append(
            AgentRow(
                document.namespace,
                name,
                _type(declared),
                len(said),
                known,
                tuple(capability for capability in known if capability in offered),
                int(inbox["num_pending"]),
                int(inbox.get("num_ack_pending", 0)),
                dead.get(name, 0),
            )
        )
    return rows


async def streams(nc: Client, namespace: str) -> list[StreamRow]:
    """Every stream and bucket of the namespace, by name. Errors as ``agents``."""
    rows: list[StreamRow] = []
    while True:
        page = await api(nc, "STREAM.LIST", {"offset": len(rows)})
        some = page.get("streams") or []
        rows += [_stream(namespace, each["config"], each["state"]) for each in some]
        if not some or len(rows) >= int(page["total"]):
            return sorted(rows, key=lambda row: row.stream)


def _stream(namespace: str, config: dict[str, Any], state: dict[str, Any]) -> StreamRow:
    return StreamRow(
        namespace,
        config["name"],
        config["storage"],
        int(state["messages"]),
        int(state["bytes"]),
        int(state["consumer_count"]),
        int(config["max_msgs"]),
        int(config["max_msgs_per_subject"]),
        int(config["max_bytes"]),
        config["max_age"] / _NANOSECONDS,
        int(config["num_replicas"]),
    )


async def _alive(nc: Client) -> dict[str, list[list[str]]]:
    """What each instance of each agent announced; the bucket forgets whoever is silent."""
    bucket = subjects.REGISTRY_BUCKET
    found: dict[str, list[list[str]]] = {}
    for entry in await get_last_of_each(nc, subjects.kv_stream(bucket), subjects.kv_key(bucket, "*.*")):
        if said := orjson.loads(entry.data or b"{}"):  # empty: it said bye
            found.setdefault(entry.subject.split(".")[2], []).append(said.get("capabilities", []))
    return found


def _type(declared: AgentPolicy | None) -> str:
    """What CASA's form says it is; an agent in every other case."""
    if declared is None:
        return "removed"
    said = declared.metadata.get("type")
    return str(said) if "application" in declared.metadata and said in list(AppType) else AppType.AGENT.value

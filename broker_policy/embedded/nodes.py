"""The nats-server nodes of one folder: how many, on which ports, and how they reach one another.

One node, or three in a cluster (ADR 20). The number is settled by the first start: a stream's copies lie on
the nodes that were there when it was made.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from broker_policy.embedded.durability import monitor
from broker_policy.embedded.errors import ServerDied
from broker_policy.embedded.layout import Layout
from broker_policy.embedded.nats_config import Membership
from broker_policy.embedded.nats_server import NatsServer, ServerIdentity
from broker_policy.embedded.ports import LOOPBACK, free_port, is_free
from broker_policy.identity.private_files import write_private
from mas_nats.config import DEFAULT_PORT
from mas_nats.errors import ConfigurationError

SIZES = (1, 3)
"""How many nodes there can be. Two lose a majority with either of them; five are not tested."""
_NOWHERE = f"{LOOPBACK}:1"
"""What a node calls its own address where it is reached through others' ``routes.json`` only."""
_POLL = 0.05
_NO_ANSWER = (OSError, ValueError, http.client.HTTPException)

Routes = Mapping[int, Mapping[int, str]]
"""By the number of a node, and of another: the ``host:port`` where the first finds the second."""


@dataclass(frozen=True, slots=True)
class NodePorts:
    """The ports of one nats-server; ``route``, for other nodes, is 0 where it is alone."""

    client: int = 0
    monitor: int = 0
    route: int = 0


@dataclass(frozen=True, slots=True)
class Ports:
    """The ports of all servers."""

    nodes: tuple[NodePorts, ...]
    redis: int

    @classmethod
    def choose(cls, layout: Layout, wanted: int, nodes: int = 1) -> Ports:
        """Those of the last start where they are free, so that agents find a restarted broker.

        ``wanted`` is the client port of the first node, 0 for none in particular.
        """
        last = cls._last(layout)
        kept = [*last.nodes, *(NodePorts() for _ in range(nodes))][:nodes]
        chosen = [
            NodePorts(_free(node.client), _free(node.monitor), _free(node.route) if nodes > 1 else 0)
            for node in kept
        ]
        if wanted:
            chosen[0] = NodePorts(wanted, chosen[0].monitor, chosen[0].route)
        return cls(tuple(chosen), _free(last.redis))

    @classmethod
    def _last(cls, layout: Layout) -> Ports:
        try:
            raw = json.loads(layout.ports.read_bytes())
            if "nodes" not in raw:
                return cls((NodePorts(int(raw["nats"]), int(raw["monitor"])),), int(raw["redis"]))
            return cls(tuple(NodePorts(**node) for node in raw["nodes"]), int(raw["redis"]))
        except (FileNotFoundError, KeyError, TypeError, ValueError):
            return cls((NodePorts(client=DEFAULT_PORT),), 0)

    @property
    def urls(self) -> str:
        """Where clients connect, the nodes separated by commas."""
        return ",".join(f"tls://{LOOPBACK}:{node.client}" for node in self.nodes)

    def write(self, layout: Layout) -> None:
        """Keep them for the next start; one node's in the form that every version reads."""
        kept: dict[str, object] = asdict(self)
        if len(self.nodes) == 1:
            [node] = self.nodes
            kept = {"nats": node.client, "monitor": node.monitor, "redis": self.redis}
        write_private(layout.ports, json.dumps(kept).encode())


def settle(layout: Layout, wanted: int | None) -> int:
    """How many nodes to start: as many as the folder was made with, else ``wanted``, else one.

    Raises:
        ConfigurationError: the folder was made with another number, or there cannot be so many.

    """
    made = _made(layout)
    if wanted is not None and wanted not in SIZES:
        raise ConfigurationError(f"{wanted} nodes: there can be {' or '.join(map(str, SIZES))}")
    if made is not None and wanted not in (None, made):
        raise ConfigurationError(
            f"{layout.root} was made with {_count(made)}, so it cannot have {_count(wanted or 1)}: "
            "leave --nodes away to go on with it, or name another folder with --folder"
        )
    return made or wanted or 1


def _made(layout: Layout) -> int | None:
    for size in SIZES:
        if all(layout.node(number, size).joinpath("jetstream").exists() for number in range(1, size + 1)):
            return size
    return None


def servers(
    layout: Layout,
    public: ServerIdentity,
    ports: Ports,
    *,
    relaxed: bool = False,
    host: str = LOOPBACK,
) -> list[NatsServer]:
    """The nats-servers of ``layout``, not started.

    Raises:
        ConfigurationError: ``routes.json`` cannot be read.

    """
    size = len(ports.nodes)
    routes = read_routes(layout) if size > 1 else {}
    return [
        NatsServer(
            layout.node(number, size),
            public,
            host=host,
            port=node.client,
            monitor_port=node.monitor,
            server_cert=layout.server_cert,
            server_key=layout.server_key,
            ca=layout.ca,
            relaxed=relaxed,
            log=layout.log(layout.node_name(number, size)),
            name=layout.node_name(number, size),
            membership=_membership(layout, ports, number, routes) if size > 1 else None,
        )
        for number, node in enumerate(ports.nodes, start=1)
    ]


def _membership(layout: Layout, ports: Ports, number: int, routes: Routes) -> Membership:
    others = {
        other: f"{LOOPBACK}:{node.route}"
        for other, node in enumerate(ports.nodes, start=1)
        if other != number
    }
    return Membership(
        listen=f"{LOOPBACK}:{ports.nodes[number - 1].route}",
        routes=tuple((others | dict(routes.get(number, {}))).values()),
        certificate=layout.route_certificate,
        # Else the nodes would tell each other their own addresses, and go around the ones named.
        advertise=_NOWHERE if routes else "",
    )


def read_routes(layout: Layout) -> Routes:
    """The content of ``routes.json``; empty where there is none.

    Raises:
        ConfigurationError: it is not of the form ``{"1": {"2": "host:port", ...}, ...}``.

    """
    try:
        raw = json.loads(layout.routes.read_bytes())
        return {
            int(one): {int(other): str(address) for other, address in to.items()} for one, to in raw.items()
        }
    except FileNotFoundError:
        return {}
    except (AttributeError, TypeError, ValueError) as error:
        raise ConfigurationError(
            f'{layout.routes} is not of the form {{"1": {{"2": "host:port"}}}} ({error}): mend or delete it'
        ) from None


def write_routes(layout: Layout, routes: Routes) -> None:
    """Name other addresses for the ways between nodes, before they are started."""
    write_private(layout.routes, json.dumps(routes).encode())


async def until_formed(monitors: Sequence[str], timeout: float = 60.0) -> None:
    """Return when all nodes have found each other, and every stream on them its leader.

    After a restart of all nodes that takes up to nine seconds, the longest wait before an election.

    Raises:
        ServerDied: they had not within ``timeout`` seconds.

    """
    deadline = time.monotonic() + timeout
    while True:
        whole = await asyncio.gather(*(asyncio.to_thread(_in_order, each) for each in monitors))
        views = await asyncio.gather(*(asyncio.to_thread(_meta, each) for each in monitors))
        leaders = {str(view.get("leader", "")) for view in views}
        # The leader sees all others, another only the leader.
        seen = max(sum(bool(peer.get("current")) for peer in view.get("replicas") or ()) for view in views)
        if all(whole) and len(leaders) == 1 and "" not in leaders and seen == len(monitors) - 1:
            return
        if time.monotonic() > deadline:
            raise ServerDied(
                f"{len(monitors)} nats-servers did not become a cluster within {timeout:g} s: see their logs"
            )
        await asyncio.sleep(_POLL)


def _meta(monitor_url: str) -> Mapping[str, Any]:
    """What a node knows of the group that keeps the cluster's metadata."""
    try:
        found: Mapping[str, Any] = monitor(monitor_url, "/jsz").get("meta_cluster") or {}
    except _NO_ANSWER:
        return {}
    return found


def _in_order(monitor_url: str) -> bool:
    """Whether a node has caught up with everything that it keeps a copy of."""
    try:
        return monitor(monitor_url, "/healthz").get("status") == "ok"
    except _NO_ANSWER:
        return False


def _count(nodes: int) -> str:
    return "one node" if nodes == 1 else f"{nodes} nodes"


def _free(port: int) -> int:
    return port if port and is_free(port) else free_port()

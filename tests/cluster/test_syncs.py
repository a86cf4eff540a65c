"""Counting syncs: what three nodes acknowledge was flushed on a majority of them before (DESIGN 8)."""

from __future__ import annotations

import secrets
from contextlib import AsyncExitStack
from pathlib import Path

from broker_policy.jetstream import publish
from mas_nats.wire import subjects
from tests.cluster.conftest import NODES, Cluster
from tests.processes import children
from tests.syncs import watched

WRITES = 40


async def test_a_majority_flushes_before_each_acknowledgement(cluster: Cluster, tmp_path: Path) -> None:
    """One write after the other, so that no sync can be for two of them."""
    namespace = await cluster.namespace(["a"], {})
    pids = children(cluster.broker.pid)
    writer = f"t{secrets.token_hex(4)}"
    async with cluster.tenant(namespace) as tenant, AsyncExitStack() as stack:
        traces = [
            await stack.enter_async_context(watched(pids[f"nats-{node}"], tmp_path / f"{node}"))
            for node in NODES
        ]
        for number in range(1, WRITES + 1):
            await publish(tenant, subjects.audit_record(writer, number), b"{}", {}, timeout=20)
    flushed = sorted(trace.syncs for trace in traces)
    assert flushed[1] >= WRITES, f"syncs of the three nodes: {flushed}"

"""What a worker still recognises by keys that were retired."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from broker_policy.sealing import Sealer
from broker_policy.tenants.endpoint import Endpoint
from broker_policy.tenants.material import create_material
from broker_policy.tenants.sealing_ring import KEPT_MS, Retired, SealingKey, SealingRing
from broker_policy.worker import PolicyWorker, WorkerConfig

_DAY = 86_400_000


@pytest.mark.parametrize(("age", "recognised"), [(KEPT_MS - _DAY, True), (KEPT_MS + _DAY, False)])
async def test_a_retired_key_has_its_time_also_where_no_other_rotation_removes_it(
    tmp_path: Path,
    age: int,
    recognised: bool,
) -> None:
    old = SealingKey.create()
    create_material(tmp_path / "keys")
    retired = Retired(old, time.time_ns() // 1_000_000 - age)
    SealingRing(SealingKey.create(), None, (retired,)).write(tmp_path / "keys/worker/sealing.key")
    material = create_material(tmp_path / "keys")
    nowhere = Endpoint("tls://127.0.0.1:1", tmp_path, tmp_path, tmp_path)
    config = WorkerConfig("w", nowhere, material.worker, material.public, "redis://127.0.0.1:1/0")
    worker = PolicyWorker(config)
    instance = Sealer("thief", [old]).new_instance("default", "alice")
    assert worker._sealer.owns_instance("default", "alice", instance) is recognised
    await worker.stop()

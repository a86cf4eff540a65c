"""What the durability check makes of what servers say."""

from __future__ import annotations

import pytest

from broker_policy.embedded import durability
from broker_policy.embedded.errors import NotDurable

DURABLE = {
    "server_name": "n1",
    "version": "2.15.1",
    "jetstream": {"config": {"sync_interval": 120, "sync_always": True}},
}
REDIS = {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction"}


def test_durable_servers_have_no_findings():
    assert durability.judge_nats(DURABLE) == []
    assert durability.judge_redis("6.2.14", REDIS) == []
    durability.require([])


@pytest.mark.parametrize(
    ("change", "problem", "fix"),
    [
        ({"version": "2.14.9"}, "version is 2.14.9", "2.15.0"),
        ({"version": ""}, "version is unknown", "2.15.0"),
        ({"jetstream": {}}, "JetStream is off", "jetstream block"),
        ({"jetstream": {"config": {"sync_interval": 120}}}, "before it flushes", "sync_interval: always"),
    ],
)
def test_what_a_nats_server_lacks_is_named_with_the_fix(change, problem, fix):
    (finding,) = durability.judge_nats(DURABLE | change)
    assert finding.server == "nats-server n1"
    assert problem in finding.problem
    assert fix in finding.fix


def test_a_version_with_a_suffix_is_read():
    assert durability.judge_nats(DURABLE | {"version": "2.16.0-beta.1"}) == []


def test_a_stream_that_flushes_late_is_found():
    streams = [{"name": "A", "config": {}}, {"name": "B", "config": {"persist_mode": "async"}}]
    findings = durability.judge_streams({"account_details": [{"name": "X", "stream_detail": streams}]})
    assert [finding.server for finding in findings] == ["stream B of account X"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("appendonly", "no"),
        ("appendfsync", "everysec"),
        ("maxmemory-policy", "allkeys-lru"),
        ("appendonly", None),
    ],
)
def test_what_redis_lacks_is_named_with_the_fix(name, value):
    (finding,) = durability.judge_redis("7.0.0", REDIS | {name: value})
    assert name in finding.problem
    assert f"{name} {REDIS[name]}" in finding.fix


def test_an_old_redis_is_refused():
    (finding,) = durability.judge_redis("6.0.16", REDIS)
    assert "6.0.16" in finding.problem


def test_findings_refuse_the_durable_profile_and_say_all():
    findings = [*durability.judge_nats({}), *durability.judge_redis("", {})]
    with pytest.raises(NotDurable) as refused:
        durability.require(findings)
    assert all(str(finding) in str(refused.value) for finding in findings)
    assert "--relaxed" in str(refused.value)

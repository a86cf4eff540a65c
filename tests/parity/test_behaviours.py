"""The tables of ``behaviours.py``, held against this system."""

from __future__ import annotations

import asyncio
import operator
from functools import reduce
from pathlib import Path
from typing import Any

import orjson
import pytest

from broker_policy.audit.store import Store
from broker_policy.dlp import judge, ruleset
from broker_policy.dlp.classes import DEFAULT_ACTIONS
from mas_nats import Agent, AgentMessage, Refused
from mas_nats.errors import ConfigurationError
from mas_nats.manifest.gateway import GatewaySettings
from mas_nats.policy.document import AgentPolicy, Document, Permissions
from mas_nats.policy.governance import CircuitBreaker, Dlp, Governance, RateLimits, Role
from mas_nats.policy.table import Table
from mas_nats.wire.verdict import Decision
from tests.parity.behaviours import (
    ACTIONS,
    BADGE,
    CARD,
    DEFAULTS,
    EMAIL,
    MERGED,
    REACH,
    REFUSED,
    SSN,
    Differs,
)
from tests.system import System, mas_json


def nested(place: str, value: Any) -> dict[str, Any]:
    return reduce(lambda inner, name: {name: inner}, reversed(place.split(".")), value)


def names(model: Any, place: str = "") -> set[str]:
    """The places of all settings."""
    fields = getattr(type(model), "model_fields", None)
    if fields is None:
        return {place}
    return {each for name in fields for each in names(getattr(model, name), f"{place}.{name}".lstrip("."))}


@pytest.mark.parametrize("place", DEFAULTS)
def test_the_defaults(place: str):
    there = DEFAULTS[place]
    expected = there.here if isinstance(there, Differs) else there
    assert operator.attrgetter(place)(GatewaySettings()) == expected


def test_every_setting_is_there_and_what_is_new_limits_nothing():
    new = names(GatewaySettings()) - DEFAULTS.keys()
    assert DEFAULTS.keys() - names(GatewaySettings()) == set()
    assert {place: operator.attrgetter(place)(GatewaySettings()) for place in new} == {
        "rate_limit.pair_per_minute": 0,
        "rate_limit.pair_per_hour": 0,
        "rate_limit.burst": 0,
        "telemetry.metrics_host": "127.0.0.1",
        "telemetry.metrics_port": 0,
        "telemetry.metrics_token": "",
    }


@pytest.mark.parametrize("source", ["code", "environment", "file"])
@pytest.mark.parametrize(("place", "value"), REFUSED)
def test_what_is_out_of_bounds_or_unknown_is_refused(
    place: str, value: Any, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "gateway.yaml"
    path.write_bytes(orjson.dumps(nested(place, value) if source == "file" else {}))
    if source == "environment":
        raw = value if isinstance(value, str) else orjson.dumps(value).decode()
        monkeypatch.setenv(f"MAS_GATEWAY__{place.replace('.', '__').upper()}", raw)
    code = nested(place, value) if source == "code" else {}
    with pytest.raises(ConfigurationError, match=place.rpartition(".")[2]):
        GatewaySettings.from_yaml(path, **code)


VALUES = {"code": 3, "environment": 2, "file": 1}


@pytest.mark.parametrize(
    ("said", "holds"),
    [
        ((), 5),
        (("file",), 1),
        (("environment",), 2),
        (("code",), 3),
        (("file", "environment"), 2),
        (("file", "code"), 3),
        (("environment", "code"), 3),
        (("file", "environment", "code"), 3),
    ],
)
def test_code_beats_environment_beats_file_beats_default(
    said: tuple[str, ...], holds: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    place = "circuit_breaker.failure_threshold"
    path = tmp_path / "gateway.yaml"
    path.write_bytes(orjson.dumps(nested(place, VALUES["file"]) if "file" in said else {}))
    if "environment" in said:
        monkeypatch.setenv("MAS_GATEWAY__CIRCUIT_BREAKER__FAILURE_THRESHOLD", str(VALUES["environment"]))
    code = nested(place, VALUES["code"]) if "code" in said else {}
    assert GatewaySettings.from_yaml(path, **code).circuit_breaker.failure_threshold == holds


@pytest.mark.parametrize(("type_", "action"), ACTIONS.items(), ids=str)
def test_what_happens_by_default_to_a_class(type_: str, action: str):
    assert DEFAULT_ACTIONS[type_] == action


@pytest.mark.parametrize(("name", "settings", "text", "decision"), MERGED, ids=[each[0] for each in MERGED])
def test_how_rules_come_together(name: str, settings: dict[str, Any], text: str, decision: Decision):
    rules = ruleset(Dlp(**settings))
    found = None if rules.idle else judge(rules, orjson.dumps({"text": text}))
    assert (found.decision if found else Decision.ALLOWED) is decision


@pytest.mark.parametrize(
    ("name", "allowed", "blocked", "role", "reaches"), REACH, ids=[each[0] for each in REACH]
)
def test_who_reaches_whom(
    name: str, allowed: tuple[str, ...], blocked: tuple[str, ...], role: tuple[str, ...], reaches: bool
):
    document = Document(
        namespace="n",
        account="A",
        agents={agent: AgentPolicy(account="X") for agent in ("alice", "bob", "carol")},
        permissions={"alice": Permissions(allowed_targets=allowed, blocked_targets=blocked)},
        governance=Governance(roles={"r": Role(permissions=role, agents=("alice",))}),
    )
    table = Table.compile(document, 1)
    assert table.allows("alice", "bob") is reaches
    assert not table.allows("bob", "alice")


class Desk(Agent[dict[str, Any]]):
    async def on_message(self, message: AgentMessage) -> None:
        if message.message_type == "break":
            raise RuntimeError("broken")


SAID: dict[Decision, tuple[str, str, str]] = {
    Decision.ALLOWED: ("desk", "note", "hello"),
    Decision.ALERT: ("desk", "note", EMAIL),
    Decision.DLP_REDACTED: ("desk", "note", SSN),
    Decision.DLP_BLOCKED: ("desk", "note", CARD),
    Decision.RATE_LIMITED: ("shelf", "note", BADGE),
    Decision.CIRCUIT_OPEN: ("broken", "note", "hello"),
    Decision.AUTHZ_DENIED: ("vault", "note", "hello"),
}
"""Target, type and text for each decision that the ancestor has."""


async def test_each_decision_happens_and_is_audited_by_its_name(system: System):
    limits = RateLimits(pair_per_hour=4)
    agents = ["sender", "desk", "shelf", "broken", "vault"]
    namespace = await system.namespace(
        agents,
        {"sender": ["desk", "shelf", "broken"]},
        governance=Governance(
            rate_limit=limits, circuit_breaker=CircuitBreaker(failure_threshold=1, timeout_seconds=600)
        ),
    )

    where = ("--folder", str(system.layout.root), "--namespace", namespace)

    def options(name: str) -> dict[str, Any]:
        return {"server_addr": system.broker.url, "tls": system.tls(name, namespace)}

    async def said(sender: Agent, decision: Decision) -> Decision:
        target, type_, text = SAID[decision]
        try:
            await sender.send(target, type_, {"text": text}, id=f"id-{decision}")
        except Refused as error:
            return error.decision
        return decision  # delivered: which of three, the audit says

    broken = Desk("broken", **options("broken"))
    async with Desk("desk", **options("desk")), broken, Agent("sender", **options("sender")) as sender:
        for _ in range(limits.pair_per_hour):
            await sender.send("shelf", "note", {})
        await sender.send("broken", "break", {})
        async with asyncio.timeout(20):
            while not (await asyncio.to_thread(mas_json, "breaker", "list", *where))["circuits"]:
                await asyncio.sleep(0.1)
        assert {each: await said(sender, each) for each in SAID} == {each: each for each in SAID}
    async with system.redis() as redis:
        entries = [stored.entry() async for stored in Store(redis, namespace).entries()]
    told = {entry["id"]: entry["d"] for entry in entries if entry["k"] == "d"}
    assert {each: told.get(f"id-{each}") for each in SAID} == {each: each.value for each in SAID}

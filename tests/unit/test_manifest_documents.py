"""Several systems in a manifest: which one a command means, and what is said of the one server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from broker_policy import cli
from broker_policy.cli.app import app
from broker_policy.embedded.plan import Plan
from broker_policy.embedded.server_part import planned
from mas_nats import Agent, PermissionDenied
from mas_nats.errors import ConfigurationError
from mas_nats.manifest import documents
from mas_nats.testing import MemoryBroker

TWO = """
namespace: sales
agents: [{agent_id: bot}, {agent_id: clerk}]
permissions:
  - {type: allow, sender: bot, targets: [clerk, billing/desk]}
gateway: {dlp: {disable_defaults: [email]}}
---
namespace: billing
agents: [{agent_id: desk}]
permissions:
  - {type: allow, sender: sales/bot, targets: [desk]}
"""
CASA = Path(__file__).parent / "data" / "casa.yaml"

cli.load("policy")


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    path = tmp_path / "mas.yaml"
    path.write_text(TWO)
    return path


def run(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, list(arguments))
    return done.exit_code, done.stdout + done.stderr


def test_one_of_several_is_meant_by_its_name_and_the_only_one_by_any(manifest: Path) -> None:
    several = documents.load(manifest)
    assert several.of("billing").namespace == "billing"
    with pytest.raises(ConfigurationError, match=r"'bilin'; did you mean 'billing'.*sales, billing"):
        several.of("bilin")
    assert documents.load(CASA).of("default").namespace == "my-mas"


def test_notices_say_whose_they_are_where_there_are_several(manifest: Path, tmp_path: Path) -> None:
    scoped = tmp_path / "scoped.yaml"
    scoped.write_text(CASA.read_text() + "      scopes: [read]\n")
    together = documents.load(manifest, scoped)
    told = "nobody in my-mas has one of the scopes that a call of my-mcp-server needs"
    assert f"my-mas: {told}" in together.told
    assert told in documents.load(scoped).told


def test_policy_commands_take_the_one_that_is_named(manifest: Path) -> None:
    where = ("--manifest", str(manifest))
    code, said = run("policy", "check", "bot", "clerk", *where, "-n", "sales")
    assert (code, "ALLOWED" in said) == (0, True)
    code, said = run("policy", "check", "bot", "clerk", *where)
    assert (code, "declares no namespace 'default'; declared are sales, billing" in said) == (1, True)
    code, said = run("policy", "show", *where, "-n", "sales", "--json")
    rules = {each["target"]: each["other_side"] for each in json.loads(said)["rules"]}
    assert set(rules) == {"clerk", "billing/desk"}
    assert rules["billing/desk"] == "agrees"


def test_data_loss_prevention_is_that_of_the_named_one(manifest: Path, tmp_path: Path) -> None:
    (tmp_path / "message.json").write_text('{"to": "jane.doe@example.com"}')
    arguments = (
        "policy",
        "dlp-test",
        str(tmp_path / "message.json"),
        "--manifest",
        str(manifest),
        "--json",
        "-n",
    )
    assert json.loads(run(*arguments, "sales")[1])["found"] == []
    assert [each["type"] for each in json.loads(run(*arguments, "billing")[1])["found"]] == ["email"]


def test_policy_tests_say_which_one_they_are_about(manifest: Path) -> None:
    folder = manifest.parent / "policy-tests"
    folder.mkdir()
    case = "  - {name: in, sender: bot, target: clerk, expect: {decision: ALLOWED}}\n"
    (folder / "a.yaml").write_text(f"namespace: sales\ntests:\n{case}")
    assert run("policy", "test", str(folder))[0] == 0
    (folder / "a.yaml").write_text(f"namespace: billing\ntests:\n{case}")
    code, said = run("policy", "test", str(folder))
    assert (code, "got AUTHZ_DENIED" in said) == (1, True)


async def test_a_memory_broker_for_each_side_by_side(manifest: Path) -> None:
    sales = MemoryBroker.from_manifest(manifest, namespace="sales")
    async with sales, MemoryBroker.from_manifest(manifest, namespace="billing", beside=sales) as billing:
        async with sales.agent(Agent, "bot") as bot:
            await bot.send("billing/desk", "note", {})
            with pytest.raises(PermissionDenied):
                await bot.send("billing/other", "note", {})
        assert [each.sender for each in billing.messages_to("desk")] == ["sales/bot"]


async def test_a_memory_broker_of_casa_s_form() -> None:
    async with MemoryBroker.from_manifest(CASA) as broker, broker.agent(Agent, "my-client") as client:
        await client.send("my-agent", "note", {})
        assert len(broker.messages_to("my-agent")) == 1


# -- the one server --------------------------------------------------------------------------------------
def test_what_is_said_of_the_server_may_stand_in_any_one_document(tmp_path: Path) -> None:
    path = tmp_path / "mas.yaml"
    path.write_text(
        f"{CASA.read_text()}---\nnamespace: b\nserver_listen_addr: 127.0.0.1:5005\n---\n"
        "namespace: c\ngateway: {redis: {url: 'redis://example.org'}}\n"
    )
    plan = planned(Plan(manifest=path))
    assert (plan.port, plan.redis) == (5005, "redis://example.org")
    assert planned(Plan(manifest=CASA)).redis == ""


@pytest.mark.parametrize(
    ("one", "other", "words"),
    [
        ("server_listen_addr: localhost:1", "tls_ca_path: ca.pem", "both speak of the server"),
        (
            "gateway: {redis: {socket_timeout: 1}}",
            "gateway: {redis: {url: 'redis://a'}}",
            "both speak of gateway.redis",
        ),
    ],
)
def test_there_is_one_server_so_it_is_said_once(tmp_path: Path, one: str, other: str, words: str) -> None:
    path = tmp_path / "mas.yaml"
    path.write_text(f"namespace: a\n{one}\n---\nnamespace: b\n{other}\n")
    with pytest.raises(ConfigurationError, match=f"line 1 and .*line 4 {words}"):
        planned(Plan(manifest=path))

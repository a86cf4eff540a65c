"""``mas state``: an operator reads and writes the state of an agent, through policy and audit."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from pydantic import BaseModel
from typer.testing import CliRunner

from broker_policy import cli
from broker_policy.cli.app import app
from mas_nats import Agent
from mas_nats.errors import StateConflict
from mas_nats.wire import subjects
from tests.system import System, mas

cli.load()


class Desk(BaseModel):
    answered: int = 0
    notes: list[str] = []


class DeskAgent(Agent[Desk]):
    pass


MODEL = ("--model", "tests.integration.test_state_cli:Desk")


@pytest.fixture
async def where(system: System) -> tuple[str, ...]:
    """Which namespace of which broker, as options."""
    namespace = await system.namespace(["desk", "other"], {})
    return ("--namespace", namespace, "--folder", str(system.layout.root))


def agent_of(system: System, where: tuple[str, ...], name: str = "desk") -> DeskAgent:
    return DeskAgent(name, server_addr=system.broker.url, tls=system.tls(name, where[1]), receive=False)


async def run(*arguments: str, code: int = 0) -> dict[str, Any]:
    """``mas state …`` in this process, which is quicker; its result."""
    done = await asyncio.to_thread(CliRunner().invoke, app, ["state", *arguments, "--json"])
    assert done.exit_code == code, done.output
    result: dict[str, Any] = json.loads(done.stdout)
    return result


async def refused(*arguments: str) -> dict[str, Any]:
    told: dict[str, Any] = (await run(*arguments, code=1))["error"]
    return told


async def test_what_an_agent_wrote_is_shown_and_what_is_set_the_agent_finds(system, where):
    assert (await run("get", "desk", *where))["value"] is None
    async with agent_of(system, where) as desk:
        await desk.update_state({"answered": 2, "notes": ["a"]})
        seen = await run("get", "desk", *where)
        assert seen["value"] == {"answered": 2, "notes": ["a"]}
        done = await run("set", "desk", '{"answered": 7}', *MODEL, *where)
        assert done["replaced"] == seen["revision"]
        with pytest.raises(StateConflict):
            await desk.update_state({"answered": 3})
        assert desk.state == Desk(answered=7)
        await desk.update_state({"answered": 8})
    await run("reset", "desk", *where)
    async with agent_of(system, where) as desk:
        assert desk.state == Desk()


async def test_a_write_is_in_the_audit_with_the_operators_name_and_a_read_is_not(system, where):
    await run("set", "desk", '{"answered": 1}', "--by", "olga", *where)
    await run("get", "desk", "--by", "olga", *where)
    mas("audit", "verify", *where)  # waits until everything is projected
    query = mas("audit", "query", "--sender", "desk", "--json", *where)
    found = json.loads(query.stdout)["decisions"]
    assert [(each["type"], each["by"], each["decision"]) for each in found] == [("state", "olga", "ALLOWED")]


async def test_a_revision_that_is_not_the_current_one_changes_nothing(system, where):
    await run("set", "desk", '{"answered": 1}', "--revision", "0", *where)
    for command in (("set", "desk", '{"answered": 9}'), ("reset", "desk")):
        for revision in ("0", "999"):
            told = await refused(*command, "--revision", revision, *where)
            assert told["type"] == "StateConflict"
    seen = await run("get", "desk", *where)
    assert seen["value"] == {"answered": 1}
    await run("set", "desk", '{"answered": 2}', "--revision", str(seen["revision"]), *where)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ('{"answerd": 1}', "has no field 'answerd'"),
        ('{"answered": "1"}', "does not fit the state model"),
        ('{"answered": 1.5}', "does not fit the state model"),
        ('{"notes": "a"}', "does not fit the state model"),
        ("[1]", "DATA must be a JSON object"),
        ("{", "DATA is not valid JSON"),
    ],
)
async def test_what_does_not_fit_the_model_is_refused_before_it_leaves(system, where, data, said):
    assert said in (await refused("set", "desk", data, *MODEL, *where))["text"]
    assert (await run("get", "desk", *where))["revision"] == 0


async def test_an_agents_class_names_its_model(system, where):
    agents = ("--model", "tests.integration.test_state_cli:DeskAgent")
    await run("set", "desk", '{"answered": 4}', *agents, *where)
    assert (await run("get", "desk", *where))["value"] == {"answered": 4, "notes": []}
    assert (
        "no pydantic model" in (await refused("set", "desk", "{}", "--model", "json:dumps", *where))["text"]
    )
    assert (
        "cannot be imported" in (await refused("set", "desk", "{}", "--model", "no.such:X", *where))["text"]
    )


async def test_data_loss_prevention_judges_what_an_operator_writes(system, where):
    told = await refused("set", "desk", '{"notes": ["card 4111 1111 1111 1111"]}', *where)
    assert told["decision"] == "DLP_BLOCKED"
    assert "4111" not in json.dumps(told)
    large = json.dumps({"notes": ["card 4111 1111 1111 1111 " + "é" * 10_000]})
    assert (await refused("set", "desk", large, *where))["decision"] == "DLP_BLOCKED"
    assert (await run("get", "desk", *where))["value"] is None


async def test_an_agent_that_policy_does_not_know_has_no_state_to_set(system, where):
    assert (await refused("set", "stranger", "{}", *where))["decision"] == "AUTHZ_DENIED"
    assert "not a valid id" in (await refused("get", "a.b", *where))["text"]


async def test_what_is_no_json_object_is_said_and_can_be_replaced(system, where):
    async with system.tenant(where[1]) as admin:
        await admin.jetstream().publish(subjects.kv_key(subjects.STATE_BUCKET, "desk"), b"broken")
    assert (await refused("get", "desk", *where))["type"] == "StateCorrupt"
    await run("set", "desk", '{"answered": 1}', *where)
    assert (await run("get", "desk", *where))["value"] == {"answered": 1}

"""``mas apply``: its plan changes nothing, twice is once, several systems at once, and nothing is dropped."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from broker_policy.dead_letters.inboxes import waiting
from broker_policy.dead_letters.letters import Wanted as WantedLetters
from broker_policy.dead_letters.letters import letters
from broker_policy.tenants.controller import TenantController
from mas_nats import Agent, AgentMessage, PermissionDenied
from mas_nats.config import Endpoint
from mas_nats.manifest import documents
from mas_nats.resilient import ResilientClient
from mas_nats.wire.identity import Role
from tests.load import Handling
from tests.system import System, mas, mas_json, new_namespace

TWO = """
namespace: {name}
agents: [{{agent_id: asker}}, {{agent_id: old, capabilities: [qa]}}]
permissions: [{{type: allow, sender: asker, targets: [old]}}]
"""
ONE = """
namespace: {name}
agents: [{{agent_id: asker}}]
"""


async def call(system: System, *arguments: str) -> dict[str, Any]:
    return await asyncio.to_thread(mas_json, *arguments, "--folder", str(system.layout.root))


async def revision(system: System, namespace: str) -> int:
    async with system.control() as (_, store):
        stored = await store.get(namespace)
    return stored.sequence if stored else 0


async def dead(system: System, namespace: str) -> int:
    async with system.tenant(namespace) as nc:
        return len([letter async for letter in letters(nc, WantedLetters())])


def written(folder: Path, text: str, **names: str) -> str:
    path = folder / "mas.yaml"
    path.write_text(text.format(**names))
    return str(path)


async def test_a_plan_says_what_would_be_done_and_does_nothing(system: System, tmp_path: Path) -> None:
    name = new_namespace()
    file = written(tmp_path, TWO, name=name)
    planned = await call(system, "apply", file, "--dry-run")
    (one,) = planned["namespaces"]
    assert (planned["dry_run"], planned["changed"], one["revision"]) == (True, True, 0)
    assert [(each["action"], each["what"]) for each in one["changes"]] == [
        ("add", f"namespace {name}"),
        ("add", "agent asker"),
        ("add", "agent old"),
        ("add", "permissions of asker"),
    ]
    assert await revision(system, name) == 0
    assert name not in {each["namespace"] for each in (await call(system, "get", "mas"))["mas"]}

    done = await call(system, "apply", file)
    assert done["namespaces"][0]["changes"] == one["changes"], "what was planned is what was done"
    after = await call(system, "apply", file, "--dry-run")
    assert (after["changed"], after["namespaces"][0]["changes"]) == (False, [])
    again = await call(system, "apply", file)
    assert (again["changed"], again["revision"]) == (False, done["revision"])
    assert await revision(system, name) == done["revision"]


async def test_a_plan_counts_what_waits_for_who_would_be_removed(system: System, tmp_path: Path) -> None:
    name = new_namespace()
    await call(system, "apply", written(tmp_path, TWO, name=name))
    async with Agent("asker", server_addr=system.broker.url, tls=system.tls("asker", name)) as asker:
        for _ in range(3):
            await asker.send("old", "note", {})
    file = written(tmp_path, ONE, name=name)
    folder = ("--folder", str(system.layout.root))
    shown = await asyncio.to_thread(mas, "apply", file, "--dry-run", *folder)
    assert shown.stdout.splitlines()[:3] == [
        "- agent old",
        "- permissions of asker",
        "  old: 3 messages would be dead letters",
    ]
    assert "would be changed" in shown.stdout
    assert await dead(system, name) == 0
    shown = await asyncio.to_thread(mas, "apply", file, *folder)
    assert shown.stdout.splitlines()[:3] == [
        "- agent old",
        "- permissions of asker",
        "  old: 3 messages are dead letters",
    ]
    assert await dead(system, name) == 3
    again = await asyncio.to_thread(mas, "apply", file, *folder)
    assert "nothing to do" in again.stdout


async def test_a_mistake_in_one_document_keeps_all_from_being_applied(system: System, tmp_path: Path) -> None:
    name = new_namespace()
    file = written(tmp_path, TWO + "---\nnamespace: {other}\nagents: [{{}}]\n", name=name, other=f"{name}-b")
    failed = await asyncio.to_thread(mas, "apply", file, "--folder", str(system.layout.root), check=False)
    assert failed.returncode == 1
    assert "line 7, agents.0.agent_id: Field required" in failed.stderr
    assert await revision(system, name) == 0


# -- several at once -------------------------------------------------------------------------------------
CASA = """
apiVersion: casa.io/v1alpha1
kind: MultiAgentSystem
metadata: {{name: {one}}}
spec:
  name: One
  apps:
    - {{name: shell, type: client}}
    - {{name: planner, type: agent, baseUrl: "http://planner:8000"}}
    - {{name: files, type: mcp_server, kubernetesWorkloadName: files-v2, baseUrl: "http://files:8080"}}
---
apiVersion: casa.io/v1alpha1
kind: CASAPolicy
metadata: {{name: to-the-desk, namespace: {one}}}
spec:
  targetRef: {{kind: Deployment, name: planner}}
  allowedEndpoints: [{{name: files}}, {{name: desk, namespace: {two}}}]
---
namespace: {two}
agents: [{{agent_id: desk}}, {{agent_id: back}}]
permissions: [{{type: allow, sender: {one}/planner, targets: [desk]}}]
"""


class Echo(Agent[dict[str, Any]]):
    async def on_message(self, message: AgentMessage) -> None:
        await message.reply("answer", {"by": self.agent_id})


def an(cls: type[Agent[Any]], system: System, name: str, namespace: str) -> Any:
    return cls(name, server_addr=system.broker.url, tls=system.tls(name, namespace))


async def test_several_systems_of_both_forms_live_side_by_side(system: System, tmp_path: Path) -> None:
    one, two = new_namespace(), new_namespace()
    done = await call(system, "apply", written(tmp_path, CASA, one=one, two=two))
    assert [each["namespace"] for each in done["namespaces"]] == [one, two]
    denied = "spec.enabledToolChecks is not said, which denies every exchange of a token for a tool"
    assert f"{one}: {denied}" in done["notices"]
    async with (
        an(Echo, system, "planner", one) as planner,
        an(Echo, system, "files-v2", one) as files,
        an(Echo, system, "shell", one) as shell,
        an(Echo, system, "desk", two),
        an(Echo, system, "back", two),
    ):
        assert (await shell.request("planner", "ask", {}, timeout=30)).data == {"by": "planner"}
        assert (await planner.request("files-v2", "ask", {}, timeout=30)).data == {"by": "files-v2"}
        assert (await planner.request(f"{two}/desk", "ask", {}, timeout=30)).data == {"by": "desk"}
        for sender, target in (
            (files, "planner"),  # a server only answers
            (planner, "shell"),  # nobody calls a client
            (planner, f"{two}/back"),  # not in the policy of either
            (shell, f"{two}/desk"),  # it has no policy, so nothing abroad
        ):
            with pytest.raises(PermissionDenied):
                await sender.send(target, "note", {})
    again = await call(system, "apply", str(tmp_path / "mas.yaml"))
    assert (again["changed"], again["revision"]) == (False, done["revision"])


# -- removal ---------------------------------------------------------------------------------------------
class Held(Handling):
    """Handles one message when it is let."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.let = asyncio.Event()

    async def on_message(self, message: AgentMessage) -> None:
        await self.let.wait()
        await super().on_message(message)


async def test_a_drained_agent_handles_what_waits_and_gets_nothing_new(
    system: System, tmp_path: Path
) -> None:
    name = new_namespace()
    await call(system, "apply", written(tmp_path, TWO, name=name))
    async with an(Agent, system, "asker", name) as asker, an(Held, system, "old", name) as old:
        ids = {await asker.send("old", "note", {"n": number}) for number in range(5)}
        file = written(tmp_path, ONE, name=name)
        applying = asyncio.create_task(call(system, "apply", file, "--drain", "120"))
        rule = ""
        async with asyncio.timeout(60):
            while not rule:
                try:
                    ids.add(await asker.send("old", "note", {}))
                except PermissionDenied as refused:
                    rule = refused.verdict.rule
        assert (rule, applying.done()) == ("blocked_targets", False)
        old.let.set()
        assert await old.wait_handled(ids, timeout=30) == set()
        done = await asyncio.wait_for(applying, 60)
        assert done["namespaces"][0]["removed"] == ["old"]
        assert done["namespaces"][0]["retired"] == [{"agent": "old", "buried": 0}]
        with pytest.raises(PermissionDenied):
            await asker.send("old", "note", {})
    assert await dead(system, name) == 0
    async with system.control() as (_, store):
        stored = await store.get(name)
    assert stored is not None
    assert "old" not in stored.document.agents
    assert stored.document.permissions == {}, "what held while it was drained is gone"


async def test_what_is_not_handled_in_time_is_a_dead_letter(system: System, tmp_path: Path) -> None:
    name = new_namespace()
    await call(system, "apply", written(tmp_path, TWO, name=name))
    async with an(Agent, system, "asker", name) as asker:
        for _ in range(4):
            await asker.send("old", "note", {})
    done = await call(system, "apply", written(tmp_path, ONE, name=name), "--drain", "0.5")
    assert done["namespaces"][0]["retired"] == [{"agent": "old", "buried": 4}]
    assert await dead(system, name) == 4
    async with system.tenant(name) as nc:
        assert await waiting(nc) == {}


PEOPLE = "namespace: {name}\nagents: [{{agent_id: asker}}]\n{more}\n"


@asynccontextmanager
async def connected(system: System, name: str, role: Role, who: str) -> AsyncIterator[ResilientClient]:
    endpoint = Endpoint(system.broker.url, system.tls(who, name, role=role))
    client = ResilientClient()

    async def ignore(_: Exception) -> None:
        return None

    await client.connect_within(
        30, servers=[endpoint.url], tls=endpoint.context(), tls_hostname="localhost", error_cb=ignore
    )
    try:
        yield client
    finally:
        await client.close()


async def connections(system: System, name: str, role: Role, who: str) -> int:
    async with system.control() as (controller, _):
        uri = f"spiffe://mas/ns/{name}/{role}/{who}"
        return len(await controller._connections({"auth": True, "user": uri}))


@pytest.mark.parametrize(("role", "key"), [(Role.OPERATOR, "operators"), (Role.INSPECTOR, "inspectors")])
async def test_an_operator_or_inspector_that_is_gone_is_disconnected(
    system: System, tmp_path: Path, role: Role, key: str
) -> None:
    name = new_namespace()
    await call(system, "apply", written(tmp_path, PEOPLE, name=name, more=f"{key}: [olga]"))
    async with connected(system, name, role, "olga") as client:
        more = f"{key}: [olga]\nlimits: {{max_payload: 5000}}"
        await call(system, "apply", written(tmp_path, PEOPLE, name=name, more=more))
        await client.flush()
        assert await connections(system, name, role, "olga") == 1, "who is still there stays connected"
        done = await call(system, "apply", written(tmp_path, PEOPLE, name=name, more=""))
        assert {each["what"] for each in done["namespaces"][0]["changes"]} == {f"{role} olga", "limits"}
        assert await connections(system, name, role, "olga") == 0


async def test_an_apply_that_died_before_it_disconnected_them_is_finished_by_the_next(
    system: System, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = new_namespace()
    await call(system, "apply", written(tmp_path, PEOPLE, name=name, more="operators: [olga]"))
    gone = documents.load(Path(written(tmp_path, PEOPLE, name=name, more=""))).of(name).wanted
    async with connected(system, name, Role.OPERATOR, "olga"):

        async def die(*_: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as dying:
            dying.setattr(TenantController, "kick_absent", die)
            with pytest.raises(KeyboardInterrupt):
                await system.apply(gone)
        assert await connections(system, name, Role.OPERATOR, "olga") == 1
        assert not (await system.apply(gone)).changed
        assert await connections(system, name, Role.OPERATOR, "olga") == 0


# -- what there is ---------------------------------------------------------------------------------------
async def test_get_shows_what_there_is(system: System, tmp_path: Path) -> None:
    name = new_namespace()
    done = await call(system, "apply", written(tmp_path, TWO, name=name))
    only = ("-n", name)
    (row,) = (await call(system, "get", "mas", *only))["mas"]
    assert (row["namespace"], row["revision"], row["agents"]) == (name, done["revision"], 2)
    async with an(Agent, system, "asker", name) as asker:
        old = Held(
            "old", capabilities=["qa", "unknown"], server_addr=system.broker.url, tls=system.tls("old", name)
        )
        async with old:
            ids = {await asker.send("old", "note", {}) for _ in range(2)}
            async with asyncio.timeout(30):
                while True:
                    rows = {
                        each["agent"]: each for each in (await call(system, "get", "agents", *only))["agents"]
                    }
                    if rows["old"]["in_flight"] == 2:
                        break
            assert (rows["old"]["instances"], rows["asker"]["instances"]) == (1, 1)
            assert (rows["old"]["capabilities"], rows["old"]["announced"]) == (["qa"], ["qa"])
            assert (rows["old"]["pending"], rows["old"]["dead_letters"], rows["old"]["type"]) == (
                0,  # both are in flight
                0,
                "agent",
            )
            old.let.set()
            assert await old.wait_handled(ids, timeout=30) == set()
        await asker.send("old", "note", {})
        rows = {each["agent"]: each for each in (await call(system, "get", "agents", *only))["agents"]}
        assert (rows["old"]["instances"], rows["old"]["announced"], rows["old"]["pending"]) == (0, [], 1)
    await call(system, "apply", written(tmp_path, ONE, name=name))
    rows = {each["agent"]: each for each in (await call(system, "get", "agents", *only))["agents"]}
    assert (rows["old"]["type"], rows["old"]["dead_letters"]) == ("removed", 1)
    found = {each["stream"]: each for each in (await call(system, "get", "streams", *only))["streams"]}
    assert found["DLQ"]["messages"] == 1
    assert found["INBOX"]["max_messages_per_subject"] == 100_000
    assert {"DELAYED", "KV_state", "KV_registry", "REPLIES"} <= set(found)

    folder = ("--folder", str(system.layout.root))
    shown = (await asyncio.to_thread(mas, "get", "streams", *folder)).stdout
    assert {name, "default"} <= {line.split()[0] for line in shown.splitlines()}
    assert not any("…" in line for line in shown.splitlines()), "nothing is cut off"
    wrong = await asyncio.to_thread(mas, "get", "agents", "-n", f"{name}x", *folder, check=False)
    assert wrong.returncode == 1
    assert f"did you mean '{name}'" in wrong.stderr

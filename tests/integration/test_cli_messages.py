"""``mas apply``, ``send``, ``request`` and ``audit`` against a running broker."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from mas_nats import Agent, AgentMessage
from tests.load import Handling
from tests.system import REPOSITORY, System, mas, mas_json
from tests.terminal import in_terminal


class Echo(Agent[dict[str, object]]):
    async def on_message(self, message: AgentMessage) -> None:
        await message.reply("echo", {"got": message.data})


MANIFEST = """
namespace: {namespace}
agents:
  - agent_id: alice
  - agent_id: bob
permissions:
  - {{type: allow, sender: alice, targets: [bob]}}
"""


@pytest.fixture
async def namespace(system: System, tmp_path: Path) -> str:
    name = f"cli-{tmp_path.name[-8:].strip('_').lower()}".replace("_", "-")
    (tmp_path / "mas.yaml").write_text(MANIFEST.format(namespace=name))
    return name


def options(system: System, namespace: str) -> list[str]:
    return ["--folder", str(system.layout.root), "--namespace", namespace]


async def call(*arguments: str) -> dict[str, Any]:
    return await asyncio.to_thread(mas_json, *arguments)


async def test_apply_twice_changes_once(system: System, namespace: str, tmp_path: Path) -> None:
    file, folder = str(tmp_path / "mas.yaml"), str(system.layout.root)
    first = await call("apply", file, "--folder", folder)
    assert (first["changed"], first["namespaces"][0]["added"]) == (True, ["alice", "bob"])
    second = await call("apply", file, "--folder", folder)
    assert (second["changed"], second["revision"]) == (False, first["revision"])
    assert second["namespaces"][0]["changes"] == []
    (tmp_path / "mas.yaml").write_text(f"namespace: {namespace}\nagents: [{{agent_id: alice}}]\n")
    third = await call("apply", file, "--folder", folder)
    assert (third["changed"], third["namespaces"][0]["removed"]) == (True, ["bob"])


async def test_a_wrong_manifest_names_the_field(system: System, tmp_path: Path) -> None:
    (tmp_path / "mas.yaml").write_text("agents: [{agent_id: Alice}]\npermissionz: []\n")
    done = mas("apply", str(tmp_path / "mas.yaml"), "--folder", str(system.layout.root), check=False)
    assert done.returncode == 1
    assert "agents.0.agent_id" in done.stderr
    assert "permissionz" in done.stderr


async def test_request_send_and_audit(system: System, namespace: str, tmp_path: Path) -> None:
    await call("apply", str(tmp_path / "mas.yaml"), "--folder", str(system.layout.root))
    system.tls("alice", namespace)
    where = options(system, namespace)
    async with Echo("bob", server_addr=system.broker.url, tls=system.tls("bob", namespace)):
        reply = await call("request", "--as", "alice", "bob", "ask", '{"n": 1}', *where)
        assert (reply["sender"], reply["data"]) == ("bob", {"got": {"n": 1}})
        sent = await call("send", "--as", "alice", "bob", "note", '{"n": 2}', "--id", "note-1", *where)
        assert sent["message_id"] == "note-1"

    refused = mas("send", "--as", "alice", "carol", "note", "--json", *where, check=False)
    assert refused.returncode == 1
    error = json.loads(refused.stdout)["error"]
    assert (error["decision"], error["rule"]) == ("AUTHZ_DENIED", "deny_by_default")
    async with asyncio.timeout(10):
        while True:
            found = await call("audit", "query", "--message-id", "note-1", *where)
            if found["decisions"]:
                break
    assert found["decisions"][0]["decision"] == "ALLOWED"  # type: ignore[index]
    verified = await call("audit", "verify", *where)
    assert verified["intact"] is True


NASTY = "é \x1b]0;owned\x07\x9b2J"
"""Names the window, and clears the screen."""


class Counter(Agent[dict[str, object]]):
    @Agent.on("count")
    async def count(self, message: AgentMessage) -> None:
        async with message.reply_stream() as out:
            for number in range(3):
                await out.write(f"{number}\n")
            await out.write({"n": 3})

    @Agent.on("nasty")
    async def nasty(self, message: AgentMessage) -> None:
        async with message.reply_stream() as out:
            await out.write(NASTY)
            await out.write("end\n")

    @Agent.on("break")
    async def fail(self, message: AgentMessage) -> None:
        async with message.reply_stream() as out:
            await out.write("so far")
            await asyncio.sleep(0.3)  # so that it is on its way
            raise ValueError


async def test_stream_prints_what_comes(system: System) -> None:
    namespace = await system.namespace(["alice", "bob"], {"alice": ["bob"]})
    system.tls("alice", namespace)
    where = options(system, namespace)
    async with Counter("bob", server_addr=system.broker.url, tls=system.tls("bob", namespace)):
        said = await asyncio.to_thread(mas, "stream", "--as", "alice", "bob", "count", *where)
        assert said.stdout == '0\n1\n2\n{"n":3}\n'
        said = await asyncio.to_thread(mas, "stream", "--as", "alice", "bob", "count", "--json", *where)
        lines = [json.loads(line) for line in said.stdout.splitlines()]
        assert "".join(line["text"] for line in lines[:-1]) == "0\n1\n2\n"
        assert lines[-1] == {"data": {"n": 3}}
        arguments = ("stream", "--as", "alice", "bob", "break", "--json", *where)
        failed = await asyncio.to_thread(mas, *arguments, check=False)
        text, error = [json.loads(line) for line in failed.stdout.splitlines()]
        assert (failed.returncode, text) == (1, {"text": "so far"})
        assert error["error"]["type"] == "RequestFailed"


async def test_a_stream_does_not_command_a_terminal_and_is_piped_as_it_is(system: System) -> None:
    namespace = await system.namespace(["alice", "bob"], {"alice": ["bob"]})
    system.tls("alice", namespace)
    arguments = ("stream", "--as", "alice", "bob", "nasty", *options(system, namespace))
    async with Counter("bob", server_addr=system.broker.url, tls=system.tls("bob", namespace)):
        piped = await asyncio.to_thread(mas, *arguments)
        assert piped.stdout == f"{NASTY}end\n"
        command = (sys.executable, "-m", "broker_policy.cli", *arguments)
        said = await asyncio.to_thread(in_terminal, command, until="end", folder=REPOSITORY)
    assert "é \\u001b]0;owned\\u0007\\u009b2Jend" in said.text
    assert NASTY[2] not in said.text


async def test_delayed_messages(system: System, namespace: str, tmp_path: Path) -> None:
    await call("apply", str(tmp_path / "mas.yaml"), "--folder", str(system.layout.root))
    system.tls("alice", namespace)
    where = options(system, namespace)
    assert await call("delayed", "list", *where) == {"namespace": namespace, "waiting": 0, "messages": []}
    await call("send", "--as", "alice", "bob", "note", "--delay", "1h30m", "--id", "later", *where)
    await call("send", "--as", "alice", "bob", "note", "--at", "2001-01-01T00:00:00Z", "--id", "now", *where)
    await call("send", "--as", "alice", "bob", "note", "--delay", "600", "--id", "sooner", *where)
    async with Handling("bob", server_addr=system.broker.url, tls=system.tls("bob", namespace)) as bob:
        assert await bob.wait_handled({"now"}, 10) == set()
    listed = await call("delayed", "list", "--sender", "alice", *where)
    assert [each["message_id"] for each in listed["messages"]] == ["sooner", "later"]  # type: ignore[attr-defined]
    cancelled = await call("delayed", "cancel", "alice", "later", "--by", "olga", *where)
    assert cancelled["cancelled"] is True
    async with asyncio.timeout(10):
        while True:
            found: Any = await call("audit", "query", "--message-id", "later", *where)
            told = [(each["op"], each["outcome"], each["by"]) for each in found["decisions"]]
            if told == [("withdraw", "applied", "olga"), ("delay", "applied", "")]:
                break
    late = mas("delayed", "cancel", "alice", "now", "--json", *where, check=False)
    assert (late.returncode, json.loads(late.stdout)["cancelled"]) == (1, False)
    wrong = mas("send", "--as", "alice", "bob", "note", "--delay", "soon", *where, check=False)
    assert wrong.returncode == 1
    assert "10m" in wrong.stderr


async def test_a_script_takes_none_of_its_agents_messages(system: System) -> None:
    """``receive=False``: it can ask, it is not found, and the agent's messages wait for others."""
    namespace = await system.namespace(["alice", "bob"], {"alice": ["bob"], "bob": ["alice"]})
    url, tls = system.broker.url, {name: system.tls(name, namespace) for name in ("alice", "bob")}
    async with (
        Echo("bob", server_addr=url, tls=tls["bob"]) as bob,
        Handling("alice", server_addr=url, tls=tls["alice"], receive=False) as script,
    ):
        assert await bob.discover() == []
        waiting = await bob.send("alice", "note", {})
        assert (await script.request("bob", "ask", {"n": 1}, timeout=10)).data == {"got": {"n": 1}}
        assert not script.handled
        async with Handling("alice", server_addr=url, tls=tls["alice"]) as alice:
            assert await alice.wait_handled({waiting}, 10) == set()
            assert [found.agent_id for found in await bob.discover()] == ["alice"]


async def test_nothing_runs_there(tmp_path: Path) -> None:
    manifest = tmp_path / "mas.yaml"
    manifest.write_text("agents: []\n")
    for arguments in (["apply", str(manifest)], ["send", "--as", "alice", "bob", "x"], ["audit", "verify"]):
        done = mas(*arguments, "--folder", str(tmp_path / ".mas"), check=False)
        assert done.returncode == 3, done.stderr
        assert "mas up" in done.stderr

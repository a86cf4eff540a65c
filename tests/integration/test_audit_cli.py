"""``mas audit`` on a running broker: what people type, and what they get."""

from __future__ import annotations

import asyncio
import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from broker_policy.audit.waiting import LONG
from broker_policy.cli.app import ExitCode
from mas_nats import Agent, AgentMessage, Refused
from mas_nats.policy.governance import AuditSink, Governance
from tests.load import Handling
from tests.system import System, mas, new_namespace, wanted


@pytest.fixture
async def options(system: System) -> list[str]:
    """The options of a namespace with eight decisions, three of them refusals, all settled."""
    namespace = await system.namespace(["alice", "bob", "carol"], {"alice": ["bob"]})
    url = system.broker.url
    async with (
        Handling("alice", server_addr=url, tls=system.tls("alice", namespace)) as alice,
        Handling("bob", server_addr=url, tls=system.tls("bob", namespace)),
    ):
        for number in range(5):
            await alice.send("bob", "task", {"n": number})
        for _ in range(3):
            with pytest.raises(Refused):
                await alice.send("carol", "=task", {})
        chosen = ["--folder", str(system.layout.root), "--namespace", namespace]
        async with asyncio.timeout(30):
            while len((await query(*chosen, "--target", "bob", "--outcome", "handled"))["decisions"]) < 5:
                await asyncio.sleep(0.1)
    return chosen


async def run(*arguments: str, check: bool = True) -> str:
    return (await asyncio.to_thread(mas, "audit", *arguments, check=check)).stdout


async def query(*arguments: str) -> dict[str, Any]:
    return json.loads(await run("query", *arguments, "--json"))


async def test_query_in_pages(options: list[str]) -> None:
    everything = await query(
        *options, "--sender", "alice", "--target", "bob", "--oldest-first", "--from", "1h"
    )
    assert [row["outcome"] for row in everything["decisions"]] == ["handled"] * 5
    assert everything["next"] is None
    rows: list[Any] = []
    cursor: list[str] = []
    for _ in range(3):
        page = await query(*options, "--target", "bob", "--oldest-first", "--limit", "2", *cursor)
        rows += page["decisions"]
        cursor = ["--cursor", str(page["next"])]
    assert rows == everything["decisions"]
    refused = await query(*options, "--decision", "AUTHZ_DENIED", "--outcome", "refused", "--limit", "2")
    assert [row["target"] for row in refused["decisions"]] == ["carol", "carol"]
    assert (await query(*options, "--to", "1h"))["decisions"] == []
    assert "more: --cursor" in await run("query", *options, "--limit", "1")
    unknown = await asyncio.to_thread(mas, "audit", "query", *options, "--outcome", "eaten", check=False)
    assert unknown.returncode == ExitCode.FAILED
    assert "handled" in unknown.stderr


async def test_a_namespace_that_is_not_there_is_not_intact(options: list[str], tmp_path: Path) -> None:
    *folder, namespace = options
    file = str(tmp_path / "none.jsonl")
    for command in (
        ("query",),
        ("verify",),
        ("report", "--from", "1h"),
        ("export", file),
        ("export", file, "--format", "csv"),
    ):
        missed = await asyncio.to_thread(mas, "audit", *command, *folder, f"{namespace}x", check=False)
        assert (missed.returncode, missed.stdout) == (ExitCode.FAILED, "")
        assert f"did you mean '{namespace}'" in missed.stderr
        assert not Path(file).exists()


async def test_a_namespace_in_which_nothing_happened_is_there(system: System) -> None:
    namespace = await system.namespace(["alice"], {})
    where = ("--folder", str(system.layout.root), "--namespace", namespace)
    assert (await query(*where))["decisions"] == []
    assert "is intact" in await run("verify", *where)


async def test_what_waits_to_be_entered_is_told(options: list[str], system: System) -> None:
    namespace = options[-1]
    assert json.loads(await run("verify", *options, "--json"))["waiting"] == {
        "records": 0,
        "oldest_seconds": 0.0,
    }
    async with (
        Redis.from_url(system.broker.redis_url()) as redis,
        Handling("alice", server_addr=system.broker.url, tls=system.tls("alice", namespace)) as alice,
    ):
        await redis.config_set("min-replicas-to-write", 1)  # Redis refuses whatever changes it
        try:
            await alice.send("bob", "task", {})
            async with asyncio.timeout(60):
                while True:
                    found = await asyncio.to_thread(mas, "audit", "verify", *options, "--json")
                    if "not in the audit yet" in found.stderr:
                        break
            report = json.loads(await run("report", "--from", "1h", "--format", "json", *options))
            told = await run("report", "--from", "1h", *options)
        finally:
            await redis.config_set("min-replicas-to-write", 0)
    behind = json.loads(found.stdout)["waiting"]
    assert behind["records"] > 0
    assert behind["oldest_seconds"] > LONG
    assert report["verification"]["waiting"]["records"] >= behind["records"]
    assert "records wait, the oldest for" in told


async def test_export_of_decisions(options: list[str], tmp_path: Path) -> None:
    file = tmp_path / "refused.csv"
    said = json.loads(
        await run("export", str(file), "--format", "csv", "--target", "carol", "--json", *options)
    )
    assert said["decisions"] == 3
    with file.open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    assert [(row["sender"], row["type"], row["outcome"]) for row in rows] == [
        ("alice", "'=task", "refused")
    ] * 3
    lines = tmp_path / "all.jsonl"
    await run("export", str(lines), "--format", "jsonl", "--from", "1h", *options)
    exported = [json.loads(raw) for raw in lines.read_bytes().splitlines()]
    assert [row for row in exported if row["target"] == "bob" and row["op"] == "send"] != []
    assert [row["index"] for row in exported] == sorted(row["index"] for row in exported)
    chain = await asyncio.to_thread(
        mas, "audit", "export", str(lines), "--sender", "x", *options, check=False
    )
    assert chain.returncode == ExitCode.FAILED  # a part of a chain would not verify


async def test_report(options: list[str]) -> None:
    async with asyncio.timeout(30):
        while True:
            report = json.loads(await run("report", "--from", "1h", "--json", *options))
            if report["verification"]["signed_index"] >= report["verification"]["entries"] - 1:
                break
    assert report["verification"]["intact"]
    assert report["refusals"] == 3
    assert report["refusals_by_sender"] == {"alice": 3}
    assert report["by_outcome"]["handled"] == 5
    assert "verified  yes" in await run("report", "--from", "1h", *options)
    assert "## Refusals by rule" in await run("report", "--from", "1h", "--format", "markdown", *options)
    empty = json.loads(await run("report", "--from", "2h", "--to", "1h", "--format", "json", *options))
    assert empty["decisions"] == 0


async def test_a_report_says_that_the_chain_was_altered(options: list[str], system: System) -> None:
    async with system.redis() as redis:
        assert await redis.xdel(f"mas:audit:{options[-1]}:chain", "3-0")
    altered = await asyncio.to_thread(mas, "audit", "report", "--from", "1h", *options, check=False)
    assert altered.returncode == ExitCode.ALTERED
    assert "verified  NO" in altered.stdout


async def test_a_manifest_asks_for_a_copy_in_a_file(system: System, tmp_path: Path) -> None:
    namespace, file = new_namespace(), tmp_path / "audit.jsonl"
    plain = wanted(namespace, ["alice", "bob"], {"alice": ["bob"]})
    await system.apply(plain)
    copied = replace(plain, governance=Governance(audit=AuditSink(file_path=str(file))))
    await system.apply(copied)
    async with Handling("alice", server_addr=system.broker.url, tls=system.tls("alice", namespace)) as alice:
        sent = await alice.send("bob", "task", {})
    async with asyncio.timeout(30):
        while not file.exists() or sent not in file.read_text():
            await asyncio.sleep(0.1)
    decisions = [line["e"] for line in map(json.loads, file.read_text().splitlines()) if "e" in line]
    assert [entry["i"] for entry in decisions] == list(range(1, len(decisions) + 1))
    await system.apply(plain)  # no file any more: nothing is added


async def test_seal_and_verify_with_the_folder(options: list[str], tmp_path: Path) -> None:
    segments = str(tmp_path / "segments")
    everything = (await query(*options, "--oldest-first"))["decisions"]
    async with asyncio.timeout(30):
        while json.loads(await run("verify", *options, "--json"))["signed_index"] < 8:
            await asyncio.sleep(0.2)
    before = ("--before", "2099-01-01T00:00:00Z")
    sealed = json.loads(await run("seal", *before, "--to", segments, "--remove", "--json", *options))
    assert sealed["removed_up_to"] == sealed["sealed"][-1]["last"] > 5
    assert "NOT EXAMINED" in await run("verify", *options)
    whole = json.loads(await run("verify", "--segments", segments, "--json", *options))
    assert (whole["intact"], whole["unexamined_segments"]) == (True, [])
    assert (await query(*options, "--oldest-first", "--segments", segments))["decisions"] == everything
    assert len((await query(*options))["decisions"]) < len(everything)
    report = json.loads(await run("report", "--from", "1h", "--json", "--segments", segments, *options))
    assert (report["refusals"], report["verification"]["intact"]) == (3, True)
    assert report["not_counted_up_to"] == 0
    partly = json.loads(await run("report", "--from", "1h", "--json", *options))
    assert (partly["decisions"] < report["decisions"], partly["refusals"]) == (True, 0)
    assert partly["not_counted_up_to"] == sealed["removed_up_to"]
    assert f"NOT COUNTED  entries up to {sealed['removed_up_to']}" in await run(
        "report", "--from", "1h", *options
    )
    later = json.loads(await run("report", "--from", "0s", "--json", *options))  # none of it is of that time
    assert later["not_counted_up_to"] == 0
    next((tmp_path / "segments").glob("*.gz")).unlink()
    altered = await asyncio.to_thread(mas, "audit", "verify", "--segments", segments, *options, check=False)
    assert altered.returncode == ExitCode.ALTERED
    assert "missing from" in altered.stdout


async def test_a_receiver_proves_what_it_got(system: System, tmp_path: Path) -> None:
    namespace = await system.namespace(["alice", "bob"], {"alice": ["bob"]})
    received: asyncio.Queue[AgentMessage] = asyncio.Queue()

    class Keeping(Agent[dict[str, object]]):
        async def on_message(self, message: AgentMessage) -> None:
            received.put_nowait(message)

    url = system.broker.url
    async with (
        Handling("alice", server_addr=url, tls=system.tls("alice", namespace)) as alice,
        Keeping("bob", server_addr=url, tls=system.tls("bob", namespace)),
    ):
        await alice.send("bob", "order", {"amount": 1.10, "for": "Zoë"})
        message = await asyncio.wait_for(received.get(), 10)
    assert json.loads(message.body) == message.data
    assert message.salt not in repr(message)
    kept, options = tmp_path / "body", ["--folder", str(system.layout.root), "--namespace", namespace]
    kept.write_bytes(message.body)
    opened = [message.message_id, "--salt", message.salt, "--data", f"@{kept}"]
    async with asyncio.timeout(20):
        while not (await query(*options, "--message-id", message.message_id))["decisions"]:
            await asyncio.sleep(0.1)
    assert "this is what alice sent to bob" in await run("check-commitment", *opened, *options)
    chain = tmp_path / "audit.jsonl"
    await run("export", str(chain), *options)
    offline = json.loads(await run("check-commitment", *opened, "--file", str(chain), "--json"))
    assert offline["matches"]
    kept.write_bytes(message.body.replace(b"1.1", b"9.9"))  # the control
    for where in (options, ["--file", str(chain)]):
        done = await asyncio.to_thread(mas, "audit", "check-commitment", *opened, *where, check=False)
        assert done.returncode == ExitCode.FAILED
        assert "NOT what was delivered" in done.stdout


@pytest.mark.parametrize("asked", ["dlq list", "top --once", "delayed list", "state get alice"])
async def test_a_namespace_that_is_none_is_named(system: System, asked: str) -> None:
    folder = ("--folder", str(system.layout.root), "--namespace", "nobody")
    done = await asyncio.to_thread(mas, *asked.split(), *folder, check=False)
    assert done.returncode == ExitCode.FAILED
    assert "no namespace 'nobody'" in done.stderr
    assert "SPIFFE" not in done.stderr

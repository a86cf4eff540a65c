"""A call is run at most once, whatever dies; and never when it is too late."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
from collections import Counter
from pathlib import Path

import httpx
import pytest

from mas_nats import ConfigurationError
from mas_nats.sidecar.inbound import Inbound
from mas_nats.sidecar.refusal import OUTCOME_UNKNOWN
from tests.sidecar.answers import SERVED, outcome
from tests.sidecar.conftest import Town
from tests.sidecar.running import start

HEADERS = {"mcp-protocol-version": "2026-07-28", "accept": "application/json, text/event-stream"}
META = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientCapabilities": {},
}


async def tool(http: httpx.AsyncClient, name: str, arguments: dict[str, object]) -> httpx.Response:
    params = {"name": name, "arguments": arguments, "_meta": META}
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
    headers = {**HEADERS, "mcp-method": "tools/call", "mcp-name": name}
    return await http.post("http://bank.test/mcp", json=body, headers=headers)


KILLS = int(os.environ.get("SIDECAR_KILLS", "8"))
"""How often the target's sidecar is killed: ``make sidecar-kills COUNT=100``."""
EACH = 16
"""Transfers that are under way when it is."""


@pytest.mark.slow
async def test_a_sidecar_killed_while_money_is_transferred(
    empty_town: Town, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """The target's sidecar is killed at a random moment, and started again at once, again and again: no
    transfer is made twice, and whoever was not told that it was made was told that nothing is known, or that
    it was not run."""
    town = empty_town
    told: dict[int, str] = {}
    chance = random.Random(1)

    async def transfer(http: httpx.AsyncClient, number: int) -> None:
        answer = await tool(http, "transfer_money", {"number": number})
        if answer.status_code == 200 and "error" not in answer.text:
            told[number] = "made"
        else:
            told[number] = json.loads(answer.text)["error"]["data"]["ran"]

    async with contextlib.AsyncExitStack() as stack:
        await town.start(stack, "shop", limits={"begin": 2.0, "heartbeat": 1.0})
        http = await stack.enter_async_context(httpx.AsyncClient(proxy=town.proxy("shop"), timeout=60))
        sidecar = await start(town, "bank", tmp_path)
        stack.push_async_callback(lambda: sidecar.kill())  # noqa: PLW0108 - the one of then
        for kill in range(KILLS):
            numbers = range(kill * EACH, (kill + 1) * EACH)
            before, some = len(town.bank.transfers), chance.randrange(EACH // 2)
            tasks = [asyncio.create_task(transfer(http, number)) for number in numbers]
            while len(town.bank.transfers) < before + some and not all(task.done() for task in tasks):
                await asyncio.sleep(0.001)
            await sidecar.kill()
            sidecar = await start(town, "bank", tmp_path)  # while callers wait for the one before
            await asyncio.gather(*tasks)
        last = KILLS * EACH - 1
        async with asyncio.timeout(60):
            while told[last] != "made":  # it goes on
                last += 1
                await transfer(http, last)
        # What a killed one had in hand comes again, too late by now.
        async with town.system.tenant(town.namespace) as client, asyncio.timeout(60):
            while (left := await client.jetstream().consumer_info("INBOX", "bank")).num_ack_pending:
                await asyncio.sleep(0.2)
        assert left.num_pending == 0
    made = Counter(town.bank.transfers)
    twice = [number for number, times in made.items() if times > 1]
    said = Counter(how if number in made else f"{how}, not made" for number, how in told.items())
    with capsys.disabled():
        print(
            f"\n{KILLS} kills, {last + 1} transfers asked for, {len(made)} made, {len(twice)} twice: {said}"
        )
    assert len(told) == last + 1
    assert not twice
    assert not said["made, not made"]
    assert not said["no"], "told that it was not run, and it was"
    assert len(made) > 1, "the test kills before anything is run"
    assert said["unknown"] + said["unknown, not made"], "the test kills after everything was run"


async def test_the_control_acknowledged_after_it_is_run_twice(
    empty_town: Town, monkeypatch: pytest.MonkeyPatch
):
    """Without the early acknowledgement a call whose sidecar dies is run again."""
    town = empty_town

    async def at_once(self: Inbound, *_: object) -> None:
        """Do not acknowledge."""

    monkeypatch.setattr(Inbound, "_begin", at_once)
    done = asyncio.Event()
    run = Inbound._run

    async def dies_after(self: Inbound, *what: object) -> None:
        if not done.is_set():
            await tool_run(town)
            done.set()
            raise RuntimeError("it dies here")
        await run(self, *what)  # type: ignore[arg-type]

    async def tool_run(town: Town) -> None:
        town.bank.transfers.append(7)

    monkeypatch.setattr(Inbound, "_run", dies_after)
    async with contextlib.AsyncExitStack() as stack:
        await town.start(stack, "bank", "shop")
        async with httpx.AsyncClient(proxy=town.proxy("shop"), timeout=60) as http:
            await tool(http, "transfer_money", {"number": 7})
    assert town.bank.transfers == [7, 7]


async def test_a_call_that_comes_too_late_is_not_run(empty_town: Town):
    """Nobody takes it while it may be begun; the sidecar that comes later leaves it."""
    town = empty_town
    async with contextlib.AsyncExitStack() as stack:
        await town.start(stack, "shop", limits={"begin": 0.3, "heartbeat": 1.0})
        async with httpx.AsyncClient(proxy=town.proxy("shop"), timeout=60) as http:
            answer = await tool(http, "transfer_money", {"number": 1})
            assert outcome(answer) == (OUTCOME_UNKNOWN, 504)
            assert answer.json()["error"]["data"]["ran"] == "unknown"
            assert "outcome_unknown" in answer.json()["error"]["message"]
    async with contextlib.AsyncExitStack() as stack:
        await town.start(stack, "bank", "shop")
        async with httpx.AsyncClient(proxy=town.proxy("shop"), timeout=60) as http:
            # One inbox, in order: when this one is answered, the one before it was looked at.
            assert outcome(await tool(http, "balance", {"account": "a"})) == SERVED
    assert town.bank.transfers == []


async def test_an_operation_marked_idempotent_is_run_again(empty_town: Town, monkeypatch: pytest.MonkeyPatch):
    """``tools/list`` is: when its first run dies, its second one answers."""
    town = empty_town
    ran = 0
    run = Inbound._run

    async def dies_first(self: Inbound, *what: object) -> None:
        nonlocal ran
        ran += 1
        if ran == 1:
            raise RuntimeError("it dies here")
        await run(self, *what)  # type: ignore[arg-type]

    monkeypatch.setattr(Inbound, "_run", dies_first)
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {"_meta": META}}
    async with contextlib.AsyncExitStack() as stack:
        await town.start(stack, "bank", "shop")
        async with httpx.AsyncClient(proxy=town.proxy("shop"), timeout=60) as http:
            headers = {**HEADERS, "mcp-method": "tools/list"}
            answer = await http.post("http://bank.test/mcp", json=body, headers=headers)
    assert outcome(answer) == SERVED
    assert ran == 2


async def test_a_begin_limit_that_could_run_a_call_twice_is_refused(empty_town: Town):
    sidecar = empty_town.sidecar("bank", limits={"begin": 20.0})
    with pytest.raises(ConfigurationError, match="ack_wait"):
        await sidecar.start()

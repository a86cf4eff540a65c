"""``mas top``: in a terminal, in a pipe, and as JSON; its numbers are those of what really happens."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from typing import Any

import pytest

from mas_nats import Agent, AgentMessage
from mas_nats.errors import PermissionDenied
from tests.system import REPOSITORY, System, mas_json
from tests.terminal import in_terminal

MAS = (sys.executable, "-m", "broker_policy.cli")


class Worker(Agent[dict[str, object]]):
    """Takes two messages, and finishes none before it is told."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.taken = 0
        self.go_on = asyncio.Event()

    async def on_message(self, message: AgentMessage) -> None:
        self.taken += 1
        await self.go_on.wait()


@pytest.fixture
async def where(system: System) -> tuple[str, ...]:
    namespace = await system.namespace(["boss", "worker", "idle"], {"boss": ["worker", "idle"]})
    return ("--namespace", namespace, "--folder", str(system.layout.root))


async def one_look(*options: str) -> dict[str, dict[str, Any]]:
    done = await asyncio.to_thread(
        subprocess.run,
        [*MAS, "top", "--once", "--json", *options],
        cwd=REPOSITORY,
        capture_output=True,
        check=True,
    )
    told = json.loads(done.stdout)
    assert told["workers"] == 2
    return {each["agent"]: each for each in told["agents"]}


async def test_its_numbers_are_what_happens(system, where):
    def options(name: str) -> dict[str, Any]:
        return {"server_addr": system.broker.url, "tls": system.tls(name, where[1])}

    boss = Agent("boss", **options("boss"), receive=False)
    async with boss, Worker("worker", **options("worker")) as worker:
        for _ in range(2):
            await boss.send("worker", "job", {})
            await boss.send("idle", "job", {})
        with pytest.raises(PermissionDenied):
            await boss.send("boss", "job", {})
        async with asyncio.timeout(30):
            while worker.taken < 2:
                await asyncio.sleep(0.02)

        async def send() -> None:
            while True:
                await boss.send("idle", "job", {})

        sending = asyncio.create_task(send())
        seen = await one_look("--interval", "1", *where)
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        assert seen["worker"]["in_flight"] == 2
        assert seen["worker"]["instances"] == 1
        assert seen["worker"]["pending"] == 0
        assert seen["idle"]["pending"] > 2
        assert seen["idle"]["instances"] == 0
        listed = await asyncio.to_thread(mas_json, "get", "agents", *where)
        got = {row["agent"]: row for row in listed["agents"]}
        assert (got["worker"]["pending"], got["worker"]["in_flight"]) == (0, 2)
        assert (got["idle"]["pending"] > 2, got["idle"]["in_flight"]) == (True, 0)
        assert seen["boss"]["refused"] == 1
        assert seen["boss"]["rate_out"] > 1
        assert seen["worker"]["rate_in"] == seen["idle"]["rate_in"] == 0
        worker.go_on.set()
    after = await one_look("--interval", "0.2", *where)
    assert after["worker"]["in_flight"] == after["worker"]["instances"] == 0
    assert after["boss"]["rate_out"] == 0


async def test_a_terminal_shows_it_until_q(where):
    for key in ("q", "\x03"):
        said = await asyncio.to_thread(
            in_terminal,
            [*MAS, "top", "--interval", "0.3", *where],
            until="redeliv",
            keys=key,
            folder=REPOSITORY,
        )
        assert said.code == (0 if key == "q" else 130), said
        assert "3 agents, 2 workers" in said.text


async def test_in_a_pipe_it_prints_look_after_look_and_ends_with_its_reader(where):
    with subprocess.Popen(
        [*MAS, "top", "--interval", "0.2", *where],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        looks = 0
        while looks < 2:
            line = process.stdout.readline()
            assert line
            assert "\x1b" not in line
            looks += "2 workers" in line
        process.stdout.close()
        assert await asyncio.to_thread(process.wait, 30) == 0
        assert not process.stderr.read()


def test_where_nothing_runs_it_says_so(tmp_path):
    done = subprocess.run(
        [*MAS, "top", "--once", "--folder", str(tmp_path / ".mas")],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3
    assert "no broker runs" in done.stderr

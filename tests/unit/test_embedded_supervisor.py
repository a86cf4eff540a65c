"""Processes: started until ready, started again, stopped, and gone with their parent."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from broker_policy.embedded.errors import ServerDied
from broker_policy.embedded.process import Process
from broker_policy.embedded.supervisor import Backoff, Supervisor

SLEEPS = "import pathlib, sys, time; pathlib.Path(sys.argv[1]).touch(); time.sleep(60)"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN);" + SLEEPS
FAILS = "print('the reason'); raise SystemExit(3)"
QUICK = Backoff(first=0.01, most=0.05, look=0.05)


@pytest.fixture
def program(tmp_path):
    """Make a process from Python code that touches its argument when it is ready."""
    made = []

    def make(code=SLEEPS, name="p", ailing=None):
        ready = tmp_path / f"{name}.ready"

        async def is_ready():
            return ready.exists()

        process = Process(
            name,
            [sys.executable, "-S", "-c", code, ready],
            cwd=tmp_path,
            output=tmp_path / f"{name}.log",
            ready=is_ready,
            prepare=lambda: ready.unlink(missing_ok=True),
            ailing=ailing,
        )
        made.append(process)
        return process

    yield make
    for process in made:
        process.kill()


async def until(condition, timeout=10.0):
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.01)


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_start_waits_for_ready_and_stop_ends_it(program, tmp_path):
    process = program()
    await process.start()
    assert (tmp_path / "p.ready").exists()
    assert process.running
    await process.stop()
    assert not process.running
    assert process.exit_code == -signal.SIGTERM


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="only Linux tells when a process ends")
async def test_who_waits_for_a_process_is_told_of_its_end(program, monkeypatch):
    """One that looks again and again takes a fortieth of a processor for as long as a broker runs."""
    process, looks = program(), 0
    await process.start()
    poll = process._child.poll

    def counted():
        nonlocal looks
        looks += 1
        return poll()

    monkeypatch.setattr(process._child, "poll", counted)
    handles = len(list(Path("/proc/self/fd").iterdir()))
    waiting = asyncio.create_task(process.wait())
    await asyncio.sleep(0.2)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(process.wait(), 0.05)
    os.kill(process.pid, signal.SIGKILL)
    assert await waiting == -signal.SIGKILL
    assert looks == 3
    assert len(list(Path("/proc/self/fd").iterdir())) == handles


async def test_where_the_system_does_not_tell_the_end_is_seen_too(program, monkeypatch):
    monkeypatch.delattr(os, "pidfd_open", raising=False)
    process = program()
    await process.start()
    waiting = asyncio.create_task(process.wait())
    await asyncio.sleep(0)
    os.kill(process.pid, signal.SIGKILL)
    assert await waiting == -signal.SIGKILL


async def test_a_failing_start_says_how_it_ended_and_what_it_logged(program):
    with pytest.raises(ServerDied, match=r"(?s)status 3 .*the reason"):
        await program(FAILS).start()


async def test_a_start_that_takes_too_long_leaves_nothing(program):
    process = program("import time; time.sleep(60)")
    with pytest.raises(ServerDied, match="not ready within"):
        await process.start(timeout=0.1)
    assert not process.running


async def test_stop_kills_what_does_not_stop(program):
    process = program(STUBBORN)
    await process.start()
    await process.stop(timeout=0.1)
    assert process.exit_code == -signal.SIGKILL


async def test_a_paused_process_can_be_stopped(program):
    process = program()
    await process.start()
    process.pause()
    await process.stop()
    assert process.exit_code == -signal.SIGTERM


async def test_a_process_that_ends_is_started_again_and_completed(program):
    lines, completed = [], []

    async def restarted():
        completed.append(process.pid)

    supervisor = Supervisor(lines.append, backoff=QUICK)
    process = program()
    await supervisor.start(process, restarted=restarted)
    first = process.pid
    process.kill()
    await until(lambda: completed)
    assert process.running
    assert completed == [process.pid] != [first]
    await supervisor.stop()
    assert not process.running
    assert any("SIGKILL" in line and "again" in line for line in lines)


async def test_a_restart_that_fails_is_tried_again(program):
    tries = []

    async def restarted():
        tries.append(process.pid)
        if len(tries) < 3:
            raise OSError("not yet")

    supervisor = Supervisor(lambda _line: None, backoff=QUICK)
    process = program()
    await supervisor.start(process, restarted=restarted)
    process.kill()
    await until(lambda: len(tries) == 3)
    assert process.running
    await supervisor.stop()


async def test_a_process_that_ends_before_it_is_completed_is_started_again(program):
    """What completes it may wait for it for ever, such as a client that connects again and again."""
    tries = []

    async def restarted():
        tries.append(process.pid)
        if len(tries) == 1:
            await asyncio.Event().wait()

    supervisor = Supervisor(lambda _line: None, backoff=QUICK)
    process = program()
    await supervisor.start(process, restarted=restarted)
    process.kill()
    await until(lambda: tries)
    process.kill()
    await until(lambda: len(tries) == 2)
    assert process.running
    await supervisor.stop()


async def test_a_process_that_ails_is_started_again(program):
    """Twice in a row, so that a passing trouble ends nobody."""
    troubles = ["once", "", "ails", "still ails"]
    lines = []

    async def ailing():
        return troubles.pop(0) if troubles else ""

    supervisor = Supervisor(lines.append, backoff=QUICK)
    process = program(ailing=ailing)
    await supervisor.start(process)
    first = process.pid
    await until(lambda: not troubles and process.running and process.pid != first)
    await supervisor.stop()
    assert any("still ails" in line for line in lines)


async def test_stop_ends_a_watch_that_takes_a_cancellation_for_its_own(program):
    """As a client that is just losing its connection can."""
    looked = asyncio.Event()

    async def ailing():
        if looked.is_set():
            return ""
        looked.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        return ""

    supervisor = Supervisor(lambda _line: None, backoff=QUICK)
    process = program(ailing=ailing)
    await supervisor.start(process)
    await looked.wait()
    async with asyncio.timeout(10):
        await supervisor.stop()
    assert not process.running


async def test_a_group_that_fails_to_start_can_be_stopped(program):
    supervisor = Supervisor(lambda _line: None, backoff=QUICK)
    good = program(name="good")
    with pytest.raises(ServerDied):
        await supervisor.start(good, program(FAILS, name="bad"))
    await supervisor.stop()
    assert not good.running


async def test_groups_stop_in_reverse_order(program):
    lines = []
    supervisor = Supervisor(lines.append, backoff=QUICK)
    await supervisor.start(program(name="server"))
    await supervisor.start(program(name="worker"))
    await supervisor.stop()
    assert [line for line in lines if "stopped" in line] == ["worker stopped", "server stopped"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs PR_SET_PDEATHSIG")
async def test_children_end_with_a_killed_parent(tmp_path):
    child = child_of_a_killed_parent(tmp_path)
    await until(lambda: not alive(child))


def child_of_a_killed_parent(tmp_path):
    code = f"""
import asyncio, pathlib, sys
from broker_policy.embedded.process import Process
async def main():
    ready = pathlib.Path("ready")
    async def is_ready(): return ready.exists()
    process = Process("p", [sys.executable, "-S", "-c", {STUBBORN!r}, ready],
        cwd=pathlib.Path.cwd(), output=pathlib.Path("log"), ready=is_ready)
    await process.start()
    print(process.pid, flush=True)
    process.pause()
    await asyncio.sleep(60)
asyncio.run(main())
"""
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    with parent:
        child = int(parent.stdout.readline())
        assert alive(child)
        parent.kill()
    return child

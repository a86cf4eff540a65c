"""``mas up`` and ``mas down``: ready, refused twice, stopped, killed, restarted with its data."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from broker_policy.embedded.batch_folders import MEMORY
from broker_policy.embedded.layout import Layout
from mas_nats.wire import subjects
from mas_nats.wire.identity import DEFAULT_NAMESPACE
from tests.processes import children, kill
from tests.system import REPOSITORY, System, mas

MANIFEST = """
agents:
  - agent_id: a
  - agent_id: b
permissions:
  - {type: allow, sender: a, targets: [b]}
"""
ALL = {"nats-server", "redis-server", "w1", "signer"}


@contextlib.contextmanager
def foreground(folder, *options, environment=None, stderr=subprocess.PIPE):
    """``mas up`` in the foreground with one worker; killed at the end if it is still there."""
    with subprocess.Popen(
        [
            sys.executable,
            "-m",
            "broker_policy.cli",
            "up",
            "--json",
            "--workers",
            "1",
            "--folder",
            folder,
            *options,
        ],
        cwd=REPOSITORY,
        env={**os.environ, **(environment or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def document(process):
    """The JSON document that it prints."""
    text = ""
    for line in process.stdout:
        text += line
        if line == "}\n":
            break
    return json.loads(text)


def until(condition, timeout=60.0):
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture
def folder(tmp_path):
    """Where to bring it up; brought down at the end."""
    yield tmp_path / ".mas"
    mas("down", "--folder", str(tmp_path / ".mas"), check=False)


def test_foreground_is_ready_refuses_a_second_and_stops_on_sigterm(folder):
    with foreground(folder) as process:
        ready = document(process)
        assert ready["ready"]
        assert ready["pid"] == process.pid
        assert ready["durable"]
        started = children(process.pid)
        assert set(started) == ALL

        for options in ((), ("--detach",)):
            second = mas("up", "--folder", str(folder), "--json", *options, check=False)
            assert second.returncode == 4
            text = json.loads(second.stdout)["error"]["text"]
            assert str(process.pid) in text
            assert ready["url"] in text
            assert ready["since"] in text
        assert set(children(process.pid).values()) == set(started.values())

        begun = time.monotonic()
        process.terminate()
        assert process.wait(60) == 0
        assert time.monotonic() - begun < 20
        assert not any(map(alive, started.values()))
        assert not (folder / "endpoint.json").exists()
        progress = process.stderr.read()
    assert "nats-server ready" in progress
    assert "nats-server stopped" in progress


def test_ctrl_c_stops_it_in_order(folder):
    with foreground(folder) as process:
        document(process)
        started = children(process.pid)
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        assert not any(map(alive, started.values()))


def test_it_can_be_stopped_while_it_starts(folder):
    with foreground(folder) as process:
        until(lambda: "nats-server" in children(process.pid))
        started = children(process.pid)
        process.terminate()
        assert process.wait(60) == 130, "it never was ready"
        assert not any(map(alive, started.values()))
        assert process.stdout.read() == ""


def test_detach_and_down_leave_nothing(folder):
    up = mas("up", "--detach", "--workers", "1", "--folder", str(folder))
    assert "Ready on tls://127.0.0.1:" in up.stdout
    assert f"mas down --folder {folder}" in up.stdout
    pid = System(Layout(folder)).broker.pid
    started = children(pid)
    assert set(started) == ALL
    down = json.loads(mas("down", "--folder", str(folder), "--json").stdout)
    assert down == {"stopped": True, "pid": pid, "killed": False}
    until(lambda: not any(map(alive, (pid, *started.values()))))  # init may be slow to bury them
    again = mas("down", "--folder", str(folder), check=False)
    assert again.returncode == 3
    assert "nothing runs" in again.stderr


def test_of_two_that_start_at_once_one_is_up_and_the_other_says_so(folder, tmp_path):
    """Neither takes the other's answer for its own; and no file beside them takes the place of a module."""
    tmp_path.joinpath("redis.py").write_text("raise SystemExit('not this one')")
    options = ("--detach", "--relaxed", "--no-manifest", "--workers", "1", "--json", "--folder", folder)
    command_line = [sys.executable, "-P", "-m", "broker_policy.cli", "up", *options]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    both = [
        subprocess.Popen(command_line, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    told = [json.loads(process.communicate(timeout=60)[0]) for process in both]
    assert sorted(process.returncode for process in both) == [0, 4]
    [ready] = [each for each in told if each.get("ready")]
    [refused] = [each["error"]["text"] for each in told if not each.get("ready")]
    assert "is in use" in refused
    assert System(Layout(folder)).broker.pid == ready["pid"]
    assert not list(folder.glob("run/up*.json"))


def batch_folders(folder):
    """Where nats-server gathers the batches of each namespace, once it has been told."""
    return [stream / "batches" for stream in folder.glob(f"nats/jetstream/*/streams/{subjects.INBOX_STREAM}")]


@pytest.mark.skipif(not MEMORY.is_dir(), reason=f"no {MEMORY}: batches are gathered on the disk")
def test_batches_are_gathered_in_memory_while_it_is_up(folder):
    """Also after the server was killed, which removes the links when it starts. Nothing is left of them."""
    System.up(folder, "--workers", "1")
    system = System(Layout(folder))

    def in_memory():
        found = batch_folders(folder)
        return bool(found) and all(MEMORY in each.resolve().parents for each in found)

    until(in_memory)
    places = [each.resolve() for each in batch_folders(folder)]
    before = children(system.broker.pid)["nats-server"]
    os.kill(before, signal.SIGKILL)
    until(lambda: children(system.broker.pid).get("nats-server") not in (None, before))
    until(lambda: "nats-server ready again" in (folder / "logs" / "up.log").read_text(), timeout=30)
    until(in_memory)
    mas("down", "--folder", str(folder))
    assert not any(each.is_symlink() for each in batch_folders(folder))
    assert not any(place.parent.exists() for place in places)


async def test_killed_it_leaves_nothing_and_starts_again_with_its_data(folder):
    System.up(folder, "--workers", "1")
    system = System(Layout(folder))
    first = system.broker
    await system.namespace(["a", "b"], {"a": ["b"]}, name="kept")
    started = children(first.pid)
    os.kill(first.pid, signal.SIGKILL)
    until(lambda: not any(map(alive, (first.pid, *started.values()))))

    System.up(folder, "--workers", "1")
    assert system.broker.url == first.url
    async with system.control() as (_, store):
        assert set((await store.get("kept")).document.agents) == {"a", "b"}
        assert await store.get(DEFAULT_NAMESPACE) is not None


async def test_a_killed_server_comes_back_with_the_streams_that_live_in_memory(folder):
    System.up(folder, "--workers", "1")
    system = System(Layout(folder))
    before = children(system.broker.pid)
    for name in ("nats-server", "redis-server", "w1", "signer"):
        os.kill(before[name], signal.SIGKILL)

    def all_back():
        now = children(system.broker.pid)
        return set(now) == ALL and not set(now.values()) & set(before.values())

    until(all_back)
    log = folder / "logs" / "up.log"
    until(lambda: all(f"{name} ready again" in log.read_text() for name in ALL), timeout=30)
    async with system.tenant(DEFAULT_NAMESPACE) as nc:
        names = {stream.config.name for stream in await nc.jetstream().streams_info()}
    assert {subjects.INBOX_STREAM, subjects.REPLIES_STREAM, subjects.kv_stream("registry")} <= names


def test_relaxed_says_what_it_gives_up(folder):
    with foreground(folder, "--relaxed") as process:
        assert document(process)["durable"] is False
        process.terminate()
        assert process.wait(60) == 0
        assert "power cut" in process.stderr.read()


@pytest.mark.parametrize(
    ("options", "environment", "text"),
    [
        (("--manifest", "no-such.yaml"), {}, "no-such.yaml cannot be read"),
        ((), {"MAS_REDIS_SERVER": "/no/such/redis"}, "MAS_REDIS_SERVER names /no/such/redis"),
    ],
)
def test_what_cannot_start_says_why_and_leaves_nothing(folder, options, environment, text):
    with foreground(folder, *options, environment=environment) as process:
        error = document(process)["error"]
        assert process.wait(60) == 1
    assert text in error["text"]
    assert mas("down", "--folder", str(folder), check=False).returncode == 3


def test_a_manifest_is_applied(folder):
    folder.parent.joinpath("mas.yaml").write_text(MANIFEST)
    with foreground(folder, "--manifest", str(folder.parent / "mas.yaml")) as process:
        ready = document(process)
        assert ready.get("ready"), ready
        process.terminate()
        assert "mas.yaml applied as revision" in process.stderr.read()


def test_what_cannot_be_written_keeps_nothing_from_being_started_again_and_stopped(tmp_path):
    """Its log is on a disk that is full: who watches over the servers must not end of that."""
    folder = tmp_path / ".mas"
    with Path("/dev/full").open("w") as full, foreground(folder, "--no-manifest", stderr=full) as process:
        assert document(process)["ready"]
        assert children(process.pid).keys() == ALL
        for name in ("redis-server", "w1", "nats-server"):
            before = kill(process.pid, name)
            until(lambda name=name, before=before: children(process.pid).get(name, before) != before)
        until(lambda: mas("doctor", "--folder", str(folder), check=False).returncode == 0)
        pids = children(process.pid).values()
        process.send_signal(signal.SIGTERM)
        process.wait(30)
        until(lambda: not any(alive(pid) for pid in pids))
    log = (folder / "logs" / "redis-server.log").read_text()
    assert "bye bye" in log.splitlines()[-1]  # it was asked to end, not left to die

"""``mas run``: every instance a process, kept running, stopped without loss, and nothing left over."""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.running import alive, project, running, wait_gone
from tests.system import REPOSITORY, System, mas

AGENTS = """\
import asyncio
import os
import subprocess
import time

from pydantic import BaseModel

from mas_nats import Agent


class Count(BaseModel):
    handled: int = 0


class Desk(Agent[Count]):
    def __init__(self, agent_id, greeting="none", **kwargs):
        super().__init__(agent_id, **kwargs)
        self.greeting = greeting

    async def on_start(self):
        print(f"started with {self.greeting}, capabilities {list(self.capabilities)}", flush=True)

    async def on_stop(self):
        print("stopped in order")

    @Agent.on("ask")
    async def ask(self, message):
        await message.reply("answer", {"text": self.greeting, "pid": os.getpid()})

    @Agent.on("slow")
    async def slow(self, message):
        print("slow begun")
        await asyncio.sleep(message.data["seconds"])
        print("slow done")
        await message.reply("answer", {})

    @Agent.on("block")
    async def block(self, message):
        print("blocked for ever")
        time.sleep(3600)

    @Agent.on("crash")
    async def crash(self, message):
        if not os.path.exists("crashed"):
            open("crashed", "w").close()
            os._exit(3)
        await message.reply("answer", {})

    @Agent.on("child")
    async def child(self, message):
        started = subprocess.Popen(["sleep", "3600"])
        await message.reply("answer", {"pid": started.pid})

    @Agent.on("finish")
    async def finish(self, message):  # the name of a method of Agent, which is no reason to fail
        await message.reply("answer", {})
        Agent.finish(self)


class Asker(Agent[dict[str, object]]):
    async def on_start(self):
        answers = await asyncio.gather(*(self.request("desk", "ask", {}) for _ in range(20)))
        print(f"{len({each.data['pid'] for each in answers})} processes said {answers[0].data['text']}")
        self.finish()


class Broken(Agent[dict[str, object]]):
    async def on_start(self):
        raise RuntimeError("on purpose")


class Denied(Agent[dict[str, object]]):
    async def on_start(self):
        await self.send("nobody", "note", {})
"""

DESK = "  - {agent_id: desk, class_path: 'agents:Desk', capabilities: [qa], init_kwargs: {greeting: hello}}\n"
MANIFEST = (
    "agents:\n"
    + DESK
    + "  - {agent_id: asker}\npermissions:\n  - {type: allow, sender: asker, targets: [desk]}\n"
)


def where(system: System, path: Path) -> list[str]:
    return ["--folder", str(system.layout.root), "--manifest", str(path)]


def ask(system: System, path: Path, kind: str, data: str = "{}") -> subprocess.Popen[str]:
    """``mas request`` to the desk, under way."""
    arguments = ["request", "--as", "asker", "desk", kind, data, "--folder", str(system.layout.root)]
    arguments += ["-n", path.read_text().split()[1], "--json"]
    return subprocess.Popen(
        [sys.executable, "-m", "broker_policy.cli", *arguments],
        cwd=REPOSITORY,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )


def answer(asking: subprocess.Popen[str]) -> dict[str, object]:
    told, _ = asking.communicate(timeout=90)
    assert asking.returncode == 0, told
    data: dict[str, object] = json.loads(told)["data"]
    return data


def certified(system: System, path: Path, *agents: str) -> None:
    mas("certs", "agent", *agents, "-n", path.read_text().split()[1], "--folder", str(system.layout.root))


def test_every_instance_is_a_process_and_one_that_has_finished_ends_all(
    system: System, tmp_path: Path
) -> None:
    manifest = MANIFEST.replace("qa]", "qa], instances: 3").replace(
        "asker}", "asker, class_path: 'agents:Asker'}"
    )
    path = project(system, tmp_path, manifest, agents=AGENTS)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    with running(elsewhere, *where(system, path), "--until", "asker") as run:
        assert run.ended() == 0
    assert {each["agent"] for each in run.of("certificate")} == {"desk", "asker"}
    started = {each["instance"]: each["pid"] for each in run.of("started")}
    assert set(started) == {"desk/1", "desk/2", "desk/3", "asker/1"}
    assert len(set(started.values())) == 4
    assert run.lines("desk")[0] == "started with hello, capabilities ['qa']"
    assert "processes said hello" in run.lines("asker")[0]
    assert [each["instance"] for each in run.of("finished")] == ["asker/1"]
    assert {each["instance"] for each in run.of("stopped")} <= {"desk/1", "desk/2", "desk/3"}
    assert not any(map(alive, started.values()))


def test_what_crashes_is_started_again_and_its_message_is_handled(system: System, tmp_path: Path) -> None:
    path = project(system, tmp_path, "limits: {ack_wait: 3}\n" + MANIFEST, agents=AGENTS)
    certified(system, path, "asker")
    with running(tmp_path, *where(system, path)) as run:
        run.wait_for("ready", "desk/1")
        asking = ask(system, path, "crash")
        crashed = run.wait_for("crashed", "desk/1")
        assert (crashed["status"], crashed["restart_in"]) == (3, 0.5)
        pid = run.wait_for("started", "desk/1")["pid"]
        assert answer(asking) == {}
        os.kill(pid, signal.SIGKILL)
        crashed = run.wait_for("crashed", "desk/1")
        assert (crashed["signal"], crashed["restart_in"]) == ("SIGKILL", 1.0)
        run.wait_for("ready", "desk/1")
        assert run.stop() == 0


def test_one_that_cannot_start_is_tried_less_and_less_often(system: System, tmp_path: Path) -> None:
    manifest = MANIFEST.replace("Desk'", "Broken'").replace(", init_kwargs: {greeting: hello}", "")
    path = project(system, tmp_path, manifest, agents=AGENTS)
    with running(tmp_path, *where(system, path)) as run:
        waits = [run.wait_for("crashed", "desk/1")["restart_in"] for _ in range(3)]
        assert waits == [0.5, 1.0, 2.0]
        assert "RuntimeError: on purpose" in run.lines("desk")
        assert run.stop() == 0  # it does not wait for the next attempt


def test_what_is_refused_in_on_start_is_the_agents_own_failure(system: System, tmp_path: Path) -> None:
    """Not taken for a broker that is away."""
    manifest = MANIFEST.replace("Desk'", "Denied'").replace(", init_kwargs: {greeting: hello}", "")
    path = project(system, tmp_path, manifest, agents=AGENTS)
    with running(tmp_path, *where(system, path), "--until", "desk") as run:
        assert run.ended() == 1
    assert not run.of("waiting")
    assert any("UnknownTarget" in each or "PermissionDenied" in each for each in run.lines("desk"))
    (failed,) = run.of("failed")
    assert (failed["instance"], failed["status"]) == ("desk/1", 1)


def test_stopping_lets_handlers_finish(system: System, tmp_path: Path) -> None:
    path = project(system, tmp_path, MANIFEST, agents=AGENTS)
    certified(system, path, "asker")
    with running(tmp_path, *where(system, path)) as run:
        asking = ask(system, path, "slow", '{"seconds": 2}')
        run.wait_line("slow begun")
        assert run.stop(signal.SIGINT) == 0
        assert answer(asking) == {}
    assert run.lines("desk")[-2:] == ["slow done", "stopped in order"]
    assert [each["event"] for each in run.events][-1] == "stopped"


def test_what_does_not_stop_in_time_is_killed(system: System, tmp_path: Path) -> None:
    """The control of the one before: not every end is a clean one, and the exit status says so."""
    path = project(system, tmp_path, MANIFEST, agents=AGENTS)
    certified(system, path, "asker")
    with running(tmp_path, *where(system, path), "--grace", "1") as run:
        pid = run.wait_for("started", "desk/1")["pid"]
        asking = ask(system, path, "block")
        run.wait_line("blocked for ever")
        assert run.stop() == 1
        assert [each["instance"] for each in run.of("killed")] == ["desk/1"]
        assert not alive(pid)
        asking.terminate()
        asking.communicate()


def test_a_second_signal_does_not_wait(system: System, tmp_path: Path) -> None:
    path = project(system, tmp_path, MANIFEST, agents=AGENTS)
    certified(system, path, "asker")
    with running(tmp_path, *where(system, path), "--grace", "3600") as run:
        asking = ask(system, path, "block")
        run.wait_line("blocked for ever")
        for _ in range(2):  # at once: as timeout(1) does it, and no wish to hurry
            run.process.send_signal(signal.SIGINT)
        run.wait_for("stopping")
        with pytest.raises(subprocess.TimeoutExpired):
            run.process.wait(1.5)
        assert run.stop(signal.SIGINT) == 1
        asking.terminate()
        asking.communicate()


def test_a_runner_that_is_killed_leaves_nothing(system: System, tmp_path: Path) -> None:
    """Neither agents, nor what they have started, nor what it has started for itself."""
    path = project(system, tmp_path, MANIFEST.replace("qa]", "qa], instances: 2"), agents=AGENTS)
    certified(system, path, "asker")
    with running(tmp_path, *where(system, path)) as run:
        pids = [run.wait_for("started")["pid"] for _ in range(2)]
        run.wait_for("ready")
        pids.append(int(str(answer(ask(system, path, "child"))["pid"])))
        children = Path(f"/proc/{run.process.pid}/task/{run.process.pid}/children").read_text()
        pids += [int(each) for each in children.split()]
        assert len(set(pids)) == 4  # two agents, what one has started, the guard
        assert all(map(alive, pids))
        run.process.kill()
        wait_gone(*pids)


def test_what_an_agent_has_started_ends_with_it(system: System, tmp_path: Path) -> None:
    path = project(system, tmp_path, MANIFEST, agents=AGENTS)
    certified(system, path, "asker")
    with running(tmp_path, *where(system, path)) as run:
        pid = run.wait_for("started", "desk/1")["pid"]
        first = int(str(answer(ask(system, path, "child"))["pid"]))
        os.kill(pid, signal.SIGKILL)
        run.wait_for("ready", "desk/1")
        wait_gone(first)
        second = int(str(answer(ask(system, path, "child"))["pid"]))
        assert alive(second)
        assert run.stop() == 0
        wait_gone(second)


def test_an_agent_with_handlers_named_as_methods_of_the_sdk(system: System, tmp_path: Path) -> None:
    path = project(system, tmp_path, MANIFEST, agents=AGENTS)
    certified(system, path, "asker")
    with running(tmp_path, *where(system, path)) as run:
        run.wait_for("ready", "desk/1")
        assert answer(ask(system, path, "finish")) == {}
        assert run.ended() == 0  # all have finished
    assert run.of("finished")


def test_a_broker_that_is_away_is_waited_for(system: System, tmp_path: Path) -> None:
    """Without a new start of the process, and whatever its address is then."""
    path = project(system, tmp_path, MANIFEST, agents=AGENTS)
    certified(system, path, "desk")
    away = tmp_path / ".mas"
    shutil.copytree(system.layout.certs, away / "certs")
    with running(tmp_path, "--folder", str(away), "--server", "tls://127.0.0.1:1") as run:
        waiting = run.wait_for("waiting", "desk/1")
        assert "127.0.0.1:1" in waiting["reason"]
        assert run.stop() == 0
    path.write_text(f"server_listen_addr: 127.0.0.1:1\n{path.read_text()}")
    with running(tmp_path) as run:
        pid = run.wait_for("started", "desk/1")["pid"]
        run.wait_for("waiting", "desk/1")
        shutil.copy(system.layout.endpoint, away)
        run.wait_for("ready", "desk/1")
        assert alive(pid)
        assert run.stop() == 0


def test_an_agent_that_was_not_applied_is_waited_for(system: System, tmp_path: Path) -> None:
    path = project(system, tmp_path, MANIFEST, agents=AGENTS)
    path.write_text(
        path.read_text().replace("agent_id: desk,", "agent_id: newcomer,").replace("[desk]", "[newcomer]")
    )
    with running(tmp_path, *where(system, path)) as run:
        assert "mas apply" in run.wait_for("waiting", "newcomer/1")["reason"]
        mas("apply", "--folder", str(system.layout.root), str(path))
        run.wait_for("ready", "newcomer/1")
        assert run.stop() == 0


def test_the_module_runs_agents_with_the_certificates_that_the_manifest_names(
    system: System, tmp_path: Path, monkeypatch
) -> None:
    path = project(system, tmp_path, MANIFEST, agents=AGENTS)
    with running(tmp_path, *where(system, path), module="mas_nats.runner") as run:  # it issues none
        assert run.ended() == 1 if run.process.wait(60) else False
    namespace = path.read_text().split()[1]
    mas(
        "certs",
        "agent",
        "desk",
        "-n",
        namespace,
        "--folder",
        str(system.layout.root),
        "--out",
        str(tmp_path / "c"),
    )
    more = "tls_cert_path: c/desk.pem, tls_key_path: c/desk.key, capabilities"
    path.write_text("tls_ca_path: c/ca.pem\n" + path.read_text().replace("capabilities", more))
    with running(tmp_path, *where(system, path), module="mas_nats.runner") as run:
        run.wait_for("ready", "desk/1")
        assert run.stop() == 0
    assert not run.of("certificate")


def test_no_certificate_is_issued_where_that_is_not_wanted(system: System, tmp_path: Path) -> None:
    path = project(system, tmp_path, MANIFEST, agents=AGENTS)
    with running(tmp_path, *where(system, path), "--no-issue-certs") as run:
        assert run.process.wait(60) == 1
        error = run.wait(lambda each: "error" in each, "the error")["error"]
    assert "line 3, agents.0: it has no certificate" in error["text"]
    assert "mas certs agent desk -n" in error["text"]
    assert not run.of("started")


def test_a_mistake_is_told_before_anything_starts(system: System, tmp_path: Path) -> None:
    path = project(system, tmp_path, MANIFEST, agents=AGENTS)
    path.write_text(path.read_text().replace("greeting: hello", "greting: hello"))
    with running(tmp_path, *where(system, path)) as run:
        error = run.wait(lambda each: "error" in each, "the error")["error"]
        assert run.ended() == 1
    assert (
        "line 3, agents.0.init_kwargs.greting: Desk() takes no 'greting'; did you mean 'greeting'?"
        in error["text"]
    )
    assert not run.of("started")


def test_the_manifest_is_found_upwards_and_by_the_environment(
    system: System, tmp_path: Path, monkeypatch
) -> None:
    path = project(system, tmp_path, MANIFEST, agents=AGENTS)
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    arguments = ["run", "--check", "--json", "--folder", str(system.layout.root)]

    def check(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "broker_policy.cli", *arguments],
            cwd=folder,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    for done in (check(below), check(Path("/"), MAS_RUNNER_CONFIG_FILE=str(path))):
        assert done.returncode == 0, done.stdout
        last = json.loads(done.stdout.splitlines()[-1])
        assert (last["event"], last["manifest"]) == ("checked", str(path))
    assert not (system.layout.certs / path.read_text().split()[1]).exists()  # it only looks
    nowhere = check(Path("/"))
    assert nowhere.returncode == 1
    assert "MAS_RUNNER_CONFIG_FILE" in nowhere.stdout


def test_a_reader_that_goes_away_ends_it(system: System, tmp_path: Path) -> None:
    path = project(system, tmp_path, MANIFEST, agents=AGENTS)
    with running(tmp_path, *where(system, path)) as run:
        pid = run.wait_for("started", "desk/1")["pid"]
        assert run.process.stdout is not None
        reading, writing = os.pipe()
        os.close(writing)
        os.dup2(reading, run.process.stdout.fileno())  # its end of the pipe is closed
        os.close(reading)
        os.kill(pid, signal.SIGKILL)  # so that there is something to say
        assert run.process.wait(60) == 0
        wait_gone(pid)


def test_a_terminal_shows_names_in_colour(system: System, tmp_path: Path) -> None:
    path = project(system, tmp_path, MANIFEST, agents=AGENTS)
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "broker_policy.cli", "run", *where(system, path)],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", "NO_COLOR": ""},
    )
    os.close(theirs)
    shown = b""
    try:
        while b"desk/1 is ready" not in shown:
            shown += os.read(ours, 4096)
    finally:
        process.terminate()
        process.wait(60)
        os.close(ours)
    assert b"\x1b[36mdesk/1 | \x1b[0mstarted with hello" in shown

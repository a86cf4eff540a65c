"""The runner's parts: what a manifest makes it run, what it refuses before the start, and how it speaks."""

from __future__ import annotations

import asyncio
import errno
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mas_nats.errors import ConfigurationError
from mas_nats.runner.backoff import Backoff
from mas_nats.runner.child import Child
from mas_nats.runner.examination import examine
from mas_nats.runner.guard import Guard
from mas_nats.runner.lines import Lines, read
from mas_nats.runner.plan import Plan
from mas_nats.runner.printing import JsonLines, Text
from tests.system import REPOSITORY

AGENTS = """\
from mas_nats import Agent

print("imported", flush=True)

class Desk(Agent[dict[str, object]]):
    def __init__(self, agent_id, greeting, *, language="en", **kwargs):
        raise AssertionError("a look must not make one")

class Strict(Agent[dict[str, object]]):
    def __init__(self, agent_id):
        super().__init__(agent_id)

class Deep(Desk):
    def __init__(self, name, **kwargs):
        super().__init__(name, greeting="hello", **kwargs)

class Plain(Agent[dict[str, object]]):
    pass

class Other:
    pass

number = 7
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with agents and with certificates of a broker; the current folder is another."""
    (tmp_path / "agents.py").write_text(AGENTS)
    certs = tmp_path / ".mas" / "certs" / "default" / "agent"
    certs.mkdir(parents=True)
    for path in (tmp_path / ".mas" / "certs" / "ca.pem", certs / "desk.pem", certs / "desk.key"):
        path.touch()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    for name in ("MAS_CA", "MAS_CERT", "MAS_KEY", "MAS_SERVER_ADDR", "MAS_RUNNER_CONFIG_FILE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def manifest(folder, text):
    path = folder / "mas.yaml"
    path.write_text(text)
    return path


def entry(class_path, more=""):
    return f"agents:\n  - agent_id: desk\n    class_path: {class_path}\n{more}"


async def look(path):
    with Guard() as guard:
        await examine(Plan(path), guard)


async def refused(path):
    with pytest.raises(ConfigurationError) as caught:
        await look(path)
    return str(caught.value)


# -- classes -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("class_path", "more", "told"),
    [
        ("agents.Desk", "", "'agents.Desk' is no class path: write module:Class"),
        ("agentz:Desk", "", "there is no module 'agentz', neither beside the manifest nor installed"),
        ("agents:Desc", "", "there is no 'Desc' in module 'agents'; did you mean 'Desk'?"),
        (
            "agents:Zzzz",
            "",
            "there is no 'Zzzz' in module 'agents'; its agents are: Deep, Desk, Plain, Strict",
        ),
        ("agents:Other", "", "agents:Other is a class, not a subclass of mas_nats.Agent"),
        ("agents:number", "", "agents:number is of type int, not a subclass"),
        (
            "agents:Strict",
            "",
            "Strict() takes no server_addr and no tls, which the runner gives it: accept **kwargs",
        ),
    ],
)
async def test_a_bad_class_path_is_named_with_its_line(folder, class_path, more, told):
    text = await refused(manifest(folder, entry(class_path, more)))
    assert f"line 3, agents.0.class_path: {told}" in text
    assert str(folder / "mas.yaml") in text


@pytest.mark.parametrize(
    ("class_path", "kwargs", "told"),
    [
        ("agents:Desk", "{}", "line 4, agents.0.init_kwargs: Desk() needs 'greeting', which is not given"),
        (
            "agents:Desk",
            "{greeting: a, langauge: de}",
            "line 4, agents.0.init_kwargs.langauge: Desk() takes no 'langauge'; did you mean 'language'?",
        ),
        (
            "agents:Desk",
            "{greeting: a, tls: x}",
            "line 4, agents.0.init_kwargs.tls: the runner gives tls itself: leave it out here",
        ),
        ("agents:Plain", "{greeting: a}", "Plain() takes no 'greeting'; known are receive, state_model"),
    ],
)
async def test_kwargs_that_do_not_fit_are_named_with_their_line(folder, class_path, kwargs, told):
    text = await refused(manifest(folder, entry(class_path, f"    init_kwargs: {kwargs}\n")))
    assert told in text


async def test_what_fits_is_found_fitting_and_nothing_is_made(folder):
    """A subclass that gives its base what the base needs, keyword-only options, options of ``Agent``."""
    for class_path, kwargs in (
        ("agents:Desk", "{greeting: a, language: de, receive: false}"),
        ("agents:Deep", "{language: de}"),
        ("agents:Plain", "{}"),
    ):
        await look(manifest(folder, entry(class_path, f"    init_kwargs: {kwargs}\n")))


async def test_every_mistake_is_told_at_once(folder):
    text = await refused(
        manifest(
            folder,
            "agents:\n  - {agent_id: a, class_path: agents:Nil}\n  - {agent_id: b, class_path: no:B}\n",
        )
    )
    assert "line 2, agents.0.class_path" in text
    assert "line 3, agents.1.class_path" in text


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("import agents\n1 / 0\n", "ZeroDivisionError: division by zero ({folder}/broken.py, line 2)"),
        ("x = (\n", "SyntaxError: '(' was never closed ({folder}/broken.py, line 1)"),
        (
            "import nowhere_at_all\n",
            "ModuleNotFoundError: No module named 'nowhere_at_all' ({folder}/broken.py, line 1)",
        ),
        ("raise SystemExit(3)\n", "SystemExit: 3 ({folder}/broken.py, line 1)"),
    ],
)
async def test_a_module_that_cannot_be_imported_says_where(folder, code, told):
    (folder / "broken.py").write_text(code)
    text = await refused(manifest(folder, entry("broken:Desk")))
    assert f"module 'broken' cannot be imported: {told.format(folder=folder)}" in text


async def test_a_module_that_ends_the_process_is_named(folder):
    (folder / "broken.py").write_text("import os\nprint('last words', flush=True)\nos._exit(9)\n")
    text = await refused(manifest(folder, entry("broken:Desk")))
    assert "importing broken:Desk ended the process with status 9\n  last words" in text


async def test_a_module_that_never_ends_is_given_up(folder, monkeypatch):
    monkeypatch.setattr("mas_nats.runner.examination.TIME", 3.0)
    (folder / "broken.py").write_text("import threading\nthreading.Event().wait()\n")
    text = await refused(manifest(folder, entry("broken:Desk")))
    assert "importing broken:Desk took more than 3 s" in text


async def test_a_module_beside_the_manifest_comes_before_an_installed_one(folder):
    (folder / "pydantic_settings.py").write_text("from agents import Plain\n")
    await look(manifest(folder, entry("pydantic_settings:Plain")))


async def test_a_class_in_a_package_beside_the_manifest(folder):
    (folder / "my_app").mkdir()
    (folder / "my_app" / "agents.py").write_text(AGENTS)
    await look(manifest(folder, entry("my_app.agents:Plain")))


# -- the plan ----------------------------------------------------------------------------------------------
def test_every_instance_gets_what_the_manifest_says(folder):
    path = manifest(
        folder,
        entry("agents:Desk", "    instances: 2\n    capabilities: [qa]\n    metadata: {team: x}\n")
        + "  - {agent_id: billing}\n",
    )
    plan = Plan(path)
    assert plan.skipped == ["billing"]
    found = plan.instances(drain=3.0, log_level="INFO")
    assert [each.name for each in found] == ["desk/1", "desk/2"]
    order = found[0].order
    assert (order.agent_id, order.class_path, order.folder) == ("desk", "agents:Desk", folder)
    assert (order.capabilities, order.metadata, order.drain) == (("qa",), {"team": "x"}, 3.0)
    assert order.cert == folder / ".mas" / "certs" / "default" / "agent" / "desk.pem"
    assert (order.address, order.listen) == (None, "tls://127.0.0.1:4222")


@pytest.mark.parametrize(
    ("listen", "expected"), [("0.0.0.0:4300", "127.0.0.1:4300"), ("127.0.0.1:50051", "127.0.0.1:50051")]
)
def test_where_the_broker_is(folder, monkeypatch, listen, expected):
    path = manifest(folder, f"server_listen_addr: {listen}\n" + entry("agents:Desk"))
    (found,) = Plan(path).instances(drain=1.0, log_level="INFO")
    assert (found.order.address, found.order.listen) == (None, expected)
    monkeypatch.setenv("MAS_SERVER_ADDR", "nats.example.org:4222")
    (found,) = Plan(path).instances(drain=1.0, log_level="INFO")
    assert found.order.address == "nats.example.org:4222"
    (found,) = Plan(path, server="other:1").instances(drain=1.0, log_level="INFO")
    assert found.order.address == "other:1"


def test_only_the_named_agents_are_run(folder):
    path = manifest(folder, entry("agents:Desk") + "  - {agent_id: shop, class_path: agents:Plain}\n")
    assert [each.agent_id for each in Plan(path, ["desk"]).entries] == ["desk"]
    with pytest.raises(ConfigurationError, match="declares no agent 'dsk'; did you mean 'desk'"):
        Plan(path, ["dsk"])


def test_a_named_agent_without_a_class_and_a_manifest_without_any_are_refused(folder):
    path = manifest(folder, entry("agents:Desk") + "  - {agent_id: shop}\n")
    with pytest.raises(ConfigurationError, match=r"line 4, agents.1.class_path: it is missing"):
        Plan(path, ["shop"])
    with pytest.raises(ConfigurationError, match="has nothing to run"):
        Plan(manifest(folder, "agents:\n  - {agent_id: shop}\n"))


# -- certificates ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            entry("agents:Desk", "    tls_cert_path: certs/desk.pem\n    tls_key_path: certs/desk.key\n"),
            [
                "line 4, agents.0.tls_cert_path: there is no {folder}/certs/desk.pem.",
                "For development: mas certs agent desk --out {folder}/certs; in production",
                "line 5, agents.0.tls_key_path: there is no {folder}/certs/desk.key.",
            ],
        ),
        (
            entry("agents:Desk", "    tls_cert_path: certs/desk.pem\n"),
            ["line 2, agents.0: tls_key_path is missing: name both files, or neither"],
        ),
        (
            "agents:\n  - agent_id: shop\n    class_path: agents:Plain\n",
            ["line 2, agents.0: it has no certificate", "mas certs agent shop, or name both tls_…_path"],
        ),
        (
            "namespace: other\nagents:\n  - agent_id: desk\n    class_path: agents:Plain\n",
            ["line 3, agents.0: it has no certificate", "mas certs agent desk -n other,"],
        ),
        (
            "tls_ca_path: ca.pem\n"
            + entry("agents:Desk", "    tls_cert_path: agents.py\n    tls_key_path: agents.py\n"),
            ["line 1, tls_ca_path: there is no {folder}/ca.pem, the CA that vouches for the broker"],
        ),
    ],
)
def test_a_missing_certificate_is_told_with_the_command_that_makes_it(folder, text, told):
    with pytest.raises(ConfigurationError) as caught:
        Plan(manifest(folder, text)).require_certificates()
    for each in told:
        assert each.format(folder=folder) in str(caught.value)


def test_without_a_broker_folder_the_text_says_to_start_one(folder):
    (folder / ".mas").rename(folder / "gone")
    with pytest.raises(
        ConfigurationError, match=r"it has no certificate: name tls_cert_path .*mas up --detach"
    ):
        Plan(manifest(folder, entry("agents:Desk"))).require_certificates()


def test_certificates_that_are_there_are_no_mistake(folder):
    Plan(manifest(folder, entry("agents:Desk"))).require_certificates()


# -- how it waits, and how it speaks -----------------------------------------------------------------------
def test_waits_double_up_to_a_bound_until_a_run_was_good():
    backoff = Backoff(first=0.5, most=3.0, good=60.0)
    waits = [None]
    for _ in range(5):
        waits.append(backoff.after(waits[-1], 1.0))
    assert waits[1:] == [0.5, 1.0, 2.0, 3.0, 3.0]
    assert backoff.after(3.0, 59.9) == 3.0
    assert backoff.after(3.0, 60.0) == 0.5


def test_bytes_become_lines():
    told = []
    lines = Lines(told.append)
    for part in (b"one\ntw", b"o\r\n\n\xff", b"!"):
        lines.feed(part)
    assert told == ["one", "two", ""]
    lines.end()
    assert told[3:] == ["\ufffd!"]
    lines.feed(b"x" * 70_000)
    lines.feed(b"y\n")
    assert [len(each) for each in told[4:]] == [65536, 70_001 - 65536]


async def test_a_pipe_is_read_to_its_end():
    told = []
    reading, writing = os.pipe()
    task = asyncio.create_task(read(reading, told.append))
    os.write(writing, b"a\nb")
    os.close(writing)
    await asyncio.wait_for(task, 30)
    assert told == ["a", "b"]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def speak(output, progress):
    printer = Text(output=output, progress=progress)
    printer.introduce(["desk/1", "desk/2", "longer-name/1"])
    printer.line("desk/2", "hello")
    printer.line("longer-name/1", "there")
    printer.event("ready", "is ready", instance="desk/1")


def test_a_pipe_gets_plain_prefixes_of_one_width():
    output, progress = io.StringIO(), io.StringIO()
    speak(output, progress)
    assert output.getvalue() == "desk/2        | hello\nlonger-name/1 | there\n"
    assert progress.getvalue() == "mas           | desk/1 is ready\n"


def test_a_terminal_gets_a_colour_for_each_agent(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    output = Terminal()
    speak(output, io.StringIO())
    assert output.getvalue().startswith("\x1b[36mdesk/2        | \x1b[0mhello\n\x1b[33mlonger-name/1")
    monkeypatch.setenv("NO_COLOR", "1")
    plain = Terminal()
    speak(plain, io.StringIO())
    assert "\x1b" not in plain.getvalue()


class Full(io.StringIO):
    """A file on a disk without room: it takes what there is, and fails when it is written."""

    def __init__(self, error):
        super().__init__()
        self.error = error

    def flush(self):
        if self.error is not None:
            raise self.error


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "no space"), UnicodeEncodeError("ascii", "ü", 0, 1, "no such character")]
)
def test_what_cannot_be_written_is_left_out(error):
    ended = []
    output = Full(error)
    printer = Text(output=output, progress=output, closed=lambda: ended.append(True))
    printer.line("desk/1", "one")
    printer.event("ready", "is ready", instance="desk/1")
    JsonLines(output=output, closed=lambda: ended.append(True)).line("desk/1", "two")
    output.error = None
    printer.line("desk/1", "three")
    assert output.getvalue().endswith("three\n")
    assert ended == []  # somebody reads it still


async def test_a_pipe_is_read_on_though_a_line_cannot_be_told():
    told = []

    def say(line):
        told.append(line)
        if line != "c":
            raise RuntimeError(line)

    reading, writing = os.pipe()
    task = asyncio.create_task(read(reading, say))
    os.write(writing, b"a\nb\nc\nd")
    os.close(writing)
    await asyncio.wait_for(task, 30)
    assert told == ["a", "b", "c", "d"]


PRINTING = """\
import time

def main():
    for n in range(3):
        print("line", n, flush=True)
        time.sleep(0.2)
    open("done", "w").close()
"""


@pytest.fixture
def full():
    """A file on a disk without room."""
    if not Path("/dev/full").exists():
        pytest.skip("there is no full device")
    with pytest.raises(OSError, match="No space"), Path("/dev/full").open("w") as output:
        yield output


async def test_an_agent_prints_on_where_the_disk_is_full(folder, full, monkeypatch):
    (folder / "printing.py").write_text(PRINTING)
    monkeypatch.setenv("PYTHONPATH", f"{folder}{os.pathsep}{REPOSITORY}")
    printer = Text(output=full, progress=full)

    def show(line):
        printer.line("desk/1", line)

    def begun(pid):
        printer.event("started", f"started (process {pid})", instance="desk/1")

    with Guard() as guard:
        child = Child("printing", "x", b"", folder=folder, guard=guard, output=show, told=print)
        assert await asyncio.wait_for(child.run(begun), 30) == 0
    assert (folder / "done").exists()


async def test_a_process_ends_with_whoever_cannot_be_told_of_it(folder, monkeypatch):
    (folder / "waiting.py").write_text("import time\n\ndef main():\n    time.sleep(600)\n")
    monkeypatch.setenv("PYTHONPATH", f"{folder}{os.pathsep}{REPOSITORY}")
    begun = []

    def fail(pid):
        begun.append(pid)
        raise RuntimeError("nobody listens")

    with Guard() as guard:
        child = Child("waiting", "x", b"", folder=folder, guard=guard, output=print, told=print)
        with pytest.raises(RuntimeError, match="nobody listens"):
            await child.run(fail)
        with pytest.raises(ProcessLookupError):  # before the guard looks after it
            os.kill(begun[0], 0)


def test_json_lines():
    output = io.StringIO()
    printer = JsonLines(output=output)
    printer.line("desk/1", "hello")
    printer.event("ready", "is ready", instance="desk/1")
    first, second = map(json.loads, output.getvalue().splitlines())
    assert (first["event"], first["instance"], first["line"]) == ("output", "desk/1", "hello")
    assert (second["event"], second["instance"], second["text"]) == ("ready", "desk/1", "is ready")
    assert first["time"].endswith("+00:00")


# -- what it rests on --------------------------------------------------------------------------------------
def test_the_runner_knows_nothing_of_the_policy_service():
    code = (
        "import sys, mas_nats.runner.run, mas_nats.runner.instance\n"
        "sys.exit(any(name.partition('.')[0] == 'broker_policy' for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False).returncode == 0


def test_without_what_reads_manifests_the_module_says_what_to_install():
    code = (
        "import runpy, sys\nsys.modules['yaml'] = None\nsys.argv[1:] = []\n"
        "runpy.run_module('mas_nats.runner', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, check=False, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "pip install 'mas-nats[runner]'" in done.stderr

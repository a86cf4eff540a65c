"""The examples run as their READMEs say, as processes of their own."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.running import Run, running
from tests.system import REPOSITORY, System, mas, mas_json, new_namespace

EXAMPLES = REPOSITORY / "examples"
HELPDESK = EXAMPLES / "helpdesk"


def run(program: Path, folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(program)],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_helpdesk(tmp_path: Path) -> None:
    """The two programs of the ancestor's README, with their imports and certificate paths changed."""
    shutil.copy(HELPDESK / "mas.yaml", tmp_path)
    system = System.up(tmp_path / ".mas", "--manifest", str(tmp_path / "mas.yaml"))
    try:
        certs = tmp_path / "certs"
        mas("certs", "agent", "helpdesk", "router", "--out", str(certs), "--folder", str(tmp_path / ".mas"))
        desk = run(HELPDESK / "desk.py", tmp_path)
        try:
            deadline = time.monotonic() + 30
            while True:
                router = run(HELPDESK / "router.py", tmp_path)
                told, _ = router.communicate(timeout=30)
                if router.returncode == 0 and "can answer questions: helpdesk" in told:
                    break
                assert time.monotonic() < deadline, told  # the desk may not be up yet
            assert "turning it off and on again" in told
            assert "My printer is silent." in told
        finally:
            desk.send_signal(signal.SIGTERM)
            output, _ = desk.communicate(timeout=30)
        assert desk.returncode == 0, output
    finally:
        system.down()


def played(system: System, folder: Path, name: str, until: str) -> tuple[Run, str]:
    """An example under `mas run --until`, in a namespace of its own; the run, and the namespace."""
    namespace = new_namespace()
    shutil.copytree(EXAMPLES / name, folder / name)
    manifest = folder / name / "mas.yaml"
    manifest.write_text(f"namespace: {namespace}\n{manifest.read_text()}")
    system.namespaces.add(namespace)
    where = ("--folder", str(system.layout.root))
    mas("apply", *where, str(manifest))
    with running(folder / name, *where, "--until", until) as run:
        assert run.ended() == 0, run.events
    return run, namespace


def test_ping_pong(system: System, tmp_path: Path) -> None:
    run, _ = played(system, tmp_path, "ping_pong", "ping")
    told = run.lines("ping")
    assert [each.split(" came")[0] for each in told[:-1]] == [f"ball {number}" for number in range(1, 11)]
    assert told[-1] == "10 rounds played"


def test_helpdesk_under_the_runner(system: System, tmp_path: Path) -> None:
    run, _ = played(system, tmp_path, "helpdesk", "customer")
    told = run.lines("customer")
    assert told[0] == "asking helpdesk, team support"
    asked = ("My printer is silent.", "Where is my order?", "Can I have a refund?")
    assert [question in line for question, line in zip(asked, told[1:], strict=True)] == [True] * 3
    assert [each["agent"] for each in run.of("skipped")] == ["router"]


def test_planner(system: System, tmp_path: Path) -> None:
    run, _ = played(system, tmp_path, "planner", "planner")
    assert run.lines("planner")[-4:] == [
        "the plan for a harbour festival:",
        "- The programme of a harbour festival is settled soon.",
        "- The budget of a harbour festival is settled soon, and has a reserve of ten percent.",
        "- The safety plan of a harbour festival is settled soon.",
    ]
    assert "the budget begins with 'The '" in run.lines("planner")  # read before it was whole
    assert "the budget: not yet" in run.lines("critic")
    assert "writing about the budget again: it has a reserve of ten percent" in run.lines("worker")


def test_healthcare(system: System, tmp_path: Path) -> None:
    run, namespace = played(system, tmp_path, "healthcare", "intake")
    assert run.lines("intake") == [
        "can wait",
        "urgent",
        "not sent, blocked by dlp:credit_card",
        "not sent, blocked by dlp:ssn",
        "invoice sent",
    ]
    assert run.lines("triage") == [
        "got: Headache since Monday.",
        "got: Chest pain. [REDACTED:room], call me at [REDACTED:phone] or [REDACTED:email].",
    ]
    where = ("-n", namespace, "--folder", str(system.layout.root))
    deadline = time.monotonic() + 30
    while True:  # the chain is a moment behind
        blocked = mas_json("audit", "query", "--decision", "DLP_BLOCKED", *where)["decisions"]
        redacted = mas_json("audit", "query", "--violation", "dlp:email", *where)["decisions"]
        if (len(blocked), len(redacted)) == (2, 1):
            break
        assert time.monotonic() < deadline, (blocked, redacted)
    assert {(each["sender"], each["target"]) for each in blocked} == {("intake", "billing")}
    for secret in ("4111", "219-09-9999", "ada@example.org", "555-0132", "ROOM-412"):
        assert secret not in str(run.lines("triage") + run.lines("billing"))
        assert secret not in str((blocked, redacted))
    assert run.lines("billing") in (
        [],
        ["got: Consultation, to be paid in cash."],
    )  # or it is still in the inbox


@pytest.mark.parametrize("name", ["ping_pong", "helpdesk", "planner", "healthcare"])
def test_an_example_says_how_to_run_it_on_one_screen(name: str) -> None:
    text = (EXAMPLES / name / "README.md").read_text()
    assert len(text.splitlines()) <= 40
    for command in ("mas up --detach", "mas run --until", "mas down"):
        assert command in text


def casa(system: System, manifest: Path, text: str) -> subprocess.CompletedProcess[str]:
    """The example of ``make casa-demo`` on the running broker, by ``text``, in a namespace of its own."""
    namespace = new_namespace()
    manifest.write_text(re.sub(r"\boffice\b(?=})", namespace, text))
    system.namespaces.add(namespace)
    place = ("--folder", str(system.layout.root), "--manifest", str(manifest))
    return subprocess.run(
        [sys.executable, "-m", "examples.casa", *place],
        cwd=REPOSITORY,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


CASA = (EXAMPLES / "casa" / "casa.yaml").read_text()


def test_casa(system: System, tmp_path: Path) -> None:
    """What may pass passes, what may not is blocked with its reason, and so it says."""
    done = casa(system, tmp_path / "casa.yaml", CASA)
    assert done.returncode == 0, done.stdout + done.stderr
    for told in (
        "visitor: Done: The printer on floor 3 is out of paper.",
        "llm: selects transfer_money",
        "failed: policy.deny_by_default",
        "\n16 allowed, 5 blocked: AUTHZ_DENIED by BLOCK:DETERMINISTIC_LLM_SELECTED_TOOLS, AUTHZ_DENIED by",
    ):
        assert told in done.stdout, told
    assert "transferred" not in done.stdout
    assert "4111" not in done.stdout


def test_casa_without_its_policies(system: System, tmp_path: Path) -> None:
    """The control: where everybody may call the bank, the injected call passes, and the example fails."""
    done = casa(system, tmp_path / "casa.yaml", CASA.partition("---")[0])
    assert done.returncode == 1, done.stdout + done.stderr
    assert "WRONG: bank: transferred 900 to mallory" in done.stdout


def test_the_casa_example_says_how_to_run_it_on_one_screen() -> None:
    text = (EXAMPLES / "casa" / "README.md").read_text()
    assert len(text.splitlines()) <= 40
    assert "make casa-demo" in text
    for path in (EXAMPLES / "casa").glob("*.*"):
        assert path.name in text or path.name in {"README.md", "__init__.py", "__main__.py"}, path.name


def test_demo() -> None:
    """``make demo``: tells its story, ends well, leaves nothing running."""
    before = own_processes()
    done = subprocess.run(
        [sys.executable, "-m", "examples.demo"],
        cwd=REPOSITORY,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for told in (
        "discovered: helpdesk",
        "answer 1 to",
        "answer 2 to",
        "started; state: answered=1 notes=1",
        "refused: AUTHZ_DENIED",
        "the audit of default is intact",
        "All of it worked",
    ):
        assert told in done.stdout, told
    assert own_processes() <= before


def own_processes() -> set[str]:
    """What runs of ours on this machine."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if "mas-demo-" in command:
                found.add(entry.name)
    return found

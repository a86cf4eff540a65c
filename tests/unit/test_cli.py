"""What every ``mas`` command has, how errors become exit codes, and ``mas certs``."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import signal
import stat
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import typer
from cryptography import x509
from rich.console import Console
from typer.testing import CliRunner

from broker_policy import cli, cli_reference
from broker_policy.cli import messages, top
from broker_policy.cli.agent_tls import agent_tls
from broker_policy.cli.app import MEANINGS, ExitCode, Output, app, command, describe, exit_code
from broker_policy.cli.table import table
from broker_policy.embedded.errors import AlreadyRunning, BinaryMissing, NotRunning
from broker_policy.embedded.layout import Broker, Layout
from broker_policy.identity.pki import identity_from_chain
from broker_policy.nats_contexts import NatsContext, NatsContexts
from broker_policy.overview import Look, Row
from broker_policy.printable import legible
from mas_nats.errors import ConfigurationError, OutcomeUnknown, PermissionDenied, RequestTimeout, Unavailable
from mas_nats.wire.identity import Identity, Role
from mas_nats.wire.verdict import Decision, Verdict
from tests.system import REPOSITORY

cli.load()


def all_commands(group, path=()):
    for name, each in group.commands.items():
        if hasattr(each, "commands"):
            yield from all_commands(each, (*path, name))
        else:
            yield pytest.param(each, id=" ".join((*path, name)))


COMMANDS = list(all_commands(typer.main.get_command(app)))


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.parametrize("each", COMMANDS)
def test_every_command_has_json_help_and_an_example(each):
    options = {option for parameter in each.params for option in parameter.opts}
    assert "--json" in options
    assert each.help
    assert each.epilog.startswith("Example: mas ")


@pytest.mark.parametrize("name", sorted(typer.main.get_command(app).commands))
def test_a_command_is_imported_with_all_below_it(name):
    """As ``mas`` does it, which imports nothing else."""
    group = typer.main.get_command(app).commands[name]
    below = [each.values[0] for each in all_commands(group)] if hasattr(group, "commands") else [group]
    there = {each.callback.__wrapped__.__module__.rpartition(".")[2] for each in below}
    assert there <= set(cli.modules_of(name))
    assert "dlq" not in set(cli.modules_of(name)) - {name}


def test_of_a_command_that_is_not_known_all_are_imported():
    assert {"dlq", "up", "audit"} <= set(cli.modules_of("")) & set(cli.modules_of("dlqq"))


def test_help_says_the_exit_codes():
    shown = " ".join(run("--help").output.split())
    for code in ("0 done", "1 refused or failed", "3 nothing runs there", "4 already running"):
        assert code in shown


def test_version():
    assert run("--version").output.startswith("mas ")


def test_wrong_usage_exits_with_2():
    assert run("certs", "agent").exit_code == ExitCode.USAGE


@pytest.mark.parametrize(
    "words", ["certs agent", "audit query --limit 0", "send --bogus", "dlq show x", "nosuch", "audit nosuch"]
)
def test_wrong_usage_is_told_as_json_where_that_is_asked_for(words):
    told = run(*words.split(), "--json")
    assert told.exit_code == ExitCode.USAGE
    error = json.loads(told.stdout)["error"]
    assert (error["type"], error["exit_code"]) == ("UsageError", 2)
    assert error["text"]
    assert run(*words.split()).stdout == ""


@pytest.mark.parametrize("words", ["--json", "--json doctor", "--json nosuch", "--bogus doctor --json"])
def test_so_is_what_is_wrong_before_the_command(words):
    told = run(*words.split())
    assert told.exit_code == ExitCode.USAGE
    error = json.loads(told.stdout)["error"]
    assert (error["type"], error["exit_code"]) == ("UsageError", 2)


INTERRUPTED_WHILE_IMPORTED = "import signal\nsignal.raise_signal(signal.SIGINT)\n"


def test_who_interrupts_a_command_that_is_still_imported_sees_no_traceback(tmp_path):
    (tmp_path / "typer.py").write_text(INTERRUPTED_WHILE_IMPORTED)
    done = subprocess.run(
        [sys.executable, "-m", "broker_policy.cli", "up"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(tmp_path), str(REPOSITORY)))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (ExitCode.INTERRUPTED, "", "")


INTERRUPTED_BEFORE_IT_BEGINS = """
import signal, sys
import typer.main
typer.main.get_command = lambda *_: signal.raise_signal(signal.SIGINT)
sys.argv = ["mas", "up"]
from broker_policy.cli import main
main()
"""


def test_nor_does_who_interrupts_it_before_it_begins():
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_BEFORE_IT_BEGINS],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (ExitCode.INTERRUPTED, "", "")


TERMINATED = """
import asyncio, signal, sys, time
import typer
from broker_policy.cli.app import command

group = typer.Typer()
group.callback()(lambda: None)

@command("plain", group=group, example="mas plain", tidies=True)
def plain():
    try:
        signal.raise_signal(signal.SIGTERM)
        time.sleep(60)
    finally:
        print("tidied", flush=True)

@command("later", group=group, example="mas later", tidies=True)
async def later():
    try:
        signal.raise_signal(signal.SIGTERM)
        await asyncio.sleep(60)
    finally:
        print("tidied", flush=True)

group()
"""


@pytest.mark.parametrize("name", ["plain", "later"])
def test_a_command_that_is_terminated_tidies_up_and_ends_by_the_signal(name):
    done = subprocess.run(
        [sys.executable, "-c", TERMINATED, name],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGTERM, "tidied\n", "")


UNHEARD = """
import typer
from broker_policy.cli.app import Output, command

group = typer.Typer()
group.callback()(lambda: None)

@command("long", group=group, example="mas long")
def long():
    out = Output(json=False)
    for _ in range(3):
        out.progress("half way")
        out.warn("beware")
    out.result({}, "done")
    raise ConnectionRefusedError("so it fails")

group()
"""


def test_who_reads_no_progress_ends_nothing():
    """The result comes all the same, and the status says what became of it."""
    ours, theirs = os.pipe()
    os.close(ours)
    with os.fdopen(theirs, "wb") as unheard:
        done = subprocess.run(
            [sys.executable, "-c", UNHEARD, "long"],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=unheard,
            text=True,
            check=False,
            timeout=50,
        )
    assert (done.returncode, done.stdout) == (ExitCode.UNREACHABLE, "done\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full disk here")
def test_what_cannot_be_written_is_said_without_a_traceback():
    with Path("/dev/full").open("w") as full:
        mas = (sys.executable, "-m", "broker_policy.cli", "context", "list", "--json")
        done = subprocess.run(
            mas, cwd=REPOSITORY, stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == ExitCode.FAILED
    assert "error: [Errno 28] No space left on device" in done.stderr
    assert "Traceback" not in done.stderr


def closing(closed: str, arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run Python from ``folder`` without some of its standard streams, as a shell closes them."""
    return subprocess.run(
        ["sh", "-c", f"exec {shlex.quote(sys.executable)} {arguments} {closed}"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("closed", ["<&- >&-", ">&-"])
@pytest.mark.parametrize(
    "program",
    ["broker_policy.cli doctor --folder none", "broker_policy.cli doctor --folder none --json",
     "mas_nats.runner --manifest none --json"],
)  # fmt: skip
def test_what_is_said_where_nothing_is_open_goes_nowhere(tmp_path, program, closed):
    """Python has no such stream then: asking it whether it is a terminal ended with a traceback."""
    done = closing(closed, f"-m {program}", tmp_path)
    assert (done.returncode, done.stderr) == (ExitCode.FAILED, "")


def test_an_error_that_nobody_is_told_is_still_known_by_its_exit_code(tmp_path):
    done = closing("2>&-", "-m broker_policy.cli get mas --folder none", tmp_path)
    assert done.returncode == ExitCode.UNREACHABLE


def test_no_file_takes_the_number_of_a_closed_stream(tmp_path):
    code = """
from mas_nats import standard_streams
standard_streams.open_closed()
with open("here", "w") as file:
    file.write(str(file.fileno()))
"""
    assert closing("<&- >&- 2>&-", f"-c {shlex.quote(code)}", tmp_path).returncode == 0
    assert int((tmp_path / "here").read_text()) > 2


def test_a_certificate_is_valid_for_a_century_at_most(tmp_path):
    """Longer ones ended with the traceback of a date that there is not."""
    for hours in ("876001", "100000000", "1000000000", "inf", "nan"):
        refused = run("certs", "agent", "alice", "--folder", str(tmp_path), "--hours", hours)
        assert (refused.exit_code, "--hours" in refused.output) == (ExitCode.USAGE, True), hours
    assert run("certs", "agent", "alice", "--folder", str(tmp_path), "--hours", "876000").exit_code == 0


def test_a_certificate_that_is_missing_is_named_with_its_namespace(tmp_path, monkeypatch):
    """Without it, or the folder, the command that the error names would make another one."""
    layout = Layout(tmp_path)
    broker = Broker("tls://127.0.0.1:1", "ca.pem", "", "", "", 1, "", durable=True)
    folder = re.escape(f" --folder {tmp_path}")
    with pytest.raises(ConfigurationError, match=rf"mas certs agent alice --namespace shop{folder}$"):
        agent_tls(layout, broker, "shop", "alice")
    with pytest.raises(ConfigurationError, match=rf"mas certs agent alice{folder}$"):
        agent_tls(layout, broker, "default", "alice")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError, match=r"mas certs agent alice$"):
        agent_tls(Layout(Path(".mas").absolute()), broker, "default", "alice")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (AlreadyRunning("x"), 4),
        (NotRunning("x"), 3),
        (Unavailable("x"), 3),
        (ConnectionRefusedError("x"), 3),
        (BrokenPipeError("who read the output has gone"), 1),
        (OutcomeUnknown("id", "x"), 5),
        (RequestTimeout("x"), 6),
        (BinaryMissing("x"), 1),
        (ValueError("x"), 1),
    ],
)
def test_errors_become_exit_codes(error, code):
    assert exit_code(error) == code


def test_a_refusal_is_told_with_step_rule_and_fix():
    verdict = Verdict(
        Decision.AUTHZ_DENIED,
        ok=False,
        message_id="m",
        step="authorize",
        rule="r",
        reason="no",
        fix="do this",
    )
    told = describe(PermissionDenied(verdict))
    assert told["type"] == "PermissionDenied"
    assert {told["step"], told["rule"], told["fix"], told["message_id"]} == {"authorize", "r", "do this", "m"}


def test_an_async_command_and_its_error(monkeypatch):
    group = typer.Typer()
    group.callback()(lambda: None)

    @command("fail", group=group, example="mas fail")
    async def fail(*, json: bool = False) -> None:
        """Fail."""
        raise NotRunning("nothing there")

    told = CliRunner().invoke(group, ["fail", "--json"])
    assert told.exit_code == 3
    assert json.loads(told.output)["error"]["text"] == "nothing there"
    assert "error: nothing there" in CliRunner().invoke(group, ["fail"]).output


# -- certs -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("role", [Role.AGENT, Role.INSPECTOR, Role.OPERATOR])
def test_certs_of_a_role(tmp_path, role):
    done = run("certs", role, "alice", "-n", "shop", "--folder", tmp_path / "f", "--hours", "2", "--json")
    assert done.exit_code == 0, done.output
    (issued,) = json.loads(done.stdout)["certificates"]
    assert issued["spiffe_id"] == f"spiffe://mas/ns/shop/{role}/alice"
    holder = identity_from_chain((tmp_path / issued["cert"]).read_bytes())
    assert holder.identity.uri == issued["spiffe_id"]
    assert stat.S_IMODE((tmp_path / issued["key"]).stat().st_mode) == 0o600
    assert (tmp_path / issued["ca"]).exists()


def test_certs_of_a_server(tmp_path):
    done = run("certs", "server", "n1.example.org", "--ip", "10.0.0.5", "--folder", tmp_path / "f", "--json")
    (issued,) = json.loads(done.stdout)["certificates"]
    certificate = x509.load_pem_x509_certificate((tmp_path / issued["cert"]).read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["n1.example.org"]
    assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == ["10.0.0.5"]


@pytest.mark.parametrize("name", ["UPPER", "a.b", "*", ">", "", "a b", "../up"])
def test_certs_for_a_name_that_is_no_id_are_refused_and_nothing_is_made(tmp_path, name):
    done = run("certs", "agent", "good", name, "--folder", tmp_path / "f", "--json")
    assert done.exit_code == 1
    assert "not a valid id" in json.loads(done.stdout)["error"]["text"]
    assert not (tmp_path / "f").exists()


def test_a_payload_that_is_shown_does_not_command_the_terminal():
    body = json.dumps({"a": "é \x7f\x9b31m\u202e\U000e0001"}, ensure_ascii=False)
    shown = legible(body)
    assert shown == '{"a": "é \\u007f\\u009b31m\\u202e\\udb40\\udc01"}'
    assert json.loads(shown) == json.loads(body)


class Screen(io.StringIO):
    """What is written to a terminal, or to a file."""

    def __init__(self, *, terminal: bool) -> None:
        super().__init__()
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


NASTY = "\x1b]52;c;b3duZWQ=\x07\x9b2J\u202e"
"""Sets the clipboard, clears the screen, reverses the line."""


@pytest.mark.parametrize("terminal", [True, False])
def test_nothing_that_agents_say_commands_a_terminal(monkeypatch, terminal):
    out, err = Screen(terminal=terminal), Screen(terminal=terminal)
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    monkeypatch.setenv("TERM", "dumb")  # so that no colours are said
    said = Output(json=False)
    assert not messages._print(said, NASTY, ends_line=True)
    assert messages._print(said, {"a": NASTY}, ends_line=False)
    said.result({}, NASTY)
    said.warn(NASTY)
    said.progress(NASTY)
    with pytest.raises(typer.Exit):
        said.fail({"text": NASTY, "exit_code": 1})
    Output(json=True).result({"a": NASTY}, "")
    hidden = set(out.getvalue() + err.getvalue()) & set(NASTY) - set("".join(map(chr, range(32, 127))))
    assert hidden == (set() if terminal else {"\x1b", "\x9b", "\u202e", "\x07"})
    if not terminal:
        assert out.getvalue().startswith(NASTY)  # byte for byte


def test_nothing_in_a_table_is_markup_or_another_line(capsys):
    cells = ("[/x]", "[red]a[/red]", "a\nb", "\x1b[2J", "[link=https://evil.example]a[/link]")
    Output(json=False).result({}, table(("CHANGED",), [(each,) for each in cells]))
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert lines == ["CHANGED", "[/x]", "[red]a[/red]", "a\\u000ab", "\\u001b[2J", cells[-1]]


def test_nothing_in_the_rows_of_top_is_markup(capsys):
    row = Row("[/x]", 1, 0.0, 0.0, 0, 0, 0, 0, 0, 0.0)
    Console(width=160).print(top._table([row], "shop", Look(0.0, {}, {}, Counter())))
    assert "[/x]" in capsys.readouterr().out


# -- help, completion, reference ---------------------------------------------------------------------------
@pytest.mark.parametrize("each", COMMANDS)
def test_the_example_of_a_command_is_one(each):
    """Its words are the command's own, and its options are known to it."""
    for example in each.epilog.removeprefix("Example: ").split(" && "):
        words = shlex.split(example)
        group, path = typer.main.get_command(app), words[1:]
        while hasattr(group, "commands"):
            group, path = group.commands[path[0]], path[1:]
        known = {option for parameter in group.params for option in parameter.opts}
        used = {word.partition("=")[0] for word in path if word.startswith("-") and word != "-"}
        assert used <= known


@pytest.mark.parametrize("each", COMMANDS)
def test_help_of_every_command_shows_its_example(each, request):
    path = request.node.callspec.id.split(" ")
    shown = run(*path, "--help")
    assert shown.exit_code == 0
    assert "Example: mas" in " ".join(shown.output.split())


def completed(words: str, **environment: str) -> list[str]:
    """What a shell gets for ``words``, which it completes at their end."""
    done = subprocess.run(
        [sys.executable, "-c", "import sys; sys.argv = ['mas']; from broker_policy.cli import main; main()"],
        env={
            **os.environ,
            **environment,
            "_MAS_COMPLETE": "complete_bash",
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split(" ")) - 1),
        },
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()


def test_commands_options_and_values_are_completed(tmp_path):
    assert set(completed("mas ")) == set(typer.main.get_command(app).commands)
    assert completed("mas con") == ["containers", "context"]
    assert completed("mas state ") == ["get", "set", "reset"]
    assert completed("mas top --int") == ["--interval"]
    assert completed("mas context add --role ") == ["inspector", "operator"]


def test_names_of_contexts_are_completed(tmp_path):
    contexts = NatsContexts(tmp_path)
    who = Identity("mas", "shop", Role.INSPECTOR, "carol")
    contexts.write(NatsContext("mine", who, "tls://127.0.0.1:1", tmp_path, tmp_path, tmp_path))
    (contexts.folder / "context" / "theirs.json").write_text("{}")
    assert completed("mas context remove ", XDG_CONFIG_HOME=str(tmp_path)) == ["mine"]


def test_of_a_command_that_is_completed_nothing_else_is_imported(monkeypatch):
    monkeypatch.setenv("COMP_WORDS", "mas dlq li")
    assert cli._completed() == "dlq"
    monkeypatch.setenv("COMP_WORDS", "mas dl")
    assert cli._completed() == ""


def test_the_reference_is_current():
    page = (REPOSITORY / "docs" / "cli.md").read_text()
    assert page == cli_reference.current(page), "run: python -m broker_policy.cli_reference docs/cli.md"
    for code, meaning in MEANINGS.items():
        assert f"| {int(code)} | {meaning} |" in page
    assert set(MEANINGS) == set(ExitCode)


def test_the_reference_is_not_current_when_a_command_changes(monkeypatch):
    page = (REPOSITORY / "docs" / "cli.md").read_text()
    monkeypatch.setitem(MEANINGS, ExitCode.TIMEOUT, "something else")
    assert cli_reference.current(page) != page

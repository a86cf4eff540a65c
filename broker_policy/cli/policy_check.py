"""``mas policy check`` and ``mas policy test``: what policy decides, and whether that is what it should."""

from __future__ import annotations

import contextlib
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from broker_policy.admission.circuit import State
from broker_policy.cli import breaker
from broker_policy.cli.app import ExitCode, Json, Namespace, Output, command
from broker_policy.cli.policy import policy_app
from broker_policy.cli.policy_source import FolderOption, Manifest, source
from broker_policy.pipeline import cases
from broker_policy.pipeline.explain import Explanation, explain, message
from mas_nats.errors import MasError
from mas_nats.wire.identity import DEFAULT_NAMESPACE
from mas_nats.wire.verdict import Decision

_DELIVERED = (Decision.ALLOWED, Decision.ALERT, Decision.DLP_REDACTED)


@command(
    "check",
    group=policy_app,
    example="""mas policy check router helpdesk --type ask --data '{"question": "…?"}'""",
)
async def check(
    sender: Annotated[
        str, typer.Argument(metavar="SENDER", help="Who would send it; namespace/agent from elsewhere.")
    ],
    target: Annotated[
        str, typer.Argument(metavar="TARGET", help="Whom it would be for; namespace/agent elsewhere.")
    ],
    *,
    message_type: Annotated[str, typer.Option("--type", help="The message type.")] = "test",
    data: Annotated[
        str, typer.Option("--data", help="The body; @FILE reads it from a file, - from standard input.")
    ] = "{}",
    manifest: Manifest = None,
    folder: FolderOption = None,
    namespace: Namespace = DEFAULT_NAMESPACE,
    json: Json = False,
) -> None:
    """Say what would become of a message, step by step; nothing is sent.

    From the manifest alone, or with --folder from the policy of a running broker, which knows both sides of a
    message between namespaces, and the circuits that its workers know. Exits with 1 when it would be refused.
    """
    out = Output(json=json)
    table, named, others = await source(manifest, folder, namespace)
    circuits = await _circuits(folder, namespace) if folder is not None else None
    found = explain(message(sender, target, message_type, _body(data)), table, circuits, others=others)
    document = {"sender": sender, "target": target, "policy": named, **asdict(found)}
    out.result(document, _shown(found, sender, target, named))
    if found.decision not in _DELIVERED:
        raise typer.Exit(ExitCode.FAILED)


@command("test", group=policy_app, example="mas policy test policy-tests/")
def run_tests(
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[FILE]...",
            help="Files or folders; else policy-tests/*.yaml and *_test.yaml beside the nearest mas.yaml.",
        ),
    ] = None,
    *,
    manifest: Manifest = None,
    json: Json = False,
) -> None:
    """Run policy tests: what each message would become, and whether that is what its file expects.

    Needs no broker. Exits with 1 when a test fails.
    """
    results = list(cases.run(cases.discover(files or [], Path.cwd()), manifest))
    failed = sum(bool(each.differences) for each in results)
    document = {
        "passed": len(results) - failed,
        "failed": failed,
        "tests": [
            {
                "file": str(each.file),
                "name": each.case.name,
                "ok": not each.differences,
                "decision": each.got.decision,
                "rule": each.got.rule,
                "types": each.got.types,
                "differences": each.differences,
            }
            for each in results
        ],
    }
    Output(json=json).result(document, _table(results, failed))
    if failed:
        raise typer.Exit(ExitCode.FAILED)


async def _circuits(folder: Path, namespace: str) -> dict[str, float | None] | None:
    """What ``explain`` is told of circuits; None when no worker answers."""
    with contextlib.suppress(MasError):
        rows = await breaker.circuits(folder, namespace)
        return {row["agent"]: row["retry_after"] if row["state"] == State.OPEN else None for row in rows}
    return None


def _body(data: str) -> bytes:
    """The body as it would be sent: what is no JSON is for the pipeline to refuse."""
    if data == "-":
        return sys.stdin.buffer.read()
    return Path(data[1:]).read_bytes() if data.startswith("@") else os.fsencode(data)


def _shown(found: Explanation, sender: str, target: str, source: str) -> str:
    lines = [f"{sender} -> {target} under {source}"]
    longest = max(16, *(len(each.step) for each in found.findings))
    for each in found.findings:
        said = ": ".join(part for part in (each.rule, each.text) if part)
        lines.append(f"  {each.step:<{longest}} {each.outcome:<12} {said}".rstrip())
    types = f" ({', '.join(found.types)})" if found.types else ""
    lines.append(f"{found.decision}{types} by {found.rule or 'no rule'}")
    if found.fix:
        lines.append(found.fix)
    return "\n".join(lines)


def _table(results: list[cases.Result], failed: int) -> str:
    lines: list[str] = []
    width = max(len(each.case.name) for each in results)
    file: Any = None
    for each in results:
        if each.file != file:
            file = each.file
            lines.append(str(file))
        mark = "FAIL" if each.differences else "ok"
        what = f"{each.got.decision} by {each.got.rule or 'no rule'}"
        lines.append(
            f"  {mark:<4}  {each.case.name:<{width}}  {each.case.sender} -> {each.case.target}  {what}"
        )
        lines += [f"        {line}" for line in each.differences]
    lines.append(f"{len(results) - failed} passed, {failed} failed")
    return "\n".join(lines)

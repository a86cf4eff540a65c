"""``mas doctor``: is everything in order here, and what to do where it is not."""

from __future__ import annotations

from dataclasses import asdict

import typer

from broker_policy.cli.app import ExitCode, Folder, Json, Output, command
from broker_policy.doctor import at_rest, running
from broker_policy.doctor.check import Check, Status, worst
from broker_policy.embedded.layout import DEFAULT_FOLDER, Layout


@command("doctor", example="mas doctor --folder .mas")
async def doctor(*, folder: Folder = DEFAULT_FOLDER, json: Json = False) -> None:
    """Check files, keys, certificates, servers, durability, policy, workers, clocks and the audit.

    Changes nothing. Exits with 1 when a check fails; what only should be seen to is no failure.
    """
    layout = Layout(folder.absolute())
    checks = at_rest.look(layout)
    if layout.root.is_dir():
        checks += await running.look(layout)
    status = worst(checks)
    document = {"status": status, "folder": str(layout.root), "checks": [asdict(each) for each in checks]}
    Output(json=json).result(document, _shown(checks, status))
    if status is Status.FAIL:
        raise typer.Exit(ExitCode.FAILED)


def _shown(checks: list[Check], status: Status) -> str:
    width = max(len(each.name) for each in checks)
    lines = []
    for each in checks:
        lines.append(f"{each.status:<4}  {each.name:<{width}}  {each.text}")
        if each.fix:
            lines.append(f"{'':<4}  {'':<{width}}  -> {each.fix}")
    bad = sum(each.status is not Status.OK for each in checks)
    lines.append(f"{status}: {bad} of {len(checks)} checks to see to" if bad else "everything is in order")
    return "\n".join(lines)

"""``mas run``: every agent of a manifest as a process, kept running."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from broker_policy.cli.app import ExitCode, Output, command, describe
from broker_policy.embedded.agent_certificates import DevelopmentCertificates
from mas_nats.errors import MasError
from mas_nats.runner.printing import JsonLines, Text
from mas_nats.runner.run import GRACE, Options
from mas_nats.runner.run import run as run_agents


@command("run", example="mas run --until router")
async def run(
    agents: Annotated[
        list[str] | None, typer.Argument(metavar="AGENT...", help="Only these; all when not given.")
    ] = None,
    *,
    manifest: Annotated[
        Path | None,
        typer.Option("--manifest", help="A mas.yaml; else $MAS_RUNNER_CONFIG_FILE, else the nearest one."),
    ] = None,
    folder: Annotated[
        Path | None, typer.Option("--folder", help="The folder of mas up; the nearest .mas when not given.")
    ] = None,
    server: Annotated[
        str | None,
        typer.Option(
            "--server", metavar="ADDRESS", help="The broker, host:port or URL, if not that folder's."
        ),
    ] = None,
    grace: Annotated[
        float,
        typer.Option("--grace", min=0.0, help="Seconds that agents get to stop before they are killed."),
    ] = GRACE,
    until: Annotated[
        str | None,
        typer.Option("--until", metavar="AGENT", help="Stop all when this agent has ended by itself."),
    ] = None,
    issue_certs: Annotated[
        bool,
        typer.Option(
            "--issue-certs/--no-issue-certs",
            help="Whether agents for whom the manifest names no certificate get one from the folder's CA.",
        ),
    ] = True,
    check: Annotated[
        bool, typer.Option("--check", help="Start nothing; look whether all is in order.")
    ] = False,
    log_level: Annotated[
        str, typer.Option("--log-level", help="Of the agents' logging, where they set none up themselves.")
    ] = "WARNING",
    json: Annotated[bool, typer.Option("--json", help="Print what happens as JSON lines.")] = False,
) -> None:
    """Run every instance of every agent of a manifest as a process of its own, and keep it running.

    What crashes is started again, later each time; what ends with status 0 has finished.

    Ctrl-C or SIGTERM stops: handlers finish first; a second one kills.

    Exits with 0 when everything stopped or finished, with 1 when manifest, classes or certificates are not in
    order, when something had to be killed, or when the agent of --until failed.
    """
    options = Options(
        manifest=manifest,
        agents=agents or (),
        server=server,
        folder=folder,
        grace=grace,
        until=until,
        check=check,
        log_level=log_level.upper(),
    )
    certifier = DevelopmentCertificates() if issue_certs else None
    try:
        status = await run_agents(
            options, lambda closed: JsonLines(closed=closed) if json else Text(closed=closed), certifier
        )
    except MasError as error:
        if not json:
            raise
        Output(json=True).line({"error": describe(error)})  # a line, as everything else
        raise typer.Exit(ExitCode.FAILED) from None
    raise typer.Exit(status)

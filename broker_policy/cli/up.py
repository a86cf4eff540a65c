"""``mas up``: the whole broker from one folder."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from broker_policy.cli.app import ExitCode, Folder, Json, Output, command
from broker_policy.embedded import lock
from broker_policy.embedded.errors import ServerDied
from broker_policy.embedded.layout import DEFAULT_FOLDER, Broker, Layout
from broker_policy.embedded.plan import Plan
from broker_policy.embedded.server_part import planned
from broker_policy.unused import UNUSED
from mas_nats.errors import ConfigurationError
from mas_nats.manifest import mas_yaml
from mas_nats.starting import importing

_STARTING = 120.0
"""Seconds within which a detached broker must be ready."""
_POLL = 0.05

_RELAXED = (
    "relaxed: servers flush to disk after they acknowledge, so a power cut can lose the accepted messages "
    "of up to two minutes. For a laptop, not for work"
)


@command("up", example="mas up --detach --workers 4")
def up(
    *,
    folder: Folder = DEFAULT_FOLDER,
    workers: Annotated[int, typer.Option("--workers", min=1, max=64, help="Policy workers.")] = 2,
    port: Annotated[
        int,
        typer.Option("--port", min=0, max=65535, help="NATS port; 0: as last time, else 4222 or a free one."),
    ] = 0,
    nodes: Annotated[
        int | None,
        typer.Option(
            "--nodes", help="nats-servers: 1, or 3, of which one can be lost. [default: as last time, else 1]"
        ),
    ] = None,
    manifest: Annotated[
        Path | None,
        typer.Option(
            "--manifest", help="A mas.yaml to apply; else $MAS_RUNNER_CONFIG_FILE, else the nearest one."
        ),
    ] = None,
    no_manifest: Annotated[
        bool, typer.Option("--no-manifest", help="Look for no manifest, and apply none.")
    ] = False,
    relaxed: Annotated[
        bool, typer.Option("--relaxed", help="Flush later: faster, and a power cut loses accepted messages.")
    ] = False,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Return when it is ready.")] = False,
    json: Json = False,
) -> None:
    """Bring up NATS, Redis, the policy workers and the checkpoint signer, and keep them up.

    Stops in order on Ctrl-C or SIGTERM; exits with 130 where that was before it was ready. Exits with 4 when
    another process has the folder already.
    """
    out = Output(json=json)
    if manifest and no_manifest:
        raise ConfigurationError("--manifest and --no-manifest exclude each other: leave one out")
    applied = None if no_manifest else mas_yaml.chosen(manifest)
    plan = planned(Plan(workers=workers, port=port, manifest=applied, relaxed=relaxed, nodes=nodes))
    layout = Layout(folder.absolute())
    if relaxed:
        out.warn(_RELAXED)
    if detach:
        _detach(layout, plan, out)
    else:
        asyncio.run(_stay(layout, plan, out))


async def _stay(layout: Layout, plan: Plan, out: Output) -> None:
    with importing(without=UNUSED):  # who detaches starts another that needs it
        from broker_policy.embedded.up import running  # noqa: PLC0415

    stopping = _cancelled_by_signals()
    ready = False
    try:
        async with running(layout, plan, out.progress) as broker:
            ready = True
            out.result(_document(layout, plan, broker), _how_to_go_on(layout, broker, detached=False))
            await stopping.wait()
    except asyncio.CancelledError:
        if not stopping.is_set():
            raise
        if not ready:
            raise typer.Exit(ExitCode.INTERRUPTED) from None


def _cancelled_by_signals() -> asyncio.Event:
    """On the first SIGTERM, SIGINT or SIGHUP the event is set and the current task is cancelled.

    Further signals change nothing: stopping is under way, and takes seconds at most.
    """
    loop, task, event = asyncio.get_running_loop(), asyncio.current_task(), asyncio.Event()

    def stop() -> None:
        if not event.is_set() and task is not None:
            event.set()
            task.cancel()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores SIGHUP
            loop.add_signal_handler(number, stop)
    return event


def _detach(layout: Layout, plan: Plan, out: Output) -> None:
    """Run ``mas up`` in a session of its own; its result, or its failure, becomes ours."""
    lock.require_free(layout.lock)
    layout.create()
    result, progress = layout.run / f"up.{os.getpid()}.json", layout.log("up")  # another may start, too
    # -P: a file in the current folder must not take the place of a module.
    command_line = [sys.executable, "-P", "-m", "broker_policy.cli", "up", "--json"]
    command_line += ["--folder", str(layout.root), "--workers", str(plan.workers), "--port", str(plan.port)]
    command_line += ["--manifest", str(plan.manifest)] if plan.manifest else ["--no-manifest"]
    command_line += ["--nodes", str(plan.nodes)] if plan.nodes is not None else []
    command_line += ["--relaxed"] if plan.relaxed else []
    progress.write_bytes(b"")
    with result.open("wb") as stdout, progress.open("ab") as stderr:
        child = subprocess.Popen(
            command_line, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, start_new_session=True
        )
    try:
        document = _outcome(child, result, progress, out)
    except BaseException:
        child.terminate()
        raise
    finally:
        result.unlink(missing_ok=True)
    if error := document.get("error"):
        child.wait()
        out.fail(error)
    broker = Broker.read(layout)
    out.result(_document(layout, plan, broker), _how_to_go_on(layout, broker, detached=True))


def _outcome(child: subprocess.Popen[bytes], result: Path, progress: Path, out: Output) -> dict[str, Any]:
    """What the child printed as its result, its progress said meanwhile."""
    deadline = time.monotonic() + _STARTING
    with progress.open(errors="replace") as lines:
        while True:
            ended = child.poll() is not None
            for line in lines:
                out.progress(line.rstrip("\n"))
            try:
                document: dict[str, Any] = orjson.loads(result.read_bytes())
            except orjson.JSONDecodeError:
                if ended or time.monotonic() > deadline:
                    raise ServerDied(f"mas up did not get ready; see {progress}") from None
            else:
                return document
            time.sleep(_POLL)


def _document(layout: Layout, plan: Plan, broker: Broker) -> dict[str, Any]:
    manifest = str(plan.manifest) if plan.manifest else None
    return {
        "ready": True,
        "folder": str(layout.root),
        "workers": plan.workers,
        "manifest": manifest,
        **asdict(broker),
    }


def _how_to_go_on(layout: Layout, broker: Broker, *, detached: bool) -> str:
    folder = layout.option
    durable = (
        "what is accepted is on disk" if broker.durable else "relaxed: a power cut loses accepted messages"
    )
    end = f"mas down{folder}" if detached else "Ctrl-C"
    return "\n".join(
        (
            "",
            f"Ready on {broker.url} ({durable})",
            f"  agents            mas apply{folder} mas.yaml, then mas run{folder}",
            f"  certificates      mas certs agent{folder} NAME",
            f"  a first message   mas send{folder} --help",
            f"  the audit         mas audit verify{folder}",
            f"  logs              {layout.logs}",
            f"  the end           {end}",
        )
    )

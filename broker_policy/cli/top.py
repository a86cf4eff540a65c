"""``mas top``: what goes on in a namespace, live."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from broker_policy.cli.app import Folder, Namespace, Output, command
from broker_policy.cli.delayed import tenant
from broker_policy.cli.keyboard import keys
from broker_policy.cli.table import shown
from broker_policy.embedded.layout import DEFAULT_FOLDER
from broker_policy.jetstream import JetStreamError
from broker_policy.overview import Look, Row, look, rows
from mas_nats.errors import Unavailable
from mas_nats.standard_streams import lead_nowhere
from mas_nats.wire.identity import DEFAULT_NAMESPACE

_COLUMNS = (
    "agent",
    "inst",
    "in/s",
    "out/s",
    "flight",
    "redeliv",
    "pending",
    "dead",
    "refused",
    "ref/s",
)
_WIDE = 160
"""Characters of a line where nobody says how wide it may be."""


@command("top", example="mas top --namespace shop --interval 2", tidies=True)
async def top(
    *,
    once: Annotated[bool, typer.Option("--once", help="Print it once, after one interval, and end.")] = False,
    interval: Annotated[
        float, typer.Option("--interval", min=0.2, max=3600, help="Seconds from one look to the next.")
    ] = 1.0,
    namespace: Namespace = DEFAULT_NAMESPACE,
    folder: Folder = DEFAULT_FOLDER,
    json: Annotated[bool, typer.Option("--json", help="Print a JSON line for each look.")] = False,
) -> None:
    """Show agents, their instances, rates, messages in flight and pending, dead letters and refusals.

    in/s: deliveries, repeated ones too; out/s: messages of the agent that were accepted; flight: delivered
    and not finished, and redeliv of them not for the first time; pending: not delivered yet.

    In a terminal it stays until q or Ctrl-C. In a pipe each look is printed below the one before. Refusals
    count from the start of the workers that run now.
    """
    out = Output(json=json)
    live = not (once or json) and sys.stdout.isatty()
    try:
        async with tenant(folder, namespace) as nc:
            looks = _looks(nc, interval)
            if live:
                await _live(looks, namespace)
                return
            async for before, now in looks:
                _print(out, namespace, before, now)
                if once:
                    return
    except JetStreamError as error:
        raise Unavailable(f"the streams of {namespace} do not answer: {error}") from None
    except BrokenPipeError:  # whoever read it has gone
        lead_nowhere(sys.stdout)


async def _looks(nc: Any, interval: float) -> AsyncIterator[tuple[Look, Look]]:
    before = await look(nc)
    while True:
        await asyncio.sleep(interval)
        now = await look(nc)
        yield before, now
        before = now


async def _live(looks: AsyncIterator[tuple[Look, Look]], namespace: str) -> None:
    watching = asyncio.current_task()
    asked = False

    def pressed(key: str) -> None:
        nonlocal asked
        if key in "qQ" and watching is not None and not asked:
            asked = True
            watching.cancel()

    with keys(pressed), Live(Text(f"looking at {namespace} ..."), screen=True, auto_refresh=False) as screen:
        try:
            async for before, now in looks:
                screen.update(_table(rows(before, now), namespace, now), refresh=True)
        except asyncio.CancelledError:
            if not asked:
                raise
            if watching is not None:
                watching.uncancel()


def _print(out: Output, namespace: str, before: Look, now: Look) -> None:
    found = rows(before, now)
    if out.json:
        out.line(
            {
                "namespace": namespace,
                "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
                "seconds": round(now.at - before.at, 3),
                "workers": len(now.tallies),
                "agents": [asdict(row) for row in found],
            }
        )
        return
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _WIDE)
    with console.capture() as printed:
        console.print(_table(found, namespace, now))
    sys.stdout.write(printed.get())
    sys.stdout.flush()


def _table(found: list[Row], namespace: str, now: Look) -> Table:
    workers = len(now.tallies)
    said = f"{workers} workers" if workers else "no worker answers"
    clock = datetime.now().astimezone().strftime("%H:%M:%S")
    title = f"{namespace}: {len(found)} agents, {said}, {clock}"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in _COLUMNS:
        table.add_column(column, justify="left" if column == "agent" else "right", no_wrap=True)
    for row in found:
        style = "red" if row.dead_letters or row.rate_refused else "dim" if not row.instances else ""
        table.add_row(*map(shown, _cells(row)), style=style)
    table.add_row("all", *_cells(_sum(found))[1:], style="bold")
    return table


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.agent,
        str(row.instances),
        _rate(row.rate_in),
        _rate(row.rate_out),
        str(row.in_flight),
        str(row.redelivered),
        str(row.pending),
        str(row.dead_letters),
        str(row.refused),
        _rate(row.rate_refused),
    )


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _sum(found: list[Row]) -> Row:
    return Row(
        "all",
        instances=sum(row.instances for row in found),
        rate_in=sum(row.rate_in or 0 for row in found),
        rate_out=sum(row.rate_out or 0 for row in found),
        in_flight=sum(row.in_flight for row in found),
        redelivered=sum(row.redelivered for row in found),
        pending=sum(row.pending for row in found),
        dead_letters=sum(row.dead_letters for row in found),
        refused=sum(row.refused for row in found),
        rate_refused=sum(row.rate_refused or 0 for row in found),
    )

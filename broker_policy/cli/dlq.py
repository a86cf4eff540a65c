"""``mas dlq``: what was not handled, and what to do with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import nats.errors
import orjson
import typer

from broker_policy.cli.app import ExitCode, Folder, Json, Namespace, Output, app, command, operator_name
from broker_policy.cli.times import when
from broker_policy.dead_letters import letters as stored
from broker_policy.dead_letters.letters import Letter, Wanted
from broker_policy.dead_letters.operations import Operations
from broker_policy.embedded.layout import DEFAULT_FOLDER, Broker, Layout
from broker_policy.jetstream import JetStreamError
from broker_policy.printable import legible
from broker_policy.tenants.connect import connect_tenant_admin
from broker_policy.tenants.material import ControllerKeys
from mas_nats.errors import ConfigurationError, MasError, Unavailable
from mas_nats.resilient import ResilientClient
from mas_nats.wire import headers
from mas_nats.wire.identity import DEFAULT_NAMESPACE, require_id

dlq = typer.Typer(help="List, show, redrive and purge dead letters.", no_args_is_help=True)
app.add_typer(dlq, name="dlq")

_SHOWN = 20
_PROGRESS_EVERY = 500

Sequences = Annotated[
    list[int] | None, typer.Argument(metavar="[SEQUENCE]...", min=1, help="Which ones, as `list` shows them.")
]
AgentOption = Annotated[str, typer.Option("--agent", help="Whose inbox they lay in.")]
Reason = Annotated[str, typer.Option("--reason", help="EXHAUSTED, AGENT_REMOVED, or an error's class.")]
Sender = Annotated[str, typer.Option("--sender", help="Who had sent them.")]
Type = Annotated[str, typer.Option("--type", help="The message type.")]
Since = Annotated[
    str,
    typer.Option(
        "--since", help="Dead since: 90s, 15m, 2h, 7d ago, or a time (ISO 8601, local without a zone)."
    ),
]
All = Annotated[bool, typer.Option("--all", help="Every dead letter of the namespace.")]
By = Annotated[str, typer.Option("--by", help="Your name for the audit; by default this system's.")]


@command("list", group=dlq, example="mas dlq list --agent helpdesk --since 2h")
async def list_(
    *,
    agent: AgentOption = "",
    reason: Reason = "",
    sender: Sender = "",
    message_type: Type = "",
    since: Since = "",
    after: Annotated[int, typer.Option("--after", min=0, help="Go on behind this sequence.")] = 0,
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most so many, the oldest first.")] = 50,
    namespace: Namespace = DEFAULT_NAMESPACE,
    folder: Folder = DEFAULT_FOLDER,
    json: Json = False,
) -> None:
    """List dead letters, the oldest first, without their bodies."""
    wanted = _wanted(agent, reason, sender, message_type, since, after)
    found: list[Letter] = []
    more = False
    async with _tenant(namespace, folder) as nc:
        async for letter in stored.letters(nc, wanted):
            if len(found) == limit:
                more = True
                break
            found.append(letter)
    rows = [letter.row() for letter in found]
    lines = [_line(row) for row in rows] or ["no dead letters"]
    if more:
        lines.append(f"… more: --after {rows[-1]['sequence']}")
    Output(json=json).result({"namespace": namespace, "dead_letters": rows, "more": more}, "\n".join(lines))


@command("show", group=dlq, example="mas dlq show 17 --body")
async def show(
    sequence: Annotated[int, typer.Argument(metavar="SEQUENCE", min=1, help="As `list` shows it.")],
    *,
    body: Annotated[
        bool, typer.Option("--body", help="The payload, too; it may hold what is not for every eye.")
    ] = False,
    namespace: Namespace = DEFAULT_NAMESPACE,
    folder: Folder = DEFAULT_FOLDER,
    json: Json = False,
) -> None:
    """Show one dead letter with its headers."""
    async with _tenant(namespace, folder) as nc:
        letter = await stored.find(nc, sequence)
    if letter is None:
        raise ConfigurationError(f"there is no dead letter {sequence} in namespace {namespace}")
    fields = dict(letter.fields)
    if headers.REPLY_TOKEN in fields:
        fields[headers.REPLY_TOKEN] = "(sealed)"  # worth something to its holder
    document = {**letter.row(), "headers": fields}
    lines = [f"{name}: {value}" for name, value in fields.items()]
    if body:
        document["body"] = _payload(letter.body)
        lines += ["", legible(letter.body.decode(errors="replace"))]
    else:
        lines.append(f"({len(letter.body)} bytes of body: --body shows them)")
    Output(json=json).result(document, "\n".join(lines))


@command("redrive", group=dlq, example="mas dlq redrive --agent helpdesk --reason EXHAUSTED --dry-run")
async def redrive(
    sequences: Sequences = None,
    *,
    agent: AgentOption = "",
    reason: Reason = "",
    sender: Sender = "",
    message_type: Type = "",
    since: Since = "",
    everything: All = False,
    to: Annotated[str, typer.Option("--to", help="Send them to this agent instead.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what policy would say.")] = False,
    by: By = "",
    namespace: Namespace = DEFAULT_NAMESPACE,
    folder: Folder = DEFAULT_FOLDER,
    json: Json = False,
) -> None:
    """Send dead letters again, in their sender's name and under today's policy, the oldest first.

    What policy refuses stays a dead letter. Repeating after an interruption is safe.
    """
    out = Output(json=json)
    if to:
        require_id(to, "agent id")
    wanted = _wanted(agent, reason, sender, message_type, since)
    async with _tenant(namespace, folder) as nc:
        chosen = await _chosen(nc, sequences, wanted, out, everything=everything)
        operations = Operations(nc, by or operator_name())
        asked = operations.redrive(chosen, to=to or None, dry_run=dry_run)
        rows = await _followed(asked, len(chosen), out)
    _told(out, namespace, rows, "would be redriven" if dry_run else "redriven")


@command("purge", group=dlq, example="mas dlq purge --agent helpdesk --since 7d --yes")
async def purge(
    sequences: Sequences = None,
    *,
    agent: AgentOption = "",
    reason: Reason = "",
    sender: Sender = "",
    message_type: Type = "",
    since: Since = "",
    everything: All = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    by: By = "",
    namespace: Namespace = DEFAULT_NAMESPACE,
    folder: Folder = DEFAULT_FOLDER,
    json: Json = False,
) -> None:
    """Remove dead letters for good. The audit keeps who removed which, and nothing of their bodies."""
    out = Output(json=json)
    if json and not yes:
        raise ConfigurationError("with --json nobody is asked: say --yes")
    wanted = _wanted(agent, reason, sender, message_type, since)
    async with _tenant(namespace, folder) as nc:
        chosen = await _chosen(nc, sequences, wanted, out, everything=everything)
        if chosen and not yes:
            typer.confirm(f"Remove {len(chosen)} dead letters of {namespace} for good?", abort=True, err=True)
        rows = await _followed(Operations(nc, by or operator_name()).purge(chosen), len(chosen), out)
    _told(out, namespace, rows, "purged")


@asynccontextmanager
async def _tenant(namespace: str, folder: Path) -> AsyncIterator[ResilientClient]:
    require_id(namespace, "namespace")
    layout = Layout(folder.absolute())
    endpoint = Broker.read(layout).connection(layout, "controller")
    nc = await connect_tenant_admin(endpoint, ControllerKeys.load(layout.keys), namespace, name="dlq")
    try:
        yield nc
    except JetStreamError as error:
        raise MasError(f"the dead letters of {namespace} cannot be read: {error}") from None
    except nats.errors.Error as error:
        raise Unavailable(f"the dead letters do not answer ({type(error).__name__})") from None
    finally:
        await nc.close()


def _wanted(agent: str, reason: str, sender: str, message_type: str, since: str, after: int = 0) -> Wanted:
    if agent:
        require_id(agent, "agent id")
    return Wanted(agent, reason, sender, message_type, when(since) if since else 0, after)


async def _chosen(
    nc: ResilientClient, sequences: Sequence[int] | None, wanted: Wanted, out: Output, *, everything: bool
) -> list[int]:
    """What is meant: the sequences named, or those that a filter wants, or all."""
    filtered = wanted != Wanted()
    if bool(sequences) + filtered + everything != 1:
        raise ConfigurationError("say which: sequences, or a filter such as --agent, or --all")
    if sequences:
        return list(dict.fromkeys(sequences))
    chosen = [letter.sequence async for letter in stored.letters(nc, wanted)]
    out.progress(f"{len(chosen)} dead letters")
    return chosen


async def _followed(rows: AsyncIterator[dict[str, Any]], total: int, out: Output) -> list[dict[str, Any]]:
    found = []
    async for row in rows:
        found.append(row)
        if len(found) % _PROGRESS_EVERY == 0:
            out.progress(f"{len(found)} of {total}")
    return found


def _told(out: Output, namespace: str, rows: list[dict[str, Any]], done: str) -> None:
    count = Counter(row["status"] for row in rows)
    kept = [row for row in rows if row["status"] == "kept"]
    lines = [f"{count[done]} {done}"]
    if count["gone"]:
        lines.append(f"{count['gone']} are not there (any more)")
    if kept:
        lines.append(f"{len(kept)} stay:")
        lines += [f"  {row['sequence']}: {row['decision']}, {row.get('reason', '')}" for row in kept[:_SHOWN]]
        if len(kept) > _SHOWN:
            lines.append(f"  … and {len(kept) - _SHOWN} more (--json shows all)")
        lines += sorted({row["fix"] for row in kept if row.get("fix")})
    document = {
        "namespace": namespace,
        done.replace(" ", "_"): count[done],
        "kept": len(kept),
        "gone": count["gone"],
        "dead_letters": rows,
    }
    out.result(document, "\n".join(lines))
    if kept:
        raise typer.Exit(ExitCode.FAILED)


def _payload(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return body.decode(errors="replace")


def _line(row: dict[str, Any]) -> str:
    died = datetime.fromtimestamp(row["died"] / 1000, UTC).isoformat(timespec="seconds")
    way = f"{row['sender']} → {row['agent']}"
    attempts = f" after {row['attempts']} attempts" if row["attempts"] > 1 else ""
    error = row["error"].removeprefix(f"{row['reason']}: ")
    return f"{row['sequence']:>6} {died} {way:<28} {row['type']:<12} {row['reason']}{attempts}: {error}"

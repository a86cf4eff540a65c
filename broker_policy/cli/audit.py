"""``mas audit``: verify, export and query what was decided."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import nats.errors
import typer
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from nats.aio.client import Client
from redis.asyncio import Redis
from redis.exceptions import RedisError

from broker_policy.audit import loss
from broker_policy.audit.candidates import Span
from broker_policy.audit.checkpoint import read_public_key
from broker_policy.audit.checkpoint_stream import CheckpointStream
from broker_policy.audit.compliance import compliance
from broker_policy.audit.decision_files import DecisionFormat, write_decisions
from broker_policy.audit.export import export as export_to
from broker_policy.audit.export import verify_file
from broker_policy.audit.findings import Report
from broker_policy.audit.key_history import CheckpointKeys
from broker_policy.audit.query import Question, answers, ask
from broker_policy.audit.retention import Retention
from broker_policy.audit.seal import trusted
from broker_policy.audit.segments import Past, Segments
from broker_policy.audit.store import Store
from broker_policy.audit.time_span import span_of
from broker_policy.audit.verify import OVERDUE
from broker_policy.audit.verify import verify as verify_store
from broker_policy.audit.waiting import waiting
from broker_policy.cli import audit_report
from broker_policy.cli.app import ExitCode, Folder, Json, Namespace, Output, app, command
from broker_policy.cli.audit_question import (
    Became,
    Decided,
    MessageId,
    SegmentsOption,
    Sender,
    Since,
    Target,
    Until,
    Violation,
    question,
)
from broker_policy.cli.audit_report import ReportFormat
from broker_policy.cli.times import when
from broker_policy.embedded.layout import DEFAULT_FOLDER, Broker, Layout
from broker_policy.jetstream import JetStreamError
from broker_policy.policy.store import PolicyStore
from broker_policy.printable import told
from broker_policy.tenants.connect import connect_control_admin, connect_tenant_admin
from broker_policy.tenants.material import ControllerKeys, PublicMaterial, SignerKeys
from mas_nats.errors import ConfigurationError, MasError, Unavailable
from mas_nats.manifest.mistakes import guess
from mas_nats.wire.identity import DEFAULT_NAMESPACE, require_id

audit = typer.Typer(help="Verify, export and query the audit.", no_args_is_help=True)
app.add_typer(audit, name="audit")

_SHOWN = 20
_REASON = 200
_FIXES = "Compare with a backup or an export, and find out who could write to Redis or the log."


@dataclass(frozen=True, slots=True)
class _Sources:
    """The two stores of one namespace's audit."""

    store: Store
    checkpoints: CheckpointStream
    public: PublicMaterial
    layout: Layout

    async def waiting(self, out: Output) -> dict[str, Any] | None:
        """What is decided and not in the audit yet, as JSON; warns of much. None where nobody says."""
        keys = ControllerKeys.load(self.layout.keys)
        endpoint = Broker.read(self.layout).connection(self.layout, "controller")
        try:
            tenant = await connect_tenant_admin(endpoint, keys, self.store.layout.namespace, name="audit")
            try:
                behind = await waiting(self.store, tenant)
            finally:
                await tenant.close()
        except (MasError, JetStreamError, OSError, nats.errors.Error, RedisError) as error:
            out.warn(f"nobody says what is not in the audit yet ({type(error).__name__}: {error})")
            return None
        if behind.long:
            out.warn(f"not in the audit yet: {behind}; mas doctor says more")
        return {"records": behind.records, "oldest_seconds": round(behind.age, 1)}


@asynccontextmanager
async def audit_redis(layout: Layout) -> AsyncIterator[Redis]:
    """The audit's Redis.

    Raises:
        Unavailable: it does not answer.

    """
    redis = Redis.from_url(Broker.read(layout).redis_url(), socket_timeout=30, socket_connect_timeout=2)
    try:
        yield redis
    except (RedisError, JetStreamError, nats.errors.Error) as error:
        raise Unavailable(f"the audit's store does not answer ({type(error).__name__}): {error}") from None
    finally:
        await redis.aclose()


@asynccontextmanager
async def _sources(folder: Path, namespace: str) -> AsyncIterator[_Sources]:
    layout = Layout(folder.resolve())
    async with audit_redis(layout) as redis:
        connection = Broker.read(layout).connection(layout, "controller")
        nc = await connect_control_admin(connection, ControllerKeys.load(layout.keys), name="audit")
        try:
            public = PublicMaterial.load(layout.keys)
            store = Store(redis, namespace)
            await _require_known(store, nc)
            yield _Sources(store, CheckpointStream(nc, namespace), public, layout)
        finally:
            await nc.close()


@asynccontextmanager
async def _asked(folder: Path, namespace: str) -> AsyncIterator[Store]:
    """The entries of one namespace, for a question that Redis alone answers.

    Raises: as ``audit_redis`` and ``_require_known``.
    """
    layout = Layout(folder.resolve())
    async with audit_redis(layout) as redis:
        store = Store(redis, namespace)
        if not (await store.head()).index:  # else nobody need be asked whether there is such a namespace
            async with _sources(folder, namespace):
                pass
        yield store


async def _require_known(store: Store, nc: Client) -> None:
    """Check that there is such a namespace, or an audit of one that was: of a mistyped one nothing is said.

    Raises:
        ConfigurationError: neither policy, nor Redis, nor a checkpoint knows it.

    """
    namespace = require_id(store.layout.namespace, "namespace")
    if (await store.head()).index:
        return
    with contextlib.suppress(ValueError):  # damaged, but there
        if (await CheckpointStream(nc, namespace).last())[0] is None:
            await _require_in_policy(namespace, nc)


async def _require_in_policy(namespace: str, nc: Client) -> None:
    names = [each.document.namespace for each in await PolicyStore(nc).namespaces()]
    if namespace not in names:
        raise ConfigurationError(
            f"there is no namespace {namespace!r}, and no audit of one{guess(namespace, names)}; "
            "`mas get mas` lists those that are"
        )


@command("verify", group=audit, example="mas audit verify --namespace default")
async def verify(
    *,
    namespace: Namespace = DEFAULT_NAMESPACE,
    file: Annotated[Path | None, typer.Option("--file", help="Verify an exported file instead.")] = None,
    public_key: Annotated[
        Path | None, typer.Option("--public-key", help="The checkpoint key's public half (checkpoint.pub).")
    ] = None,
    overdue: Annotated[
        float, typer.Option("--overdue", help="Seconds after which a decision must have an outcome.")
    ] = OVERDUE,
    segments: SegmentsOption = None,
    folder: Folder = DEFAULT_FOLDER,
    json: Json = False,
) -> None:
    """Check the whole chain, its indexes and outcomes, against itself and against signed checkpoints.

    What was sealed into segments and left Redis is checked in the folder --segments; without it, the segments
    that were not examined are named.
    """
    out = Output(json=json)
    sealed = None if segments is None else Segments(segments)
    behind: dict[str, Any] = {}
    if file is not None:
        report = verify_file(file, _public_key(public_key, folder), overdue=overdue, segments=sealed)
    else:
        async with _sources(folder, namespace) as sources:
            keys = _checkpoint_keys(sources.public, public_key)
            report = await verify_store(
                sources.store, sources.checkpoints.standing(keys), keys, overdue=overdue, segments=sealed
            )
            behind["waiting"] = await sources.waiting(out)
    out.result(report.document() | behind, _told(report))
    if not report.intact:
        raise typer.Exit(ExitCode.ALTERED)


class _Format(StrEnum):
    CHAIN = "chain"
    CSV = "csv"
    JSONL = "jsonl"


@command("export", group=audit, example="mas audit export audit.jsonl")
async def export(
    file: Annotated[Path, typer.Argument(help="Where to write.")],
    *,
    form: Annotated[
        _Format,
        typer.Option("--format", help="chain: everything, verifies by itself; csv, jsonl: decisions."),
    ] = _Format.CHAIN,
    sender: Sender = None,
    target: Target = None,
    decision: Decided = None,
    violation: Violation = None,
    outcome: Became = None,
    message_id: MessageId = None,
    since: Since = None,
    until: Until = None,
    segments: SegmentsOption = None,
    namespace: Namespace = DEFAULT_NAMESPACE,
    folder: Folder = DEFAULT_FOLDER,
    json: Json = False,
) -> None:
    """Write the audit to a file: the whole chain with its checkpoints, or decisions and what became of them.

    Decisions (csv, jsonl) may be chosen as for `mas audit query`, and come oldest first.
    """
    asked = question(sender, target, decision, violation, outcome, message_id, since, until)
    if form is not _Format.CHAIN:
        async with _asked(folder, namespace) as store:
            past = await past_of(store, segments, folder, Output(json=json))
            found = answers(store, asked, oldest_first=True, past=past)
            count = await write_decisions(found, file, DecisionFormat(form.value))
        what = "decisions"
    elif asked != Question():
        raise ConfigurationError(
            "a chain is exported whole, else it could not be verified: --format csv or jsonl"
        )
    else:
        async with _sources(folder, namespace) as sources:
            history = sources.public.checkpoint_history
            checkpoints = sources.checkpoints.standing(sources.public.checkpoint_keys)
            count = await export_to(sources.store, checkpoints, file, key_history=history)
        what = "entries"
    document = {"namespace": namespace, "file": str(file), what: count}
    Output(json=json).result(document, f"{count} {what} in {file}")


@command("report", group=audit, example="mas audit report --from 30d --format markdown")
async def report(
    *,
    since: Annotated[str, typer.Option("--from", help="A time (ISO 8601), or how long ago: 30d.")],
    until: Annotated[str | None, typer.Option("--to", help="As --from; default: now.")] = None,
    form: Annotated[
        ReportFormat, typer.Option("--format", help="text, markdown or json.")
    ] = ReportFormat.TEXT,
    segments: SegmentsOption = None,
    namespace: Namespace = DEFAULT_NAMESPACE,
    folder: Folder = DEFAULT_FOLDER,
    json: Json = False,
) -> None:
    """Account for a range of time: decisions, refusals, findings, acts of operators; and verify the chain.

    The chain is verified whole. Exit status 7 when it does not verify.
    """
    first, last = when(since), int(time.time() * 1000) if until is None else when(until)
    if first > last:
        raise ConfigurationError("--from is after --to")
    out = Output(json=json or form is ReportFormat.JSON)
    async with _sources(folder, namespace) as sources:
        keys = sources.public.checkpoint_keys
        sealed = None if segments is None else Segments(segments)
        standing = sources.checkpoints.standing(keys)
        verified = await verify_store(sources.store, standing, keys, segments=sealed)
        past = await past_of(sources.store, segments, folder, out)
        document = (await compliance(sources.store, first, last, past)).document()
        document["verification"] = verified.document() | {"waiting": await sources.waiting(out)}
    told_as = audit_report.markdown if form is ReportFormat.MARKDOWN else audit_report.text
    out.result(document, told_as(document))
    if not verified.intact:
        raise typer.Exit(ExitCode.ALTERED)


@command("seal", group=audit, example="mas audit seal --before 90d --to /archive/audit --remove")
async def seal(
    *,
    before: Annotated[
        str, typer.Option("--before", help="What is older: a time (ISO 8601) or an age, such as 90d.")
    ],
    to: Annotated[Path, typer.Option("--to", help="The folder of the segments.")],
    remove: Annotated[
        bool, typer.Option("--remove", help="Then remove from Redis what is sealed and older.")
    ] = False,
    namespace: Namespace = DEFAULT_NAMESPACE,
    folder: Folder = DEFAULT_FOLDER,
    json: Json = False,
) -> None:
    """Write what lies behind a checkpoint into signed, compressed files; with --remove it leaves Redis then.

    Needs the checkpoint key. May be interrupted and repeated at any point. `mas audit verify --segments`
    checks files and Redis as one chain.
    """
    signing = SignerKeys.load(Layout(folder.resolve()).keys).checkpoint
    out = Output(json=json)
    async with _sources(folder, namespace) as sources:
        store, keys = sources.store, sources.public.checkpoint_keys
        whole = Span((await store.removed()).index + 1, (await store.head()).index)
        last = (await span_of(store, whole, when(before), None)).first - 1
        work = Retention(store, sources.checkpoints, keys, signing, Segments(to), tell=out.progress)
        made = await work.seal(last)
        removed = await work.remove(last) if remove else (await store.removed()).index
    rows = [each.row() for each in made]
    document = {"namespace": namespace, "folder": str(to), "sealed": rows, "removed_up_to": removed}
    entries = sum(each.last - each.first + 1 for each in made)
    gone = f"entries up to {removed} are in segments only" if removed else "all entries are in Redis"
    out.result(document, f"sealed {entries} entries in {len(rows)} segments in {to}; {gone}")


@command("accept-loss", group=audit, example="mas audit accept-loss --reason 'disk of redis-1 lost' --yes")
async def accept_loss(
    *,
    reason: Annotated[str, typer.Option("--reason", help="Why; it stands in the audit for ever.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do it; without, only say what is lost.")] = False,
    namespace: Namespace = DEFAULT_NAMESPACE,
    folder: Folder = DEFAULT_FOLDER,
    json: Json = False,
) -> None:
    """Accept that Redis lost entries that were signed, so that the audit is signed onward.

    Names what is lost in an entry and in a signed checkpoint; nothing hides it afterwards. Needs the
    checkpoint key. Prefer a backup that still has the entries.
    """
    if not 0 < len(reason) <= _REASON:
        raise ConfigurationError(f"the reason must have 1 to {_REASON} characters")
    signing = SignerKeys.load(Layout(folder.resolve()).keys).checkpoint
    async with _sources(folder, namespace) as sources:
        missing = await loss.find(sources.store, sources.checkpoints, sources.public.checkpoint_keys)
        what = f"entries {missing.first} to {missing.last} of {namespace}"
        if yes:
            await loss.accept(sources.store, sources.checkpoints, signing, missing, reason)
    document = {"namespace": namespace, "first": missing.first, "last": missing.last, "accepted": yes}
    text = f"{what} are lost: accepted, and signed onward" if yes else f"{what} are lost; accept with --yes"
    Output(json=json).result(document, text)
    if not yes:
        raise typer.Exit(ExitCode.FAILED)


@command("query", group=audit, example="mas audit query --sender planner --decision AUTHZ_DENIED --from 2h")
async def query(
    *,
    sender: Sender = None,
    target: Target = None,
    decision: Decided = None,
    violation: Violation = None,
    outcome: Became = None,
    message_id: MessageId = None,
    since: Since = None,
    until: Until = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most so many.")] = 50,
    oldest: Annotated[bool, typer.Option("--oldest-first", help="Instead of the newest first.")] = False,
    cursor: Annotated[
        int | None, typer.Option("--cursor", help="Go on after this index: `next` of the page before.")
    ] = None,
    segments: SegmentsOption = None,
    namespace: Namespace = DEFAULT_NAMESPACE,
    folder: Folder = DEFAULT_FOLDER,
    json: Json = False,
) -> None:
    """List decisions and what became of them, the newest first. All conditions must hold."""
    asked = question(sender, target, decision, violation, outcome, message_id, since, until)
    async with _asked(folder, namespace) as store:
        past = await past_of(store, segments, folder, Output(json=json))
        found = await ask(store, asked, limit=limit, cursor=cursor, oldest_first=oldest, past=past)
    rows = [answer.row() for answer in found]
    following = found[-1].index if len(found) == limit else None
    lines = [_line(row) for row in rows]
    if following is not None:
        lines.append(f"more: --cursor {following}")
    document = {"namespace": namespace, "decisions": rows, "next": following}
    Output(json=json).result(document, "\n".join(lines))


async def past_of(store: Store, segments: Path | None, folder: Path, out: Output) -> Past | None:
    """What left Redis, in the folder that was given; says so when none was."""
    removed = (await store.removed()).index
    if segments is None:
        if removed:
            out.warn(f"entries up to {removed} are in sealed segments and not looked at: give --segments")
        return None
    keys = PublicMaterial.load(Layout(folder.resolve()).keys).checkpoint_keys
    seals = trusted(store.layout.namespace, await store.seals(), keys)
    return Past(Segments(segments), tuple(seal for seal in seals if seal.first <= removed))


def _checkpoint_keys(public: PublicMaterial, path: Path | None) -> CheckpointKeys:
    """Those of the installation, or those that the key in ``path`` vouches for."""
    if path is None:
        return public.checkpoint_keys
    key = read_public_key(path.read_bytes())
    history = public.checkpoint_history
    return CheckpointKeys.decode(history, key) if history else CheckpointKeys(key)


def _public_key(path: Path | None, folder: Path) -> Ed25519PublicKey:
    if path is None:
        return PublicMaterial.load(Layout(folder.resolve()).keys).checkpoint
    return read_public_key(path.read_bytes())


def _told(report: Report) -> str:
    lines = [
        f"{report.entries} entries, {report.decisions} decisions, {report.checkpoints} checkpoints",
        f"signed up to entry {report.signed_index} at {told(report.signed_time)}"
        if report.signed_index
        else "no signed checkpoint covers any entry yet",
    ]
    if report.unexamined:
        lines.append(
            f"entries up to {report.unexamined[-1]['last']} are in sealed segments: NOT EXAMINED here"
        )
        lines += [f"  {each['file']}" for each in report.unexamined[:_SHOWN]]
        lines.append("  give their folder with --segments")
    lines += [
        f"lost: entries {lost['first']} to {lost['last']}, accepted because: {lost['reason']}"
        for lost in report.losses
    ]
    if report.intact:
        return "\n".join([*lines, f"the audit of {report.namespace} is intact"])
    count = len(report.findings) + report.more
    lines.append(f"THE AUDIT OF {report.namespace} IS NOT INTACT: {count} findings")
    lines += [f"  {finding.kind}: {finding.text}" for finding in report.findings[:_SHOWN]]
    if count > _SHOWN:
        lines.append(f"  … and {count - _SHOWN} more (--json shows a thousand)")
    return "\n".join([*lines, _FIXES])


def _line(row: dict[str, Any]) -> str:
    way = f"{row['sender']} → {row['target']}"
    by = f" by {row['by']}" if row["by"] else ""
    return (
        f"{row['index']:>8} {told(row['time'])} {row['op']:<8} {way:<32} {row['decision']:<14} "
        f"{row['outcome']:<12} {row['rule']:<18} {row['message_id']}{by}"
    )

"""``mas delayed``: messages that wait until they are due."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import nats.errors
import nats.js.errors
import orjson
import typer

from broker_policy.cli.app import ExitCode, Folder, Json, Namespace, Output, app, command, operator_name
from broker_policy.cli.dlq import By
from broker_policy.delayed.feed import Missed, listen
from broker_policy.delayed.queue import Waiting
from broker_policy.embedded.layout import DEFAULT_FOLDER, Broker, Layout
from broker_policy.printable import told
from broker_policy.tenants.connect import connect_tenant_admin
from broker_policy.tenants.material import ControllerKeys
from mas_nats.errors import Unavailable, error_of
from mas_nats.resilient import ResilientClient
from mas_nats.wire import subjects
from mas_nats.wire.identity import DEFAULT_NAMESPACE, require_id
from mas_nats.wire.subjects import AdminOp
from mas_nats.wire.verdict import Verdict

_ANSWER = 60.0
"""Seconds to wait for a worker, which waits less for its stores."""

delayed = typer.Typer(help="List and cancel messages that wait until they are due.", no_args_is_help=True)
app.add_typer(delayed, name="delayed")


@command("list", group=delayed, example="mas delayed list --sender planner")
async def list_(
    *,
    sender: Annotated[str | None, typer.Option("--sender", help="Only those of this agent.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most so many, the next due.")] = 50,
    namespace: Namespace = DEFAULT_NAMESPACE,
    folder: Folder = DEFAULT_FOLDER,
    json: Json = False,
) -> None:
    """List what waits, the next due first; never a payload."""
    pattern = "*" if sender is None else require_id(sender, "sender")
    waiting: list[Waiting] = []
    async with tenant(folder, namespace) as nc, aclosing(listen(nc, sender=pattern)) as messages:
        async for heard in messages:
            if heard.waiting is not None:
                waiting.append(heard.waiting)
            if not heard.more:
                break
    waiting.sort(key=lambda one: (one.due, one.sequence))
    rows = [{**asdict(one), "due": told(one.due), "sent": told(one.sent)} for one in waiting[:limit]]
    lines = [
        f"{row['due']} {row['sender']} → {row['target']} {row['type']} {row['size']} B {row['message_id']}"
        for row in rows
    ]
    lines.append(f"{len(waiting)} waiting" + (f", {limit} shown" if len(waiting) > limit else ""))
    Output(json=json).result(
        {"namespace": namespace, "waiting": len(waiting), "messages": rows}, "\n".join(lines)
    )


@command("cancel", group=delayed, example="mas delayed cancel planner 5f0c…")
async def cancel(
    sender: Annotated[str, typer.Argument(metavar="SENDER", help="The agent that sent it.")],
    message_id: Annotated[str, typer.Argument(metavar="ID", help="The message id, as `list` shows it.")],
    *,
    by: By = "",
    namespace: Namespace = DEFAULT_NAMESPACE,
    folder: Folder = DEFAULT_FOLDER,
    json: Json = False,
) -> None:
    """Take a delayed message back, as an operator; exit status 1 when it was too late."""
    question = {"by": by or operator_name(), "sender": require_id(sender, "sender"), "message_id": message_id}
    async with tenant(folder, namespace) as nc:
        answer = await nc.request(subjects.admin(AdminOp.WITHDRAW), orjson.dumps(question), timeout=_ANSWER)
    verdict = Verdict.decode(answer.data)
    if not verdict.ok:
        raise error_of(verdict)
    cancelled = bool(verdict.result.get("cancelled"))
    text = "cancelled" if cancelled else "nothing waits under this id: it was released, or never held"
    Output(json=json).result({"message_id": message_id, "sender": sender, "cancelled": cancelled}, text)
    if not cancelled:
        raise typer.Exit(ExitCode.FAILED)


@asynccontextmanager
async def tenant(folder: Path, namespace: str) -> AsyncIterator[ResilientClient]:
    """A connection inside the tenant account; what it meets is raised as an error for people."""
    layout = Layout(folder.absolute())
    connection = Broker.read(layout).connection(layout, "controller")
    nc = await connect_tenant_admin(connection, ControllerKeys.load(layout.keys), namespace)
    try:
        yield nc
    except nats.errors.NoRespondersError:
        raise Unavailable("no policy worker is there: start one (mas up), then repeat") from None
    except (nats.errors.Error, nats.js.errors.Error, Missed) as error:
        raise Unavailable(
            f"no answer from {namespace} ({type(error).__name__}): repeat, it is safe"
        ) from None
    finally:
        await nc.close()

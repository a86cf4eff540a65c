"""``mas delayed``: messages that wait until they are due."""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import asdict
from typing import Annotated

import nats.errors
import nats.js.errors
import typer

from broker_policy.cli.app import Folder, Json, Namespace, Output, app, command
from broker_policy.cli.messages import Sender, as_agent
from broker_policy.cli.times import told
from broker_policy.delayed.feed import Missed, listen
from broker_policy.delayed.queue import Waiting
from broker_policy.embedded.layout import DEFAULT_FOLDER, Broker, Layout
from broker_policy.tenants.connect import connect_tenant_admin
from broker_policy.tenants.material import ControllerKeys
from mas_nats.errors import Unavailable
from mas_nats.wire.identity import DEFAULT_NAMESPACE, require_id

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
    layout = Layout(folder.absolute())
    connection = Broker.read(layout).connection(layout, "controller")
    pattern = "*" if sender is None else require_id(sender, "sender")
    nc = await connect_tenant_admin(connection, ControllerKeys.load(layout.keys), namespace)
    waiting: list[Waiting] = []
    try:
        async with aclosing(listen(nc, sender=pattern)) as messages:
            async for heard in messages:
                if heard.waiting is not None:
                    waiting.append(heard.waiting)
                if not heard.more:
                    break
    except (nats.errors.Error, nats.js.errors.Error, Missed) as error:
        text = f"the delayed messages of {namespace} cannot be read: {error or type(error).__name__}"
        raise Unavailable(text) from None
    finally:
        await nc.close()
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


@command("cancel", group=delayed, example="mas delayed cancel --as planner 5f0c…")
async def cancel(
    message_id: Annotated[str, typer.Argument(metavar="ID", help="The message id.")],
    *,
    sender: Sender,
    timeout: Annotated[float, typer.Option("--timeout", help="Seconds to wait for the answer.")] = 30.0,
    namespace: Namespace = DEFAULT_NAMESPACE,
    folder: Folder = DEFAULT_FOLDER,
    json: Json = False,
) -> None:
    """Take a delayed message back in its sender's name; exit status 1 when it was too late."""
    async with as_agent(sender, namespace, folder) as agent:
        cancelled = await agent.cancel(message_id, timeout=timeout)
    text = "cancelled" if cancelled else "nothing waits under this id: it was released, or never held"
    Output(json=json).result({"message_id": message_id, "sender": sender, "cancelled": cancelled}, text)
    if not cancelled:
        raise typer.Exit(1)

"""``mas breaker``: targets that are left alone because their handlers failed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from broker_policy.cli.app import Folder, Json, Namespace, Output, app, command, operator_name
from broker_policy.cli.delayed import tenant
from broker_policy.cli.dlq import By
from broker_policy.embedded.layout import DEFAULT_FOLDER
from mas_nats.errors import error_of
from mas_nats.wire import subjects
from mas_nats.wire.identity import DEFAULT_NAMESPACE, require_id
from mas_nats.wire.subjects import AdminOp
from mas_nats.wire.verdict import Verdict

_ANSWER = 15.0
"""Seconds to wait for a worker."""

breaker = typer.Typer(help="List and reset the circuits of failing agents.", no_args_is_help=True)
app.add_typer(breaker, name="breaker")


@command("list", group=breaker, example="mas breaker list --json")
async def list_(
    *, namespace: Namespace = DEFAULT_NAMESPACE, folder: Folder = DEFAULT_FOLDER, json: Json = False
) -> None:
    """List the circuits that are not closed."""
    found = await circuits(folder, namespace)
    lines = [
        f"{row['agent']} {row['state']}"
        + (f", tried in {row['retry_after']:g} s" if row["retry_after"] else "")
        + (f", {row['probes']} probes under way, {row['handled']} handled" if row["probes"] else "")
        for row in found
    ]
    lines.append(f"{len(lines)} not closed")
    Output(json=json).result({"namespace": namespace, "circuits": found}, "\n".join(lines))


@command("reset", group=breaker, example="mas breaker reset billing")
async def reset(
    agent: Annotated[str, typer.Argument(metavar="AGENT", help="The agent whose circuit to close.")],
    *,
    by: By = "",
    namespace: Namespace = DEFAULT_NAMESPACE,
    folder: Folder = DEFAULT_FOLDER,
    json: Json = False,
) -> None:
    """Close a circuit and forget its failures: messages pass at once."""
    question = {"by": by or operator_name(), "agent": require_id(agent, "agent")}
    result = await _ask(folder, namespace, AdminOp.RESET, question)
    Output(json=json).result({"namespace": namespace, **result}, f"closed; it was {result['was']}")


async def circuits(folder: Path, namespace: str) -> list[dict[str, Any]]:
    """The circuits that are not closed, as a worker of a running broker knows them.

    Raises:
        MasError: there is no broker, or no worker that answers.

    """
    answer = await _ask(folder, namespace, AdminOp.CIRCUITS, {"by": operator_name()})
    found: list[dict[str, Any]] = answer["circuits"]
    return found


async def _ask(folder: Path, namespace: str, op: AdminOp, question: dict[str, str]) -> dict[str, Any]:
    async with tenant(folder, namespace) as nc:
        answer = await nc.request(subjects.admin(op), orjson.dumps(question), timeout=_ANSWER)
    verdict = Verdict.decode(answer.data)
    if not verdict.ok:
        raise error_of(verdict)
    return verdict.result

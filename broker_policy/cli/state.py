"""``mas state``: an agent's durable state, read and written by an operator."""

from __future__ import annotations

import importlib
import secrets
import sys
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from pydantic import BaseModel

from broker_policy.cli.app import Folder, Json, Namespace, Output, app, command, operator_name
from broker_policy.cli.delayed import tenant
from broker_policy.cli.dlq import By
from broker_policy.cli.payload import payload_of
from broker_policy.embedded.layout import DEFAULT_FOLDER
from mas_nats.errors import ConfigurationError, StateCorrupt, error_of
from mas_nats.state import StateShape
from mas_nats.wire import subjects
from mas_nats.wire.identity import DEFAULT_NAMESPACE, require_id
from mas_nats.wire.subjects import AdminOp
from mas_nats.wire.verdict import Verdict

_ANSWER = 30.0
"""Seconds to wait for a worker, which waits less for its stores."""

state = typer.Typer(help="Read, set and reset the durable state of agents.", no_args_is_help=True)
app.add_typer(state, name="state")

AgentId = Annotated[str, typer.Argument(metavar="AGENT", help="Whose state.")]
Revision = Annotated[
    int | None,
    typer.Option("--revision", min=0, help="Only if this is the current revision; 0: only if there is none."),
]


@command("get", group=state, example="mas state get helpdesk --json")
async def get(
    agent: AgentId,
    *,
    by: By = "",
    namespace: Namespace = DEFAULT_NAMESPACE,
    folder: Folder = DEFAULT_FOLDER,
    json: Json = False,
) -> None:
    """Print an agent's state."""
    stored = await _ask(folder, namespace, agent, by, {"op": "get"})
    if stored["corrupt"]:
        raise StateCorrupt(
            f"what is stored for {agent} at revision {stored['revision']} is no JSON object: see it with "
            f"nats kv get {subjects.STATE_BUCKET} {agent}, replace it with mas state set or reset"
        )
    document = {"agent": agent, "namespace": namespace, **{key: stored[key] for key in ("revision", "value")}}
    value = stored["value"]
    text = orjson.dumps(value, option=orjson.OPT_INDENT_2).decode() if value is not None else "no state"
    Output(json=json).result(document, text)


@command("set", group=state, example="""mas state set helpdesk '{"answered": 0}' --model desk:DeskState""")
async def set_(
    agent: AgentId,
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA", help="The whole state, a JSON object; @FILE, or - for standard input."
        ),
    ],
    *,
    revision: Revision = None,
    model: Annotated[
        str,
        typer.Option(
            "--model",
            metavar="MODULE:CLASS",
            help="The agent's state model, or the agent's class, which is imported: DATA must fit it.",
        ),
    ] = "",
    by: By = "",
    namespace: Namespace = DEFAULT_NAMESPACE,
    folder: Folder = DEFAULT_FOLDER,
    json: Json = False,
) -> None:
    """Replace an agent's state, through data-loss prevention and audit.

    Fails when somebody else writes meanwhile. With --model fields that are left out get their defaults, and
    unknown fields and wrong types are refused; without, only size and form are checked. A running agent
    learns of it with its next update, which raises StateConflict once.
    """
    out = Output(json=json)
    value = payload_of(data)
    if model:
        shape: StateShape[Any] = StateShape(_model(model))
        value = shape.merge(shape.initial().value, value).value
    else:
        out.warn("not checked against the agent's model: name it with --model")
    replaced = revision if revision is not None else await _revision(folder, namespace, agent, by)
    question = {"op": "put", "revision": replaced, "value": value}
    now = (await _ask(folder, namespace, agent, by, question))["revision"]
    document = {"agent": agent, "namespace": namespace, "replaced": replaced, "revision": now}
    out.result(document, f"{agent} is at revision {now}, was at {replaced}")


@command("reset", group=state, example="mas state reset helpdesk --revision 7")
async def reset(
    agent: AgentId,
    *,
    revision: Revision = None,
    by: By = "",
    namespace: Namespace = DEFAULT_NAMESPACE,
    folder: Folder = DEFAULT_FOLDER,
    json: Json = False,
) -> None:
    """Delete an agent's state: it begins with its model's defaults again. Fails as `set` does."""
    replaced = revision if revision is not None else await _revision(folder, namespace, agent, by)
    question = {"op": "delete", "revision": replaced}
    now = (await _ask(folder, namespace, agent, by, question))["revision"]
    document = {"agent": agent, "namespace": namespace, "replaced": replaced, "revision": now}
    Output(json=json).result(document, f"{agent} has no state, was at revision {replaced}")


async def _revision(folder: Path, namespace: str, agent: str, by: str) -> int:
    return int((await _ask(folder, namespace, agent, by, {"op": "get"}))["revision"])


async def _ask(folder: Path, namespace: str, agent: str, by: str, question: dict[str, Any]) -> dict[str, Any]:
    body = {
        "by": by or operator_name(),
        "agent": require_id(agent, "agent"),
        "id": secrets.token_hex(16),
        "state": question,
    }
    async with tenant(folder, namespace) as nc:
        answer = await nc.request(subjects.admin(AdminOp.STATE), orjson.dumps(body), timeout=_ANSWER)
    verdict = Verdict.decode(answer.data)
    if not verdict.ok:
        raise error_of(verdict)
    return verdict.result


def _model(name: str) -> type[BaseModel]:
    """The state model that ``module:Class`` names, looked for from the current folder on."""
    module, _, named = name.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        found = getattr(importlib.import_module(module), named)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigurationError(f"--model {name} cannot be imported: {error}") from None
    finally:
        sys.path.pop(0)
    found = getattr(found, "_declared_state", None) or found  # an agent's class names its own
    if not (isinstance(found, type) and issubclass(found, BaseModel)):
        raise ConfigurationError(f"--model {name} is no pydantic model, and no agent with one")
    return found

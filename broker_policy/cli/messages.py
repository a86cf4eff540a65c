"""``mas send``, ``request`` and ``stream``: messages from the command line, as one of the declared agents."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from broker_policy.cli.agent_tls import agent_tls
from broker_policy.cli.app import Folder, Json, Namespace, Output, command, describe, exit_code
from broker_policy.cli.payload import payload_of
from broker_policy.cli.times import duration, moment
from broker_policy.embedded.layout import DEFAULT_FOLDER, Broker, Layout
from mas_nats import Agent
from mas_nats.errors import MasError
from mas_nats.wire.frames import Chunk
from mas_nats.wire.identity import DEFAULT_NAMESPACE, require_id

Sender = Annotated[
    str, typer.Option("--as", help="The agent in whose name; needs its certificate (mas certs agent NAME).")
]
Target = Annotated[
    str, typer.Argument(metavar="TARGET", help="The agent to reach; namespace/agent in another namespace.")
]
Type = Annotated[str, typer.Argument(metavar="TYPE", help="The message type.")]
Data = Annotated[
    str,
    typer.Argument(metavar="DATA", help="A JSON object; @FILE reads it from a file, - from standard input."),
]
Id = Annotated[str | None, typer.Option("--id", help="The message id; repeating one stores it once.")]


@command("send", example="""mas send --as router helpdesk note '{"text": "hello"}'""")
async def send(
    target: Target,
    message_type: Type,
    data: Data = "{}",
    *,
    sender: Sender,
    message_id: Id = None,
    delay: Annotated[
        str | None, typer.Option("--delay", help="Deliver it later: 90s, 10m, 1h30m, 2d.")
    ] = None,
    at: Annotated[
        str | None, typer.Option("--at", help="Deliver it then: an ISO 8601 time; local without a zone.")
    ] = None,
    timeout: Annotated[float, typer.Option("--timeout", help="Seconds to wait for the verdict.")] = 30.0,
    namespace: Namespace = DEFAULT_NAMESPACE,
    folder: Folder = DEFAULT_FOLDER,
    json: Json = False,
) -> None:
    """Send a message; done when it is on disk and its decision in the log.

    With --delay or --at it is held until then, and checked again; see `mas delayed`.
    """
    payload = payload_of(data)
    later = None if delay is None else duration(delay)
    then = None if at is None else moment(at)
    async with _agent(sender, namespace, folder) as agent:
        accepted = await agent.send(
            target, message_type, payload, id=message_id, delay=later, at=then, timeout=timeout
        )
    document = {"accepted": True, "message_id": accepted, "sender": sender, "target": target}
    Output(json=json).result(document, f"accepted as {accepted}")


@command("request", example="""mas request --as router billing/helpdesk ask '{"question": "…?"}'""")
async def request(
    target: Target,
    message_type: Type,
    data: Data = "{}",
    *,
    sender: Sender,
    message_id: Id = None,
    timeout: Annotated[float, typer.Option("--timeout", help="Seconds to wait for the reply.")] = 60.0,
    namespace: Namespace = DEFAULT_NAMESPACE,
    folder: Folder = DEFAULT_FOLDER,
    json: Json = False,
) -> None:
    """Send a request and print the reply."""
    payload = payload_of(data)
    async with _agent(sender, namespace, folder) as agent:
        reply = await agent.request(target, message_type, payload, id=message_id, timeout=timeout)
    text = orjson.dumps(reply.data, option=orjson.OPT_INDENT_2).decode()
    document = {
        "message_id": reply.message_id,
        "sender": reply.sender,
        "type": reply.message_type,
        "data": reply.data,
    }
    Output(json=json).result(document, text)


@command("stream", example="""mas stream --as router writer tell '{"about": "whales"}'""")
async def stream(
    target: Target,
    message_type: Type,
    data: Data = "{}",
    *,
    sender: Sender,
    message_id: Id = None,
    timeout: Annotated[float, typer.Option("--timeout", help="Seconds until the reply must end.")] = 60.0,
    namespace: Namespace = DEFAULT_NAMESPACE,
    folder: Folder = DEFAULT_FOLDER,
    json: Annotated[
        bool, typer.Option("--json", help='Print a JSON line for each part: {"text": …} or {"data": …}.')
    ] = False,
) -> None:
    """Send a request and print the reply as it comes; interrupting it stops the target.

    On a terminal, what that would obey is escaped; a pipe or a file gets the text byte for byte.
    """
    payload = payload_of(data)
    out = Output(json=json)
    try:
        async with (
            _agent(sender, namespace, folder) as agent,
            agent.stream(target, message_type, payload, id=message_id, timeout=timeout) as chunks,
        ):
            ends_line = True
            async for chunk in chunks:
                ends_line = _print(out, chunk, ends_line=ends_line)
            if not ends_line:
                out.write("\n")
    except MasError as error:
        if not json:
            raise
        out.line({"error": describe(error)})  # a line, as the parts before it
        raise typer.Exit(exit_code(error)) from None


def _print(out: Output, chunk: Chunk, *, ends_line: bool) -> bool:
    """Print a part; whether the line is at its end."""
    if out.json:
        out.line({"text": chunk} if isinstance(chunk, str) else {"data": chunk})
        return True
    if isinstance(chunk, str):
        out.write(chunk)
        return chunk.endswith("\n")
    if not ends_line:
        out.write("\n")
    out.line(chunk)
    return True


@asynccontextmanager
async def _agent(sender: str, namespace: str, folder: Path) -> AsyncIterator[Agent[dict[str, Any]]]:
    """An instance of ``sender`` that takes none of its messages."""
    require_id(sender, "agent id")
    require_id(namespace, "namespace")
    layout = Layout(folder.absolute())
    broker = Broker.read(layout)
    tls = agent_tls(layout, broker, namespace, sender)
    agent: Agent[dict[str, Any]] = Agent(sender, server_addr=broker.url, tls=tls, receive=False)
    async with agent:
        yield agent

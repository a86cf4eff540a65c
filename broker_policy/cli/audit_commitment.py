"""``mas audit check-commitment``: whether a payload is the one that was delivered."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from broker_policy.audit.disclosure import disclose, exported_decisions, read_salt
from broker_policy.audit.query import Question, answers
from broker_policy.audit.store import Store
from broker_policy.cli.app import ExitCode, Folder, Json, Namespace, Output, command
from broker_policy.cli.audit import audit, audit_redis, past_of
from broker_policy.cli.audit_question import SegmentsOption
from broker_policy.embedded.layout import DEFAULT_FOLDER, Layout
from broker_policy.printable import told
from mas_nats.errors import ConfigurationError
from mas_nats.wire.identity import DEFAULT_NAMESPACE


@command(
    "check-commitment", group=audit, example="mas audit check-commitment ID --salt 0123… --data @body.json"
)
async def check_commitment(
    message_id: Annotated[str, typer.Argument(help="The sender's id: message.message_id.")],
    *,
    salt: Annotated[str, typer.Option("--salt", help="message.salt, as the receiver kept it.")],
    data: Annotated[
        str, typer.Option("--data", help="message.body as delivered, byte for byte: @file, or @- for stdin.")
    ],
    file: Annotated[Path | None, typer.Option("--file", help="Look in an exported chain instead.")] = None,
    segments: SegmentsOption = None,
    namespace: Namespace = DEFAULT_NAMESPACE,
    folder: Folder = DEFAULT_FOLDER,
    json: Json = False,
) -> None:
    """Say whether a payload that a receiver kept is the one that the audit's entry is about.

    Exit status 1 when no entry commits to it. Verify the chain, or the file, too: this trusts the entries.
    """
    body, opened = _bytes(data), read_salt(salt)
    out = Output(json=json)
    if file is not None:
        entries = list(exported_decisions(file, message_id))
    else:
        async with audit_redis(Layout(folder.resolve())) as redis:
            store = Store(redis, namespace)
            past = await past_of(store, segments, folder, out)
            found = answers(store, Question(message_id=message_id), past=past)
            entries = [answer.entry async for answer in found]
    rows = [each.row() for each in disclose(entries, opened, body)]
    matching = [row for row in rows if row["matches"]]
    if matching:
        lines = [
            f"entry {row['index']}, {told(row['time'])}: this is what {row['sender']} sent to {row['target']}"
            for row in matching
        ]
    elif rows:
        lines = [f"NOT what was delivered under {message_id}: {len(rows)} entries commit to something else"]
    else:
        lines = [f"no entry about {message_id} commits to a payload"]
    document = {"message_id": message_id, "matches": bool(matching), "decisions": rows}
    out.result(document, "\n".join(lines))
    if not matching:
        raise typer.Exit(ExitCode.FAILED)


def _bytes(data: str) -> bytes:
    if not data.startswith("@"):
        raise ConfigurationError("give the payload as @file (or @-): byte for byte, a shell would change it")
    return sys.stdin.buffer.read() if data == "@-" else Path(data[1:]).read_bytes()

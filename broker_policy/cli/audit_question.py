"""How one asks the audit on a command line: the options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from broker_policy.audit.query import OUTCOME_LETTERS, Question
from broker_policy.cli.times import when
from mas_nats.errors import ConfigurationError
from mas_nats.manifest.mistakes import guess
from mas_nats.wire.verdict import Decision

Sender = Annotated[str | None, typer.Option("--sender", help="Who sent.")]
Target = Annotated[str | None, typer.Option("--target", help="To whom.")]
Decided = Annotated[str | None, typer.Option("--decision", help="ALLOWED, AUTHZ_DENIED …")]
Violation = Annotated[str | None, typer.Option("--violation", help="The rule that refused.")]
Became = Annotated[str | None, typer.Option("--outcome", help=f"{', '.join(OUTCOME_LETTERS)}.")]
MessageId = Annotated[str | None, typer.Option("--message-id", help="The sender's id.")]
Since = Annotated[
    str | None,
    typer.Option("--from", help="Not older: a time (ISO 8601; local without a zone) or how long ago: 90d."),
]
Until = Annotated[str | None, typer.Option("--to", help="Not younger: as for --from.")]

SegmentsOption = Annotated[
    Path | None, typer.Option("--segments", help="The folder of what `mas audit seal` removed from Redis.")
]


def question(
    sender: str | None,
    target: str | None,
    decision: str | None,
    violation: str | None,
    outcome: str | None,
    message_id: str | None,
    since: str | None,
    until: str | None,
) -> Question:
    """What these options ask for.

    Raises:
        ConfigurationError: a time, a decision or an outcome is none.

    """
    require_decision(decision)
    if outcome is not None and outcome not in OUTCOME_LETTERS:
        raise ConfigurationError(f"{outcome!r} is no outcome: {', '.join(OUTCOME_LETTERS)}")
    return Question(
        sender,
        target,
        decision,
        violation,
        message_id,
        None if outcome is None else OUTCOME_LETTERS[outcome],
        None if since is None else when(since),
        None if until is None else when(until),
    )


def require_decision(text: str | None) -> None:
    """Check that it is a decision, where something is said: one that nobody makes would be found nowhere.

    Raises:
        ConfigurationError: it is none.

    """
    known = [str(decision) for decision in Decision]
    if text and text not in known:
        raise ConfigurationError(f"{text!r} is no decision{guess(text, known)}: {', '.join(known)}")

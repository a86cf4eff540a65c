"""A delayed message that is refused when it is due: nobody waits for an answer, so the reason is kept."""

from __future__ import annotations

from nats.aio.client import Client

from broker_policy.dead_letters.undertaker import KEPT
from broker_policy.delayed.queue import Waiting
from broker_policy.jetstream import StoredMessage, publish
from broker_policy.printable import printable
from mas_nats.wire import headers, subjects
from mas_nats.wire.verdict import Decision, Verdict


async def bury(
    nc: Client, namespace: str, one: Waiting, stored: StoredMessage, verdict: Verdict, now: int
) -> None:
    """Store the dead letter of ``stored``, once, however often this is called. ``now`` in unix milliseconds.

    Raises:
        JetStreamError, nats.errors.Error: the dead letters are full or did not answer; call again.

    """
    fields = {name: stored.headers[name] for name in KEPT if name in stored.headers}
    fields |= {
        headers.MSG_ID: f"{namespace}.delayed.{one.sequence}.{stored.headers.get(headers.AUDIT, '')}",
        headers.DEAD_REASON: verdict.decision,
        headers.DEAD_ATTEMPTS: "0",
        headers.DEAD_ERROR: printable(f"refused when due: {verdict.rule}: {verdict.reason}", 300),
        headers.DEAD_SEQUENCE: "0",  # it never was in the inbox
        headers.DEAD_TIME: str(now),
    }
    body = stored.data
    if verdict.decision is Decision.DLP_BLOCKED:  # it is kept nowhere; without a body it cannot be redriven
        body = b""
        fields.pop(headers.TRACESTATE, None)
    await publish(nc, subjects.dead_letter(one.target), body, fields)

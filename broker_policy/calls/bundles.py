"""Several calls of one agent that came in one message: taken apart, and answered together (ADR 35)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mas_nats.policy.call import Call
from mas_nats.wire import bundle
from mas_nats.wire.verdict import Verdict


class Bundle:
    """A bundle that is under way: it is answered when every call in it is."""

    def __init__(self, reply_to: str) -> None:
        self.reply_to = reply_to
        self.calls: list[Call] = []
        self._verdicts: dict[int, Verdict] = {}  # by identity of the call

    @classmethod
    def read(cls, message: Any, now: Callable[[], int]) -> Bundle:
        """Take a bundle apart.

        Raises:
            ValueError: it is none; says why.

        """
        read = cls(message.reply)
        sender, received = message.subject.split(".", 3)[2], now()
        for part in bundle.decode(message.data):
            call = Call.of(sender, part.op, part.body, message.reply, part.fields, received)
            call.bundle = read
            read.calls.append(call)
        return read

    def answered(self, call: Call, verdict: Verdict) -> tuple[list[Call], list[Verdict]] | None:
        """Keep the verdict of one of its calls; all calls and verdicts once it was the last."""
        self._verdicts.setdefault(id(call), verdict)
        if not self.calls or len(self._verdicts) < len(self.calls):
            return None
        calls, self.calls = self.calls, []  # they name it, so they would stay until garbage is collected
        return calls, [self._verdicts[id(each)] for each in calls]

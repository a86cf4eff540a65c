"""Which request made the application call: known, or refused; never guessed.

The application's own calls are tied to a request it is working on by ``traceparent`` where it passes that on
(W3C Trace Context), else by there being only one such request. A call of a request that has ended is of none
of those: an application that works on after its answer does not do so in another's name.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mas_nats.sidecar.refusal import REFUSED, Refusal
from mas_nats.tokens.claims import LIFETIME, TOLERANCE

# Only versions after 00 may go on: what tracing libraries do not take, the application would not pass on.
_TRACEPARENT = re.compile(r"(?!ff|00.{54})[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(?:-.*)?")
_MOST_ENDED = 20_000
"""Traces of ended requests that are known: a few megabytes."""
_KNOWN_FOR = LIFETIME + 2 * TOLERANCE
"""Seconds for which they are at least: as long as a token of such a request lives."""


def trace_of(traceparent: str) -> str:
    """The trace id; "" where there is none."""
    found = _TRACEPARENT.fullmatch(traceparent)
    return found[1] if found and int(found[1], 16) and int(found[2], 16) else ""


def new_traceparent() -> str:
    """A header for a request that came without."""
    return f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"


class InFlight:
    """The requests that the application works on, and the traces of those that have ended.

    ``now``: seconds of a clock that only rises. ``most``: ended ones that are known, the newest.
    """

    def __init__(self, *, now: Callable[[], float] = time.monotonic, most: int = _MOST_ENDED) -> None:
        self._traces: dict[str, str] = {}  # message id -> trace id
        self._ended: dict[str, float] = {}  # trace id -> when it ended, oldest first
        self._unsure = 0.0  # until when a trace that is not known may be of a request that has ended
        self._now = now
        self._most = most

    @contextmanager
    def working_on(self, message_id: str, traceparent: str) -> Iterator[None]:
        """While this lasts, the application may call others because of this message."""
        self._traces[message_id] = trace_of(traceparent)
        try:
            yield
        finally:
            self._end(self._traces.pop(message_id, ""))

    def cause(self, traceparent: str, *, needed: bool) -> str:
        """The id of the message that made the application call; "" where nothing is in flight.

        A trace in which one request is in flight is that one's, whatever else of it has ended: clients make
        many calls in one. A trace that was never seen is none that the application passes on.

        Raises:
            Refusal: several are, and the call does not say which, or it is of one that has ended; only
                where it is ``needed``.

        """
        trace = trace_of(traceparent)
        named = [message for message, each in self._traces.items() if trace and each == trace]
        late = not named and self._has_ended(trace)
        found = named or list(self._traces)
        if len(found) == 1 and not late:
            return found[0]
        if found and needed:
            raise _late() if late else _unclear(len(self._traces))
        return ""

    def _end(self, trace: str) -> None:
        if not trace:
            return
        self._ended.pop(trace, None)
        self._ended[trace] = self._now()
        if len(self._ended) > self._most:
            self._unsure = self._ended.pop(next(iter(self._ended))) + _KNOWN_FOR

    def _has_ended(self, trace: str) -> bool:
        """Whether it is that of an ended request; where some had to be forgotten early, it may be."""
        return bool(trace) and (trace in self._ended or self._now() < self._unsure)


def _unclear(many: int) -> Refusal:
    return Refusal(
        "correlation",
        f"the application works on {many} requests, and the call does not say for which",
        "Have the application pass on the traceparent header of the request it works on, or give it "
        "one request at a time",
        status=403,
        code=REFUSED,
    )


def _late() -> Refusal:
    return Refusal(
        "correlation",
        "the request of the call's traceparent has ended, and others are being worked on",
        "Have the application call before it answers, or pass on the traceparent of the request it works on",
        status=403,
        code=REFUSED,
    )

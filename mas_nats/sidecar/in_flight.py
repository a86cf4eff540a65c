"""Which request made the application call: known, or refused; never guessed.

The application's own calls are tied to a request it is working on by ``traceparent`` where it passes that on
(W3C Trace Context), else by there being only one such request.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

from mas_nats.sidecar.refusal import REFUSED, Refusal

_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(?:-.*)?")


def trace_of(traceparent: str) -> str:
    """The trace id; "" where there is none."""
    found = _TRACEPARENT.fullmatch(traceparent)
    return found[1] if found and int(found[1], 16) and int(found[2], 16) else ""


def new_traceparent() -> str:
    """A header for a request that came without."""
    return f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"


class InFlight:
    """The requests that the application works on."""

    def __init__(self) -> None:
        self._traces: dict[str, str] = {}  # message id -> trace id

    @contextmanager
    def working_on(self, message_id: str, traceparent: str) -> Iterator[None]:
        """While this lasts, the application may call others because of this message."""
        self._traces[message_id] = trace_of(traceparent)
        try:
            yield
        finally:
            self._traces.pop(message_id, None)

    def cause(self, traceparent: str, *, needed: bool) -> str:
        """The id of the message that made the application call; "" where nothing is in flight.

        Raises:
            Refusal: several are, and the call does not say which; only where it is ``needed``.

        """
        trace = trace_of(traceparent)
        named = [message for message, each in self._traces.items() if trace and each == trace]
        found = named or list(self._traces)
        if len(found) == 1:
            return found[0]
        if found and needed:
            raise Refusal(
                "correlation",
                f"the application works on {len(self._traces)} requests, and the call does not say for which",
                "Have the application pass on the traceparent header of the request it works on, or give it "
                "one request at a time",
                status=403,
                code=REFUSED,
            )
        return ""

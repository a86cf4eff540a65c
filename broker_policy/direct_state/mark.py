"""What a worker puts on a state that it writes: this revision has its decision already.

An agent whose state is direct can read such a mark on its own key, and write any header there. So the mark
is a MAC over the content *and* the revision before it. One revision follows another only once; put on any
other, the mark is not valid.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from broker_policy.audit.record import RecordKey


@dataclass(frozen=True, slots=True)
class Marker:
    """Makes and checks the marks of one namespace."""

    namespace: str
    key: RecordKey

    def mark(self, agent: str, previous: int, body: bytes) -> str:
        """The mark for ``body`` as the state of ``agent`` right after revision ``previous`` (0: none)."""
        return self.key.mac(self._text(agent, previous, body))

    def valid(self, mark: str, agent: str, previous: int, body: bytes) -> bool:
        """Whether a worker wrote ``body`` right after revision ``previous``."""
        return bool(mark) and self.key.verify(self._text(agent, previous, body), mark)

    def _text(self, agent: str, previous: int, body: bytes) -> bytes:
        # Begins as no record does, which are authenticated under the same key.
        return f"state\0{self.namespace}\0{agent}\0{previous}\0{hashlib.sha256(body).hexdigest()}".encode()

"""One agent's inbox and the durable consumer on it, as JetStream has them, in memory.

All instances of the agent pull from it. A delivery that is not acknowledged within the ack wait comes again,
unless its handler is known to be at work.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import orjson

from mas_nats.policy.document import Limits
from mas_nats.transport import Incoming
from mas_nats.wire import headers, subjects


class Puller(Protocol):
    """A connection that asked for messages."""

    def listens(self, subject: str) -> bool:
        """Whether it would get what is sent to ``subject``."""

    def deliver(self, incoming: Incoming) -> None:
        """Send it something."""

    def handles(self, ack_subject: str) -> bool:
        """Whether it says that this delivery is being handled."""


@dataclass(slots=True)
class Waiting:
    """A message in an inbox."""

    sequence: int
    fields: dict[str, str]
    body: bytes
    deliveries: int = 0
    last_error: str = ""


@dataclass(slots=True)
class _Pull:
    puller: Puller
    reply: str
    left: int
    timers: list[asyncio.TimerHandle] = field(default_factory=list)

    @property
    def open(self) -> bool:
        return self.left > 0 and self.puller.listens(self.reply)

    def end(self) -> None:
        self.left = 0
        for timer in self.timers:
            timer.cancel()


@dataclass(slots=True)
class _Lease:
    puller: Puller
    ack_subject: str
    timer: asyncio.TimerHandle


class Consumer:
    """Messages for one agent. ``exhausted`` gets those that no attempt is left for."""

    def __init__(
        self, agent: str, limits: Callable[[], Limits], exhausted: Callable[[Waiting], None]
    ) -> None:
        self.messages: dict[int, Waiting] = {}
        self._agent = agent
        self._limits = limits
        self._exhausted = exhausted
        self._fresh: deque[int] = deque()
        self._again: deque[int] = deque()
        self._leases: dict[int, _Lease] = {}
        self._delayed: dict[int, asyncio.TimerHandle] = {}
        self._pulls: deque[_Pull] = deque()

    @property
    def busy(self) -> list[Waiting]:
        """What some instance has and has not acknowledged."""
        return [
            self.messages[sequence]
            for sequence, lease in self._leases.items()
            if lease.puller.handles(lease.ack_subject)
        ]

    def close(self) -> None:
        """End every timer."""
        for pull in self._pulls:
            pull.end()
        for lease in self._leases.values():
            lease.timer.cancel()
        for timer in self._delayed.values():
            timer.cancel()

    def put(self, message: Waiting) -> None:
        """Store a message, and deliver it when somebody has asked."""
        self.messages[message.sequence] = message
        self._fresh.append(message.sequence)
        self._serve()

    def remove(self, sequence: int) -> None:
        """It is handled, or dead."""
        self.messages.pop(sequence, None)
        if (lease := self._leases.pop(sequence, None)) is not None:
            lease.timer.cancel()
        if (timer := self._delayed.pop(sequence, None)) is not None:
            timer.cancel()
        self._serve()

    # -- pulling -----------------------------------------------------------------------------------

    def pull(self, puller: Puller, reply: str, body: bytes) -> None:
        """Somebody asks for messages (ADR-13 of NATS)."""
        asked = orjson.loads(body)
        if asked.get("no_wait"):  # as who leaves asks: takes nothing
            puller.deliver(Incoming(reply, "", {headers.STATUS: "404"}, b""))
            return
        loop = asyncio.get_running_loop()
        pull = _Pull(puller, reply, int(asked["batch"]))
        pull.timers.append(loop.call_later(asked["expires"] / 1e9, self._expired, pull))
        self._beat(pull, asked["idle_heartbeat"] / 1e9)
        self._pulls.append(pull)
        self._serve()

    def _beat(self, pull: _Pull, every: float) -> None:
        def beat() -> None:
            if pull.open:
                pull.puller.deliver(Incoming(pull.reply, "", {headers.STATUS: "100"}, b""))
                pull.timers[1] = asyncio.get_running_loop().call_later(every, beat)

        pull.timers.append(asyncio.get_running_loop().call_later(every, beat))

    def _expired(self, pull: _Pull) -> None:
        if pull.open:
            fields = {headers.STATUS: "408", headers.PENDING_MESSAGES: str(pull.left)}
            pull.puller.deliver(Incoming(pull.reply, "", fields, b""))
        pull.end()

    def _serve(self) -> None:
        while (sequence := self._next()) is not None:
            pull = self._open_pull()
            if pull is None:
                return
            (self._again or self._fresh).popleft()
            message = self.messages[sequence]
            message.deliveries += 1
            self._deliver(pull, message)
            pull.left -= 1
            if pull.left > 0:
                self._pulls.append(pull)  # the next message is for somebody else
            else:
                pull.end()

    def _next(self) -> int | None:
        if len(self._leases) >= self._limits().max_ack_pending:
            return None
        for queue in (self._again, self._fresh):
            while queue and queue[0] not in self.messages:
                queue.popleft()
            if queue:
                return queue[0]
        return None

    def _open_pull(self) -> _Pull | None:
        while self._pulls:
            pull = self._pulls.popleft()
            if pull.open:
                return pull
            pull.end()
        return None

    def _deliver(self, pull: _Pull, message: Waiting) -> None:
        stored = f"{message.fields[headers.SENT]}000000"  # as the server has it: in nanoseconds
        tokens = (message.deliveries, message.sequence, message.sequence, stored, 0)
        ack = f"$JS.ACK.{subjects.INBOX_STREAM}.{self._agent}.{'.'.join(map(str, tokens))}"
        self._leases[message.sequence] = _Lease(pull.puller, ack, self._timer(message.sequence))
        pull.puller.deliver(Incoming(pull.reply, ack, message.fields, message.body))

    # -- acknowledging -----------------------------------------------------------------------------

    def acknowledge(self, subject: str, body: bytes) -> None:
        """Take what an instance says of a delivery."""
        sequence = int(subject.split(".")[5])
        lease = self._leases.get(sequence)
        if lease is None:
            return
        if body == b"+WPI":
            lease.timer.cancel()
            lease.timer = self._timer(sequence)
        elif body.startswith(b"-NAK"):
            lease.timer.cancel()
            del self._leases[sequence]
            given = body[4:].strip()
            delay = orjson.loads(given)["delay"] / 1e9 if given else 0.0
            self._delayed[sequence] = asyncio.get_running_loop().call_later(delay, self._come_again, sequence)
        else:
            self.remove(sequence)

    def _timer(self, sequence: int) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(self._limits().ack_wait, self._unacknowledged, sequence)

    def _unacknowledged(self, sequence: int) -> None:
        lease = self._leases[sequence]
        if lease.puller.handles(lease.ack_subject):
            lease.timer = self._timer(sequence)
            return
        del self._leases[sequence]
        self._come_again(sequence)

    def _come_again(self, sequence: int) -> None:
        self._delayed.pop(sequence, None)
        message = self.messages[sequence]
        if message.deliveries >= self._limits().max_deliver:
            self._exhausted(message)
            return
        self._again.append(sequence)
        self._serve()

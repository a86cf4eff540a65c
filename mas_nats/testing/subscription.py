"""A standing subscription of an in-memory connection."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from mas_nats.transport import Receive


@dataclass(slots=True, eq=False)
class MemorySubscription:
    """A standing subscription; it survives reconnects."""

    subject: str
    receive: Receive
    open: bool = True
    wanted: bool = True

    async def drain(self) -> None:
        """End it, after everything the broker had sent for it was received."""
        self.open = False
        passed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(passed.set_result, None)
        await passed
        self.wanted = False

    async def end(self) -> None:
        """End it now; what is on the way is dropped."""
        self.open = self.wanted = False

    def matches(self, subject: str) -> bool:
        """Whether it is about ``subject``; only a last token ``*`` or ``>`` is a wildcard here."""
        head, _, last = self.subject.rpartition(".")
        if last == ">":
            return subject.startswith(f"{head}.")
        if last == "*":
            return subject.rpartition(".")[0] == head
        return subject == self.subject

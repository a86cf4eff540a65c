"""Acts that nobody would ask for again: what their lane has no room for is given to it until it has."""

from __future__ import annotations

import asyncio
from collections import deque

from broker_policy.commit.act_lane import Act, ActLane
from broker_policy.ending import end

MOST = 1_000
"""Acts that may wait until their lane has room."""
_AGAIN = 0.1


class Pressing:
    """Stands before ``lane`` for such acts; they stay in their order."""

    def __init__(self, lane: ActLane) -> None:
        self._lane = lane
        self._late: deque[Act] = deque()
        self._giving: asyncio.Task[None] | None = None

    def put(self, act: Act) -> bool:
        """Take an act; False when too many wait here, too."""
        if not self._late and self._lane.put(act):
            return True
        if len(self._late) >= MOST:
            return False
        self._late.append(act)
        if self._giving is None:
            self._giving = asyncio.create_task(self._give())
        return True

    async def stop(self, patience: float) -> int:
        """Go on for ``patience`` seconds at most; how many acts are left then."""
        if (giving := self._giving) is not None:
            await asyncio.wait([giving], timeout=patience)
            await end([giving])
        return len(self._late)

    async def _give(self) -> None:
        try:
            while self._late:
                while self._late and self._lane.put(self._late[0]):
                    self._late.popleft()
                if self._late:
                    await asyncio.sleep(_AGAIN)
        finally:
            self._giving = None

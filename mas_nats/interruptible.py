"""A block of code that can be ended from outside."""

from __future__ import annotations

import asyncio
from typing import Any

from mas_nats.errors import StreamCancelled


class Interruptible:
    """Ends a block from outside, as ``asyncio.timeout`` does: by cancelling its task once."""

    def __init__(self) -> None:
        self._task: asyncio.Task[Any] | None = None
        self._cancelling = 0
        self.reason = ""

    def enter(self) -> None:
        """The block begins, in this task."""
        self._task = asyncio.current_task()
        self._cancelling = self._task.cancelling() if self._task else 0

    def interrupt(self, reason: str) -> None:
        """End the block, if it runs."""
        if self.reason:
            return
        self.reason = reason
        if self._task is not None:
            self._task.cancel()

    def leave(self, kind: type[BaseException] | None) -> None:
        """Turn the cancellation that ``interrupt`` caused into what it means.

        Raises:
            StreamCancelled: the block was interrupted, and nothing else was the matter.

        """
        task, self._task = self._task, None
        if not self.reason:
            return
        alone = task is None or task.uncancel() <= self._cancelling
        # A group: tasks of the block that wrote, and learned of it there.
        if alone and (kind is None or issubclass(kind, asyncio.CancelledError | BaseExceptionGroup)):
            raise StreamCancelled(self.reason)

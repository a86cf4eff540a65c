"""How a program is asked to stop: by signals, of which the second one hurries."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any

_SAME = 1.0
"""Seconds in which another signal is the first one again: timeout(1) sends it to us and to our group."""


class Stop:
    """The wish to stop: the first signal asks, the second hurries."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.hurried = asyncio.Event()
        self._since = 0.0
        self._heard: list[signal.Signals] = []

    def on_signals(self) -> None:
        """Listen to SIGTERM, SIGINT and SIGHUP."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores SIGHUP
                asyncio.get_running_loop().add_signal_handler(number, self.ask)
                self._heard.append(number)

    def off_signals(self) -> None:
        """Listen to them no more."""
        while self._heard:
            asyncio.get_running_loop().remove_signal_handler(self._heard.pop())

    def ask(self) -> None:
        """Ask; when that was done a while ago, hurry."""
        now = asyncio.get_running_loop().time()
        if not self.asked.is_set():
            self.asked.set()
            self._since = now
        elif now - self._since > _SAME:
            self.hurried.set()


async def unless(event: asyncio.Event, work: Coroutine[Any, Any, None]) -> bool:
    """Do ``work``, unless ``event`` comes before its end: then it is cancelled. Whether it was done."""
    doing, coming = asyncio.create_task(work), asyncio.create_task(event.wait())
    try:
        await asyncio.wait((doing, coming), return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            return False
        await doing
        return True
    finally:
        for task in (doing, coming):
            task.cancel()
        await asyncio.gather(doing, coming, return_exceptions=True)

"""SIGTERM, for commands that do not listen to it themselves."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


@contextlib.contextmanager
def tidied() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does, and the process by SIGTERM once the block has tidied up.

    By default the process ends at once: what was half made stays, and the terminal as it was.
    """
    if threading.current_thread() is not threading.main_thread() or (
        signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL  # whoever runs this has its own way
    ):
        yield
        return
    heard = False

    def hear(_number: int, _frame: FrameType | None) -> None:
        nonlocal heard
        heard = True
        signal.raise_signal(signal.SIGINT)

    signal.signal(signal.SIGTERM, hear)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if heard:
            signal.raise_signal(signal.SIGTERM)

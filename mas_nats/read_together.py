"""What is read in one go for a subscription is taken apart first, and handled then."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Mapping

from mas_nats.transport import Incoming, Receive


class ReadTogether:
    """Gives the messages of one subscription to ``receive``, in the next turn of the loop and in their order.

    In the context of whoever made it, as a task for the subscription would. What ``receive`` raises goes to
    ``report``, and the next message is received all the same.
    """

    def __init__(self, receive: Receive, report: Callable[[Exception], None]) -> None:
        self._receive = receive
        self._report = report
        self._messages: list[Incoming] = []
        self._loop = asyncio.get_running_loop()
        self._context = contextvars.copy_context()

    def add(self, subject: bytes, reply: bytes, headers: Mapping[str, str], data: bytes) -> None:
        """A message was read; one whose subject is no text is nobody's."""
        try:
            message = Incoming(subject.decode(), reply.decode(), headers, data)
        except UnicodeDecodeError:
            return
        self._messages.append(message)
        if len(self._messages) == 1:
            self._loop.call_soon(self._give, context=self._context)

    def end(self) -> None:
        """Drop what was not given yet."""
        self._messages.clear()

    def _give(self) -> None:
        messages, self._messages = self._messages, []
        for message in messages:
            try:
                self._receive(message)
            except Exception as error:  # noqa: BLE001 - whatever it is, the others are received
                self._report(error)

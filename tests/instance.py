"""One instance of an agent as a process of its own, that writes down what it runs.

Each line of the log is ``<pid> <what> <message id>`` with ``run`` or ``done``; one write each, so that what a
killed process has written is whole.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from pathlib import Path
from typing import Any

from mas_nats import Agent, AgentMessage, TlsClientConfig
from mas_nats.acknowledging import ACK
from mas_nats.inbox import Inbox


class Instance(Agent[dict[str, Any]]):
    """Handles everything in ``pause`` seconds; streams or replies where somebody waits."""

    def __init__(self, agent_id: str, log: int, pause: float, **kwargs: Any) -> None:
        super().__init__(agent_id, **kwargs)
        self._log = log
        self._pause = pause

    async def on_message(self, message: AgentMessage) -> None:
        self.note("run", message.message_id)
        await asyncio.sleep(self._pause)
        if message.expects_reply:
            await message.reply("echo", {"got": message.data, "pid": os.getpid()})
        self.note("done", message.message_id)

    @Agent.on("tell")
    async def tell(self, message: AgentMessage, data: dict[str, Any]) -> None:
        """Stream ``words`` words, with ``mark`` in each."""
        self.note("run", message.message_id)
        async with message.reply_stream() as out:
            for number in range(data["words"]):
                await out.write(f"{data.get('mark') or os.getpid()}-{number} ")
                await asyncio.sleep(self._pause)
        self.note("done", message.message_id)

    def note(self, what: str, message_id: str) -> None:
        os.write(self._log, f"{os.getpid()} {what} {message_id}\n".encode())


def acknowledge_first() -> None:
    """For controls: acknowledge a delivery before it is handled."""
    run: Any = Inbox._run

    async def wrong(self: Any, delivery: Any, *more: Any) -> None:
        await self._acks.say(delivery.ack_subject, ACK)
        await run(self, delivery, *more)

    Inbox._run = wrong  # type: ignore[method-assign]


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("agent", "url", "ca", "cert", "key"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--log", type=Path)
    parser.add_argument("--pause", type=float, default=0.01)
    parser.add_argument("--acknowledge-first", action="store_true")
    given = parser.parse_args()
    if given.acknowledge_first:
        acknowledge_first()
    log = os.open(given.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    tls = TlsClientConfig(given.ca, given.cert, given.key)
    Instance(given.agent, log, given.pause, server_addr=given.url, tls=tls).run()
    sys.exit(0)


if __name__ == "__main__":
    main()

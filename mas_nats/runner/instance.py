"""The process of one instance: makes the agent, waits for the broker as long as it takes, stops on SIGTERM.

``python -m mas_nats.runner.instance NAME DESCRIPTOR``, the order on standard input. It tells the runner, in
a JSON line each, ``{"ready": true}`` and ``{"waiting": why}``. Its exit status is 0 when it was asked to stop
or when the agent said that it has finished.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from mas_nats.agent import Agent
from mas_nats.config import ENDPOINT_FILE, Endpoint, TlsClientConfig, read_endpoint, resolve
from mas_nats.errors import (
    ConfigurationError,
    IdentityRefused,
    MasError,
    OutcomeUnknown,
    Refused,
    Unavailable,
)
from mas_nats.loop import run
from mas_nats.runner import class_paths
from mas_nats.runner.order import Order

_PATIENCE = (3.0, 6.0, 12.0)
"""Seconds of the first attempts to start; the last holds for all others."""
_PAUSE = 1.0
"""Seconds between two attempts."""
_TRANSIENT = (Unavailable, OutcomeUnknown, IdentityRefused, Refused)
"""What passes when the broker comes, or the manifest is applied."""


class _NotStarted(Exception):
    """It cannot be started, for a reason that needs no traceback."""


Tell = Callable[[dict[str, Any]], None]


class _Start:
    """One attempt, which knows how far it came."""

    def __init__(self, cls: type[Agent[Any]], order: Order) -> None:
        endpoint = _endpoint(order)
        options: dict[str, Any] = {"server_addr": endpoint.url, "tls": endpoint.tls, **order.init_kwargs}
        if order.capabilities:
            options["capabilities"] = list(order.capabilities)
        if order.metadata:
            options["metadata"] = dict(order.metadata)
        self.agent = class_paths.make(cls, order.agent_id, options)
        self.connected = False
        self._own = self.agent.on_start
        self.agent.on_start = self._on_start  # type: ignore[method-assign]

    async def _on_start(self) -> None:
        self.connected = True
        await self._own()


def _endpoint(order: Order) -> Endpoint:
    """Where to connect now, and with which files.

    Raises:
        ConfigurationError: a file is missing or is somebody else's; the text says how to get one.

    """
    address = order.address
    if address is None and order.broker is not None:
        file = order.broker / ENDPOINT_FILE.name  # there while the broker runs
        address = read_endpoint(file).get("url") if file.is_file() else None
    tls = TlsClientConfig(order.ca, order.cert, order.key)
    return resolve(order.agent_id, address or order.listen, tls, environment={}, folder=order.folder)


async def serve(order: Order, cls: type[Agent[Any]], tell: Tell) -> None:
    """Run the agent until it is asked to stop or has finished."""
    asked = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, asked.set)
    stopping = asyncio.create_task(asked.wait())
    starting = asyncio.create_task(_started(order, cls, tell))
    await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        starting.cancel()
        await asyncio.wait((starting,))
        return
    agent = starting.result()
    tell({"ready": True})
    finished = asyncio.create_task(Agent.finished(agent))
    await asyncio.wait((finished, stopping), return_when=asyncio.FIRST_COMPLETED)
    await agent.stop(timeout=order.drain)


async def _started(order: Order, cls: type[Agent[Any]], tell: Tell) -> Agent[Any]:
    """The agent, once it is started; what the broker may still learn is waited for."""
    attempt, said = 0, ""
    while True:
        start = _Start(cls, order)
        try:
            await start.agent.start(timeout=_PATIENCE[min(attempt, len(_PATIENCE) - 1)])
        except _TRANSIENT as error:
            if start.connected:
                raise  # of the agent's own on_start
            why = str(error)
            if isinstance(error, (IdentityRefused, Refused)):
                why += " (is the agent in the manifest that was applied? mas apply)"
            if why != said:
                tell({"waiting": why})
            attempt, said = attempt + 1, why
            await asyncio.sleep(_PAUSE)
        except MasError as error:
            if start.connected:
                raise
            raise _NotStarted(f"{type(error).__name__}: {error}") from error
        else:
            return start.agent


def main() -> int:
    """The whole program; its exit status."""
    descriptor = int(sys.argv[2])
    os.set_inheritable(descriptor, False)  # noqa: FBT003 - its only argument
    order = Order.model_validate_json(sys.stdin.buffer.read())

    def tell(what: dict[str, Any]) -> None:
        os.write(descriptor, json.dumps(what).encode() + b"\n")

    class_paths.import_from(order.folder)
    try:
        cls = class_paths.load(order.class_path)
        # After its module, which may have logging of its own.
        logging.basicConfig(level=order.log_level, format="%(levelname)s %(name)s: %(message)s")
        run(serve(order, cls, tell))
    except (_NotStarted, ConfigurationError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

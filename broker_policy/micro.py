"""The policy service as NATS's own tools find it: PING, INFO and STATS of the service protocol.

Each worker answers for itself, so that ``nats micro ls`` lists those that live.

Source: ADR-32 of nats-architecture-and-design.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import nats.errors
import orjson
from nats.aio.client import Client

from broker_policy.calls.tally import OpCount, Tally
from mas_nats.wire import subjects
from mas_nats.wire.subjects import Op

NAME = "mas-policy"
_DESCRIPTION = "Decides about the calls of agents, and commits what it allows"


class MicroService:
    """Answers for one worker in one namespace."""

    def __init__(self, nc: Client, namespace: str, worker: str, tally: Tally) -> None:
        self._nc = nc
        self._worker = worker
        self._tally = tally
        self._started = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        self._standard = {
            "name": NAME,
            "id": worker,
            "version": _version(),
            "metadata": {"namespace": namespace},
        }
        self._subscriptions: list[Any] = []

    async def start(self) -> None:
        """Answer from here on."""
        for verb, told in (("PING", self.ping), ("INFO", self.info), ("STATS", self.stats)):
            for names in ((), (NAME,), (NAME, self._worker)):
                answer = functools.partial(_answer, told)
                self._subscriptions.append(await self._nc.subscribe(subjects.micro(verb, *names), cb=answer))

    async def stop(self) -> None:
        """Be found no more."""
        for subscription in self._subscriptions:
            with contextlib.suppress(nats.errors.Error, OSError):
                await subscription.unsubscribe()
        self._subscriptions = []

    def ping(self) -> dict[str, Any]:
        """That it is there."""
        return {"type": "io.nats.micro.v1.ping_response", **self._standard}

    def info(self) -> dict[str, Any]:
        """What it can be asked, by whom it was made so."""
        return {
            "type": "io.nats.micro.v1.info_response",
            **self._standard,
            "description": _DESCRIPTION,
            "endpoints": [{**_endpoint(op), "metadata": {}} for op in Op],
        }

    def stats(self) -> dict[str, Any]:
        """What it has been asked since it started.

        The counts of the agents are the ``data`` of the endpoint ``send``.
        """
        endpoints = [_counted(op, self._tally.ops[op]) for op in Op]
        for each in endpoints:
            if each["name"] == Op.SEND:
                each["data"] = {"agents": self._tally.agents(), "untold": self._tally.untold}
        return {
            "type": "io.nats.micro.v1.stats_response",
            **self._standard,
            "started": self._started,
            "endpoints": endpoints,
        }


def _endpoint(op: Op) -> dict[str, Any]:
    return {"name": str(op), "subject": subjects.call("*", op), "queue_group": subjects.WORKER_QUEUE}


def _counted(op: Op, count: OpCount) -> dict[str, Any]:
    return {
        **_endpoint(op),
        "num_requests": count.asked,
        "num_errors": count.refused,
        "last_error": count.last,
        "processing_time": count.took,
        "average_processing_time": count.took // count.asked if count.asked else 0,
    }


async def _answer(told: Callable[[], dict[str, Any]], message: Any) -> None:
    if message.reply:
        with contextlib.suppress(nats.errors.Error, OSError):
            await message.respond(orjson.dumps(told()))


@functools.cache
def _version() -> str:
    return importlib.metadata.version("mas-nats")

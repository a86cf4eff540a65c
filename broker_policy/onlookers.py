"""What those find who look into a namespace with NATS's own tools: the service, and views of streams."""

from __future__ import annotations

from collections.abc import Callable

from nats.aio.client import Client

from broker_policy.calls.tally import Tally
from broker_policy.calls.viewing import Viewing
from broker_policy.micro import MicroService


class Onlookers:
    """Serves them for one worker in one namespace. ``known``: whether policy has an inspector now."""

    def __init__(self, nc: Client, namespace: str, worker: str, known: Callable[[str], bool]) -> None:
        self.tally = Tally()
        self._micro = MicroService(nc, namespace, worker, self.tally)
        self._viewing = Viewing(nc, known)

    async def start(self) -> None:
        """Be found from here on."""
        await self._viewing.start()
        await self._micro.start()

    async def stop(self) -> None:
        """Be found no more."""
        await self._micro.stop()
        await self._viewing.stop()

"""Where a rotation happens: the folder of an installation and the broker that runs from it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from broker_policy.embedded.layout import Broker, Layout
from broker_policy.policy.store import PolicyStore
from broker_policy.tenants.connect import connect_control_admin
from broker_policy.tenants.controller import TenantController
from broker_policy.tenants.material import ControllerKeys, PublicMaterial
from mas_nats.errors import Unavailable

_POLL = 0.1


@dataclass(frozen=True, slots=True)
class Site:
    """``say`` gets a line for each step; ``patience`` is how long to wait for holders, in seconds."""

    layout: Layout
    say: Callable[[str], None]
    patience: float = 30.0

    @property
    def keys(self) -> Path:
        """The folder of keys."""
        return self.layout.keys

    @property
    def broker(self) -> Broker:
        """The running broker.

        Raises:
            NotRunning: there is none.

        """
        return Broker.read(self.layout)

    @contextlib.asynccontextmanager
    async def control(self) -> AsyncIterator[tuple[TenantController, PolicyStore]]:
        """The tenant controller and the policy, with the keys of today."""
        endpoint = self.broker.connection(self.layout, "controller")
        keys = ControllerKeys.load(self.keys)
        async with TenantController(endpoint, keys, PublicMaterial.load(self.keys)) as controller:
            client = await connect_control_admin(endpoint, keys)
            try:
                yield controller, PolicyStore(client)
            finally:
                await client.close()

    async def until(self, done: Callable[[], Awaitable[str]], what: str) -> None:
        """Wait until ``done`` returns the empty text; else it says what is missing.

        Raises:
            Unavailable: ``patience`` seconds have passed. What was done stays done.

        """
        deadline = asyncio.get_running_loop().time() + self.patience
        while missing := await done():
            if asyncio.get_running_loop().time() > deadline:
                raise Unavailable(
                    f"{what}: {missing}, after {self.patience:g} s. Nothing is lost, both keys are valid: "
                    "mend that, then give the same command again, and it goes on from here"
                )
            await asyncio.sleep(_POLL)

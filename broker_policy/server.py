"""``MASServer``: the whole broker from a program.

    server = MASServer(settings=MASServerSettings(...), gateway=GatewaySettings())
    await server.start()
    await server.authz.set_permissions("router", allowed_targets=["helpdesk"])
    ...
    await server.stop()

It is what ``mas up`` starts, in the same folder, so every ``mas`` command works on it.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pydantic import ValidationError

from broker_policy.embedded.layout import DEFAULT_FOLDER, Broker, Layout
from broker_policy.embedded.plan import Plan, TlsFiles
from broker_policy.embedded.ports import LOOPBACK
from broker_policy.embedded.server_part import listen_address
from broker_policy.embedded.up import running
from broker_policy.policy.store import PolicyStore
from broker_policy.tenants.apply import apply, edit
from broker_policy.tenants.connect import connect_control_admin
from broker_policy.tenants.controller import TenantController
from broker_policy.tenants.material import ControllerKeys, PublicMaterial
from mas_nats.config import DEFAULT_PORT
from mas_nats.errors import ConfigurationError
from mas_nats.manifest.gateway import GatewaySettings
from mas_nats.manifest.wanted import Wanted, WantedAgent
from mas_nats.names import names
from mas_nats.policy.document import Document, Limits, Permissions
from mas_nats.policy.governance import Role
from mas_nats.wire.identity import DEFAULT_NAMESPACE, namespace_of
from mas_nats.wire.state_mode import StateMode

log = logging.getLogger(__name__)

PathLike = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class TlsConfig:
    """The server's certificate chain and key, and the CA of the agents' certificates; PEM.

    The CA must vouch for the server's certificate as well, since agents verify it with the same file.
    """

    server_cert_path: PathLike
    server_key_path: PathLike
    client_ca_path: PathLike

    def files(self) -> TlsFiles:
        """The paths."""
        return TlsFiles(Path(self.server_cert_path), Path(self.server_key_path), Path(self.client_ca_path))


@dataclass(frozen=True, slots=True)
class AgentDefinition:
    """An agent that may connect."""

    agent_id: str
    capabilities: Sequence[str] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)
    state: StateMode = StateMode.MEDIATED


@dataclass(frozen=True, slots=True)
class MASServerSettings:
    """What to start.

    ``tls`` None: the certificates of the folder's development CA (``mas certs``). ``permissions`` None: those
    that hold already, for a new folder none. ``relaxed`` gives up that an accepted message survives a power
    cut.
    """

    listen_addr: str = f"{LOOPBACK}:{DEFAULT_PORT}"  # 127.0.0.1 or 0.0.0.0
    tls: TlsConfig | None = None
    agents: Mapping[str, AgentDefinition] = field(default_factory=dict)
    permissions: Mapping[str, Permissions] | None = None
    roles: Mapping[str, Role] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    namespace: str = DEFAULT_NAMESPACE
    folder: PathLike = DEFAULT_FOLDER
    workers: int = 2
    relaxed: bool = False

    def address(self) -> tuple[str, int]:
        """Host and port.

        Raises:
            ConfigurationError: it is no such address, or one that is not served.

        """
        return listen_address(self.listen_addr, "listen_addr")


class Authorization:
    """Permissions at run time."""

    def __init__(self, store: PolicyStore, namespace: str) -> None:
        self._store = store
        self._namespace = namespace

    async def set_permissions(
        self,
        agent_id: str,
        allowed_targets: Sequence[str] | None = None,
        blocked_targets: Sequence[str] | None = None,
        *,
        timeout: float = 5.0,
    ) -> int:
        """Set whom an agent may reach; None leaves a list as it is. A block beats every allow and role.

        A target may be ``namespace/agent``, or ``namespace/*``. With ``agent_id`` of that form it is set from
        whom one's own agents accept messages: both namespaces have to allow what goes between them.

        Returns the policy's revision when every live worker follows it, so that it holds for the next
        message of a connected agent.

        Raises:
            ConfigurationError: there is no such agent here, or what would hold is no policy.
            NotConfirmed: a live worker did not confirm within ``timeout`` seconds.
            TypeError: a list is one name, not a list of names.

        """
        may = None if allowed_targets is None else names("allowed_targets", allowed_targets)
        may_not = None if blocked_targets is None else names("blocked_targets", blocked_targets)

        def change(document: Document) -> Document:
            if agent_id not in document.agents and not namespace_of(agent_id):
                raise ConfigurationError(f"there is no agent {agent_id!r} in namespace {self._namespace!r}")
            before = document.permissions.get(agent_id, Permissions())
            allowed = before.allowed_targets if may is None else may
            blocked = before.blocked_targets if may_not is None else may_not
            try:
                said = Permissions(allowed_targets=allowed, blocked_targets=blocked)
            except ValueError as error:
                raise ConfigurationError(
                    f"the permissions of {agent_id} are wrong: {_reasons(error)}"
                ) from error
            return document.model_copy(update={"permissions": {**document.permissions, agent_id: said}})

        return await edit(self._store, self._namespace, change, timeout)

    async def set_role(
        self, name: str, permissions: Sequence[str], agents: Sequence[str], *, timeout: float = 5.0
    ) -> int:
        """Make or replace a role: patterns such as ``send:worker-*``, and who has it.

        When the server is started again, the roles of its settings hold.

        Returns and raises as ``set_permissions``.
        """
        try:
            role = Role(permissions=names("permissions", permissions), agents=names("agents", agents))
        except ValueError as error:
            raise ConfigurationError(f"role {name} is wrong: {_reasons(error)}") from error
        return await self._set_roles(lambda roles: {**roles, name: role}, timeout)

    async def remove_role(self, name: str, *, timeout: float = 5.0) -> int:
        """Take a role away from all who have it; nothing happens where there is none of this name.

        Returns and raises as ``set_permissions``.
        """
        return await self._set_roles(
            lambda roles: {each: role for each, role in roles.items() if each != name}, timeout
        )

    async def roles(self) -> dict[str, Role]:
        """The roles that there are."""
        stored = await self._store.get(self._namespace)
        return dict(stored.document.governance.roles) if stored else {}

    async def _set_roles(self, change: Callable[[dict[str, Role]], dict[str, Role]], timeout: float) -> int:
        def changed(document: Document) -> Document:
            governance = document.governance
            roles = change(governance.roles)
            return document.model_copy(update={"governance": governance.model_copy(update={"roles": roles})})

        return await edit(self._store, self._namespace, changed, timeout)

    async def permissions(self, agent_id: str) -> Permissions:
        """Whom an agent may reach, besides what its roles grant."""
        stored = await self._store.get(self._namespace)
        return stored.document.permissions.get(agent_id, Permissions()) if stored else Permissions()


def _reasons(error: ValueError) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    return "; ".join(str(each["msg"]) for each in error.errors(include_url=False))


class MASServer:
    """NATS, Redis, policy workers and the signer, from one folder, for one namespace.

    Also an async context manager.
    """

    def __init__(self, *, settings: MASServerSettings, gateway: GatewaySettings | None = None) -> None:
        self.settings = settings
        self.gateway = gateway or GatewaySettings()
        self._stack: AsyncExitStack | None = None
        self._broker: Broker | None = None
        self._authz: Authorization | None = None

    @property
    def authz(self) -> Authorization:
        """Permissions at run time; only while it runs."""
        if self._authz is None:
            raise RuntimeError("the server is not started")
        return self._authz

    @property
    def url(self) -> str:
        """Where agents connect; only while it runs."""
        if self._broker is None:
            raise RuntimeError("the server is not started")
        return self._broker.url

    async def start(self) -> None:
        """Bring everything up; agents can connect when it returns.

        Raises:
            ConfigurationError: settings, certificates or keys cannot be used.
            AlreadyRunning: another process holds the folder.
            BinaryMissing: a server's binary is missing; the text says how to get it.
            ServerDied: a process did not get ready.
            NotDurable: the servers would acknowledge before they flush.

        """
        if self._stack is not None:
            raise RuntimeError("the server is started already")
        plan, wanted = self._plan(), self._wanted()
        layout = Layout(Path(self.settings.folder).absolute())
        async with AsyncExitStack() as stack:
            broker = await stack.enter_async_context(running(layout, plan, log.info))
            store = await self._apply(stack, layout, broker, wanted)
            self._stack, self._broker = stack.pop_all(), broker
            self._authz = Authorization(store, wanted.namespace)

    async def stop(self) -> None:
        """Stop everything in order. Agents reconnect by themselves when it is started again."""
        stack, self._stack, self._broker, self._authz = self._stack, None, None, None
        if stack is not None:
            await stack.aclose()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def _plan(self) -> Plan:
        settings = self.settings
        host, port = settings.address()
        return Plan(
            workers=settings.workers,
            port=port,
            relaxed=settings.relaxed,
            host=host,
            tls=settings.tls.files() if settings.tls is not None else None,
            redis=self.gateway.redis.url,
            redis_timeout=self.gateway.redis.socket_timeout,
            telemetry=self.gateway.telemetry,
        )

    def _wanted(self) -> Wanted:
        settings = self.settings
        for name, agent in settings.agents.items():
            if name != agent.agent_id:
                raise ConfigurationError(f"agents[{name!r}] is the definition of {agent.agent_id!r}")
        return Wanted(
            namespace=settings.namespace,
            agents={
                name: WantedAgent(
                    names(f"the capabilities of {name}", each.capabilities),
                    dict(each.metadata),
                    StateMode(each.state),
                )
                for name, each in settings.agents.items()
            },
            permissions=dict(settings.permissions or {}),
            limits=settings.limits,
            governance=self.gateway.governance(settings.roles),
        )

    async def _apply(
        self, stack: AsyncExitStack, layout: Layout, broker: Broker, wanted: Wanted
    ) -> PolicyStore:
        endpoint = broker.connection(layout, "controller")
        keys = ControllerKeys.load(layout.keys)
        control = await connect_control_admin(endpoint, keys)
        stack.push_async_callback(control.close)
        store = PolicyStore(control)
        stored = await store.get(wanted.namespace)
        if stored is not None and self.settings.permissions is None:
            kept = {
                name: said
                for name, said in stored.document.permissions.items()
                if name in wanted.agents or namespace_of(name)
            }
            wanted = dataclasses.replace(wanted, permissions=kept)
        async with TenantController(endpoint, keys, PublicMaterial.load(layout.keys)) as controller:
            await apply(controller, store, wanted, by="MASServer")
        return store

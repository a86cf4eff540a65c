"""A whole installation but for the policy service: server, accounts, callout, and an echo in its place.

Only what makes views for inspectors is the real thing, since it is what keeps them harmless.

The echo answers every call with the caller's own bytes, so what comes back to a hostile reply subject is
exactly what the attacker wants to be there: isolation must not depend on the policy service.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nats.aio.msg import Msg

from broker_policy.callout.service import Attempt, CalloutService
from broker_policy.calls.viewing import Viewing
from broker_policy.embedded.nats_server import NatsServer
from broker_policy.identity.certificate_paths import CertificatePaths
from broker_policy.identity.jwt import EVERYTHING
from broker_policy.identity.pki import CertificateAuthority
from broker_policy.jetstream import publish
from broker_policy.tenants import connect
from broker_policy.tenants.accounts import Grant, grant_for
from broker_policy.tenants.controller import TenantController
from broker_policy.tenants.endpoint import Endpoint
from broker_policy.tenants.material import Material
from mas_nats.policy import document
from mas_nats.policy.document import AgentPolicy, Document, Limits
from mas_nats.resilient import ResilientClient
from mas_nats.wire import subjects
from mas_nats.wire.identity import DEFAULT_TRUST_DOMAIN, Identity, Role

NAMESPACES = ("alpha", "beta")
AGENTS = ("mallory", "victim")
SECRET = b"what only the victim may read"
LIMITS = Limits(log_bytes=64 << 20)

Change = Callable[[Identity, Grant], Grant]


@dataclass
class Peer:
    """A client that connected with a certificate of its own, and all that reached it."""

    client: ResilientClient
    received: list[Msg] = field(default_factory=list)
    errors: list[Exception] = field(default_factory=list)

    async def listen(self, *patterns: str) -> None:
        """Collect what arrives on ``patterns``."""

        async def collect(message: Msg) -> None:
            self.received.append(message)

        for pattern in patterns:
            await self.client.subscribe(pattern, cb=collect)
        await self.client.flush()

    async def pull(self, agent: str, count: int) -> list[Msg]:
        """Take ``count`` messages from the inbox of ``agent`` and leave them unacknowledged."""
        pulling = await self.client.jetstream().pull_subscribe_bind(
            consumer=agent, stream=subjects.INBOX_STREAM
        )
        messages: list[Msg] = []
        while len(messages) < count:
            messages += await pulling.fetch(count - len(messages), timeout=2)
        await pulling.unsubscribe()
        return messages


@dataclass
class Installation:
    """Start with ``open``; everything is closed by the exit stack."""

    servers: list[NatsServer]
    ca: CertificateAuthority
    material: Material
    certificates: Path
    stack: AsyncExitStack
    controller: TenantController = field(init=False)
    endpoint: Endpoint = field(init=False)
    admins: dict[str, ResilientClient] = field(default_factory=dict)
    documents: dict[str, Document] = field(default_factory=dict)
    attempts: list[Attempt] = field(default_factory=list)
    operator_calls: list[str] = field(default_factory=list)
    """Subjects of operator calls that arrived where the policy service would take them."""
    change: Change = field(default=lambda _, grant: grant)
    """What the callout makes of a grant; a test may open or misplace it."""

    @property
    def server(self) -> NatsServer:
        """The first server; the only one, but for ``test_cluster.py``."""
        return self.servers[0]

    def identity(self, name: str, namespace: str = "alpha", role: Role = Role.AGENT) -> Identity:
        return Identity(DEFAULT_TRUST_DOMAIN, namespace, role, name)

    def certificate(self, identity: Identity, **options: Any) -> CertificatePaths:
        return self.ca.issue(identity, self.certificates, **options)

    async def open(self) -> None:
        keys, public = self.material.worker, self.material.public
        paths = self.certificate(self.identity("worker", "default", Role.POLICY))
        everywhere = ",".join(server.url for server in self.servers)
        self.endpoint = Endpoint(everywhere, paths.ca, paths.cert, paths.key, nodes=len(self.servers))
        self.controller = await self.stack.enter_async_context(
            TenantController(self.endpoint, self.material.controller, public)
        )
        await self.controller.ensure_control()
        self.admins["CONTROL"] = await self.adopt(
            connect.connect_control_admin(self.endpoint, self.material.controller)
        )
        for namespace in NAMESPACES:
            await self._add_tenant(namespace)
        callout_client = await self.adopt(connect.connect_callout(self.endpoint, keys, public, name="w1"))
        await CalloutService(
            callout_client,
            keys,
            public,
            self._resolve,
            on_accept=self.attempts.append,
            on_refuse=self.attempts.append,
        ).start()

    async def adopt(self, connecting: Awaitable[ResilientClient]) -> ResilientClient:
        """Close this client when the installation closes."""
        client = await connecting
        self.stack.push_async_callback(client.close)
        return client

    async def connect(
        self, identity: Identity, paths: CertificatePaths | None = None, *, node: int = 0
    ) -> Peer:
        """Connect to one of the servers with nothing but a certificate, as an agent does."""
        paths = paths or self.certificate(identity)
        peer = Peer(ResilientClient())

        async def on_error(error: Exception) -> None:
            peer.errors.append(error)

        self.stack.push_async_callback(peer.client.close)
        ca = self.certificates / "ca.pem"
        await peer.client.connect_within(
            5.0,
            servers=[self.servers[node].url],
            tls=Endpoint(self.servers[node].url, ca, paths.cert, paths.key).ssl_context(),
            tls_hostname="localhost",
            error_cb=on_error,
            skip_subject_validation=True,
        )
        return peer

    async def accounts(self) -> dict[str, Any]:
        """What the servers have of every account."""
        listed = await self.controller._ask_all("$SYS.REQ.CLAIMS.LIST", b"")
        names = {name for answer in listed for name in answer["data"]}
        return {name: await self.controller._stored(name) for name in names}

    def _resolve(self, identity: Identity) -> Grant | None:
        policy = self.documents.get(identity.namespace)
        grant = grant_for(policy, identity) if policy else None
        return self.change(identity, grant) if grant else None

    async def _operator_call(self, message: Msg) -> None:
        self.operator_calls.append(message.subject)

    async def _add_tenant(self, namespace: str) -> None:
        account = await self.controller.ensure_tenant(namespace, LIMITS)
        agents = {
            name: AgentPolicy(account=await self.controller.ensure_agent(namespace, name, LIMITS))
            for name in AGENTS
        }
        inspector = await self.controller.ensure_inspector(namespace, "watcher")
        policy = Document(
            namespace=namespace,
            account=account,
            agents=agents,
            inspectors={"watcher": inspector},
            operators=("olga",),
        )
        self.documents[namespace] = policy
        admin = await self.adopt(
            connect.connect_tenant(self.endpoint, self.material.worker, account, name="w1")
        )
        self.admins[namespace] = admin
        await admin.subscribe(subjects.CALLS, queue=subjects.WORKER_QUEUE, cb=_echo)
        await admin.subscribe("mas.admin.>", cb=self._operator_call)
        await Viewing(admin, lambda name: name in self.documents[namespace].inspectors).start()
        await _fill(admin)
        body = policy.model_dump_json().encode()
        await publish(
            self.admins["CONTROL"],
            subjects.kv_key(subjects.POLICY_BUCKET, document.key(namespace)),
            body,
            {},
        )


async def _echo(message: Msg) -> None:
    await message.respond(message.data)


async def _fill(admin: ResilientClient) -> None:
    """Something of everything, for both agents; one message of the victim's is in flight."""
    for number in range(1, 4):
        await publish(admin, subjects.audit_record("w1", number), b'{"v":1}', {})
        for name in AGENTS:
            await publish(admin, subjects.inbox(name), SECRET if name == "victim" else b"mine", {})
    for name in AGENTS:
        content = SECRET if name == "victim" else b"mine"
        for subject in (
            subjects.answer(name, "i1", "c1", 0),
            subjects.dead_letter(name),
            subjects.delayed(name, "1"),
            subjects.kv_key(subjects.STATE_BUCKET, name),
            subjects.kv_key(subjects.REGISTRY_BUCKET, f"{name}.i1"),
            subjects.kv_key(subjects.ATTEMPTS_BUCKET, name),
            subjects.kv_key(subjects.TOKENS_BUCKET, f"used.{name}"),
        ):
            await publish(admin, subject, content, {})
    pulled = await admin.jetstream().pull_subscribe_bind(consumer="victim", stream=subjects.INBOX_STREAM)
    await pulled.fetch(1, timeout=2)
    await pulled.unsubscribe()


def everything(grant: Grant) -> Grant:
    """The same account, with no restriction from the user's permissions."""
    return replace(grant, permissions=EVERYTHING)

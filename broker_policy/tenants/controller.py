"""The tenant controller: brings accounts, streams and consumers to what policy says, live.

A new tenant or agent is one account JWT pushed over the system account: no file edit, no reload, nobody
disconnected. It alone holds the operator's signing key, so it runs where ``mas apply`` runs, not in workers.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from types import TracebackType
from typing import Any, Self

import nats.errors
import orjson

from broker_policy.identity import jwt
from broker_policy.identity.nkeys import Kind
from broker_policy.tenants import accounts, streams
from broker_policy.tenants.connect import connect_control_admin, connect_system, connect_tenant_admin
from broker_policy.tenants.endpoint import Endpoint
from broker_policy.tenants.material import ControllerKeys, PublicMaterial
from broker_policy.tenants.restore import missing_streams
from mas_nats.errors import Unavailable
from mas_nats.policy.document import Limits
from mas_nats.resilient import ResilientClient
from mas_nats.wire.identity import Role, parse_spiffe_id, require_id
from mas_nats.wire.state_mode import StateMode

log = logging.getLogger(__name__)

_JETSTREAM = {"mem_storage": -1, "disk_storage": -1, "streams": 64, "consumer": -1}
"""Said in full, since what is left out would be 0. Storage is bounded by each stream's own limit."""
_CONTAINED_LIMITS = {"conn": 256, "subs": 1024, "leaf": 0}
"""Of the account of one agent or inspector: all its instances together."""
_REQUEST = 5.0
_SILENCE = 0.3
"""Seconds without a further answer after which all servers are taken to have answered."""
_PAGE = 1024


class ControllerError(Exception):
    """The server refused something that the controller asked of it."""


class TenantController:
    """Use as ``async with TenantController(...)``, or call ``start`` and ``close``."""

    def __init__(self, endpoint: Endpoint, keys: ControllerKeys, public: PublicMaterial) -> None:
        self._endpoint = endpoint
        self._keys = keys
        self._public = public
        self._system: ResilientClient | None = None
        self._tenants: dict[str, ResilientClient] = {}
        self._pushed: set[str] = set()
        self._live = endpoint.nodes  # nodes that answer
        self._unseen = 0
        self.losses: list[str] = []
        """What was found lost, a sentence for each account."""

    async def start(self) -> None:
        """Connect to the system account.

        Raises:
            IdentityRefused: the server does not know these keys.
            Unavailable: no server answered.

        """
        self._system = await connect_system(self._endpoint, self._keys, self._public)
        await self.look_again()

    async def close(self) -> None:
        """Close all connections."""
        clients = [*self._tenants.values(), *([self._system] if self._system else [])]
        self._tenants, self._system = {}, None
        for client in clients:
            await client.close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def ensure_control(self) -> None:
        """Make the policy and worker buckets and the checkpoint stream in CONTROL."""
        client = await connect_control_admin(self._endpoint, self._keys)
        try:
            await self._look_for_losses(client, "the operator's account", streams.control_stream_names())
            await streams.ensure_control_streams(client.jetstream(), self._endpoint.nodes)
        finally:
            await client.close()

    async def ensure_tenant(self, namespace: str, limits: Limits) -> str:
        """Make the tenant account and its streams, or bring them to ``limits``.

        The account is pushed only when it differs, since a push drops the pulls under way.

        Returns:
            The account's public key.

        Raises:
            ValueError: ``namespace`` is not a valid id.
            ConfigurationError: the server has not enough room for the streams.

        """
        require_id(namespace, "namespace")
        account = await self._ensure_account(
            jwt.Account(
                self._keys.account(namespace).public,
                namespace,
                signing_keys=self._public.tenant_signing,
                exports=[use.export() for use in accounts.TENANT_EXPORTS],
                jetstream=_JETSTREAM,
            )
        )
        client = await self.tenant(namespace)
        await self._look_for_losses(client, f"namespace {namespace}", streams.tenant_stream_names())
        await streams.ensure_tenant_streams(client.jetstream(), limits, self._endpoint.nodes)
        return account

    async def ensure_agent(
        self, namespace: str, agent_id: str, limits: Limits, state: StateMode = StateMode.MEDIATED
    ) -> str:
        """Make an agent's account and its inbox consumer; the tenant must exist.

        What ``state`` adds or takes away of the account holds at once; the permissions of connections that
        are there already follow when they connect again.

        Returns:
            The account's public key.

        """
        uses = accounts.agent(agent_id, state)
        account = await self._ensure_contained(namespace, Role.AGENT, agent_id, uses)
        client = await self.tenant(namespace)
        await streams.ensure_inbox_consumer(client.jetstream(), agent_id, limits)
        return account

    async def ensure_inspector(self, namespace: str, name: str) -> str:
        """Make an inspector's account: it reads everything of its namespace and changes nothing.

        Returns:
            The account's public key.

        """
        return await self._ensure_contained(namespace, Role.INSPECTOR, name, accounts.inspector(name))

    async def retire_agent(self, namespace: str, agent_id: str) -> bool:
        """Delete an agent's account, which ends its connections; False when there was none.

        ``ensure_agent`` makes the same one again, since its key is derived. A server that was away may bring
        the account back; nobody is let into it.

        Raises:
            ControllerError: a server refused.
            Unavailable: no server answered.

        """
        label = _label(namespace, Role.AGENT, agent_id)
        account = self._keys.account(label).public
        await self.look_again()
        if account not in self._pushed:
            return False
        # Emptied first: a server takes no notice when the JWT it had before the deletion comes again, as it
        # does when the agent is put back within the second (tried on nats-server 2.15.1).
        await self._ensure_account(jwt.Account(account, label, limits={"conn": 0}))
        operator = self._keys.operator_signing
        token = jwt.encode(operator, jwt.deletion(operator.public, [account]))
        for answer in await self._ask_all("$SYS.REQ.CLAIMS.DELETE", token.encode(), self._live):
            if answer.get("error") or answer.get("data", {}).get("code") != 200:
                reason = answer.get("error") or answer.get("data")
                raise ControllerError(f"a NATS server did not delete the account of {agent_id}: {reason}")
        self._pushed.discard(account)
        log.info("account of %s in %s deleted", agent_id, namespace)
        return True

    @property
    def unseen(self) -> int:
        """How many nodes did not answer the last look at connections: what they have goes on."""
        return self._unseen

    async def kick(self, uri: str) -> int:
        """Disconnect all connections of the identity ``uri``; the number of them.

        Those that policy still knows are back at once, with today's permissions; the others stay out.
        """
        return await self._kick({"auth": True, "user": uri})

    async def kick_account(self, account: str) -> int:
        """Disconnect all connections to ``account`` (a public key); the number of them."""
        return await self._kick({"acc": account})

    async def kick_absent(self, namespace: str, present: Mapping[Role, Collection[str]]) -> int:
        """Disconnect whoever has one of these roles in ``namespace`` and is not ``present``; how many."""

        def absent(connection: dict[str, Any]) -> bool:
            try:
                identity = parse_spiffe_id(str(connection.get("authorized_user", "")))
            except ValueError:
                return False  # one of the servers' own users
            role = identity.role
            return identity.namespace == namespace and role in present and identity.name not in present[role]

        return await self._kick({"auth": True}, absent)

    async def kick_certificate(self, fingerprint: str) -> int:
        """Disconnect whoever showed a certificate, or one of a CA, with this SHA-256; the number of them."""
        return await self._kick({"auth": True}, lambda connection: fingerprint in _shown(connection))

    async def certificates_of(self, uri: str) -> set[str]:
        """The SHA-256 of every certificate that connections of the identity ``uri`` have shown."""
        found = await self._connections({"auth": True, "user": uri})
        return {shown[0] for _, connection in found if (shown := _shown(connection))}

    async def _ensure_contained(
        self, namespace: str, role: Role, name: str, uses: tuple[accounts.Use, ...]
    ) -> str:
        require_id(namespace, "namespace")
        require_id(name, f"{role} id")
        label = _label(namespace, role, name)
        tenant = self._keys.account(namespace).public
        return await self._ensure_account(
            jwt.Account(
                self._keys.account(label).public,
                label,
                signing_keys=self._public.tenant_signing,
                imports=accounts.imports(tenant, uses),
                limits=_CONTAINED_LIMITS,
            )
        )

    async def _look_for_losses(self, client: ResilientClient, whose: str, names: frozenset[str]) -> None:
        """Note which streams are missing though others of them are there.

        Where all are missing nothing is said: that is how a new account looks.
        """
        wanted = streams.lasting(names)
        missing = await streams.patiently(lambda: missing_streams(client, wanted))
        if missing and len(missing) < len(wanted):
            self.losses.append(
                f"warning: {whose} had no {', '.join(missing)}, though others of its streams: made anew, "
                "empty. What was in them is lost: look at nats-server's disk; `mas restore` brings a backup"
            )

    async def _ensure_account(self, account: jwt.Account) -> str:
        claims = account.claims()
        stored = await self._stored(account.public)
        if len(stored) >= self._live and all(known == claims["nats"] for known in stored):
            return account.public
        token = jwt.encode(self._keys.operator_signing, claims)
        answers = await self._ask_all("$SYS.REQ.CLAIMS.UPDATE", token.encode(), self._live)
        for answer in answers:
            if answer.get("error") or answer.get("data", {}).get("code") != 200:
                reason = answer.get("error") or answer.get("data")
                raise ControllerError(f"a NATS server refused account {account.name}: {reason}")
        if len(answers) <= self._endpoint.nodes // 2:
            raise ControllerError(
                f"{len(answers)} of {self._endpoint.nodes} NATS servers took account {account.name}: "
                "apply again when a majority is up"
            )
        self._pushed.add(account.public)
        log.info("account %s pushed", account.name)
        return account.public

    async def look_again(self) -> None:
        """Which accounts the servers have: another controller may have made or deleted some.

        Raises:
            Unavailable: no server answered.

        """
        listed = await self._ask_all("$SYS.REQ.CLAIMS.LIST", b"")
        if not listed:
            raise Unavailable("no NATS server answers in the system account: repeat it when one does")
        self._live = len(listed)
        self._pushed = {account for answer in listed for account in answer["data"]}

    async def _stored(self, account: str) -> list[dict[str, Any]]:
        """The claims each server has of an account; one that has none would not even answer.

        A server that was away gets from the others what it missed, within two minutes of its return or when
        somebody connects, so those that answer count.
        """
        if account not in self._pushed:
            return []
        answers = await self._collect(f"$SYS.REQ.ACCOUNT.{account}.CLAIMS.LOOKUP", b"", self._live)
        found = [jwt.decode(answer.decode(), issued_by=Kind.OPERATOR)["nats"] for answer in answers]
        return [{key: value for key, value in claims.items() if key != "version"} for claims in found]

    async def tenant(self, namespace: str) -> ResilientClient:
        """A connection inside the tenant account, with full rights; closed with the controller.

        Raises:
            IdentityRefused: there is no such tenant.
            Unavailable: no server answered.

        """
        client = self._tenants.get(namespace)
        if client is None:
            client = await connect_tenant_admin(self._endpoint, self._keys, namespace)
            self._tenants[namespace] = client
        return client

    async def _kick(
        self, which: dict[str, Any], wanted: Callable[[dict[str, Any]], bool] = lambda _: True
    ) -> int:
        kicked = 0
        for server, connection in await self._connections(which):
            if not wanted(connection):
                continue
            subject = f"$SYS.REQ.SERVER.{server}.KICK"
            answer = await self._ask(subject, orjson.dumps({"cid": connection["cid"]}))
            kicked += not answer.get("error")  # an error: it has gone by itself meanwhile
        return kicked

    async def _connections(self, which: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
        """Server and description of every connection that matches, on every server."""
        found: list[tuple[str, dict[str, Any]]] = []
        offset, more, self._unseen = 0, True, 0
        while more:
            more = False
            page = orjson.dumps(which | {"limit": _PAGE, "offset": offset})
            answers = await self._ask_all("$SYS.REQ.SERVER.PING.CONNZ", page)
            if lacking := max(self._endpoint.nodes - len(answers), 0):
                log.warning("a node does not answer: connections that it has are not seen")
                self._unseen = max(self._unseen, lacking)
            for answer in answers:
                connections = answer["data"]["connections"]
                found += [(answer["server"]["id"], connection) for connection in connections]
                more = more or len(connections) == _PAGE
            offset += _PAGE
        return found

    async def _ask(self, subject: str, body: bytes) -> dict[str, Any]:
        answer = await self._connection.request(subject, body, timeout=_REQUEST)
        result: dict[str, Any] = orjson.loads(answer.data)
        return result

    async def _ask_all(
        self, subject: str, request: bytes, servers: int | None = None
    ) -> list[dict[str, Any]]:
        return [orjson.loads(answer) for answer in await self._collect(subject, request, servers)]

    async def _collect(self, subject: str, request: bytes, servers: int | None = None) -> list[bytes]:
        """The answers of ``servers`` servers, all there should be by default, or of those without a pause."""
        wanted = self._endpoint.nodes if servers is None else servers
        inbox = self._connection.new_inbox()
        subscription = await self._connection.subscribe(inbox)
        await self._connection.publish(subject, request, reply=inbox)
        answers: list[bytes] = []
        try:
            while len(answers) < wanted:
                message = await subscription.next_msg(timeout=_SILENCE if answers else _REQUEST)
                answers.append(message.data)
        except nats.errors.TimeoutError:
            pass
        finally:
            await subscription.unsubscribe()
        return answers

    @property
    def _connection(self) -> ResilientClient:
        if self._system is None:
            raise RuntimeError("call start() first")
        return self._system


def _label(namespace: str, role: Role, name: str) -> str:
    """Names the account of an agent or inspector, and derives its key."""
    return f"{namespace}.{role}.{name}"


def _shown(connection: dict[str, Any]) -> list[str]:
    """The SHA-256 of the certificates of a connection's verified chain, the leaf first."""
    return [str(each["cert_sha256"]) for each in connection.get("tls_peer_certs", ())]

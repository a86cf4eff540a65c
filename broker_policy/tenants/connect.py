"""Connections of the policy side: a certificate of role ``policy`` for TLS, and a JWT minted on the spot.

Each function stands for one holder and one account. The user's key is made for the connection and never
leaves the process, so a JWT that somebody saw is worth nothing. Certificates are read again at each
reconnect, so a rotated one is used without a restart.
"""

from __future__ import annotations

import base64
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from broker_policy.identity import jwt
from broker_policy.identity.nkeys import KeyPair, Kind
from broker_policy.tenants import accounts
from broker_policy.tenants.endpoint import Endpoint
from broker_policy.tenants.live_keys import SignerSecrets, WorkerSecrets
from broker_policy.tenants.material import (
    AUTH,
    CONTROL,
    SIGNER,
    SYSTEM,
    WORKERS,
    ControllerKeys,
    PublicMaterial,
)
from mas_nats.errors import ConfigurationError, IdentityRefused
from mas_nats.resilient import ResilientClient
from mas_nats.wire import subjects
from mas_nats.wire.identity import require_id

log = logging.getLogger(__name__)

_PATIENCE = 10.0
"""Seconds for which a first connect is repeated while no server listens."""
_PING_INTERVAL = 3
"""Seconds between pings; a silent server is given up after two."""
_RECONNECT_JITTER = 0.1
"""Seconds at most by which an attempt to reconnect is put off at random."""
_COMPLAINTS = 10
"""Different ones that are said of a lost connection until it is there again."""
_SYSTEM = jwt.Permissions(
    publish=(
        "$SYS.REQ.CLAIMS.UPDATE",
        "$SYS.REQ.CLAIMS.DELETE",
        "$SYS.REQ.CLAIMS.LIST",
        "$SYS.REQ.ACCOUNT.*.CLAIMS.LOOKUP",
        "$SYS.REQ.SERVER.PING",
        "$SYS.REQ.SERVER.PING.CONNZ",
        "$SYS.REQ.SERVER.PING.VARZ",
        "$SYS.REQ.SERVER.*.KICK",
    ),
    subscribe=("_INBOX.>",),
)
Listener = Callable[[], Awaitable[None]]
_CALLOUT = jwt.Permissions(subscribe=(subjects.AUTH_CALLOUT,), answer_within=5.0)


@dataclass(frozen=True, slots=True)
class Credentials:
    """Who connects, and who vouches for that; made anew for each attempt, since keys are rotated."""

    user: KeyPair
    issuer: KeyPair
    claims: jwt.Claims

    def encode(self) -> bytes:
        """The user's JWT."""
        return jwt.encode(self.issuer, self.claims).encode()


async def connect_tenant(
    endpoint: Endpoint,
    keys: WorkerSecrets,
    account: str,
    *,
    name: str,
    patience: float = _PATIENCE,
    reconnected: Listener | None = None,
) -> ResilientClient:
    """A worker inside the tenant account ``account`` (a public key), with full rights there.

    ``reconnected`` is awaited after each reconnect.

    Raises:
        IdentityRefused: the server knows no such account, or refused the certificate or key.
        Unavailable: no server answered within ``patience`` seconds.

    """
    user = KeyPair.create(Kind.USER)
    claims = jwt.user_claims(user.public, name, jwt.EVERYTHING, issuer_account=account)
    return await _connect(
        endpoint,
        lambda: Credentials(user, keys.tenant_signing, claims),
        name=name,
        patience=patience,
        reconnected=reconnected,
    )


async def connect_control(
    endpoint: Endpoint, keys: WorkerSecrets, public: PublicMaterial, *, name: str, patience: float = _PATIENCE
) -> ResilientClient:
    """A worker that reads and follows policy and writes its own heartbeat, the bucket key ``name``."""
    return await _scoped(endpoint, lambda: keys.control_worker, public.accounts[WORKERS], name, patience)


async def connect_observer(
    endpoint: Endpoint, keys: WorkerSecrets, public: PublicMaterial, *, name: str, patience: float = _PATIENCE
) -> ResilientClient:
    """A worker that may ask the servers for JSZ and VARZ, to check their durability settings."""
    return await _scoped(endpoint, lambda: keys.system_observer, public.accounts[WORKERS], name, patience)


async def connect_checkpoints(
    endpoint: Endpoint,
    keys: SignerSecrets,
    public: PublicMaterial,
    *,
    name: str = "signer",
    patience: float = _PATIENCE,
) -> ResilientClient:
    """The checkpoint signer: appends checkpoints and reads them back."""
    return await _scoped(endpoint, lambda: keys.control_signer, public.accounts[SIGNER], name, patience)


async def connect_callout(
    endpoint: Endpoint, keys: WorkerSecrets, public: PublicMaterial, *, name: str, patience: float = _PATIENCE
) -> ResilientClient:
    """A worker that answers the server's authorization requests and can do nothing else."""

    def credentials() -> Credentials:
        user = keys.auth_user
        claims = jwt.user_claims(user.public, name, _CALLOUT, issuer_account=public.accounts[AUTH])
        return Credentials(user, keys.auth_signing, claims)

    return await _connect(endpoint, credentials, name=name, patience=patience)


async def connect_system(
    endpoint: Endpoint,
    keys: ControllerKeys,
    public: PublicMaterial,
    *,
    name: str = "controller",
    patience: float = _PATIENCE,
) -> ResilientClient:
    """The tenant controller in the system account: pushes accounts, kicks connections."""
    user = KeyPair.create(Kind.USER)
    claims = jwt.user_claims(user.public, name, _SYSTEM, issuer_account=public.accounts[SYSTEM])
    return await _connect(
        endpoint, lambda: Credentials(user, keys.system_signing, claims), name=name, patience=patience
    )


async def connect_control_admin(
    endpoint: Endpoint, keys: ControllerKeys, *, name: str = "controller", patience: float = _PATIENCE
) -> ResilientClient:
    """The tenant controller in CONTROL, with full rights: it writes policy."""
    return await _admin(endpoint, keys.account(CONTROL), name, patience)


async def connect_tenant_admin(
    endpoint: Endpoint,
    keys: ControllerKeys,
    namespace: str,
    *,
    name: str = "controller",
    patience: float = _PATIENCE,
) -> ResilientClient:
    """The tenant controller inside a tenant account, with full rights: it makes streams and consumers.

    Raises:
        IdentityRefused: the server knows no such account.
        Unavailable: no server answered within ``patience`` seconds.

    """
    return await _inside(endpoint, keys, namespace, name, patience)


async def connect_tenant_reader(
    endpoint: Endpoint,
    keys: ControllerKeys,
    namespace: str,
    *,
    name: str,
    patience: float = _PATIENCE,
) -> ResilientClient:
    """Who reads a tenant account: the server lets it ask for what is there, and publish nothing else."""
    reading = accounts.permissions(accounts.TENANT_READER)
    return await _inside(endpoint, keys, namespace, name, patience, reading)


async def connect_control_reader(
    endpoint: Endpoint, keys: ControllerKeys, *, name: str, patience: float = _PATIENCE
) -> ResilientClient:
    """Who reads the checkpoints and the policy in CONTROL, and may ask for nothing else."""
    return await _admin(
        endpoint, keys.account(CONTROL), name, patience, accounts.permissions(accounts.CONTROL_READER)
    )


async def _inside(
    endpoint: Endpoint,
    keys: ControllerKeys,
    namespace: str,
    name: str,
    patience: float,
    permissions: jwt.Permissions = jwt.EVERYTHING,
) -> ResilientClient:
    account = keys.account(require_id(namespace, "namespace"))
    try:
        return await _admin(endpoint, account, name, patience, permissions)
    except IdentityRefused:
        raise IdentityRefused(
            f"the broker knows no namespace {namespace!r} of these keys: `mas get mas` lists what there is"
        ) from None


async def _admin(
    endpoint: Endpoint,
    account: KeyPair,
    name: str,
    patience: float,
    permissions: jwt.Permissions = jwt.EVERYTHING,
) -> ResilientClient:
    user = KeyPair.create(Kind.USER)
    claims = jwt.user_claims(user.public, name, permissions)
    return await _connect(endpoint, lambda: Credentials(user, account, claims), name=name, patience=patience)


async def _scoped(
    endpoint: Endpoint, signing: Callable[[], KeyPair], account: str, name: str, patience: float
) -> ResilientClient:
    user = KeyPair.create(Kind.USER)
    claims = jwt.scoped_user_claims(user.public, require_id(name, "name"), issuer_account=account)
    return await _connect(
        endpoint, lambda: Credentials(user, signing(), claims), name=name, patience=patience
    )


async def _connect(
    endpoint: Endpoint,
    credentials: Callable[[], Credentials],
    *,
    name: str,
    patience: float,
    reconnected: Listener | None = None,
) -> ResilientClient:
    client = ResilientClient()
    said: set[str] = set()  # of what was said since it was lost: most of it comes with every attempt

    async def on_error(error: Exception) -> None:
        text = str(error) or type(error).__name__
        if not client.is_connected:
            if text in said or len(said) >= _COMPLAINTS:
                return
            said.add(text)
        log.warning("connection %s: %s", name, text)

    async def on_reconnect() -> None:
        if said:
            said.clear()
            log.info("connection %s: connected again", name)
        if reconnected is not None:
            await reconnected()

    async def on_disconnect() -> None:
        try:
            client.options["tls"] = endpoint.ssl_context()
        except ConfigurationError as error:
            log.warning("connection %s keeps its old certificate: %s", name, error)

    await client.connect_within(
        patience,
        servers=endpoint.url.split(","),
        name=name,
        tls=endpoint.ssl_context(),
        tls_hostname=endpoint.tls_hostname,
        user_jwt_cb=lambda: credentials().encode(),
        signature_cb=lambda nonce: base64.b64encode(credentials().user.sign(nonce.encode())),
        error_cb=on_error,
        disconnected_cb=on_disconnect,
        ping_interval=_PING_INTERVAL,
        reconnect_jitter=_RECONNECT_JITTER,
        reconnected_cb=on_reconnect,
    )
    return client

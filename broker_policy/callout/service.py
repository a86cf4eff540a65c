"""Answers the server's authorization requests: a verified certificate in, a user JWT out (ADR-26).

Only the chain that TLS has verified counts; whatever else the client said is ignored. The user may do what
its grant lists, in the account its grant names, and not for longer than its certificate is valid.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from broker_policy.clock import Milliseconds, wall_clock
from broker_policy.identity import jwt
from broker_policy.identity.nkeys import Kind
from broker_policy.identity.pki import Holder, IdentityError, identity_from_chain
from broker_policy.tenants.accounts import Grant
from broker_policy.tenants.live_keys import WorkerSecrets
from broker_policy.tenants.material import AUTH, PublicMaterial
from mas_nats.wire.identity import DEFAULT_TRUST_DOMAIN, Identity
from mas_nats.wire.subjects import AUTH_CALLOUT

log = logging.getLogger(__name__)

QUEUE = "callout"
_AUDIENCE = "nats-authorization-request"


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt to connect, as the audit wants it."""

    host: str
    holder: Holder | None  # None: the certificate names nobody
    reason: str = ""  # why it was refused

    @property
    def uri(self) -> str:
        """The SPIFFE id, or the empty text."""
        return self.holder.identity.uri if self.holder else ""


class _Refused(Exception):
    """Why not; short, and nothing the client said is in it."""

    def __init__(self, reason: str, holder: Holder | None = None) -> None:
        super().__init__(reason)
        self.holder = holder


Revoked = Callable[[Holder], bool]
Resolve = Callable[[Identity], Grant | None]
Listener = Callable[[Attempt], None]


class CalloutService:
    """Needs a connection from ``connect_callout``. Any number may run: they share the requests.

    ``resolve`` says what an identity is granted, None when policy does not know it; when it raises, the
    attempt is refused. ``revoked`` says whether a certificate was revoked.
    """

    def __init__(
        self,
        nc: Client,
        keys: WorkerSecrets,
        public: PublicMaterial,
        resolve: Resolve,
        *,
        revoked: Revoked = lambda _: False,
        on_accept: Listener | None = None,
        on_refuse: Listener | None = None,
        trust_domain: str = DEFAULT_TRUST_DOMAIN,
        clock: Milliseconds = wall_clock,
    ) -> None:
        self._nc = nc
        self._keys = keys
        self._auth_account = public.accounts[AUTH]
        self._resolve = resolve
        self._revoked = revoked
        self._on_accept = on_accept
        self._on_refuse = on_refuse
        self._trust_domain = trust_domain
        self._clock = clock
        self._subscription: Subscription | None = None

    async def start(self) -> None:
        """Begin to answer."""
        self._subscription = await self._nc.subscribe(AUTH_CALLOUT, queue=QUEUE, cb=self._on_request)
        await self._nc.flush()

    async def stop(self) -> None:
        """Answer what has arrived, then no more."""
        if self._subscription is not None:
            await self._subscription.drain()  # type: ignore[no-untyped-call]
            self._subscription = None

    async def _on_request(self, message: Msg) -> None:
        try:
            request = _request(message.data, self._clock() / 1000)
        except (jwt.InvalidToken, KeyError, TypeError) as error:
            log.warning("an authorization request that is none: %s", error)
            return
        user, server = request["user_nkey"], request["server_id"]["id"]
        host = str(request.get("client_info", {}).get("host", ""))
        token, reason = "", ""
        try:
            holder, token = self._admit(request)
            attempt = Attempt(host, holder)
        except _Refused as refused:
            reason = str(refused)
            attempt = Attempt(host, refused.holder, reason)
        except Exception:
            log.exception("an authorization request could not be judged")
            reason = "the policy service could not judge the request"
            attempt = Attempt(host, None, reason)
        answer = jwt.authorization_response(
            user=user,
            server=server,
            issuer_account=self._auth_account,
            user_jwt=token,
            error=reason,
        )
        token = jwt.encode(self._keys.auth_signing, answer, issued_at=self._clock() // 1000)
        await message.respond(token.encode())
        self._report(attempt)

    def _admit(self, request: dict[str, Any]) -> tuple[Holder, str]:
        chains = (request.get("client_tls") or {}).get("verified_chains") or []
        if not chains or not chains[0]:
            raise _Refused("no verified client certificate")
        try:
            holder = identity_from_chain(chains[0][0])
        except IdentityError as error:
            raise _Refused(str(error)) from None
        identity = holder.identity
        if identity.trust_domain != self._trust_domain:
            raise _Refused(f"trust domain {identity.trust_domain} is not {self._trust_domain}", holder)
        if self._revoked(holder):
            raise _Refused("this certificate is revoked", holder)
        grant = self._resolve(identity)
        if grant is None:
            raise _Refused("policy knows no such identity", holder)
        claims = jwt.user_claims(
            request["user_nkey"],
            identity.uri,
            grant.permissions,
            issuer_account=grant.account,
            expires=int(holder.not_after.timestamp()),
        )
        return holder, jwt.encode(self._keys.tenant_signing, claims, issued_at=self._clock() // 1000)

    def _report(self, attempt: Attempt) -> None:
        if attempt.reason:
            log.warning(
                "refused %s from %s: %s", attempt.uri or "unnamed certificate", attempt.host, attempt.reason
            )
        else:
            log.info("accepted %s from %s", attempt.uri, attempt.host)
        listener = self._on_refuse if attempt.reason else self._on_accept
        if listener is not None:
            listener(attempt)


def _request(data: bytes, now: float) -> dict[str, Any]:
    """The claims of a request that the server it names has signed, not long before ``now``.

    Raises:
        InvalidToken: it is not such a request.

    """
    claims = jwt.decode(data.decode(), issued_by=Kind.NODE, now=now)
    request: dict[str, Any] = claims["nats"]
    if claims.get("aud") != _AUDIENCE or claims["iss"] != request["server_id"]["id"]:
        raise jwt.InvalidToken("not signed by the server it names")
    return request

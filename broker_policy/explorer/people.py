"""Who may look by certificate: whom policy knows at that moment, as when somebody connects to NATS.

A connection may stay open for days, so that is asked at each request, and again and again while one is
answered: a stream of events never ends by itself.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import nats.errors
from nats.aio.client import Client
from starlette.types import ASGIApp, Receive, Scope, Send

from broker_policy.ending import end
from broker_policy.explorer.gate import HEADERS, refusal
from broker_policy.identity.pki import Holder, IdentityError, identity_from_chain
from broker_policy.jetstream import JetStreamError
from broker_policy.policy.follower import PolicyFollower
from broker_policy.tenants.accounts import grant_for
from mas_nats.errors import Unavailable
from mas_nats.wire.identity import DEFAULT_TRUST_DOMAIN, Role

log = logging.getLogger(__name__)

_LOOK_AGAIN = 1.0
"""Seconds after which it is asked again whether who is being answered may still look."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why the holder of a certificate may not look; as a status of HTTP, and in words."""

    status: int
    text: str
    fix: str


_UNKNOWN = Refusal(
    503,
    "policy cannot be confirmed, so nobody is let in by certificate",
    "try again in some seconds; mas doctor says what is wrong",
)
_REVOKED = Refusal(403, "this certificate is revoked", "ask for a new one, if you may look")
_EXPIRED = Refusal(403, "this certificate has expired", "ask for a new one")


class People:
    """The inspectors and operators of a namespace, as the policy that is followed declares them."""

    def __init__(
        self,
        policy: PolicyFollower,
        namespace: str,
        *,
        trust_domain: str = DEFAULT_TRUST_DOMAIN,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._policy = policy
        self._namespace = namespace
        self._trust_domain = trust_domain
        self._clock = clock

    def holder(self, certificate: bytes) -> Holder | None:
        """Who shows ``certificate`` (DER); None when it is nobody who could be let in."""
        try:
            holder = identity_from_chain(ssl.DER_cert_to_PEM_cert(certificate))
        except IdentityError:
            return None
        who = holder.identity
        here = who.trust_domain == self._trust_domain and who.namespace == self._namespace
        return holder if here and who.role in (Role.INSPECTOR, Role.OPERATOR) else None

    def refusal(self, holder: Holder) -> Refusal | None:
        """Why ``holder`` may not look at this moment; None when they may."""
        if self._policy.stale:
            return _UNKNOWN
        if self._policy.revoked(holder.fingerprint):
            return _REVOKED
        if holder.not_after.timestamp() <= self._clock():
            return _EXPIRED
        table = self._policy.table(self._namespace)
        if table is None or grant_for(table.document, holder.identity) is None:
            who = holder.identity
            return Refusal(
                403,
                f"policy knows no {who.role} {who.name} in namespace {self._namespace}",
                f"name it under {who.role}s in the manifest and run mas apply",
            )
        return None


@asynccontextmanager
async def following(nc: Client, namespace: str) -> AsyncIterator[People]:
    """The people of ``namespace``; ``nc`` is a connection that may read policy.

    Raises:
        Unavailable: policy cannot be read, so nobody could be let in.

    """
    policy = PolicyFollower(nc)
    try:
        await policy.start()
    except (nats.errors.Error, JetStreamError, OSError) as error:
        raise Unavailable(
            f"policy cannot be read ({type(error).__name__}), so nobody could be let in by certificate"
        ) from None
    try:
        yield People(policy, namespace)
    finally:
        await policy.stop()


class Asked:
    """``app`` for the holder of a certificate, who may cease to be somebody who may look.

    ``hang_up`` ends the connection at once: what is still to be sent is for nobody then.
    """

    def __init__(self, app: ASGIApp, people: People, holder: Holder, hang_up: Callable[[], None]) -> None:
        self._app = app
        self._people = people
        self._holder = holder
        self._hang_up = hang_up

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if refused := self._people.refusal(self._holder):
            self._say(refused)
            answer = refusal(scope, refused.status, refused.text, refused.fix, HEADERS)
            await answer(scope, receive, send)
            return
        answering = asyncio.ensure_future(self._answer(scope, receive, send))
        try:
            while not (await asyncio.wait({answering}, timeout=_LOOK_AGAIN))[0]:
                if refused := self._people.refusal(self._holder):
                    break
        finally:
            await end([answering])
        if refused is None:
            answering.result()
            return
        self._say(refused)
        self._hang_up()
        while (await receive())["type"] != "http.disconnect":
            pass  # what was left of the request

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)

    def _say(self, refused: Refusal) -> None:
        log.warning("refused %s: %s", self._holder.identity.uri, refused.text)

"""The accounts as the servers have them: read, changed, signed again, pushed."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import nats.errors
import orjson

from broker_policy.identity import jwt
from broker_policy.identity.nkeys import Kind
from broker_policy.identity.private_files import write_private
from broker_policy.keys.site import Site
from broker_policy.tenants.connect import connect_system
from broker_policy.tenants.material import ACCOUNT_FILES, ControllerKeys, PublicMaterial
from mas_nats.errors import Unavailable
from mas_nats.resilient import ResilientClient

_REQUEST = 5.0
_SILENCE = 0.3
Change = Callable[[jwt.Claims], jwt.Claims]


class Resolver:
    """Use as ``async with Resolver(site)``; it takes the controller's keys as they are then."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._keys = ControllerKeys.load(site.keys)
        self._public = PublicMaterial.load(site.keys)
        self._system: ResilientClient

    async def __aenter__(self) -> Self:
        endpoint = self._site.broker.connection(self._site.layout, "controller")
        self._system = await connect_system(endpoint, self._keys, self._public, name="keys")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._system.close()

    async def sign_again(self, known: set[str]) -> tuple[int, int]:
        """Push the fixed accounts and those of ``known``, signed by the operator's key of today.

        Returns how many were pushed, and how many are nobody's: whoever stole the key may have made those.
        Errors as ``change_all``.
        """
        pushed, unknown = 0, 0
        for account in await self._accounts():
            if account in known or account in self._public.accounts.values():
                claims = await self._lookup(account)
                await self._push(account, claims, int(claims["iat"]))
                pushed += 1
            else:
                unknown += 1
        return pushed, unknown

    async def change_all(self, change: Change) -> int:
        """Push every account that ``change`` makes another, signed by the operator's key of today.

        Returns how many were pushed.

        Raises:
            Unavailable: the server refused one, or does not answer; call again.

        """
        pushed = 0
        for account in await self._accounts():
            claims = await self._lookup(account)
            changed = change(claims)
            if changed["nats"] != claims["nats"]:
                await self._push(account, changed, int(claims["iat"]))
                pushed += 1
        return pushed

    async def ask_all(self, subject: str, request: dict[str, Any]) -> list[dict[str, Any]]:
        """The ``data`` of every server's answer."""
        inbox = self._system.new_inbox()
        subscription = await self._system.subscribe(inbox)
        await self._system.publish(subject, orjson.dumps(request), reply=inbox)
        answers: list[dict[str, Any]] = []
        try:
            while True:
                message = await subscription.next_msg(timeout=_SILENCE if answers else _REQUEST)
                answers.append(orjson.loads(message.data)["data"])
        except nats.errors.TimeoutError:
            return answers
        finally:
            await subscription.unsubscribe()

    async def _accounts(self) -> list[str]:
        answer = await self._system.request("$SYS.REQ.CLAIMS.LIST", b"", timeout=_REQUEST)
        # The fixed ones first: what is signed for others must be known before.
        fixed = list(self._public.accounts.values())
        return [*fixed, *sorted(set(orjson.loads(answer.data)["data"]) - set(fixed))]

    async def _lookup(self, account: str) -> jwt.Claims:
        answer = await self._system.request(f"$SYS.REQ.ACCOUNT.{account}.CLAIMS.LOOKUP", timeout=_REQUEST)
        return jwt.decode(answer.data.decode(), issued_by=Kind.OPERATOR)

    async def _push(self, account: str, claims: jwt.Claims, before: int) -> None:
        # A server keeps what it has where that was issued later: this machine's clock may be behind.
        body = {key: value for key, value in claims.items() if key not in ("iss", "iat", "jti")}
        token = jwt.encode(self._keys.operator_signing, body, issued_at=max(int(time.time()), before))
        for name, public in self._public.accounts.items():
            if public == account:
                write_private(self._site.keys / "public" / ACCOUNT_FILES[name], token.encode())
        answer = await self._system.request("$SYS.REQ.CLAIMS.UPDATE", token.encode(), timeout=_REQUEST)
        result = orjson.loads(answer.data)
        if result.get("error") or result.get("data", {}).get("code") != 200:
            raise Unavailable(f"the NATS server refused account {claims['name']}: {result.get('error')}")


def with_key(claims: jwt.Claims, old: str, new: str) -> jwt.Claims:
    """``new`` beside ``old``, with the same rights, wherever an account trusts ``old``."""

    def both(keys: list[Any]) -> list[Any]:
        there = {_public(key) for key in keys}
        added = [_like(key, new) for key in keys if _public(key) == old and new not in there]
        return [*keys, *added]

    return _edit(claims, both)


def without_key(claims: jwt.Claims, old: str) -> jwt.Claims:
    """Without ``old``."""
    return _edit(claims, lambda keys: [key for key in keys if _public(key) != old])


def _edit(claims: jwt.Claims, edit: Callable[[list[Any]], list[Any]]) -> jwt.Claims:
    body = dict(claims["nats"])
    if "signing_keys" in body:
        body["signing_keys"] = edit(body["signing_keys"])
    if "auth_users" in body.get("authorization", {}):
        users = edit(body["authorization"]["auth_users"])
        body["authorization"] = {**body["authorization"], "auth_users": users}
    return {**claims, "nats": body}


def _public(key: Any) -> str:
    return str(key["key"] if isinstance(key, dict) else key)


def _like(key: Any, public: str) -> Any:
    return {**key, "key": public} if isinstance(key, dict) else public

"""NATS JWT v2: encode, decode, and the claims of an operator, an account, a user and a callout answer.

Source: github.com/nats-io/jwt v2 and ADR-26 (auth callout). Two things that bite: an omitted limit of an
account is 0, which means *none*; an empty allow list of a user means *everything*.
"""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from broker_policy.identity import nkeys
from broker_policy.identity.nkeys import KeyPair, Kind
from mas_nats.wire.base64url import base64url

Claims = dict[str, Any]

_HEADER = {"typ": "JWT", "alg": "ed25519-nkey"}
UNLIMITED = -1
_CONNECTION_LIMITS = {"subs": UNLIMITED, "data": UNLIMITED, "payload": UNLIMITED}
_ACCOUNT_LIMITS = _CONNECTION_LIMITS | {
    "imports": UNLIMITED,
    "exports": UNLIMITED,
    "wildcards": True,
    "conn": UNLIMITED,
    "leaf": UNLIMITED,
}
NO_JETSTREAM = {"mem_storage": 0, "disk_storage": 0, "streams": 0, "consumer": 0}


class InvalidToken(ValueError):
    """A JWT that is malformed, badly signed, expired or not from whom it must be."""


@dataclass(frozen=True, slots=True)
class Permissions:
    """What a user may publish and subscribe to. Nothing where a list is empty."""

    publish: Sequence[str] = ()
    subscribe: Sequence[str] = ()
    answer_within: float = 0.0  # seconds; > 0 lets it answer each request it receives, once

    def claims(self) -> Claims:
        """As NATS writes them; an empty list becomes a denial of everything."""
        out: Claims = {
            "pub": {"allow": list(self.publish)} if self.publish else {"deny": [">"]},
            "sub": {"allow": list(self.subscribe)} if self.subscribe else {"deny": [">"]},
        }
        if self.answer_within:
            out["resp"] = {"max": 1, "ttl": int(self.answer_within * 1e9)}
        return out


EVERYTHING = Permissions((">",), (">",))


@dataclass(frozen=True, slots=True)
class ScopedKey:
    """A signing key whose users get ``permissions`` whatever they ask for.

    ``{{name()}}`` in a subject stands for the name in the user's JWT.
    """

    public: str
    role: str
    permissions: Permissions

    def claims(self) -> Claims:
        """As an entry of an account's ``signing_keys``."""
        template = self.permissions.claims() | _CONNECTION_LIMITS
        return {"kind": "user_scope", "key": self.public, "role": self.role, "template": template}


@dataclass(frozen=True, slots=True)
class Account:
    """The parts of an account that this system sets."""

    public: str
    name: str
    signing_keys: Sequence[str | ScopedKey] = ()
    exports: Sequence[Claims] = ()
    imports: Sequence[Claims] = ()
    limits: Mapping[str, int] = field(default_factory=dict)
    jetstream: Mapping[str, int] = field(default_factory=lambda: NO_JETSTREAM)
    authorization: Claims | None = None

    def claims(self) -> Claims:
        """As the body of an account JWT."""
        nats: Claims = {
            "type": "account",
            "limits": {**_ACCOUNT_LIMITS, **self.limits, **self.jetstream},
        }
        if self.signing_keys:
            nats["signing_keys"] = [
                key if isinstance(key, str) else key.claims() for key in self.signing_keys
            ]
        if self.exports:
            nats["exports"] = list(self.exports)
        if self.imports:
            nats["imports"] = list(self.imports)
        if self.authorization:
            nats["authorization"] = self.authorization
        return {"sub": self.public, "name": self.name, "nats": nats}


def operator_claims(public: str, name: str, *, system_account: str, signing_keys: Iterable[str]) -> Claims:
    """The operator: who may sign accounts, and which account is the system's."""
    nats = {"type": "operator", "system_account": system_account, "signing_keys": list(signing_keys)}
    return {"sub": public, "name": name, "nats": nats}


def deletion(operator: str, accounts: Iterable[str]) -> Claims:
    """What an operator's key (``operator``, which also signs it) says to have accounts deleted."""
    return {"sub": operator, "name": "", "nats": {"type": "generic", "accounts": list(accounts)}}


def user_claims(
    public: str,
    name: str,
    permissions: Permissions,
    *,
    issuer_account: str = "",
    expires: int | None = None,
    bearer: bool = False,
) -> Claims:
    """A user with permissions of its own. ``expires`` is in unix seconds.

    ``issuer_account`` is the account's public key where one of its signing keys signs, and empty where
    the account's own key does.
    """
    nats: Claims = {"type": "user", **_CONNECTION_LIMITS, **permissions.claims()}
    if issuer_account:
        nats["issuer_account"] = issuer_account
    if bearer:
        nats["bearer_token"] = True
    claims: Claims = {"sub": public, "name": name, "nats": nats}
    if expires is not None:
        claims["exp"] = expires
    return claims


def scoped_user_claims(public: str, name: str, *, issuer_account: str) -> Claims:
    """A user of a scoped signing key: it must state no permission or limit, the key's template holds."""
    return {"sub": public, "name": name, "nats": {"type": "user", "issuer_account": issuer_account}}


def authorization_response(
    *, user: str, server: str, issuer_account: str, user_jwt: str = "", error: str = ""
) -> Claims:
    """The callout's answer: either a user JWT or a short reason why not."""
    nats: Claims = {"type": "authorization_response", "issuer_account": issuer_account}
    if user_jwt:
        nats["jwt"] = user_jwt
    if error:
        nats["error"] = error
    return {"sub": user, "aud": server, "nats": nats}


def encode(issuer: KeyPair, claims: Claims, *, issued_at: int | None = None) -> str:
    """Sign ``claims``; ``iss``, ``iat``, ``jti`` and the version are filled in."""
    body = {key: value for key, value in claims.items() if key != "jti"}
    body["iss"] = issuer.public
    body["iat"] = int(time.time()) if issued_at is None else issued_at
    body["nats"] = claims["nats"] | {"version": 2}
    registered = {key: value for key, value in body.items() if key != "nats"}
    digest = hashlib.new("sha512_256", orjson.dumps(registered, option=orjson.OPT_SORT_KEYS)).digest()
    body["jti"] = base64.b32encode(digest).decode().rstrip("=")
    signed = f"{base64url(orjson.dumps(_HEADER))}.{base64url(orjson.dumps(body))}"
    return f"{signed}.{base64url(issuer.sign(signed.encode()))}"


def decode(token: str, *, issued_by: Kind, now: float | None = None) -> Claims:
    """The claims of ``token``, after its signature and times were checked.

    Raises:
        InvalidToken: it is malformed, expired, not yet valid, badly signed, or its issuer is not of the
            kind ``issued_by``.

    """
    header, claims, genuine = _read(token)
    if header.get("alg") != _HEADER["alg"] or str(header.get("typ", "")).upper() != "JWT":
        raise InvalidToken("a NATS JWT says typ=JWT, alg=ed25519-nkey")
    kind = nkeys.kind_of(claims["iss"])
    if kind is not issued_by:
        raise InvalidToken(f"issued by a key of kind {kind.name}, not {issued_by.name}")
    if not genuine:
        raise InvalidToken("the signature is not the issuer's")
    at = time.time() if now is None else now
    if claims.get("exp") and claims["exp"] <= at:
        raise InvalidToken("expired")
    if claims.get("nbf") and claims["nbf"] > at:
        raise InvalidToken("not valid yet")
    if not isinstance(claims.get("nats"), dict):
        raise InvalidToken("no nats claims")
    return claims


def _read(token: str) -> tuple[Claims, Claims, bool]:
    """Header, claims, and whether the signature is that of the issuer the claims name."""
    try:
        head, body, signature = token.split(".")
        header, claims = dict(orjson.loads(_unpart(head))), dict(orjson.loads(_unpart(body)))
        genuine = nkeys.verify(claims["iss"], f"{head}.{body}".encode(), _unpart(signature))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidToken(f"not a NATS JWT: {type(error).__name__}") from None
    return header, claims, genuine


def _unpart(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))

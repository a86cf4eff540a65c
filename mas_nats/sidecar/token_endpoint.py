"""Token exchange over HTTP, at the sidecar's own address: ``POST /token`` and ``GET /.well-known/jwks.json``.

Sources: RFC 8693 (the exchange), RFC 6749 5.2 and RFC 8693 2.2.2 (its errors), RFC 7517 (the key set). For
applications that exchange by themselves; a sidecar gets the token of each call anyway, whatever the
application puts into ``Authorization``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl

import orjson

from mas_nats.policy.applications import TOOL_NAME
from mas_nats.sidecar.application import Settings
from mas_nats.sidecar.http_message import JSON, HttpResponse, media_type
from mas_nats.sidecar.listener import Received
from mas_nats.sidecar.refusal import Refusal
from mas_nats.sidecar.tokens import TokenAuthority
from mas_nats.tokens.claims import LLM

PATH = "/token"
KEYS_PATH = "/.well-known/jwks.json"
_FORM = "application/x-www-form-urlencoded"
_GRANT = "urn:ietf:params:oauth:grant-type:token-exchange"
_JWT = "urn:ietf:params:oauth:token-type:jwt"
_TYPES = frozenset({_JWT, "urn:ietf:params:oauth:token-type:access_token"})
_KNOWN = frozenset(
    {
        *("grant_type", "subject_token", "subject_token_type", "requested_token_type"),
        *("audience", "resource", "scope"),
    }
)


class _Wrong(Exception):
    """An error in the form of OAuth."""

    def __init__(self, code: str, text: str, status: int = 400) -> None:
        super().__init__(text)
        self.code = code
        self.status = status


class TokenEndpoint:
    """Answers what is asked of the sidecar itself."""

    def __init__(self, settings: Settings, authority: TokenAuthority) -> None:
        self._settings = settings
        self._authority = authority

    def takes(self, received: Received, address: str) -> bool:
        """Whether this is asked of the sidecar, which listens at ``address``, and not of another by a proxy.

        The host has to be the address itself: no other name leads here, whatever it resolves to.
        """
        path = received.target.partition("?")[0]
        return path in (PATH, KEYS_PATH) and dict(received.headers).get("host", "") == address

    async def answer(self, received: Received) -> HttpResponse:
        """The answer, errors too."""
        try:
            if received.target == KEYS_PATH:
                _require_method(received, "GET")
                return _json(200, await self._authority.key_set())
            return await self._exchange(received)
        except _Wrong as wrong:
            return _json(wrong.status, {"error": wrong.code, "error_description": str(wrong)})
        except Refusal as refusal:
            later = refusal.status in (429, 503)
            code = "temporarily_unavailable" if later else "invalid_request"
            if not later and (
                refusal.rule.startswith(("policy.BLOCK", "policy.ABSTAIN", "policy.token:scope"))
            ):
                code = "invalid_scope"
            if not later and refusal.rule in ("policy.deny_by_default", "policy.blocked_targets"):
                code = "invalid_target"
            text = f"{refusal.rule}: {refusal.text}"
            return _json(503 if later else 400, {"error": code, "error_description": text})

    async def _exchange(self, received: Received) -> HttpResponse:
        _require_method(received, "POST")
        form = _form(received)
        if form.get("grant_type") != _GRANT:
            raise _Wrong("unsupported_grant_type", f"grant_type must be {_GRANT}")
        if not form.get("subject_token"):
            text = "subject_token is the token that came with the request, in its Authorization header"
            raise _Wrong("invalid_request", text)
        for name in ("subject_token_type", "requested_token_type"):
            if form.get(name, _JWT if name.startswith("requested") else "") not in _TYPES:
                raise _Wrong("invalid_request", f"{name} must be {_JWT}")
        if "resource" in form:
            raise _Wrong("invalid_target", "name the target in audience, by the name of its application")
        audience, scope = form.get("audience", ""), form.get("scope", "")
        tool = ""
        scopes: tuple[str, ...] = ()
        if audience != LLM:
            audience = self._settings.hosts.get(audience, audience)
            tool, scopes = self._asked(audience, scope)
        token, claims, seconds = await self._authority.exchange(form["subject_token"], audience, tool, scopes)
        given = {
            "access_token": token,
            "issued_token_type": _JWT,
            "token_type": "Bearer",
            "expires_in": seconds,
            **({"scope": " ".join((tool, *claims.scopes))} if audience != LLM else {}),
        }
        return _json(200, given)

    def _asked(self, audience: str, scope: str) -> tuple[str, tuple[str, ...]]:
        """The tool that ``scope`` names, and the scopes of the application that it asks for."""
        application = self._settings.known(audience)
        if application is None:
            raise _Wrong("invalid_target", "audience is none of the applications")
        words = scope.split(" ")
        scopes = tuple(dict.fromkeys(each for each in words if each in application.scopes))
        tools = [each for each in words if each not in application.scopes] or words
        if len(tools) != 1 or not TOOL_NAME.fullmatch(tools[0]):
            raise _Wrong("invalid_scope", "scope must name one tool, and else scopes of the application only")
        return tools[0], scopes if len(words) > 1 else ()


def _require_method(received: Received, method: str) -> None:
    if "origin" in dict(received.headers):
        raise _Wrong("invalid_request", "no page of a browser asks here", 403)
    if received.method != method:
        raise _Wrong("invalid_request", f"this is asked by {method}", 405)


def _form(received: Received) -> Mapping[str, str]:
    if media_type(dict(received.headers).get("content-type", "")) != _FORM or "?" in received.target:
        raise _Wrong("invalid_request", f"the body must be {_FORM}, without a query")
    try:
        pairs = parse_qsl(received.body.decode("ascii"), strict_parsing=True, max_num_fields=20)
    except ValueError:
        raise _Wrong("invalid_request", f"the body must be {_FORM}") from None
    if len({name for name, _ in pairs}) < len(pairs):
        raise _Wrong("invalid_request", "a parameter is there twice")
    if unknown := sorted({name for name, _ in pairs} - _KNOWN):
        raise _Wrong("invalid_request", f"{len(unknown)} parameters are not known here")
    return dict(pairs)


def _json(status: int, document: Mapping[str, Any]) -> HttpResponse:
    headers = {"content-type": JSON, "cache-control": "no-store"}
    return HttpResponse(status, headers, orjson.dumps(document))

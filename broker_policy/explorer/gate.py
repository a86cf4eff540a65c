"""Who may look, and how a browser must treat what it gets: around every request, before any page.

In order: only GET and HEAD; the Host header (against DNS rebinding); requests that another site's page makes;
the token, where one is asked for.
"""

from __future__ import annotations

import hmac
import ipaddress
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

ENTER = "/enter"
"""Where a browser brings the token, once; it gets a cookie for it."""
_COOKIE = "mas_explorer"
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-store",
}
"""On every answer. The files of the page override ``Cache-Control``."""


@dataclass(frozen=True, slots=True)
class Pass:
    """A token that is asked for, and what a browser shows instead after it has shown the token once."""

    token: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)
    session: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)
    secure: bool = False  # whether the page is served over TLS

    def admits(self, headers: Headers) -> bool:
        """Whether the headers of a request carry the token or the cookie."""
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and same(given, self.token):
            return True
        try:
            cookies = SimpleCookie(headers.get("cookie", ""))
        except CookieError:
            return False
        return _COOKIE in cookies and same(cookies[_COOKIE].value, self.session)

    def enter(self, scope: Scope) -> Response:
        """Answer a browser that brings the token in its address."""
        given = parse_qs(scope["query_string"].decode(errors="replace")).get("token", [""])[0]
        if not same(given, self.token):
            return _refused(403, "this is not the token that `mas explorer` printed")
        answer = RedirectResponse("/", status_code=303)
        answer.set_cookie(_COOKIE, self.session, httponly=True, samesite="strict", secure=self.secure)
        return answer


def same(given: str, wanted: str) -> bool:
    """Whether two secrets are the same, in a time that does not depend on how much of them is."""
    return hmac.compare_digest(given.encode("utf-8", "replace"), wanted.encode())


@dataclass(frozen=True, slots=True)
class Hosts:
    """The names under which the page may be asked for.

    ``addresses``: also under any bare IP address, when it listens on all of them; a name that somebody else
    points here is none.
    """

    names: frozenset[str]
    addresses: bool = False

    @classmethod
    def of(cls, listens: str, more: Iterable[str] = ()) -> Hosts:
        """Those for the address ``listens``."""
        names = {"localhost", "127.0.0.1", "::1", *(each.lower() for each in more)}
        everywhere = listens in ("0.0.0.0", "::")  # noqa: S104 - compared with, not listened on
        return cls(frozenset(names if everywhere else {*names, listens.lower()}), everywhere)

    def allow(self, host: str) -> bool:
        """Whether a Host header is one of them; the port does not matter."""
        name = _name(host.lower())
        if name in self.names:
            return True
        if not self.addresses:
            return False
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


def _name(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


class Gate:
    """Lets through who may look, and puts the headers on every answer."""

    def __init__(self, app: ASGIApp, hosts: Hosts, token: Pass | None) -> None:
        self._app = app
        self._hosts = hosts
        self._pass = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or pass on, one request."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                fields = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    fields.setdefault(name, value)
            await send(message)

        await (self._stopped(scope) or self._app)(scope, receive, guarded)

    def _stopped(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        if scope["method"] not in ("GET", "HEAD"):
            return _refused(405, "the explorer only shows: GET and HEAD", {"Allow": "GET, HEAD"})
        if not self._hosts.allow(headers.get("host", "")):
            return _refused(421, "it is not served under this name: see --allow-host of `mas explorer`")
        if _foreign(headers) and (headers.get("sec-fetch-mode") != "navigate" or _data(scope)):
            return _refused(403, "a page of another site asks: refused")
        return None if self._pass is None else _without_pass(scope, headers, self._pass)


def _foreign(headers: Headers) -> bool:
    return headers.get("sec-fetch-site", "none") not in ("none", "same-origin")


def _without_pass(scope: Scope, headers: Headers, token: Pass) -> Response | None:
    if scope["path"] == ENTER:
        return token.enter(scope)
    if token.admits(headers):
        return None
    fix = "open the address that `mas explorer` printed, or send its token as Authorization: Bearer"
    return refusal(scope, 401, "a token is needed", fix, {"WWW-Authenticate": "Bearer"})


def refusal(scope: Scope, status: int, text: str, fix: str, fields: dict[str, str]) -> Response:
    """Why somebody may not look, as JSON under ``/api``."""
    if _data(scope):
        return JSONResponse({"error": {"text": text, "fix": fix}}, status, fields)
    return _refused(status, f"{text}: {fix}", fields)


def _data(scope: Scope) -> bool:
    return bool(scope["path"].startswith("/api/"))


def _refused(status: int, text: str, fields: dict[str, str] | None = None) -> Response:
    return PlainTextResponse(f"{text}\n", status, fields)

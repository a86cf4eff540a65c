"""A jar that keeps no cookie: one client speaks for every caller, and what is said to one is no other's."""

from __future__ import annotations

from http.cookiejar import CookieJar, DefaultCookiePolicy


def no_cookies() -> CookieJar:
    """The cookies of a client that stores none, whatever an answer says, and so sends none."""
    return CookieJar(DefaultCookiePolicy(allowed_domains=()))

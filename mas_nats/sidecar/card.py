"""Agent cards: what a caller reads must lead back through its sidecar.

The target's sidecar keeps what leads to its application, as a path (``leading_home``); the caller's writes
the host name in front by which its application knows the agent (``reachable``). Signatures are dropped, since
what they sign has changed.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any
from urllib.parse import urlsplit

_CARRIED = frozenset({"JSONRPC", "HTTP+JSON"})


class NoWay(Exception):
    """A card names no address that can be carried."""


def leading_home(card: dict[str, Any], authorities: Collection[str]) -> dict[str, Any]:
    """``card`` with paths in the place of addresses at ``authorities``, and without all others.

    Raises:
        NoWay: nothing would be left.

    """
    found = {name: value for name, value in card.items() if name != "signatures"}
    capabilities = found.get("capabilities")
    if isinstance(capabilities, dict) and capabilities.get("pushNotifications"):
        found["capabilities"] = {**capabilities, "pushNotifications": False}
    for name, binding in (("supportedInterfaces", "protocolBinding"), ("additionalInterfaces", "transport")):
        if (interfaces := found.get(name)) is not None:
            found[name] = [
                {**each, "url": path}
                for each in (interfaces if isinstance(interfaces, list) else ())
                if isinstance(each, dict)
                and _is_carried(each.get(binding))
                and (path := _path(each.get("url"), authorities)) is not None
            ]
    if "url" in found:
        preferred = found.get("preferredTransport", "JSONRPC")
        path = _path(found["url"], authorities) if _is_carried(preferred) else None
        if path is None:
            others = found.get("additionalInterfaces") or []
            if not others:
                raise NoWay
            found["url"], found["preferredTransport"] = others[0]["url"], others[0]["transport"]
        else:
            found["url"] = path
    if "url" not in found and not found.get("supportedInterfaces"):
        raise NoWay
    return found


def reachable(card: dict[str, Any], authority: str) -> dict[str, Any]:
    """``card`` with addresses at ``authority`` in the place of paths."""
    found = dict(card)
    if isinstance(found.get("url"), str):
        found["url"] = _at(authority, found["url"])
    for name in ("supportedInterfaces", "additionalInterfaces"):
        if isinstance(interfaces := found.get(name), list):
            found[name] = [
                {**each, "url": _at(authority, each["url"])}
                for each in interfaces
                if isinstance(each, dict) and isinstance(each.get("url"), str)
            ]
    return found


def _is_carried(binding: object) -> bool:
    return isinstance(binding, str) and binding in _CARRIED


def _path(url: object, authorities: Collection[str]) -> str | None:
    if not isinstance(url, str):
        return None
    try:
        parts = urlsplit(url)
    except ValueError:
        return None
    if parts.scheme not in {"http", "https"} or parts.netloc.lower() not in authorities or parts.query:
        return None
    return parts.path or "/"


def _at(authority: str, path: str) -> str:
    return f"http://{authority}{path}" if path.startswith("/") and not path.startswith("//") else ""

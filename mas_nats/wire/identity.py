"""SPIFFE identities and the ids that may become part of a subject.

Source: the SPIFFE ID and X.509-SVID specifications, and DESIGN section 3. An id that does not match
``ID_PATTERN`` never reaches a subject, so no wildcard, dot or space can.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

DEFAULT_NAMESPACE = "default"
DEFAULT_TRUST_DOMAIN = "mas"

ANY_AGENT = "*"
"""Stands for every agent of a namespace."""
ID_PATTERN = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_TRUST_DOMAIN = r"[a-z0-9][a-z0-9._-]{0,254}"
_LONG = re.compile(
    rf"spiffe://(?P<domain>{_TRUST_DOMAIN})/ns/(?P<ns>{ID_PATTERN.pattern})"
    rf"/(?P<role>[a-z]+)/(?P<name>{ID_PATTERN.pattern})"
)
_SHORT = re.compile(rf"spiffe://(?P<domain>{_TRUST_DOMAIN})/(?P<role>[a-z]+)/(?P<name>{ID_PATTERN.pattern})")


class Role(StrEnum):
    """What a certificate's holder is to the system."""

    AGENT = "agent"
    INSPECTOR = "inspector"
    OPERATOR = "operator"
    POLICY = "policy"


@dataclass(frozen=True, slots=True)
class Identity:
    """Who the holder of a certificate is."""

    trust_domain: str
    namespace: str
    role: Role
    name: str

    @property
    def uri(self) -> str:
        """The canonical (long) SPIFFE ID."""
        return f"spiffe://{self.trust_domain}/ns/{self.namespace}/{self.role}/{self.name}"


def is_id(value: str) -> bool:
    """Whether ``value`` may name an agent, a namespace or an instance."""
    return ID_PATTERN.fullmatch(value) is not None


def require_id(value: str, what: str) -> str:
    """Return ``value`` when it is a valid id.

    Raises:
        ValueError: it is not; the text says which characters are allowed.

    """
    if not is_id(value):
        raise ValueError(
            f"{what} {value[:80]!r} is not a valid id: "
            "use 1-63 of a-z, 0-9, '-' and '_', starting with a letter or a digit"
        )
    return value


def require_name(value: str, what: str, *, any_agent: bool = False) -> str:
    """Return ``value`` when it names an agent, as ``agent`` or ``namespace/agent``.

    ``any_agent``: also ``namespace/*``, which is every agent of that namespace.

    Raises:
        ValueError: it does not.

    """
    namespace, slash, agent = value.rpartition("/")
    if slash:
        require_id(namespace, f"the namespace in {what}")
    if not (slash and any_agent and agent == ANY_AGENT):
        require_id(agent, what)
    return value


def namespace_of(name: str) -> str:
    """The namespace in ``namespace/agent``; empty where none is named."""
    return name.rpartition("/")[0]


def agent_of(name: str) -> str:
    """The agent in ``agent`` or ``namespace/agent``."""
    return name.rpartition("/")[2]


def parse_spiffe_id(uri: str) -> Identity:
    """Parse a SPIFFE ID of this system.

    ``spiffe://<trust domain>/ns/<namespace>/<role>/<name>``, or without ``/ns/<namespace>`` for the
    namespace ``default``.

    Raises:
        ValueError: it is none, or its role is unknown.

    """
    match = _LONG.fullmatch(uri) or _SHORT.fullmatch(uri)
    if match is None:
        raise ValueError(
            f"{uri[:200]!r} is not a SPIFFE ID of the form spiffe://<trust-domain>/ns/<namespace>/<role>/<name>"
        )
    parts = match.groupdict()
    try:
        role = Role(parts["role"])
    except ValueError:
        raise ValueError(f"unknown role {parts['role']!r} in {uri!r}: use one of {', '.join(Role)}") from None
    return Identity(parts["domain"], parts.get("ns") or DEFAULT_NAMESPACE, role, parts["name"])


@lru_cache(maxsize=1024)
def split_target(target: str) -> tuple[str | None, str]:
    """Split ``agent`` or ``namespace/agent``; the namespace is None when not named.

    Raises:
        ValueError: either part is not a valid id.

    """
    namespace, slash, agent = target.rpartition("/")
    if slash:
        require_id(namespace, "target namespace")
    return (namespace if slash else None), require_id(agent, "target")

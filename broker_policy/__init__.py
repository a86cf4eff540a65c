"""The policy service between every sender and every receiver, and the operator's tools.

What a program needs that brings up a broker by itself can be imported from here; each name is loaded when it
is first used, so that settings alone bring no server code.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from broker_policy.server import AgentDefinition, MASServer, MASServerSettings, TlsConfig
    from mas_nats.manifest.gateway import GatewaySettings

__all__ = ["AgentDefinition", "GatewaySettings", "MASServer", "MASServerSettings", "TlsConfig"]

_SERVER, _GATEWAY = "broker_policy.server", "mas_nats.manifest.gateway"
_HOMES = {name: _GATEWAY if name == "GatewaySettings" else _SERVER for name in __all__}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)

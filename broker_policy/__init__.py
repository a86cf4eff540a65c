"""The policy service between every sender and every receiver, and the operator's tools.

What a program needs that brings up a broker by itself can be imported from here; each name is loaded when it
is first used, so that settings alone bring no server code.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mas_nats.manifest.gateway import GatewaySettings

__all__ = ["GatewaySettings"]

_HOMES = {"GatewaySettings": "mas_nats.manifest.gateway"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)

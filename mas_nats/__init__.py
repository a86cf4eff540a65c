"""The SDK: agents that talk over a governed NATS JetStream broker.

class HelpDesk(Agent[DeskState]):
    @Agent.on("ask", model=Ask)
    async def ask(self, message: AgentMessage, payload: Ask) -> None:
        await message.reply("answer", {"text": "..."})

HelpDesk("helpdesk", capabilities=["qa"]).run()
"""

from __future__ import annotations

from importlib import import_module as _import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mas_nats.agent import Agent
    from mas_nats.config import TlsClientConfig
    from mas_nats.errors import (
        CircuitOpen,
        ConfigurationError,
        DataBlocked,
        ForeignReply,
        IdentityRefused,
        IdReused,
        InvalidMessage,
        MasError,
        OutcomeUnknown,
        Overloaded,
        PermissionDenied,
        PolicyStale,
        RateLimited,
        Refused,
        Reject,
        RequestFailed,
        RequestTimeout,
        StateConflict,
        StateCorrupt,
        StateError,
        StateInvalid,
        StreamCancelled,
        Unavailable,
        UnknownTarget,
    )
    from mas_nats.message import AgentMessage, ReplyResult, ReplyWriter
    from mas_nats.messenger import AgentInfo
    from mas_nats.stream import Stream
    from mas_nats.wire.frames import Chunk
    from mas_nats.wire.verdict import Decision, Verdict

__all__ = [
    "Agent",
    "AgentInfo",
    "AgentMessage",
    "Chunk",
    "CircuitOpen",
    "ConfigurationError",
    "DataBlocked",
    "Decision",
    "ForeignReply",
    "IdReused",
    "IdentityRefused",
    "InvalidMessage",
    "MasError",
    "OutcomeUnknown",
    "Overloaded",
    "PermissionDenied",
    "PolicyStale",
    "RateLimited",
    "Refused",
    "Reject",
    "ReplyResult",
    "ReplyWriter",
    "RequestFailed",
    "RequestTimeout",
    "StateConflict",
    "StateCorrupt",
    "StateError",
    "StateInvalid",
    "Stream",
    "StreamCancelled",
    "TlsClientConfig",
    "Unavailable",
    "UnknownTarget",
    "Verdict",
]

_HOMES = {
    "Agent": "agent",
    "AgentInfo": "messenger",
    "AgentMessage": "message",
    "Chunk": "wire.frames",
    "Decision": "wire.verdict",
    "ReplyResult": "message",
    "ReplyWriter": "message",
    "Stream": "stream",
    "TlsClientConfig": "config",
    "Verdict": "wire.verdict",
}
"""The modules of what is no error."""
_MODULES = frozenset(("agent", "config", "errors", "message", "messenger", "stream", "wire"))
"""What ``import mas_nats`` gives as well."""

if not TYPE_CHECKING:  # who checks types shall see the names above and no others

    def __getattr__(name: str) -> object:
        """Import what is asked for: much of the SDK is needed by agents only, and takes its time."""
        if name in _MODULES:
            return _import_module(f"{__name__}.{name}")
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found: object = getattr(_import_module(f"{__name__}.{_HOMES.get(name, 'errors')}"), name)
        globals()[name] = found
        return found

    def __dir__() -> list[str]:
        """What there is, imported already or not."""
        return sorted({*__all__, *_MODULES})

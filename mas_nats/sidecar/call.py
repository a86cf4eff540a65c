"""What a request turned out to be."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from mas_nats.sidecar.refusal import Shape


class Protocol(StrEnum):
    """What is spoken between applications."""

    MCP = "mcp"
    A2A = "a2a"


@dataclass(frozen=True, slots=True)
class Call:
    """A request of a known protocol that may pass.

    ``operation`` is the protocol's own name of it (``tools/call``, ``SendMessage``), or one of ours for what
    has none: ``session.stream``, ``session.end``, ``response``, ``agent-card``. ``name`` is the tool, prompt
    or resource. ``document`` is the parsed body: what is carried, and what the application gets.
    """

    protocol: Protocol
    version: str
    operation: str
    shape: Shape
    request_id: str | int | None = None
    name: str = ""
    document: Any = None
    acts: bool = False  # it makes the target do something: what caused it has to be known
    causes: bool = False  # it may make the target call others
    standing: bool = False  # its answer is a stream that ends when somebody leaves
    card: bool = False  # its answer is an agent card

    @property
    def message_type(self) -> str:
        """The type of the message that carries it."""
        return f"{self.protocol}:{self.operation}"

"""The kinds of applications."""

from __future__ import annotations

from enum import StrEnum


class AppType(StrEnum):
    """What an application is, and so what it may call."""

    AGENT = "agent"
    MCP_SERVER = "mcp_server"
    CLIENT = "client"

    @property
    def calls(self) -> bool:
        """Whether it may call others: an MCP server only answers."""
        return self is not AppType.MCP_SERVER

    @property
    def called(self) -> bool:
        """Whether others may call it: a client only calls."""
        return self is not AppType.CLIENT

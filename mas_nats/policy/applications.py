"""What policy says about applications behind sidecars: their types, their tools, the checks of calls.

Without it nobody is given a token, so no tool is called by a sidecar that wants one (ADR 33).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from mas_nats.wire.identity import ANY_AGENT, namespace_of, require_id, require_name

TOOL_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")
"""Source: the Model Context Protocol, revision 2025-11-25, names of tools."""
SCOPE = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]{1,200}")
"""Source: RFC 6749, 3.3."""


class ApplicationType(StrEnum):
    """What an application is: whom it may ask for a token, and for what."""

    AGENT = "agent"  # calls tools for whoever called it, as its language model selects them
    MCP_SERVER = "mcp_server"  # offers tools
    CLIENT = "client"  # a user's: what it calls is what the user wants


class ToolCheck(StrEnum):
    """A check of each exchange of a token for a tool."""

    TOOL_SELECTED = "DETERMINISTIC_TOOL_SELECTED"  # the tool is among those that the user's token allows
    LLM_SELECTED = "DETERMINISTIC_LLM_SELECTED_TOOLS"  # the language model selected it for this request


def _tool(name: str) -> str:
    if not TOOL_NAME.fullmatch(name):
        raise ValueError("a tool's name is 1-128 of A-Z a-z 0-9 _ - .")
    return name


def require_scope(value: str) -> str:
    """``value`` itself, when it is a scope.

    Raises:
        ValueError: it is not.

    """
    if not SCOPE.fullmatch(value):
        raise ValueError("a scope is a word without spaces, quotes and backslashes, such as tools:read")
    return value


ToolName = Annotated[str, AfterValidator(_tool)]
Scope = Annotated[str, AfterValidator(require_scope)]
_Source = Annotated[str, AfterValidator(lambda value: require_name(value, "source", any_agent=True))]
_AgentId = Annotated[str, AfterValidator(lambda value: require_id(value, "application"))]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ApplicationPolicy(_Strict):
    """One application. ``tools`` of an MCP server: registered and approved, with their fingerprints.

    A tool that waits for approval is not among them. What a fingerprint is made of is the affair of whoever
    registers tools; here it is a text. ``scopes``: what tokens given to it, and tokens for it, may say; who
    calls an application that has some needs one of them. ``sources``: the scopes here of callers of other
    namespaces, by full name; ``namespace/*`` is all of one.
    """

    type: ApplicationType
    tools: dict[ToolName, str] = Field(default_factory=dict)
    scopes: tuple[Scope, ...] = ()
    sources: dict[_Source, tuple[Scope, ...]] = Field(default_factory=dict)


class TokenPolicy(_Strict):
    """``checks``: what has to hold before a token for a tool is given. None: none is given; (): to all."""

    checks: tuple[ToolCheck, ...] | None = None
    applications: Mapping[_AgentId, ApplicationPolicy] = Field(default_factory=dict)

    def with_tools_of(self, stored: TokenPolicy) -> TokenPolicy:
        """With the tools that ``stored`` has of servers of which this says none: a manifest never does."""
        merged = {
            name: application
            if application.tools
            else application.model_copy(update={"tools": dict(stored.tools_of(name))})
            for name, application in self.applications.items()
            if application.type is ApplicationType.MCP_SERVER
        }
        return self.model_copy(update={"applications": {**self.applications, **merged}})

    def type_of(self, name: str) -> ApplicationType | None:
        """The type of an application; None where there is no such one."""
        found = self.applications.get(name)
        return None if found is None else found.type

    def tools_of(self, server: str) -> Mapping[str, str]:
        """The tools of an MCP server."""
        found = self.applications.get(server)
        return found.tools if found is not None and found.type is ApplicationType.MCP_SERVER else {}

    def scopes_of(self, name: str) -> frozenset[str]:
        """The scopes of an application."""
        found = self.applications.get(name)
        return frozenset() if found is None else frozenset(found.scopes)

    def source_scopes(self, target: str, caller: str) -> frozenset[str]:
        """The scopes at ``target`` of ``caller``, of another namespace and under its full name."""
        found = self.applications.get(target)
        if found is None:
            return frozenset()
        everybody = f"{namespace_of(caller)}/{ANY_AGENT}"
        return frozenset((*found.sources.get(caller, ()), *found.sources.get(everybody, ())))

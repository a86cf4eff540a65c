"""What a sidecar has to know: its application, the others, their host names, the limits."""

from __future__ import annotations

import ipaddress
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar
from urllib.parse import SplitResult, urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from mas_nats.errors import ConfigurationError
from mas_nats.manifest import json_path
from mas_nats.manifest.casa import require_llm_url, require_path
from mas_nats.manifest.mistakes import Named, mistakes
from mas_nats.manifest.yaml_lines import YamlFile
from mas_nats.policy.applications import Scope
from mas_nats.sidecar.call import Protocol
from mas_nats.wire.identity import agent_of, require_name


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Kind(StrEnum):
    """The type of an application: what it may call, and what may call it."""

    AGENT = "agent"  # calls MCP servers and agents, receives A2A
    MCP_SERVER = "mcp_server"  # calls nobody, receives MCP
    CLIENT = "client"  # calls MCP servers and agents, receives nothing

    @property
    def calls(self) -> bool:
        """Whether it may call others at all."""
        return self is not Kind.MCP_SERVER


def _loopback(value: str) -> str:
    host, colon, port = value.rpartition(":")
    try:
        address = ipaddress.ip_address(host.strip("[]"))
        number = int(port)
    except ValueError:
        address, number = None, -1
    if not colon or address is None or not address.is_loopback or not 0 <= number <= 65535:
        raise ValueError("must be a loopback address and a port, such as 127.0.0.1:8101")
    return value


def _base_url(value: str) -> str:
    parts = urlsplit(value)
    plain = parts.scheme == "http" and parts.path in {"", "/"} and not parts.query
    if not plain or not parts.hostname or not _has_port(parts):
        raise ValueError("must be http://host:port without a path: its application listens there")
    return value.rstrip("/")


def _has_port(parts: SplitResult) -> bool:
    """Whether the port is one, where there is one."""
    try:
        return parts.port != 0
    except ValueError:
        return False


def _host(value: str) -> str:
    if value != value.lower() or "/" in value or " " in value or not value.strip(":"):
        raise ValueError("must be host or host:port, in lower case")
    return value


def _json_path(value: str) -> str:
    if value:
        json_path.parts(value)
    return value


Address = Annotated[str, AfterValidator(_loopback)]
Host = Annotated[str, AfterValidator(_host)]
Endpoint = Annotated[str, AfterValidator(require_path)]
Name = Annotated[str, AfterValidator(lambda value: require_name(value, "application"))]


class Application(_Model):
    """One application, as all sidecars of its system know it.

    ``hosts`` are the names under which others write to it. ``endpoint`` is where it takes JSON-RPC: ``/mcp``
    for an MCP server and ``/`` for an agent when not given. ``idempotent`` names the operations, such as
    ``tools/list``, that may be repeated when their outcome is not known. ``protocols`` are those that it may
    speak, where not all. ``tool_names`` has the names under which an agent tells its language model of tools,
    where they are other names than the tools have, and which tools they are. ``prompt`` is where the user's
    prompt stands in a request to an agent, such as ``{.message.parts[0].text}``. ``scopes``: where there
    are some, the token of a call of it says one of them.
    """

    type: Kind
    base_url: Annotated[str, AfterValidator(_base_url)] = ""
    listen: Address = "127.0.0.1:0"
    hosts: tuple[Host, ...] = ()
    endpoint: Endpoint | None = None
    idempotent: frozenset[str] = frozenset()
    protocols: frozenset[Protocol] | None = None
    tool_names: dict[str, str] = Field(default_factory=dict)
    prompt: Annotated[str, AfterValidator(_json_path)] = ""
    scopes: frozenset[Scope] = frozenset()

    @property
    def path(self) -> str:
        """Where it takes JSON-RPC."""
        return self.endpoint or ("/mcp" if self.type is Kind.MCP_SERVER else "/")


class Limits(_Model):
    """Limits of every sidecar, in bytes and seconds."""

    request_bytes: int = Field(900_000, gt=0)  # body of a request: one message
    response_bytes: int = Field(16 << 20, gt=0)  # body of a response that is no stream
    header_bytes: int = Field(32 << 10, gt=0)
    connections: int = Field(256, gt=0)
    standing: int = Field(64, gt=0)  # streams that an application's sidecar holds open for others
    header_timeout: float = Field(10.0, gt=0)
    body_timeout: float = Field(30.0, gt=0)
    write_timeout: float = Field(60.0, gt=0)  # a client that takes nothing for so long is gone
    begin: float = Field(10.0, gt=0)  # until the other sidecar must have begun; not run after that
    heartbeat: float = Field(10.0, gt=0)  # between signs of life of a call that is being run
    answer: float = Field(300.0, gt=0, le=3600)  # until the application has begun to answer
    stream: float = Field(3600.0, gt=0, le=3600)  # until the answer has ended


class Settings(_Model):
    """The whole file. ``app`` is the application whose sidecar this is.

    ``llm_host`` is the name under which agents write to their language model, by plain HTTP;
    ``llm_base_url`` where it is reached, ``https://`` and that name when not given.
    ``tokens``: calls carry tokens, and those that come without are refused. All sidecars of a system agree.
    """

    app: str = ""
    tokens: bool = False
    applications: dict[Name, Application]
    limits: Limits = Limits()
    llm_host: Host | Literal[""] = ""
    llm_base_url: Annotated[str, AfterValidator(require_llm_url)] | Literal[""] = ""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        seen: dict[str, str] = {}
        for name, application in self.applications.items():
            for host in application.hosts:
                if host in seen:
                    raise ValueError(f"host {host} stands for {seen[host]} and for {name}")
                seen[host] = name
        if self.llm_host and self.llm_host in seen:
            raise ValueError(f"host {self.llm_host} is that of the llm_host and of {seen[self.llm_host]}")
        if self.app:
            own = self.own
            if own.type is not Kind.CLIENT and not own.base_url:
                raise ValueError(f"application {self.app} needs base_url: where it listens")
        return self

    @property
    def own(self) -> Application:
        """The application of this sidecar.

        Raises:
            ValueError: there is none of this name.

        """
        try:
            return self.applications[self.app]
        except KeyError:
            known = ", ".join(sorted(self.applications))
            raise ValueError(f"there is no application {self.app!r}; there are {known}") from None

    @property
    def hosts(self) -> dict[str, str]:
        """Which application a host name stands for."""
        return {host: name for name, each in self.applications.items() for host in each.hosts}

    @property
    def llm_url(self) -> str:
        """Where the language model is reached; "" where there is none."""
        return self.llm_base_url or (f"https://{self.llm_host}" if self.llm_host else "")

    def known(self, name: str) -> Application | None:
        """The application that an agent id stands for."""
        return self.applications.get(name)


M = TypeVar("M", bound=BaseModel)


def load(path: Path, app: str) -> Settings:
    """Read the settings of ``app``'s sidecar from an ``applications.yaml``.

    Raises:
        ConfigurationError: the file cannot be read, or something in it is wrong; all mistakes are named.

    """
    file = YamlFile.read(path)
    if not isinstance(file.content, dict) or "app" in file.content:
        raise ConfigurationError(f"{path} must hold a mapping with applications:, and no app:")
    if agent_of(app) != app:
        raise ConfigurationError(f"{app} is an application of another namespace: name one of this one")
    raw = {str(key): value for key, value in file.content.items()} | {"app": app}
    return checked(Settings, raw, f"{path} is not valid:", lambda place: f"line {file.line(place)}")


def checked(model: type[M], raw: dict[str, Any], head: str = "", named: Named = lambda _: "") -> M:
    """``raw`` as a ``model``.

    Raises:
        ConfigurationError: it does not fit; every mistake is named, after ``head``, by where it is ``named``.

    """
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        found = mistakes(error, model, named)
        raise ConfigurationError("\n- ".join((head, *found)) if head else "; ".join(found)) from None

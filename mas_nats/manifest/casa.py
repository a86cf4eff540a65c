"""The documents of CASA: ``MultiAgentSystem`` and ``CASAPolicy``, as they are written for Kubernetes.

They become what a ``mas.yaml`` becomes (``casa_wanted``): each system a namespace, each application an agent.
What its sidecar needs beyond that is kept here, typed. Fields that are not CASA's say so.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.alias_generators import to_camel
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from mas_nats.manifest import json_path
from mas_nats.manifest.app_type import AppType
from mas_nats.manifest.gateway import GatewaySettings
from mas_nats.policy.applications import Scope, ToolCheck
from mas_nats.policy.document import AgentId, Limits
from mas_nats.wire.identity import ANY_AGENT, ID_PATTERN, require_id

API_VERSION = "casa.io/v1alpha1"

_HOST = re.compile(r"(?P<name>[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?)(:(?P<port>[0-9]{1,5}))?")
_PORTS = {"http": 80, "https": 443}


def require_host(value: str) -> str:
    """``value`` itself, when it is a host name with or without a port.

    Raises:
        ValueError: it is not.

    """
    if not _is_host(value):
        raise ValueError("this is no host: write a name, or name:port, such as my-agent:8000")
    return value


def _is_host(value: str) -> bool:
    match = _HOST.fullmatch(value)
    return match is not None and 0 < int(match["port"] or 1) < 65536


def _path(value: str) -> str:
    json_path.parts(value)
    return value


def require_path(value: str) -> str:
    """``value`` itself, when it is the path of a URL that everybody reads in the same way.

    Raises:
        ValueError: it is not.

    """
    if not value.startswith("/") or "?" in value or "%" in value or "//" in value:
        raise ValueError("must be a path such as /mcp")
    return value


def require_llm_url(value: str) -> str:
    """``value`` itself, when it says where a language model is reached: scheme, name and port.

    Raises:
        ValueError: it does not.

    """
    parts = urlsplit(value)
    if parts.scheme not in _PORTS or not _is_host(parts.netloc) or parts.path or parts.query:
        raise ValueError("must be https://name:port, or http://name:port, without a path")
    return value


Host = Annotated[str, AfterValidator(require_host)]
NamespaceId = Annotated[
    str,
    AfterValidator(lambda value: require_id(value, "namespace")),
    Field(json_schema_extra={"pattern": f"^{ID_PATTERN.pattern}$"}),
]


class _Casa(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel)


class ToolExchange(StrEnum):
    """What a system says about exchanging tokens for tools."""

    DENIED = "denied"  # no checks are named
    UNCHECKED = "unchecked"  # an empty list is named
    CHECKED = "checked"


class Metadata(_Casa):
    """Which object it is. What Kubernetes itself writes here is passed over."""

    name: str = Field(min_length=1, max_length=253, description="Names it")
    namespace: NamespaceId | None = Field(None, description="The namespace; the name where it is not said")
    labels: dict[str, Any] | None = Field(None, description="Passed over")
    annotations: dict[str, Any] | None = Field(None, description="Passed over")
    uid: Any = Field(None, description="Passed over")
    resource_version: Any = Field(None, description="Passed over")
    generation: Any = Field(None, description="Passed over")
    creation_timestamp: Any = Field(None, description="Passed over")
    managed_fields: Any = Field(None, description="Passed over")
    owner_references: Any = Field(None, description="Passed over")
    finalizers: Any = Field(None, description="Passed over")

    @property
    def place(self) -> str:
        """The namespace it is in."""
        return self.namespace or self.name

    @model_validator(mode="after")
    def _has_a_place(self) -> Self:
        if self.namespace is None:
            require_id(self.name, "namespace (from metadata.name)")
        return self


class BaseUrl(_Casa):
    """Where an application listens, beside its sidecar; also written as one text, `http://my-agent:8000`."""

    host: Host = Field(description="Name, or name:port, as others call it")
    scheme: Literal["http", "https"] = Field(description="How it is reached")

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, said: Any) -> Any:
        if not isinstance(said, str):
            return said
        parts = urlsplit(said)
        if parts.scheme not in _PORTS or not parts.netloc:
            raise ValueError("this is no address: write it as http://name:port or https://name:port")
        if parts.path.strip("/") or parts.query or parts.fragment or "@" in parts.netloc:
            raise ValueError("an address is scheme, name and port, and nothing else: http://my-agent:8000")
        return {"host": parts.netloc, "scheme": parts.scheme}

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Either of the two ways to write it."""
        schema = handler.resolve_ref_schema(handler(core_schema))
        return {"anyOf": [schema, {"type": "string", "pattern": "^https?://[^/@?#]+/*$"}]}

    @property
    def name(self) -> str:
        """The host without its port, in lower case."""
        return self.host.partition(":")[0].lower()

    @property
    def port(self) -> int:
        """The port; that of the scheme where none is said."""
        return int(self.host.partition(":")[2] or _PORTS[self.scheme])


class HttpRequestSchema(_Casa):
    """Where in a request to an agent the user's prompt stands."""

    prompt_field_json_path: Annotated[str, AfterValidator(_path)] = Field(
        description="A path to one place: `{.prompt}`, `{.messages[-1].content}`"
    )

    @property
    def prompt_parts(self) -> tuple[json_path.Part, ...]:
        """Its names and positions, from the outside."""
        return json_path.parts(self.prompt_field_json_path)


class App(_Casa):
    """One application, and with it an agent of the namespace."""

    name: AgentId = Field(description="Its name, once in a system")
    type: AppType = Field(description="An `mcp_server` calls nobody, the others agents and servers")
    kubernetes_workload_name: AgentId | None = Field(
        None, description="Its workload, and so its agent id and SPIFFE id, where it is not the name"
    )
    base_url: BaseUrl | None = Field(None, description="Where it listens; a `client` may have none")
    http_request_schema: HttpRequestSchema | None = Field(
        None, description="Of an `agent`: where the user's prompt stands"
    )
    scopes: tuple[Scope, ...] = Field(
        (),
        description="Not in CASA: what tokens given to it, and for it, may say; who calls it needs one",
    )
    idempotent_methods: tuple[str, ...] = Field(
        (), description="Not in CASA: methods that may be called again when no answer came"
    )
    endpoint: Annotated[str, AfterValidator(require_path)] | None = Field(
        None, description="Not in CASA: where it takes JSON-RPC; else `/mcp` of a server, `/` of an agent"
    )
    tool_names: dict[str, str] = Field(
        default_factory=dict,
        description="Not in CASA: of an `agent`, tools by the names under which it tells its LLM of them",
    )

    @property
    def agent_id(self) -> str:
        """Its id among the agents of the namespace."""
        return self.kubernetes_workload_name or self.name

    @property
    def names(self) -> tuple[str, ...]:
        """What a policy may call it: its name, its workload, its host."""
        host = (self.base_url.name.partition(".")[0],) if self.base_url else ()
        return tuple(dict.fromkeys((self.name, self.agent_id, *host)))

    @model_validator(mode="after")
    def _can_be_reached(self) -> Self:
        if self.base_url is None and self.type.called:
            raise ValueError(f"an application of type {self.type} needs a baseUrl: others call it")
        return self


class MasSpec(_Casa):
    """The system."""

    name: str = Field(min_length=1, max_length=200, description="For people")
    enabled_tool_checks: tuple[ToolCheck, ...] | None = Field(
        None, description="Of each exchange of a token for a tool. Not said: none is granted. Empty: all are"
    )
    llm_host: Host | None = Field(None, alias="llm_host", description="The LLM that agents may call")
    llm_base_url: Annotated[str, AfterValidator(require_llm_url)] | None = Field(
        None, description="Not in CASA: where llm_host is reached; else `https://` and its name"
    )
    authorization_server: str | None = Field(None, description="Passed over: tokens are issued here")
    apps: tuple[App, ...] = Field((), description="Its applications")
    gateway: GatewaySettings | None = Field(None, description="Not in CASA: as in a `mas.yaml`")
    limits: Limits = Field(Limits(), description="Not in CASA: as in a `mas.yaml`")
    inspectors: tuple[AgentId, ...] = Field((), description="Not in CASA: who may read everything")
    operators: tuple[AgentId, ...] = Field((), description="Not in CASA: who may change everything")

    @property
    def tool_exchange(self) -> ToolExchange:
        """What it says about exchanging tokens for tools."""
        if self.enabled_tool_checks is None:
            return ToolExchange.DENIED
        return ToolExchange.CHECKED if self.enabled_tool_checks else ToolExchange.UNCHECKED

    @property
    def settings(self) -> GatewaySettings:
        """What ``gateway:`` says, or what holds where it says nothing."""
        return self.gateway or GatewaySettings.unsaid()

    @field_validator("apps")
    @classmethod
    def _each_once(cls, apps: tuple[App, ...]) -> tuple[App, ...]:
        _once("name", (app.name for app in apps))
        _once("kubernetesWorkloadName (or name)", (app.agent_id for app in apps))
        urls = [app.base_url for app in apps if app.base_url is not None]
        _once("baseUrl", (f"{url.name}:{url.port}" for url in urls))
        return apps


def _once(what: str, said: Iterable[str]) -> None:
    twice = [name for name, count in Counter(said).items() if count > 1]
    if twice:
        raise ValueError(f"two applications have the same {what}: {', '.join(twice)}")


class MultiAgentSystem(_Casa):
    """A system: one namespace with its applications."""

    api_version: Literal["casa.io/v1alpha1"] = Field(description="The version of this form")
    kind: Literal["MultiAgentSystem"] = Field(description="What it declares")
    metadata: Metadata
    spec: MasSpec
    status: Any = Field(None, description="Passed over")

    @property
    def namespace(self) -> str:
        """The namespace it declares."""
        return self.metadata.place

    def app(self, name: str) -> App | None:
        """The application that a policy calls ``name``; what is one's own name goes before another's host."""
        named = [app for app in self.spec.apps if name in (app.name, app.agent_id)]
        hosted = [app for app in self.spec.apps if name in app.names]
        return next(iter((*named, *hosted)), None)


class TargetRef(_Casa):
    """Whom a policy is about."""

    kind: Literal["Deployment", "StatefulSet", "Pod"] = Field(description="Passed over")
    name: AgentId = Field(description="The workload, or the application, of the system in this namespace")


class Endpoint(_Casa):
    """An application, here or in another namespace."""

    name: str = Field(description="An application; `*`: every one that may be called")
    namespace: NamespaceId | None = Field(None, description="Its namespace; else the policy's")
    port: int | None = Field(None, ge=1, le=65535, description="Passed over: baseUrl says it")
    scopes: tuple[Scope, ...] = Field(
        (),
        description="Not in CASA: of `allowedSources`, which scopes of the application tokens of it may say",
    )

    @field_validator("name")
    @classmethod
    def _a_name(cls, name: str) -> str:
        return name if name == ANY_AGENT else require_id(name, "application")


class LlmEndpoint(_Casa):
    """An LLM outside."""

    fqdn: Host = Field(description="Its host")
    port: int = Field(443, ge=1, le=65535, description="Its port")

    @field_validator("port")
    @classmethod
    def _said_once(cls, value: int, info: ValidationInfo) -> int:
        if ":" in info.data.get("fqdn", ""):
            raise ValueError("fqdn has a port, too: write it once")
        return value


class PolicySpec(_Casa):
    """What one application may do, and who of other namespaces may call it."""

    target_ref: TargetRef
    allowed_protocols: tuple[Literal["mcp", "a2a", "http"], ...] | None = Field(
        None, description="The protocols it may speak"
    )
    allowed_endpoints: tuple[Endpoint, ...] | None = Field(
        None, description="Whom it may call, and nobody else. Not said: what its type may call"
    )
    allowed_sources: tuple[Endpoint, ...] = Field(
        (), description="Not in CASA: who in other namespaces may call it"
    )
    llm_endpoint: LlmEndpoint | None = Field(None, description="The LLM that it may call")


class CasaPolicy(_Casa):
    """Rules for one application, across namespaces too."""

    api_version: Literal["casa.io/v1alpha1"] = Field(description="The version of this form")
    kind: Literal["CASAPolicy"] = Field(description="What it declares")
    metadata: Metadata
    spec: PolicySpec
    status: Any = Field(None, description="Passed over")

    @property
    def namespace(self) -> str:
        """The namespace it is about."""
        return self.metadata.place


KINDS: dict[str, type[MultiAgentSystem | CasaPolicy]] = {
    "MultiAgentSystem": MultiAgentSystem,
    "CASAPolicy": CasaPolicy,
}

"""The ``mas.yaml`` form: agents, permissions and settings of one system in one file."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise, permutations
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    ValidationInfo,
    field_validator,
)

from mas_nats.errors import ConfigurationError
from mas_nats.manifest.checked import checked
from mas_nats.manifest.gateway import GatewaySettings, variables
from mas_nats.manifest.mistakes import guess
from mas_nats.manifest.wanted import Wanted, WantedAgent
from mas_nats.manifest.yaml_lines import YamlFile
from mas_nats.policy.document import AgentId, Limits, Permissions, require_one_side
from mas_nats.policy.governance import Role
from mas_nats.policy.roles import target_of
from mas_nats.policy.table import ANY
from mas_nats.wire.identity import DEFAULT_NAMESPACE, ID_PATTERN, namespace_of, require_id, require_name
from mas_nats.wire.state_mode import StateMode

FILE_NAME = "mas.yaml"
VARIABLE = "MAS_RUNNER_CONFIG_FILE"
"""The environment variable that names the manifest."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


Name = Annotated[str, AfterValidator(lambda value: require_name(value, "agent id", any_agent=True))]
"""An agent, as ``namespace/agent`` one of another namespace, as ``namespace/*`` all of them.

A rule is about the own namespace: with a foreign target it says whom one's own agents may reach there, with a
foreign sender from whom one's own accept messages. A message crosses where both namespaces allow it.
"""


class Allow(_Model):
    """``sender`` may send to ``targets``."""

    type: Literal["allow"]
    sender: Name
    targets: tuple[Name, ...]

    def pairs(self) -> Iterable[tuple[str, str]]:
        """Sender and target of every allowed way."""
        return ((self.sender, target) for target in self.targets)


class AllowBidirectional(_Model):
    """All of ``agents`` may send to each other."""

    type: Literal["allow_bidirectional"]
    agents: tuple[Name, ...]

    def pairs(self) -> Iterable[tuple[str, str]]:
        """Sender and target of every allowed way."""
        return permutations(self.agents, 2)


class AllowNetwork(_Model):
    """A full mesh of ``agents``; not bidirectional: a chain in their order."""

    type: Literal["allow_network"]
    agents: tuple[Name, ...]
    bidirectional: bool = Field(default=True, description="Everybody to everybody; false: each to the next")

    def pairs(self) -> Iterable[tuple[str, str]]:
        """Sender and target of every allowed way."""
        return permutations(self.agents, 2) if self.bidirectional else pairwise(self.agents)


class AllowBroadcast(_Model):
    """``sender`` may send to all ``receivers``."""

    type: Literal["allow_broadcast"]
    sender: Name
    receivers: tuple[Name, ...]

    def pairs(self) -> Iterable[tuple[str, str]]:
        """Sender and target of every allowed way."""
        return ((self.sender, receiver) for receiver in self.receivers)


class AllowWildcard(_Model):
    """``agent_id`` may send to every agent of the namespace."""

    type: Literal["allow_wildcard"]
    agent_id: AgentId

    def pairs(self) -> Iterable[tuple[str, str]]:
        """Sender and target of every allowed way."""
        return ((self.agent_id, ANY),)


class Block(_Model):
    """``sender`` may not send to ``targets``, whatever else allows it."""

    type: Literal["block"]
    sender: Name
    targets: tuple[Name, ...]

    def pairs(self) -> Iterable[tuple[str, str]]:
        """Sender and target of every blocked way."""
        return ((self.sender, target) for target in self.targets)


Rule = Annotated[
    Allow | AllowBidirectional | AllowNetwork | AllowBroadcast | AllowWildcard | Block,
    Field(discriminator="type"),
]


class AgentEntry(_Model):
    """One agent, and how to run it."""

    agent_id: AgentId = Field(description="Its id, once in a namespace")
    class_path: str = Field("", description="The class to run, as `package.module:Class`")
    instances: int = Field(1, ge=1, description="Processes to run; they share the work")
    capabilities: tuple[str, ...] = Field((), description="What others may discover of it")
    metadata: dict[str, JsonValue] = Field(default_factory=dict, description="The same, of any shape")
    tls_cert_path: Path | None = Field(None, description="Its certificate, PEM")
    tls_key_path: Path | None = Field(None, description="The certificate's key, PEM")
    init_kwargs: dict[str, JsonValue] = Field(
        default_factory=dict, description="Further arguments of the class"
    )
    state: StateMode = Field(
        StateMode.MEDIATED, description="Whether its state goes through policy, or straight to the bucket"
    )


class MasYaml(_Model):
    """The whole file."""

    namespace: Annotated[
        str,
        AfterValidator(lambda value: require_id(value, "namespace")),
        Field(json_schema_extra={"pattern": f"^{ID_PATTERN.pattern}$"}),
    ] = Field(DEFAULT_NAMESPACE, description="The namespace that it declares")
    server_listen_addr: str | None = Field(None, description="Where `mas up` listens, as `host:port`")
    tls_ca_path: Path | None = Field(None, description="The CA of agents and server, PEM")
    tls_server_cert_path: Path | None = Field(None, description="The server's certificate chain, PEM")
    tls_server_key_path: Path | None = Field(None, description="The certificate's key, PEM")
    permissions: tuple[Rule, ...] = Field((), description="Who may send to whom; nothing else is allowed")
    agents: tuple[AgentEntry, ...] = Field((), description="Who there is")
    inspectors: tuple[AgentId, ...] = Field((), description="Who may read everything and change nothing")
    operators: tuple[AgentId, ...] = Field((), description="People and jobs who may change everything")
    limits: Limits = Field(Limits(), description="Limits of every agent")
    roles: dict[str, Role] = Field(default_factory=dict, description="What holders of a role may do")
    gateway: GatewaySettings | None = Field(None, description="Governance and the server's Redis")

    @field_validator("agents")
    @classmethod
    def _each_once(cls, agents: tuple[AgentEntry, ...]) -> tuple[AgentEntry, ...]:
        twice = [name for name, count in Counter(entry.agent_id for entry in agents).items() if count > 1]
        if twice:
            raise ValueError(f"declared more than once: {', '.join(twice)}; instances: says how many to run")
        return agents

    @property
    def settings(self) -> GatewaySettings:
        """What ``gateway:`` says, or what holds where it says nothing."""
        return self.gateway or GatewaySettings.unsaid()

    def beside(self, folder: Path) -> MasYaml:
        """The same, with the relative paths in it resolved against ``folder``."""
        tls = {name: getattr(self, name) for name in type(self).model_fields if name.startswith("tls_")}
        agents = tuple(
            entry.model_copy(
                update={
                    "tls_cert_path": entry.tls_cert_path and folder / entry.tls_cert_path,
                    "tls_key_path": entry.tls_key_path and folder / entry.tls_key_path,
                }
            )
            for entry in self.agents
        )
        files = {name: path and folder / path for name, path in tls.items()}
        return self.model_copy(update={**files, "agents": agents})

    @field_validator("permissions")
    @classmethod
    def _about_this_namespace(cls, rules: tuple[Rule, ...], info: ValidationInfo) -> tuple[Rule, ...]:
        for place, rule in enumerate(rules):
            for sender, target in rule.pairs():
                _require_here(info, f"rule {place + 1}", sender, target)
        return rules

    @field_validator("roles")
    @classmethod
    def _roles_of_this_namespace(cls, roles: dict[str, Role], info: ValidationInfo) -> dict[str, Role]:
        for name, role in roles.items():
            for said in (*role.agents, *map(target_of, role.permissions)):
                _require_here(info, name, said, "")
        return roles

    def wanted(self) -> Wanted:
        """What the file wants of its namespace."""
        allowed: dict[str, list[str]] = {}
        blocked: dict[str, list[str]] = {}
        for rule in self.permissions:
            said = blocked if isinstance(rule, Block) else allowed
            for sender, target in rule.pairs():
                said.setdefault(sender, []).append(target)
        return Wanted(
            namespace=self.namespace,
            agents={
                entry.agent_id: WantedAgent(entry.capabilities, dict(entry.metadata), entry.state)
                for entry in self.agents
            },
            permissions={
                sender: Permissions(
                    allowed_targets=tuple(dict.fromkeys(allowed.get(sender, ()))),
                    blocked_targets=tuple(dict.fromkeys(blocked.get(sender, ()))),
                )
                for sender in sorted(allowed.keys() | blocked.keys())
            },
            inspectors=self.inspectors,
            operators=self.operators,
            limits=self.limits,
            governance=self.settings.governance(self.roles),
            notices=tuple(self._notices()),
        )

    def _notices(self) -> Iterable[str]:
        """What the reader of the file should know."""
        if self.roles and self.gateway is not None and not self.gateway.features.rbac:
            yield "roles grant nothing while gateway.features.rbac is false"
        yield from self._blocks_nobody()
        if named := variables():
            yield f"the environment beats the file: {', '.join(named)}"

    def _blocks_nobody(self) -> Iterable[str]:
        """Blocks of agents that are not declared: a typing error there leaves open what it was to close."""
        known = [entry.agent_id for entry in self.agents]
        for number, rule in enumerate(self.permissions, 1):
            for name in (rule.sender, *rule.targets) if isinstance(rule, Block) else ():
                if name not in known and not namespace_of(name):
                    near = guess(name, known)
                    yield f"rule {number} blocks nothing of {name!r}: no such agent is declared{near}"


def _require_here(info: ValidationInfo, what: str, sender: str, target: str) -> None:
    if (namespace := info.data.get("namespace")) is None:
        return  # it is wrong itself
    try:
        require_one_side(namespace, sender, target)
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error


def load(path: Path) -> MasYaml:
    """Read and check a ``mas.yaml`` with one document. Relative paths in it start at its folder.

    ``documents.load`` reads files of either form, with any number of documents.

    Raises:
        ConfigurationError: it cannot be read, is no YAML, or a field is wrong; the text names line, field,
            what is allowed there and what was probably meant.

    """
    file = YamlFile.read(path)
    if isinstance(file.content, dict) and "kind" in file.content:
        raise ConfigurationError(
            f"{path}, line {file.line(('kind',))}: here a {FILE_NAME} is read, which has no kind:. The "
            "applications of a MultiAgentSystem are programs of their own; `mas apply` reads both forms"
        )
    return parse(file)


def parse(file: YamlFile) -> MasYaml:
    """One document. Raises as ``load``."""
    path = file.path
    raw = file.fields()
    if raw is None:
        raise ConfigurationError(f"{path} must hold a mapping with agents: and permissions:")
    manifest = checked(file, raw, MasYaml, "manifest", holder=raw)
    return manifest.beside(path.absolute().parent)


def find(start: Path) -> Path | None:
    """The nearest ``mas.yaml`` in ``start`` or a folder above it."""
    for folder in (start, *start.parents):
        if (candidate := folder / FILE_NAME).is_file():
            return candidate
    return None


def chosen(named: Path | None) -> Path | None:
    """The manifest to use, absolute: the one named, else that of the environment, else the nearest."""
    if named is None and (variable := os.environ.get(VARIABLE)):
        named = Path(variable)
    return named.absolute() if named else find(Path.cwd())

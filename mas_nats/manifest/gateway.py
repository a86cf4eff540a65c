"""``GatewaySettings``: the one place where governance is configured.

From a YAML file, from the environment and from code; what comes later in this list wins, value by value::

    settings = GatewaySettings.from_yaml("gateway.yaml", rate_limit={"per_minute": 200})

A variable of the environment is named by its place: ``MAS_GATEWAY__RATE_LIMIT__PER_MINUTE=50``. Lists and
mappings are JSON there. The ``gateway:`` section of a ``mas.yaml`` is read in the same way.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from mas_nats.errors import ConfigurationError
from mas_nats.manifest.mistakes import Place, mistakes
from mas_nats.manifest.yaml_lines import YamlFile
from mas_nats.policy.governance import (
    AuditSink,
    CircuitBreaker,
    Dlp,
    DlpAction,
    DlpRule,
    Governance,
    RateLimits,
    Role,
)
from mas_nats.telemetry.settings import TelemetrySettings

SECTION = "gateway"
_PREFIX = "MAS_GATEWAY__"
_BETWEEN = "__"


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RedisSettings(_Section):
    """The Redis of the audit and the counters."""

    url: str = Field(
        "",
        repr=False,  # it may hold a password
        description="`redis://`, `rediss://` or `unix://`; empty: a Redis of its own is started",
    )
    socket_timeout: float | None = Field(
        None, gt=0, description="Seconds to wait for an answer of the Redis that `url` names"
    )

    @field_validator("url")
    @classmethod
    def _known_scheme(cls, value: str) -> str:
        if value and not value.startswith(("redis://", "rediss://", "unix://")):
            raise ValueError("must start with redis://, rediss:// or unix://")
        return value


class RateLimitSettings(_Section):
    """How many messages and requests a sender may send; 0 is no limit."""

    per_minute: int = Field(100, ge=0, description="Messages and requests of each sender in a minute")
    per_hour: int = Field(1000, ge=0, description="The same in an hour")
    pair_per_minute: int = Field(0, ge=0, description="Of each sender to each target in a minute")
    pair_per_hour: int = Field(0, ge=0, description="The same in an hour")
    burst: int = Field(0, ge=0, description="At once; 0: as many as the limit itself")


class FeatureSettings(_Section):
    """What is on."""

    dlp: bool = Field(default=True, description="Data-loss prevention")
    rbac: bool = Field(default=True, description="Whether the manifest's `roles:` grant anything")
    circuit_breaker: bool = Field(default=True, description="Circuit breaking for failing targets")


class DlpSettings(_Section):
    """Data-loss prevention: the built-in classes, changed as it says, and rules of your own."""

    merge_strategy: Literal["append", "replace"] = Field(
        "append", description="`append`: the rules beside the built-in ones; `replace`: instead of them"
    )
    disable_defaults: tuple[str, ...] = Field((), description="Types of built-in rules that are off")
    policy_overrides: dict[str, DlpAction] = Field(
        default_factory=dict, description="By type: `block`, `redact` or `alert`"
    )
    rules: tuple[DlpRule, ...] = Field((), max_length=1_000, description="Rules of your own")


class AuditSettings(_Section):
    """A copy of the audit as JSON lines; the audit itself is in Redis in any case."""

    file_path: Path | None = Field(None, description="The file; none: no copy")
    max_bytes: int = Field(10_000_000, ge=1, description="Bytes after which the file is rotated")
    backup_count: int = Field(5, ge=0, description="Rotated files that are kept")


class CircuitBreakerSettings(_Section):
    """When messages to a failing target are refused, and when it is tried again."""

    failure_threshold: int = Field(5, gt=0, le=1_000, description="Failed messages that open it")
    success_threshold: int = Field(2, gt=0, le=100, description="Handled probes that close it again")
    timeout_seconds: float = Field(
        60.0, gt=0, le=86_400, description="Seconds it stays open before probes pass"
    )
    window_seconds: float = Field(
        300.0, gt=0, le=86_400, description="Seconds over which failures are counted"
    )


@dataclass(frozen=True, slots=True)
class _Layer:
    """Settings from one source, and how it calls the place of one."""

    values: Mapping[str, Any]
    named: Callable[[Place], str]

    def has(self, place: Place) -> bool:
        inside: Any = self.values
        for part in place:
            if not isinstance(inside, (Mapping, list, tuple)):
                return False
            try:
                inside = inside[part]  # type: ignore[index]
            except (KeyError, IndexError, TypeError):
                return False
        return True


class _Environment(EnvSettingsSource):
    """The environment, a variable that stands for nothing included, so that it is refused."""

    def __call__(self) -> dict[str, Any]:
        found = super().__call__()
        for name, value in self.env_vars.items():
            field = name.lower().removeprefix(_PREFIX.lower()).partition(_BETWEEN)[0]
            if name.lower().startswith(_PREFIX.lower()) and field not in self.settings_cls.model_fields:
                found[field] = value
        return found


class GatewaySettings(BaseSettings):
    """Everything of it. Frozen: ``model_copy`` makes another.

    Raises:
        ConfigurationError: a key is unknown or a value wrong; the text says where it was set.

    """

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX, env_nested_delimiter=_BETWEEN, extra="forbid", frozen=True
    )

    redis: RedisSettings = RedisSettings()
    rate_limit: RateLimitSettings = RateLimitSettings()
    features: FeatureSettings = FeatureSettings()
    dlp: DlpSettings = DlpSettings()
    audit: AuditSettings = AuditSettings()
    circuit_breaker: CircuitBreakerSettings = CircuitBreakerSettings()
    telemetry: TelemetrySettings = TelemetrySettings()

    if not TYPE_CHECKING:  # whose view is that of the fields

        def __init__(self, file: _Layer | None = None, /, **code: Any) -> None:
            layers = (_environment(), _Layer(_said(code), lambda _: ""))
            layers = (file, *layers) if file is not None else layers
            merged: dict[str, Any] = {}
            for layer in layers:
                merged = _merge(merged, layer.values)
            try:
                super().__init__(**merged)
            except ValidationError as error:
                found = mistakes(error, type(self), lambda place: _origin(layers, place))
                raise ConfigurationError("\n- ".join(("the gateway settings are wrong:", *found))) from None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """What the constructor has merged, and nothing beside it."""
        return (init_settings,)

    @classmethod
    def from_yaml(cls, path: str | os.PathLike[str], **code: Any) -> GatewaySettings:
        """Read a YAML file: settings of their own, or the ``gateway:`` section of a ``mas.yaml``.

        The environment beats the file, and ``code`` beats both.

        Raises:
            ConfigurationError: the file cannot be read, or something is wrong; the text names the line.

        """
        file = YamlFile.read(Path(path))
        whole = file.content if file.content is not None else {}
        if isinstance(whole, dict) and SECTION in whole:
            return cls.of_section(file, whole[SECTION], (SECTION,), **code)
        return cls.of_section(file, whole, (), **code)

    @classmethod
    def of_section(cls, file: YamlFile, section: object, at: Place, **code: Any) -> GatewaySettings:
        """The settings of the part of a file that stands ``at`` a place. Errors as ``from_yaml``."""
        section = {} if section is None else section
        if not isinstance(section, dict) or any(not isinstance(key, str) for key in section):
            raise ConfigurationError(
                f"{file.path}, line {file.line(at)}: the gateway settings must be a mapping"
            )
        layer = _Layer(section, lambda place: f"{file.path}, line {file.line((*at, *place))}")
        return cls(layer, **code)  # type: ignore[call-arg]

    @classmethod
    def unsaid(cls) -> GatewaySettings:
        """Those of a ``mas.yaml`` without ``gateway:``: what protects is on, and nothing is limited."""
        limits = dict.fromkeys(RateLimitSettings.model_fields, 0)
        return cls(_Layer({"rate_limit": limits}, lambda _: ""))  # type: ignore[call-arg]

    def governance(self, roles: Mapping[str, Role] | None = None) -> Governance:
        """What of it is policy; ``roles`` are the manifest's."""
        return Governance(
            rate_limit=RateLimits(**self.rate_limit.model_dump()),
            circuit_breaker=CircuitBreaker(
                enabled=self.features.circuit_breaker, **self.circuit_breaker.model_dump()
            ),
            dlp=Dlp(enabled=self.features.dlp, **self.dlp.model_dump()),
            roles=dict(roles or {}) if self.features.rbac else {},
            audit=AuditSink(
                file_path=str(self.audit.file_path or ""),
                max_bytes=self.audit.max_bytes,
                backup_count=self.audit.backup_count,
            ),
        )


def variables() -> list[str]:
    """The variables of the environment that say something about the gateway."""
    return sorted(name for name in os.environ if name.upper().startswith(_PREFIX))


def _environment() -> _Layer:
    try:
        found = _Environment(GatewaySettings)()
    except SettingsError as error:
        raise ConfigurationError(f"a variable {_PREFIX}… is not valid: {error}") from None
    return _Layer(found, _variable)


def _variable(place: Place) -> str:
    """The variable that set a place: its own, or that of the list or mapping it is in."""
    for length in range(len(place), 0, -1):
        name = _PREFIX + _BETWEEN.join(map(str, place[:length])).upper()
        if any(each.upper() == name for each in os.environ):
            return f"the variable {name}"
    return f"a variable {_PREFIX}…"


def _origin(layers: tuple[_Layer, ...], place: Place) -> str:
    """Where a place was set last; of a missing one, where what it is missing from was."""
    for length in range(len(place), 0, -1):
        for layer in reversed(layers):
            if layer.has(place[:length]):
                return layer.named(place)
    return ""


def _said(code: Mapping[str, Any]) -> dict[str, Any]:
    """What code says: of a section given as an object, only what was set in it."""
    return {
        name: value.model_dump(exclude_unset=True) if isinstance(value, BaseModel) else value
        for name, value in code.items()
    }


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Both, ``above`` winning; mappings are merged, lists are not."""
    merged = dict(below)
    for name, value in above.items():
        before = merged.get(name)
        both = isinstance(before, Mapping) and isinstance(value, Mapping)
        merged[name] = _merge(before, value) if both else value  # type: ignore[arg-type]
    return merged

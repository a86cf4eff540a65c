"""The settings of a sidecar, from either file that may hold them.

``applications.yaml`` is one's own form; a file with ``kind:`` holds CASA's documents, which say the same of
whole systems, and which ``mas apply`` takes too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mas_nats.errors import ConfigurationError
from mas_nats.manifest import documents
from mas_nats.manifest.app_type import AppType
from mas_nats.manifest.casa import App, BaseUrl, CasaPolicy, Endpoint, MultiAgentSystem
from mas_nats.manifest.documents import Declared, Manifest
from mas_nats.manifest.mistakes import guess
from mas_nats.manifest.yaml_lines import YamlFile
from mas_nats.sidecar import application
from mas_nats.sidecar.application import Settings
from mas_nats.wire.identity import ANY_AGENT

_BEGIN = 10.0
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Beside:
    """What the sidecar of one application goes by, and the namespace that the application is in."""

    namespace: str
    settings: Settings


def load(path: Path, app: str, namespace: str, *, listen: str = "", app_url: str = "") -> Beside:
    """Read what a file says of the sidecar of ``app``, by its name or its workload's.

    ``listen`` and ``app_url`` take the place of where the file has the sidecar, and the application, listen.

    Raises:
        ConfigurationError: the file cannot be read, or something in it is wrong; the text names the lines.

    """
    for name, options in (("listen", {"listen": listen}), ("app-url", {"base_url": app_url})):
        if any(options.values()):
            try:
                application.checked(application.Application, {"type": "client", **options})
            except ConfigurationError as error:
                raise ConfigurationError(f"--{name}: {error}") from None
    said = YamlFile.read_all(path)
    if any("kind" in (each.fields() or {}) or "apiVersion" in (each.fields() or {}) for each in said):
        return _Casa(path, said, documents.load(path), namespace).beside(app, listen, app_url)
    settings = application.load(path, app)
    changed = {**({"listen": listen} if listen else {}), **({"base_url": app_url} if app_url else {})}
    if changed:
        said_of_it = settings.own.model_dump(exclude_unset=True)
        own = application.checked(application.Application, said_of_it | changed)
        settings = settings.model_copy(update={"applications": {**settings.applications, app: own}})
    return Beside(namespace, settings)


class _Casa:
    """CASA's documents of one file, seen from one namespace."""

    def __init__(self, path: Path, files: list[YamlFile], manifest: Manifest, namespace: str) -> None:
        self._path = path
        self._files = files
        self._manifest = manifest
        self._home = manifest.of(namespace)
        if not isinstance(self._home.said, MultiAgentSystem):
            text = f"{self._home.where}: namespace {self._home.namespace} is no MultiAgentSystem"
            raise ConfigurationError(f"{text}: only those say where applications listen")
        self._system = self._home.said

    def beside(self, name: str, listen: str, app_url: str) -> Beside:
        """The settings of the sidecar of the application ``name``."""
        own = self._own(name)
        if not app_url and own.base_url is not None and own.type.called:
            if own.base_url.scheme != "http":
                text = f"a sidecar speaks plain http with {own.name}, which is beside it: write scheme: http"
                raise self._wrong(own, "baseUrl", text)
            app_url = f"http://127.0.0.1:{own.base_url.port}"
        llm_host, llm_url = self._llm(own)
        applications = dict(self._applications(own))
        mine = {"base_url": app_url} | ({"listen": listen} if listen else {})
        applications[own.agent_id] |= (
            mine if own.type.called else {"listen": mine.get("listen", "127.0.0.1:0")}
        )
        raw = {
            "app": own.agent_id,
            "tokens": True,
            "applications": applications,
            "limits": {"begin": min(_BEGIN, self._system.spec.limits.ack_wait / 2)},
            "llm_host": llm_host,
            "llm_base_url": llm_url,
        }
        self._require_distinct(applications, llm_host)
        try:
            return Beside(self._home.namespace, application.checked(Settings, raw))
        except ConfigurationError as error:
            raise self._wrong(own, "", str(error)) from None

    def _own(self, name: str) -> App:
        own = self._system.app(name)
        if own is not None and name in (own.name, own.agent_id):
            return own
        names = sorted({each for app in self._system.spec.apps for each in (app.name, app.agent_id)})
        raise ConfigurationError(
            f"{self._home.where}: {self._home.namespace} has no application {name!r}{guess(name, names)}; "
            f"it has {', '.join(names) or 'none'}"
        )

    # -- who there is ------------------------------------------------------------------------------
    def _applications(self, own: App) -> Iterator[tuple[str, dict[str, Any]]]:
        """Every application of the namespace, and those of others that a policy lets it speak with."""
        for app in self._system.spec.apps:
            yield app.agent_id, _application(app, self._home)
        for policy in self._policies(own):
            there = [(each, True) for each in policy.spec.allowed_endpoints or ()]
            there += [(each, False) for each in policy.spec.allowed_sources]
            for endpoint, calls in there:
                yield from self._foreign(endpoint, called=calls)

    def _foreign(self, endpoint: Endpoint, *, called: bool) -> Iterator[tuple[str, dict[str, Any]]]:
        """What ``endpoint`` names in another namespace, where that is declared in the same file."""
        namespace = endpoint.namespace or self._home.namespace
        declared = next((each for each in self._manifest.namespaces if each.namespace == namespace), None)
        if namespace == self._home.namespace or declared is None:
            return
        if not isinstance(declared.said, MultiAgentSystem):
            return
        found = declared.said.spec.apps
        if endpoint.name != ANY_AGENT:
            named = declared.said.app(endpoint.name)
            found = (named,) if named is not None else ()
        for app in found:
            if called and not app.type.called:
                continue
            told = _application(app, declared)
            yield f"{namespace}/{app.agent_id}", told if called else told | {"hosts": ()}

    def _policies(self, app: App) -> Iterator[CasaPolicy]:
        for policy in self._home.policies:
            if self._system.app(policy.spec.target_ref.name) is app:
                yield policy

    # -- the language model ------------------------------------------------------------------------
    def _llm(self, own: App) -> tuple[str, str]:
        """Host and address of the language model of ``own``: what a policy says goes before the system's."""
        named = {
            (each.fqdn.lower() + (f":{each.port}" if each.port != _PORTS["https"] else ""), each.port)
            for policy in self._policies(own)
            if (each := policy.spec.llm_endpoint) is not None
        }
        if len(named) > 1:
            raise ConfigurationError(
                f"{self._home.where}: the policies of {own.name} name several llmEndpoints: name one"
            )
        spec = self._system.spec
        for host, _ in named:
            same = spec.llm_host is not None and host == spec.llm_host.lower()
            return host, (spec.llm_base_url or "") if same else ""
        return (spec.llm_host or "").lower(), spec.llm_base_url or ""

    # -- what is wrong -----------------------------------------------------------------------------
    def _require_distinct(self, applications: dict[str, dict[str, Any]], llm_host: str) -> None:
        """Refuse a host that stands for two: applications of two namespaces may have the same."""
        seen = {llm_host: "the llm_host"} if llm_host else {}
        for name, each in applications.items():
            for host in each["hosts"]:
                if host in seen:
                    raise ConfigurationError(
                        f"{self._home.where}: host {host} stands for {seen[host]} and for {name}: "
                        "give one of them another baseUrl"
                    )
                seen[host] = name

    def _wrong(self, app: App, field: str, text: str) -> ConfigurationError:
        """A mistake at a field of an application."""
        place = ("spec", "apps", self._system.spec.apps.index(app), *((field,) if field else ()))
        line = next((file.line(place) for file in self._files if self._declares(file)), 1)
        return ConfigurationError(f"{self._path}, line {line}, {'.'.join(map(str, place))}: {text}")

    def _declares(self, file: YamlFile) -> bool:
        fields = file.fields() or {}
        metadata = fields.get("metadata")
        if fields.get("kind") != "MultiAgentSystem" or not isinstance(metadata, dict):
            return False
        return (metadata.get("namespace") or metadata.get("name")) == self._home.namespace


def _application(app: App, declared: Declared) -> dict[str, Any]:
    """An application as sidecars know it."""
    spoken = [
        frozenset(policy.spec.allowed_protocols)
        for policy in declared.policies
        if policy.spec.allowed_protocols is not None and _is_about(policy, app, declared)
    ]
    protocols: Any = frozenset().union(*spoken) - {"http"} if spoken else None
    return {
        "type": app.type.value,
        "hosts": _hosts(app.base_url) if app.type is not AppType.CLIENT else (),
        "endpoint": app.endpoint,
        "idempotent": app.idempotent_methods,
        "protocols": protocols,
        "tool_names": app.tool_names,
        "scopes": app.scopes,
        "prompt": app.http_request_schema.prompt_field_json_path if app.http_request_schema else "",
    }


def _is_about(policy: CasaPolicy, app: App, declared: Declared) -> bool:
    said = declared.said
    return isinstance(said, MultiAgentSystem) and said.app(policy.spec.target_ref.name) is app


def _hosts(url: BaseUrl | None) -> tuple[str, ...]:
    """How others write to it: by its port where that is not the usual one."""
    if url is None:
        return ()
    return (url.name if url.port == _PORTS["http"] else f"{url.name}:{url.port}",)

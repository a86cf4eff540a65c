"""Manifests of either form, any number of documents in any number of files, as one set of namespaces.

A document with ``kind:`` is one of CASA's, any other is a ``mas.yaml``::

    manifest = load(Path("mas.yaml"), Path("casa.yaml"))
    manifest.of("my-mas").wanted
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mas_nats.errors import ConfigurationError
from mas_nats.manifest import casa_wanted, mas_yaml
from mas_nats.manifest.casa import API_VERSION, KINDS, CasaPolicy, MultiAgentSystem
from mas_nats.manifest.checked import checked
from mas_nats.manifest.gateway import SECTION, GatewaySettings
from mas_nats.manifest.halves import one_sided
from mas_nats.manifest.mas_yaml import MasYaml
from mas_nats.manifest.mistakes import guess
from mas_nats.manifest.wanted import Wanted
from mas_nats.manifest.yaml_lines import YamlFile

_SERVER = ("server_listen_addr", "tls_ca_path", "tls_server_cert_path", "tls_server_key_path")
"""What a ``mas.yaml`` says of the server, of which there is one."""


@dataclass(frozen=True, slots=True)
class Declared:
    """One namespace: the document that declares it, its policies, and what they come to.

    ``where`` names file and line for people.
    """

    where: str
    said: MasYaml | MultiAgentSystem
    wanted: Wanted
    policies: tuple[CasaPolicy, ...] = ()

    @property
    def namespace(self) -> str:
        """Its name."""
        return self.wanted.namespace

    @property
    def settings(self) -> GatewaySettings:
        """What holds for it, of the environment too."""
        return self.said.settings if isinstance(self.said, MasYaml) else self.said.spec.settings


@dataclass(frozen=True, slots=True)
class Manifest:
    """What files declare together, in their order. ``notices`` are about several namespaces."""

    files: tuple[Path, ...]
    namespaces: tuple[Declared, ...]
    notices: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The files, for people."""
        return ", ".join(map(str, self.files))

    @property
    def told(self) -> tuple[str, ...]:
        """Every notice; where there are several namespaces, with the one that it is about."""
        if len(self.namespaces) == 1:
            return (*self.namespaces[0].wanted.notices, *self.notices)
        each = (f"{one.namespace}: {notice}" for one in self.namespaces for notice in one.wanted.notices)
        return (*each, *self.notices)

    def of(self, namespace: str) -> Declared:
        """What is declared of ``namespace``; of the only one there is, whatever its name.

        Raises:
            ConfigurationError: there are several, and none of this name.

        """
        if len(self.namespaces) == 1:
            return self.namespaces[0]
        for each in self.namespaces:
            if each.namespace == namespace:
                return each
        names = [each.namespace for each in self.namespaces]
        close = guess(namespace, names)
        raise ConfigurationError(
            f"{self.name} declares no namespace {namespace!r}{close}; declared are {', '.join(names)}"
        )

    def server(self) -> tuple[MasYaml, Declared]:
        """The documents that say where the server listens, and which Redis it has; else the first.

        Raises:
            ConfigurationError: two of them say it.

        """
        listening = [each for each in self.namespaces if _says_server(each.said)]
        storing = [each for each in self.namespaces if _says_redis(each.said)]
        for what, found in (("the server", listening), (f"{SECTION}.redis", storing)):
            if len(found) > 1:
                raise ConfigurationError(
                    f"{found[0].where} and {found[1].where} both speak of {what}: there is one, say it once"
                )
        said = listening[0].said if listening else None
        return (said if isinstance(said, MasYaml) else MasYaml()), (storing or self.namespaces)[0]


def load(*paths: Path) -> Manifest:
    """Read and check every document of every file. Relative paths in one start at its file's folder.

    Raises:
        ConfigurationError: something is wrong in any of them; the text names each mistake with file, line,
            field, what was found, what is allowed there and what was probably meant.

    """
    reading = _Reading()
    for path in paths:
        reading.file(path)
    return reading.manifest(paths)


class _Reading:
    """The documents read so far, by what they are; and what is wrong with them."""

    def __init__(self) -> None:
        self._wrong: list[str] = []
        self._declaring: dict[str, tuple[YamlFile, MasYaml | MultiAgentSystem]] = {}
        self._policies: list[tuple[YamlFile, CasaPolicy]] = []

    def file(self, path: Path) -> None:
        documents = YamlFile.read_all(path)
        if not documents:
            raise ConfigurationError(f"{path} must hold a mapping with agents: and permissions:")
        for document in documents:
            try:
                said = _parsed(document)
            except ConfigurationError as error:
                self._wrong.append(str(error))
                continue
            if isinstance(said, CasaPolicy):
                self._policies.append((document, said))
            else:
                self._declare(document, said)

    def _declare(self, document: YamlFile, said: MasYaml | MultiAgentSystem) -> None:
        before, _ = self._declaring.setdefault(said.namespace, (document, said))
        if before is not document:
            self._wrong.append(
                f"{_where(document)}: namespace {said.namespace} is declared in {_where(before)} too: put "
                "both into one document"
            )

    def manifest(self, paths: tuple[Path, ...]) -> Manifest:
        systems = {
            namespace: said
            for namespace, (_, said) in self._declaring.items()
            if isinstance(said, MultiAgentSystem)
        }
        for document, policy in self._policies:
            for problem in casa_wanted.problems(policy, systems):
                field = ".".join(map(str, problem.place))
                self._wrong.append(
                    f"{document.path}, line {document.line(problem.place)}, {field}: {problem.text}"
                )
        if self._wrong:
            raise ConfigurationError("\n".join(self._wrong))
        found = tuple(self._declared(document, said, systems) for document, said in self._declaring.values())
        return Manifest(paths, found, tuple(one_sided([each.wanted for each in found])))

    def _declared(
        self, document: YamlFile, said: MasYaml | MultiAgentSystem, systems: casa_wanted.Systems
    ) -> Declared:
        where = _where(document)
        if isinstance(said, MasYaml):
            return Declared(where, said, said.wanted())
        policies = tuple(each for _, each in self._policies if each.namespace == said.namespace)
        return Declared(where, said, casa_wanted.wanted(said, policies, systems), policies)


def _parsed(file: YamlFile) -> MasYaml | MultiAgentSystem | CasaPolicy:
    fields = file.fields()
    if fields is None:
        raise ConfigurationError(f"{_where(file)}: a document must be a mapping")
    if "kind" in fields or "apiVersion" in fields:
        return _casa(file, fields)
    return mas_yaml.parse(file)


def _casa(file: YamlFile, raw: dict[str, Any]) -> MultiAgentSystem | CasaPolicy:
    kind = raw.get("kind")
    model = KINDS.get(kind) if isinstance(kind, str) else None
    if model is None:
        close = guess(kind, list(KINDS)) if isinstance(kind, str) else ""
        said = repr(kind[:40]) if isinstance(kind, str) else "nothing" if kind is None else "no text"
        raise ConfigurationError(
            f"{file.path}, line {file.line(('kind',))}, kind: {' or '.join(KINDS)} is read, of "
            f"apiVersion {API_VERSION}{close} (found {said})"
        )
    assert isinstance(kind, str)  # noqa: S101 - one of KINDS
    if model is not MultiAgentSystem or not isinstance(raw.get("spec"), dict):
        return checked(file, raw, model, kind)
    spec = raw["spec"] = dict(raw["spec"])
    return checked(file, raw, model, kind, holder=spec, place=("spec",))


def _where(file: YamlFile) -> str:
    return f"{file.path}, line {file.line(())}"


def _says_server(said: MasYaml | MultiAgentSystem) -> bool:
    return isinstance(said, MasYaml) and any(getattr(said, name) is not None for name in _SERVER)


def _says_redis(said: MasYaml | MultiAgentSystem) -> bool:
    gateway = said.gateway if isinstance(said, MasYaml) else said.spec.gateway
    return gateway is not None and "redis" in gateway.model_fields_set

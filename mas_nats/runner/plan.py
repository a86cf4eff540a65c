"""What is to be run: the instances that a manifest declares, and their certificates."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mas_nats.errors import ConfigurationError
from mas_nats.manifest import mas_yaml
from mas_nats.manifest.mas_yaml import AgentEntry, MasYaml
from mas_nats.manifest.yaml_lines import YamlFile
from mas_nats.runner import where
from mas_nats.runner.order import Order
from mas_nats.wire.identity import DEFAULT_NAMESPACE

NO_MANIFEST = (
    f"there is no {mas_yaml.FILE_NAME} here or above: name it with --manifest or "
    f"${mas_yaml.VARIABLE}, or make a project with `mas init`"
)


@dataclass(frozen=True, slots=True)
class Instance:
    """One process to run."""

    agent_id: str
    number: int  # from 1
    order: Order

    @property
    def name(self) -> str:
        """What it is called in the output: ``helpdesk/1``."""
        return name_of(self.agent_id, self.number)


def name_of(agent_id: str, number: int) -> str:
    """The name of an instance."""
    return f"{agent_id}/{number}"


class Plan:
    """The agents to run, as a manifest has them.

    Raises:
        ConfigurationError: the manifest is wrong, names no class, or has no agent of that name.

    """

    def __init__(
        self,
        path: Path,
        agents: Sequence[str] = (),
        *,
        server: str | None = None,
        folder: Path | None = None,
    ) -> None:
        self.path = path
        self.manifest: MasYaml = mas_yaml.load(path)
        self._file = YamlFile.read(path)
        self._server = server
        self.broker = where.broker_folder(folder, (Path.cwd(), path.parent))
        declared = {entry.agent_id: entry for entry in self.manifest.agents}
        for name in agents:
            if name not in declared:
                near = difflib.get_close_matches(name, declared, 1)
                hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(declared) or 'none'}"
                raise ConfigurationError(f"{path} declares no agent {name!r}; {hint}")
        self._chosen = {
            number: entry
            for number, entry in enumerate(self.manifest.agents)
            if not agents or entry.agent_id in agents
        }
        self.skipped = [entry.agent_id for entry in self._chosen.values() if not entry.class_path]
        """Agents without a class: other programs run them."""
        if agents and self.skipped:
            raise self.wrong([self.mistake(each, ("class_path",), "it is missing") for each in self.skipped])
        if len(self.skipped) == len(self._chosen):
            raise ConfigurationError(
                f"{path} has nothing to run: give an agent a class, such as class_path: agents:HelpDesk"
            )

    @property
    def folder(self) -> Path:
        """Where relative paths start, and modules are looked for."""
        return self.path.parent

    @property
    def entries(self) -> list[AgentEntry]:
        """The agents to run."""
        return [entry for entry in self._chosen.values() if entry.class_path]

    @property
    def names(self) -> list[str]:
        """What the instances are called: ``helpdesk/1``, ``helpdesk/2``."""
        return [name_of(entry.agent_id, n + 1) for entry in self.entries for n in range(entry.instances)]

    def mistake(self, agent_id: str, field: Sequence[str], text: str) -> str:
        """A mistake in the entry of an agent, with its line."""
        (number,) = (key for key, entry in self._chosen.items() if entry.agent_id == agent_id)
        place: tuple[str | int, ...] = ("agents", number, *field)
        return f"line {self._file.line(place)}, {'.'.join(map(str, place))}: {text}"

    def wrong(self, mistakes: Sequence[str]) -> ConfigurationError:
        """All mistakes as one error."""
        return ConfigurationError("\n- ".join((f"{self.path} cannot be run:", *mistakes)))

    def unnamed(self) -> Iterator[tuple[str, where.Certificate]]:
        """The agents whose certificate the manifest does not name, and where it is to be."""
        for entry in self.entries:
            files = self._certificate(entry)
            said = (entry.tls_cert_path, entry.tls_key_path)
            if files is not None and said == (None, None):
                yield entry.agent_id, files

    def require_certificates(self, *, besides: Collection[str] = ()) -> None:
        """Check that every agent has a certificate, ``besides`` some.

        Raises:
            ConfigurationError: one has none; the text says how to get it.

        """
        looked_at = [entry for entry in self.entries if entry.agent_id not in besides]
        if mistakes := [each for entry in looked_at for each in self._missing(entry)]:
            raise self.wrong(mistakes)

    def instances(self, *, drain: float, log_level: str) -> list[Instance]:
        """Every process to run. ``drain``: seconds for handlers at the end."""
        said, listen = where.address(self._server, self.manifest)
        found = []
        for entry in self.entries:
            files = self._certificate(entry)
            if files is None:
                raise self.wrong(list(self._missing(entry)))
            order = Order(
                agent_id=entry.agent_id,
                class_path=entry.class_path,
                folder=self.folder,
                capabilities=entry.capabilities,
                metadata=entry.metadata,
                init_kwargs=entry.init_kwargs,
                address=said,
                listen=listen,
                broker=self.broker,
                ca=files.ca,
                cert=files.cert,
                key=files.key,
                drain=drain,
                log_level=log_level,
            )
            found += [Instance(entry.agent_id, number + 1, order) for number in range(entry.instances)]
        return found

    def _certificate(self, entry: AgentEntry) -> where.Certificate | None:
        return where.certificate(self.manifest, entry, self.broker)

    def _missing(self, entry: AgentEntry) -> Iterator[str]:
        name, space = entry.agent_id, self.manifest.namespace
        own = f"mas certs agent {name}" + ("" if space == DEFAULT_NAMESPACE else f" -n {space}")
        named = {"tls_cert_path": entry.tls_cert_path, "tls_key_path": entry.tls_key_path}
        if any(named.values()) and not all(named.values()):
            (absent,) = (field for field, value in named.items() if value is None)
            yield self.mistake(name, (), f"{absent} is missing: name both files, or neither")
            return
        files = self._certificate(entry)
        if files is None:
            start = "start the broker (mas up --detach), which makes a folder .mas with a CA for development"
            if entry.tls_cert_path is not None:
                yield self.mistake(
                    name, ("tls_cert_path",), f"which CA is trusted? Name it as tls_ca_path, or {start}"
                )
            else:
                yield self.mistake(
                    name, (), f"it has no certificate: name tls_cert_path and tls_key_path, or {start}"
                )
            return
        for path in files.missing:
            if not files.named:
                text = f"it has no certificate ({path} is missing): {own}, or name both tls_…_path"
                yield self.mistake(name, (), text)
                return
            field = next((field for field, value in named.items() if value == path), None)
            if field is None:
                ca = f"there is no {path}, the CA that vouches for the broker"
                yield f"line {self._file.line(('tls_ca_path',))}, tls_ca_path: {ca}"
                continue
            make = f"{own} --out {path.parent}"
            text = (
                f"there is no {path}. For development: {make}; in production it comes from your SPIFFE issuer"
            )
            yield self.mistake(name, (field,), text)

"""Where the broker is and which certificate to show it, when the program does not say.

In this order: the argument, the environment (``MAS_SERVER_ADDR``, ``MAS_CA``, ``MAS_CERT``, ``MAS_KEY``), the
nearest ``.mas/endpoint.json`` above the current folder (``mas up`` writes it), and for the address
``tls://127.0.0.1:4222``. An address may be several, separated by commas: the nodes of one cluster.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import orjson
from cryptography import x509

from mas_nats.errors import ConfigurationError
from mas_nats.wire.identity import DEFAULT_NAMESPACE, Role, parse_spiffe_id

DEFAULT_PORT = 4222
DEFAULT_URL = f"tls://127.0.0.1:{DEFAULT_PORT}"
ENDPOINT_FILE = Path(".mas") / "endpoint.json"


@dataclass(frozen=True, slots=True)
class TlsClientConfig:
    """The files of a TLS client, in PEM. Relative paths start at the current folder."""

    root_ca_path: str | os.PathLike[str]
    client_cert_path: str | os.PathLike[str]
    client_key_path: str | os.PathLike[str]

    @property
    def paths(self) -> tuple[Path, Path, Path]:
        """CA, certificate, key."""
        return Path(self.root_ca_path), Path(self.client_cert_path), Path(self.client_key_path)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A broker's address and the certificate to show it. ``url``: all nodes', separated by commas."""

    url: str
    tls: TlsClientConfig

    @property
    def servers(self) -> list[str]:
        """The address of each node."""
        return self.url.split(",")

    def context(self) -> ssl.SSLContext:
        """A context for mutual TLS 1.3, read from the files as they are now.

        Raises:
            ConfigurationError: a file cannot be used; the text names it.

        """
        ca, cert, key = self.tls.paths
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        try:
            context.load_verify_locations(ca)
        except (ssl.SSLError, OSError) as error:
            raise ConfigurationError(f"CA certificate {ca} cannot be used: {_why(error)}") from error
        try:
            context.load_cert_chain(cert, key)
        except (ssl.SSLError, OSError) as error:
            raise ConfigurationError(
                f"certificate {cert} with key {key} cannot be used: {_why(error)}"
            ) from error
        return context


def resolve(
    agent_id: str,
    server_addr: str | None = None,
    tls: TlsClientConfig | None = None,
    *,
    environment: Mapping[str, str] = os.environ,
    folder: Path | None = None,
) -> Endpoint:
    """Find the broker and the certificate of ``agent_id``.

    ``folder`` is where the search upwards starts; the current folder when not given.

    Raises:
        ConfigurationError: something is missing or wrong; the text says what, and which command makes it.

    """
    found = _nearest(folder or Path.cwd())
    settings = read_endpoint(found) if found else {}
    address = server_addr or environment.get("MAS_SERVER_ADDR") or settings.get("url") or DEFAULT_URL
    url = ",".join(_url(each.strip()) for each in address.split(","))
    if tls is None:
        tls = _certificates(agent_id, environment, found.parent if found else None, settings.get("ca"))
    for path in tls.paths:
        if not path.is_file():
            raise ConfigurationError(
                f"{path} does not exist. Make a certificate with: mas certs agent {agent_id}"
            )
    _check_holder(agent_id, tls.paths[1])
    return Endpoint(url, tls)


def _nearest(folder: Path) -> Path | None:
    for parent in (folder, *folder.parents):
        if (parent / ENDPOINT_FILE).is_file():
            return parent / ENDPOINT_FILE
    return None


def read_endpoint(path: Path) -> dict[str, str]:
    """What an ``endpoint.json`` says: ``url`` and ``ca``.

    Raises:
        ConfigurationError: it cannot be read.

    """
    try:
        raw = orjson.loads(path.read_bytes())
        return {name: str(raw[name]) for name in ("url", "ca") if name in raw}
    except (OSError, ValueError, TypeError) as error:
        raise ConfigurationError(f"{path} cannot be read: run `mas up` again to write it") from error


def _url(address: str) -> str:
    parts = urlsplit(address if "://" in address else f"tls://{address}")
    try:
        host, port = parts.hostname, parts.port or DEFAULT_PORT
    except ValueError:
        host, port = None, 0
    if host is None or parts.scheme not in {"tls", "nats"}:
        raise ConfigurationError(f"server address {address!r} is neither host:port nor a tls:// URL")
    return f"tls://[{host}]:{port}" if ":" in host else f"tls://{host}:{port}"


def _certificates(
    agent_id: str, environment: Mapping[str, str], folder: Path | None, ca: str | None
) -> TlsClientConfig:
    named = {name: environment[name] for name in ("MAS_CA", "MAS_CERT", "MAS_KEY") if environment.get(name)}
    if len(named) == 3:
        return TlsClientConfig(named["MAS_CA"], named["MAS_CERT"], named["MAS_KEY"])
    if folder is None:
        missing = [name for name in ("MAS_CA", "MAS_CERT", "MAS_KEY") if name not in named]
        raise ConfigurationError(
            f"no certificate for agent {agent_id!r}: pass tls=TlsClientConfig(...), or set "
            f"{', '.join(missing)}, or run `mas up` and `mas certs agent {agent_id}` in this folder "
            f"or one above it (no {ENDPOINT_FILE} was found)"
        )
    certificates = folder / "certs" / environment.get("MAS_NAMESPACE", DEFAULT_NAMESPACE) / Role.AGENT
    return TlsClientConfig(
        named.get("MAS_CA", folder / (ca or "certs/ca.pem")),
        named.get("MAS_CERT", certificates / f"{agent_id}.pem"),
        named.get("MAS_KEY", certificates / f"{agent_id}.key"),
    )


def _check_holder(agent_id: str, path: Path) -> None:
    """Refuse early, with a clear text, what the broker would refuse with a terse one."""
    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, x509.ExtensionNotFound) as error:
        raise ConfigurationError(
            f"{path} is not a certificate with a SPIFFE id. Make one with: mas certs agent {agent_id}"
        ) from error
    for uri in names.get_values_for_type(x509.UniformResourceIdentifier):
        try:
            holder = parse_spiffe_id(uri)
        except ValueError:
            continue
        if holder.role is Role.AGENT and holder.name != agent_id:
            raise ConfigurationError(
                f"{path} belongs to agent {holder.name!r}, not to {agent_id!r}. "
                f"Make one with: mas certs agent {agent_id}"
            )


def _why(error: OSError) -> str:
    return getattr(error, "reason", None) or error.strerror or type(error).__name__

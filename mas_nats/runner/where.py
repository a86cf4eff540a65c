"""Which broker the runner's agents go to, and with which certificates.

The address: ``--server``, ``$MAS_SERVER_ADDR``, what the broker's folder says while the broker runs, the
manifest's ``server_listen_addr``, ``tls://127.0.0.1:4222``; in this order. A certificate: the one that the
manifest names, else that of the broker's folder, where ``mas certs`` puts it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mas_nats.config import DEFAULT_URL, ENDPOINT_FILE
from mas_nats.manifest.mas_yaml import AgentEntry, MasYaml
from mas_nats.wire.identity import Role

_FOLDER = ENDPOINT_FILE.parent
_ANYWHERE = ("0.0.0.0", "[::]", "")  # noqa: S104 - the server listens there, agents go to this machine


@dataclass(frozen=True, slots=True)
class Certificate:
    """The files for one agent. ``named``: by the manifest."""

    ca: Path
    cert: Path
    key: Path
    named: bool

    @property
    def missing(self) -> list[Path]:
        """Those that do not exist."""
        return [path for path in (self.ca, self.cert, self.key) if not path.is_file()]


def broker_folder(named: Path | None, starts: Iterable[Path]) -> Path | None:
    """The folder of ``mas up``: the one named, else the nearest ``.mas`` in or above one of ``starts``."""
    if named is not None:
        return named.absolute()
    for start in starts:
        for folder in (start, *start.parents):
            if (folder / _FOLDER / "certs").is_dir():
                return folder / _FOLDER
    return None


def certificate(manifest: MasYaml, entry: AgentEntry, broker: Path | None) -> Certificate | None:
    """The certificate for an agent, which need not exist; None where nothing says where it would be."""
    named_ca = manifest.tls_ca_path or _path(os.environ.get("MAS_CA"))
    own = None if broker is None else broker / "certs" / "ca.pem"
    ca = named_ca or own
    if entry.tls_cert_path is not None and entry.tls_key_path is not None:
        return None if ca is None else Certificate(ca, entry.tls_cert_path, entry.tls_key_path, named=True)
    if broker is None or own is None:
        return None
    stem = broker / "certs" / manifest.namespace / Role.AGENT / entry.agent_id
    # The folder's CA file vouches for the server in any case.
    return Certificate(
        own, stem.with_name(f"{stem.name}.pem"), stem.with_name(f"{stem.name}.key"), named=False
    )


def address(said: str | None, manifest: MasYaml) -> tuple[str | None, str]:
    """The address that holds whatever the broker's folder says, or None; and the one that holds otherwise."""
    host, _, port = (manifest.server_listen_addr or "").rpartition(":")
    listen = f"{'127.0.0.1' if host in _ANYWHERE else host}:{port}" if port else DEFAULT_URL
    return said or os.environ.get("MAS_SERVER_ADDR") or None, listen


def _path(text: str | None) -> Path | None:
    return Path(text).absolute() if text else None

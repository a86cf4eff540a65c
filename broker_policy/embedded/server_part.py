"""What a manifest says of the server itself: where it listens, its certificate, its Redis, its telemetry."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from broker_policy.embedded.plan import Plan, TlsFiles
from broker_policy.embedded.ports import LOOPBACK
from mas_nats.errors import ConfigurationError
from mas_nats.manifest.gateway import GatewaySettings
from mas_nats.manifest.mas_yaml import MasYaml

_HOSTS = {"localhost": LOOPBACK, LOOPBACK: LOOPBACK, "0.0.0.0": "0.0.0.0"}  # noqa: S104 - on demand
_TLS = ("tls_server_cert_path", "tls_server_key_path", "tls_ca_path")


def planned(plan: Plan) -> Plan:
    """``plan`` with what its manifest says of the server; a port that the plan names stays.

    Raises:
        ConfigurationError: the manifest is wrong, or names what cannot be served; the text says what to do.

    """
    if plan.manifest is None:
        settings = GatewaySettings()
        return dataclasses.replace(
            plan,
            redis=settings.redis.url,
            redis_timeout=settings.redis.socket_timeout,
            telemetry=settings.telemetry,
        )
    from mas_nats.manifest import documents  # noqa: PLC0415 - not every broker has a manifest

    said, storing = documents.load(plan.manifest).server()
    host, port = plan.host, plan.port
    if said.server_listen_addr is not None:
        host, named = listen_address(said.server_listen_addr, "server_listen_addr")
        port = port or named
    redis = storing.settings.redis
    return dataclasses.replace(
        plan,
        host=host,
        port=port,
        tls=_tls(plan.manifest, said),
        redis=redis.url,
        redis_timeout=redis.socket_timeout,
        telemetry=storing.settings.telemetry,
    )


def listen_address(text: str, name: str) -> tuple[str, int]:
    """Host and port of ``host:port``, which the setting ``name`` has.

    Raises:
        ConfigurationError: it is no such address, or one that is not served.

    """
    host, _, port = text.rpartition(":")
    if not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigurationError(f"{name} {text!r} is not host:port")
    if host not in _HOSTS:
        raise ConfigurationError(f"{name} {text!r}: listen on {' or '.join(_HOSTS)}")
    return _HOSTS[host], int(port)


def _tls(manifest: Path, said: MasYaml) -> TlsFiles | None:
    """The files that it names; None where it names none, so that the folder's own CA is used."""
    named = {name: getattr(said, name) for name in _TLS}
    if not any(named.values()):
        return None
    for name, path in named.items():
        if path is None:
            raise ConfigurationError(f"{manifest}: {name} is missing: name all of {', '.join(_TLS)}, or none")
        if not path.is_file():
            raise ConfigurationError(
                f"{manifest}: {name}: there is no {path}. Put it there, or leave out {', '.join(_TLS)}: then "
                "a CA of the folder's own certifies server and agents (mas certs)"
            )
    return TlsFiles(
        cert=named["tls_server_cert_path"], key=named["tls_server_key_path"], ca=named["tls_ca_path"]
    )

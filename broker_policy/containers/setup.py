"""Makes the installation of ``compose.yaml``: keys, certificates, the servers' configuration, and the parts.

Run again at each start: what is there stays, what is about to expire is made anew.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from broker_policy.containers.parts import (
    GRAFANA_PASSWORD,
    METRICS_TOKEN,
    NODES,
    REDIS,
    agents,
    hand_out,
)
from broker_policy.embedded import telemetry_file
from broker_policy.embedded.certify import YEAR, certify, to_be_made
from broker_policy.embedded.layout import Broker, Layout
from broker_policy.embedded.nats_config import Membership, NatsConfig
from broker_policy.embedded.nodes import SIZES
from broker_policy.embedded.ports import LOOPBACK
from broker_policy.embedded.redis_config import RedisConfig, reader_secret
from broker_policy.identity.certificate_paths import CertificatePaths
from broker_policy.identity.pki import CertificateAuthority
from broker_policy.identity.private_files import private_folder, write_private
from broker_policy.keys.turns import unchanged
from broker_policy.tenants.material import PublicMaterial, create_material
from mas_nats.config import DEFAULT_PORT
from mas_nats.errors import ConfigurationError
from mas_nats.telemetry.settings import from_environment
from mas_nats.wire.identity import DEFAULT_NAMESPACE, DEFAULT_TRUST_DOMAIN, Identity, Role

DATA = Path("/data")
"""Where the servers' containers have their data."""
_EVERYWHERE = "0.0.0.0"  # noqa: S104 - of its container, which publishes what it wants
_ROUTE_PORT, _MONITOR_PORT, _REDIS_PORT = 6222, 8222, 6379
METRICS_PORT = 9464
"""Where each worker's container shows its metrics, to who has the token."""


@dataclass(frozen=True, slots=True)
class Done:
    """What a set-up came to: whether the installation is new, and how many files each part was given."""

    new: bool
    nodes: int
    agents: tuple[str, ...]
    handed_out: dict[str, int]


def choose_nodes(layout: Layout, nodes: int) -> None:
    """Say how many nats-servers there will be, before the first set-up; else there is one.

    Raises:
        ConfigurationError: there cannot be so many, or the installation has another number.

    """
    if nodes not in SIZES:
        raise ConfigurationError(f"{nodes} nodes: there can be {' or '.join(map(str, SIZES))}")
    if layout.endpoint.exists() and (made := Broker.read(layout).nodes) != nodes:
        raise ConfigurationError(
            f"this installation was made with {made} nats-servers, so it cannot have {nodes}: the copies of "
            "its streams lie on those. Go on without the profile, or bring up another project (-p)"
        )
    private_folder(layout.root)
    write_private(_chosen(layout), str(nodes).encode())


def set_up(layout: Layout, parts: Path, say: Callable[[str], None]) -> Done:
    """Make or complete the installation in ``layout``, and hand out to each folder in ``parts`` what it gets.

    Containers see their part where the folder of ``layout`` is here.

    Raises:
        ConfigurationError: keys are damaged or being rotated, a part has an impossible name, or the parts
            are of another installation.

    """
    new = not layout.keys.exists()
    if new and (taken := [each.name for each in parts.iterdir() if any(each.glob("*/*"))]):
        raise ConfigurationError(
            f"{', '.join(sorted(taken))} have files of an installation that is not in {layout.root}: bring "
            "its volume back (a backup has it), or remove all volumes to begin anew"
        )
    named = agents(parts.iterdir())
    layout.create()
    certify(layout, also=NODES)
    _certify_routes(layout)
    _certify_agents(layout, named)
    create_material(layout.keys)
    _set_telemetry(layout)
    with unchanged(layout.keys):
        return Done(new, len(_nodes(layout)), tuple(named), distribute(layout, parts, say))


def distribute(layout: Layout, parts: Path, say: Callable[[str], None]) -> dict[str, int]:
    """Write the servers' configuration anew and hand out what changed; how many files, by part.

    Raises:
        ConfigurationError: keys are damaged, or a part has an impossible name.

    """
    public, names = PublicMaterial.load(layout.keys), _nodes(layout)
    for name in names:
        _configure_node(layout, name, names, public)
    _configure_redis(layout)
    _write_endpoint(layout, names)
    changed = {each.name: hand_out(layout, each) for each in sorted(parts.iterdir()) if each.is_dir()}
    for name, files in changed.items():
        if files:
            say(f"{name} has {files} new files")
    return changed


def _nodes(layout: Layout) -> tuple[str, ...]:
    chosen = _chosen(layout)
    return NODES[: int(chosen.read_text()) if chosen.exists() else 1]


def _chosen(layout: Layout) -> Path:
    return layout.root / "nodes"


def _certify_routes(layout: Layout) -> None:
    """A certificate for each node that could be, from a CA that signs nothing else."""
    folder = layout.route_certificate.cert.parent
    for name in NODES:
        if to_be_made(folder / f"{name}.pem"):
            authority = CertificateAuthority.open_or_create(layout.route_authority)
            authority.issue_peer([name], [], folder, name=name)


def _certify_agents(layout: Layout, names: list[str]) -> None:
    authority = CertificateAuthority.load(layout.authority)
    for name in names:
        identity = Identity(DEFAULT_TRUST_DOMAIN, DEFAULT_NAMESPACE, Role.AGENT, name)
        if to_be_made(layout.certs / identity.namespace / identity.role / f"{identity.name}.pem"):
            authority.issue(identity, layout.certs, lifetime=YEAR)


def _configure_node(layout: Layout, name: str, names: tuple[str, ...], public: PublicMaterial) -> None:
    settings = NatsConfig(
        name=name,
        listen=f"{_EVERYWHERE}:{DEFAULT_PORT}",
        monitor=f"{LOOPBACK}:{_MONITOR_PORT}",
        store=DATA,
        certificate=CertificatePaths(layout.ca, layout.server_cert, layout.server_key),
        membership=_membership(layout, name, names) if len(names) > 1 else None,
    )
    text = settings.render(public.server_config(DATA / "accounts"))
    write_private(private_folder(layout.root / name) / "nats-server.conf", text.encode())


def _membership(layout: Layout, name: str, names: tuple[str, ...]) -> Membership:
    folder = layout.route_certificate.cert.parent
    return Membership(
        listen=f"{_EVERYWHERE}:{_ROUTE_PORT}",
        routes=[f"{other}:{_ROUTE_PORT}" for other in names if other != name],
        certificate=CertificatePaths(folder / "ca.pem", folder / f"{name}.pem", folder / f"{name}.key"),
        advertise=f"{name}:{_ROUTE_PORT}",
    )


def _set_telemetry(layout: Layout) -> None:
    """Metrics for who has the token; exports as the environment says."""
    _secret(layout.root / GRAFANA_PASSWORD)
    settings = {
        "metrics_host": _EVERYWHERE,
        "metrics_port": METRICS_PORT,
        "metrics_token": _secret(layout.root / METRICS_TOKEN),
    }
    telemetry_file.write(layout, from_environment().model_copy(update=settings))


def _secret(path: Path) -> str:
    """The secret in a file, which is made where there is none."""
    if not path.exists():
        private_folder(path.parent)
        write_private(path, secrets.token_urlsafe(32).encode())
    return path.read_text()


def _configure_redis(layout: Layout) -> None:
    settings = RedisConfig(bind=_EVERYWHERE, port=_REDIS_PORT, folder=DATA)
    text = settings.render(_secret(layout.redis_password), reader_secret(layout.redis_reader))
    write_private(layout.redis / "redis.conf", text.encode())


def _write_endpoint(layout: Layout, names: tuple[str, ...]) -> None:
    broker = Broker(
        url=",".join(f"tls://{name}:{DEFAULT_PORT}" for name in names),
        ca=str(layout.ca),
        monitor="",  # on the loopback interface of each server's container
        redis=f"redis://{REDIS}:{_REDIS_PORT}/0",
        redis_password=str(layout.redis_password),
        pid=0,
        since=datetime.now(UTC).isoformat(timespec="seconds"),
        durable=True,
        nodes=len(names),
    )
    if layout.endpoint.exists():
        broker = replace(broker, since=Broker.read(layout).since)
    broker.write(layout)

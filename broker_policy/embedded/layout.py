"""The folder ``.mas``: what is where, and who may read it.

    .mas/
      certs/          ca.pem, server.pem and the certificates of agents and people, each with its .key
      authority/      the development CA with its private key
      keys/           the keys of controller, workers and signer (tenants/material.py)
      nats/           configuration, accounts and JetStream's data; with three nodes nats-1/ to nats-3/
      redis/          configuration, passwords and data
      logs/           one file a process
      run/            <process>.ready while it is ready
      route-authority/  the CA of the nodes of a cluster, and of nobody else, with its private key
      ports.json      the ports of the last start, kept so that agents find a restarted broker
      routes.json     where one node finds another, if not at its own port: yours to write (nodes.py)
      endpoint.json   where the running broker is; the SDK looks for it from the current folder upwards
      telemetry.json  the telemetry settings of the workers, where there are any
      lock            held by the running ``mas up``

Folders are 0700 and files 0600: whoever may read ``keys/`` is the operator.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from broker_policy.embedded.errors import NotRunning
from broker_policy.identity.certificate_paths import CertificatePaths
from broker_policy.identity.private_files import private_folder, write_private
from broker_policy.tenants.endpoint import Endpoint
from mas_nats.errors import ConfigurationError
from mas_nats.wire.identity import DEFAULT_NAMESPACE, Role

DEFAULT_FOLDER = Path(".mas")
DEFAULT_TLS_HOSTNAME = "localhost"
POLICY_HOLDERS = ("controller", "worker", "signer")
"""Who connects with a certificate of role ``policy``."""


@dataclass(frozen=True, slots=True)
class Layout:
    """The paths inside one folder; nothing is created by naming them."""

    root: Path

    @property
    def certs(self) -> Path:
        """Certificates and their keys."""
        return self.root / "certs"

    @property
    def keys(self) -> Path:
        """Signing keys, in one folder for each holder."""
        return self.root / "keys"

    @property
    def authority(self) -> Path:
        """The development CA with its private key."""
        return self.root / "authority"

    @property
    def option(self) -> str:
        """What a ``mas`` command has to be given to work on this folder; "" where it does so anyway."""
        return "" if self.root == DEFAULT_FOLDER.absolute() else f" --folder {self.root}"

    @property
    def route_authority(self) -> Path:
        """The CA that signs the certificate with which nodes of a cluster know one another."""
        return self.root / "route-authority"

    @property
    def route_certificate(self) -> CertificatePaths:
        """What the nodes of a cluster show one another."""
        folder = self.certs / "routes"
        return CertificatePaths(folder / "ca.pem", folder / "route.pem", folder / "route.key")

    @property
    def redis(self) -> Path:
        """The redis-server's folder."""
        return self.root / "redis"

    @property
    def logs(self) -> Path:
        """Log files."""
        return self.root / "logs"

    @property
    def run(self) -> Path:
        """Ready files."""
        return self.root / "run"

    @property
    def ports(self) -> Path:
        """The ports of the last start."""
        return self.root / "ports.json"

    @property
    def routes(self) -> Path:
        """Where one node finds another, if not at its own port."""
        return self.root / "routes.json"

    @property
    def endpoint(self) -> Path:
        """Where the running broker is."""
        return self.root / "endpoint.json"

    @property
    def telemetry(self) -> Path:
        """The telemetry settings of the workers (telemetry_file.py)."""
        return self.root / "telemetry.json"

    @property
    def lock(self) -> Path:
        """Held by the running ``mas up``."""
        return self.root / "lock"

    @property
    def ca(self) -> Path:
        """The certificate of the authority that signs every other."""
        return self.certs / "ca.pem"

    @property
    def server_cert(self) -> Path:
        """The nats-server's certificate."""
        return self.certs / "server.pem"

    @property
    def server_key(self) -> Path:
        """The nats-server's private key."""
        return self.certs / "server.key"

    @property
    def given_tls(self) -> Path:
        """There while the server's certificate and the agents' CA are given ones (given_tls.py)."""
        return self.certs / "given"

    @property
    def joined_redis(self) -> Path:
        """The address of the Redis that this folder has joined (redis_choice.py)."""
        return self.redis / "joined"

    @property
    def redis_password(self) -> Path:
        """The file with the Redis password."""
        return self.redis / "password"

    @property
    def redis_reader(self) -> Path:
        """The file with name and password of the Redis user that only reads the audit (redis_config.py)."""
        return self.redis / "reader-password"

    def node_name(self, number: int, nodes: int) -> str:
        """What the nats-server ``number``, from 1, of ``nodes`` is called."""
        return "nats-server" if nodes == 1 else f"nats-{number}"

    def node(self, number: int, nodes: int) -> Path:
        """The folder of the nats-server ``number``, from 1, of ``nodes``."""
        return self.root / ("nats" if nodes == 1 else f"nats-{number}")

    def ready(self, name: str) -> Path:
        """The file that the process ``name`` makes when it is ready."""
        return self.run / f"{name}.ready"

    def log(self, name: str) -> Path:
        """The log of the process ``name``."""
        return self.logs / f"{name}.log"

    def policy_certificate(self, holder: str) -> CertificatePaths:
        """The certificate of role ``policy`` with which ``holder`` opens TLS."""
        folder = self.certs / DEFAULT_NAMESPACE / Role.POLICY
        return CertificatePaths(self.ca, folder / f"{holder}.pem", folder / f"{holder}.key")

    def create(self) -> None:
        """Make the folders that are missing, each for its owner only; whoever fills the others makes them."""
        for folder in (self.root, self.certs, self.redis, self.logs, self.run):
            private_folder(folder)


@dataclass(frozen=True, slots=True)
class Broker:
    """A running broker, as ``endpoint.json`` has it.

    The SDK reads ``url`` and ``ca``. ``url`` and ``monitor`` name all nodes, separated by commas. ``redis``
    is a URL without the password, which is in the file ``redis_password``. Paths are absolute. ``durable`` is
    false for a relaxed start.
    """

    url: str
    ca: str
    monitor: str
    redis: str
    redis_password: str
    pid: int  # of mas up; 0: in containers
    since: str  # ISO 8601, UTC
    durable: bool
    nodes: int = 1
    tls_hostname: str = DEFAULT_TLS_HOSTNAME  # what the server's certificate is for

    def write(self, layout: Layout) -> None:
        """Write it to ``endpoint.json``; what an older version would not know only where it is in use."""
        content = asdict(self)
        if self.nodes == 1:
            del content["nodes"]
        if self.tls_hostname == DEFAULT_TLS_HOSTNAME:
            del content["tls_hostname"]
        write_private(layout.endpoint, (json.dumps(content, indent=2) + "\n").encode())

    @classmethod
    def read(cls, layout: Layout) -> Broker:
        """Read ``endpoint.json``.

        Raises:
            NotRunning: there is none.
            ConfigurationError: the file is damaged.

        """
        try:
            raw = json.loads(layout.endpoint.read_bytes())
            known = {each.name for each in fields(cls)}
            return cls(**{name: value for name, value in raw.items() if name in known})
        except FileNotFoundError:
            raise NotRunning(f"no broker runs in {layout.root}: start one with mas up") from None
        except (TypeError, ValueError, AttributeError) as error:
            raise ConfigurationError(
                f"{layout.endpoint} is damaged ({error}): run mas down, then mas up"
            ) from None

    @property
    def contained(self) -> bool:
        """Whether servers and workers are containers (``compose.yaml``), so that no ``mas up`` has them."""
        return self.pid == 0

    def connection(self, layout: Layout, holder: str) -> Endpoint:
        """How ``holder`` of the policy side (worker, signer, controller) reaches NATS."""
        paths = layout.policy_certificate(holder)
        return Endpoint(
            url=self.url,
            ca=paths.ca,
            cert=paths.cert,
            key=paths.key,
            tls_hostname=self.tls_hostname,
            nodes=self.nodes,
        )

    def redis_url(self) -> str:
        """The Redis URL with its password: do not log it."""
        secret = Path(self.redis_password).read_text()
        # That of a Redis of its own is bare.
        return self._redis_as(secret if ":" in secret or not secret else f":{secret}")

    def redis_reader_url(self, layout: Layout) -> str | None:
        """The Redis URL of who only reads the audit, None where nobody made such a user: do not log it."""
        try:
            return self._redis_as(layout.redis_reader.read_text().strip())
        except FileNotFoundError:
            return None

    def _redis_as(self, user: str) -> str:
        return self.redis.replace("://", f"://{user}@", 1) if user else self.redis

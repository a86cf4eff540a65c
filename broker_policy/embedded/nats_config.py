"""The configuration of a nats-server: operator mode, mutual TLS, JetStream that flushes before it answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from string import Template

from broker_policy.embedded.config_file import quoted
from broker_policy.identity.certificate_paths import CertificatePaths

_TEMPLATE = "nats-server.conf.template"

_CLUSTER = """\
cluster {
  name: mas
  listen: ${listen}
  ${advertise}
  # Clients are told all addresses by their configuration.
  no_advertise: true
  # A node from which nothing comes any more is given up after six to eight seconds. Until then it is sent its
  # share of the calls, for the workers that the others believe to be on it.
  ping_interval: "2s"
  ping_max: 3
  routes: [
${routes}
  ]
  # A CA of its own: a certificate that is good here makes its holder a server.
  tls {
    cert_file: ${cert}
    key_file: ${key}
    ca_file: ${ca}
    verify: true
    min_version: "1.3"
    timeout: 5
  }
}
"""
_LOG_FILE = """\
log_file: ${log}
logfile_size_limit: 32MB
logfile_max_num: 3
"""


@dataclass(frozen=True, slots=True)
class Membership:
    """How a node takes part in a cluster.

    ``listen`` and ``routes`` (to the others) are ``host:port``. Whoever shows a certificate of the CA of
    ``certificate`` is taken for a node and may do everything, so that CA must not be the agents'.
    ``advertise`` is what the others are told of this node's address; empty: ``listen``.
    """

    listen: str
    routes: Sequence[str]
    certificate: CertificatePaths
    advertise: str = ""

    def config(self) -> str:
        """The ``cluster`` block of the configuration."""
        return Template(_CLUSTER).substitute(
            listen=self.listen,
            advertise=f"advertise: {quoted(self.advertise)}" if self.advertise else "",
            routes="\n".join(f"    {quoted(f'tls://{route}')}" for route in self.routes),
            cert=quoted(self.certificate.cert.absolute()),
            key=quoted(self.certificate.key.absolute()),
            ca=quoted(self.certificate.ca.absolute()),
        )


@dataclass(frozen=True, slots=True)
class NatsConfig:
    """What a nats-server is told; paths are absolute, as the server sees them.

    ``listen`` and ``monitor`` are ``host:port``. ``store`` is where JetStream keeps its data. Without ``log``
    the server writes to its standard error. ``relaxed`` flushes every two minutes instead of before each
    acknowledgement. ``membership`` makes it a node of a cluster. ``extra`` is appended as it is.
    """

    name: str
    listen: str
    monitor: str
    store: Path
    certificate: CertificatePaths
    log: Path | None = None
    relaxed: bool = False
    membership: Membership | None = None
    extra: str = ""

    def render(self, identity: str) -> str:
        """The file; ``identity`` has the lines for operator, system account, resolver and sentinel."""
        log = "" if self.log is None else Template(_LOG_FILE).substitute(log=quoted(self.log))
        return Template(template()).substitute(
            server_name=quoted(self.name),
            listen=self.listen,
            monitor=self.monitor,
            log=log,
            store_dir=quoted(self.store),
            memory_store="1000TB",
            file_store="1000TB",
            sync_interval='"2m"' if self.relaxed else "always",
            server_cert=quoted(self.certificate.cert),
            server_key=quoted(self.certificate.key),
            ca=quoted(self.certificate.ca),
            identity=identity,
            cluster="" if self.membership is None else self.membership.config(),
            extra=self.extra,
        )


def template() -> str:
    """The configuration template: beside this module in an installed wheel, in ``nats/`` of a checkout."""
    packaged = resources.files("broker_policy.embedded") / _TEMPLATE
    if packaged.is_file():
        return packaged.read_text()
    return (Path(__file__).parents[2] / "nats" / _TEMPLATE).read_text()

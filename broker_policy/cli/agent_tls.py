"""The certificate in whose name a command speaks."""

from __future__ import annotations

from broker_policy.embedded.layout import Broker, Layout
from mas_nats.config import TlsClientConfig
from mas_nats.errors import ConfigurationError
from mas_nats.wire.identity import DEFAULT_NAMESPACE, Role


def agent_tls(layout: Layout, broker: Broker, namespace: str, agent: str) -> TlsClientConfig:
    """The certificate of ``agent`` in the folder.

    Raises:
        ConfigurationError: there is none; the text has the command that makes it.

    """
    certificates = layout.certs / namespace / Role.AGENT
    tls = TlsClientConfig(broker.ca, certificates / f"{agent}.pem", certificates / f"{agent}.key")
    for path in tls.paths[1:]:
        if not path.is_file():
            where = "" if namespace == DEFAULT_NAMESPACE else f" --namespace {namespace}"
            command = f"mas certs agent {agent}{where}{layout.option}"
            raise ConfigurationError(f"{path} does not exist. Make a certificate with: {command}")
    return tls

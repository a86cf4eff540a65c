"""Where the NATS servers are, and how whoever connects is known to them."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

from mas_nats.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where the NATS servers are and which certificate to show them. Files are PEM.

    ``nodes`` is how many there are: so many copies of each stream are kept.
    """

    url: str  # tls://host:port, several separated by commas
    ca: Path
    cert: Path
    key: Path
    tls_hostname: str = "localhost"  # what the server's certificate must be for
    nodes: int = 1

    def ssl_context(self) -> ssl.SSLContext:
        """TLS 1.3 with this certificate.

        Raises:
            ConfigurationError: a file is missing, or certificate and key do not belong together.

        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        try:
            context.load_verify_locations(self.ca)
            context.load_cert_chain(self.cert, self.key)
        except OSError as error:  # ssl.SSLError is one
            raise ConfigurationError(
                f"certificate {self.cert}, key {self.key} or CA {self.ca} cannot be used: {error}"
            ) from None
        return context

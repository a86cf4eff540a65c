"""A server certificate and a client CA that were given, instead of those of the development CA.

They are copied into the folder, where everything looks for them. The server then trusts two CAs: the given
one for agents, and the folder's own, which issues the certificates of the policy side and has its key nowhere
else.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

from cryptography import x509

from broker_policy.embedded.layout import DEFAULT_TLS_HOSTNAME, Layout
from broker_policy.embedded.plan import TlsFiles
from broker_policy.embedded.ports import LOOPBACK
from broker_policy.identity.private_files import write_private
from mas_nats.errors import ConfigurationError

_EVERY = 1.0


def install(layout: Layout, files: TlsFiles) -> str:
    """Copy the files into the folder; the name under which the policy side knows the server.

    Raises:
        ConfigurationError: a file cannot be used, or agents could not verify the server with them; nothing
            was changed.

    """
    cert, key, ca = _read(files.cert), _read(files.key), _read(files.ca)
    hostname = _verified(files, cert)
    write_private(layout.given_tls, b"")
    own = _read(layout.authority / "ca.pem")
    wanted = {
        layout.server_key: key,
        layout.server_cert: cert,
        layout.ca: ca if own in ca else ca.rstrip(b"\n") + b"\n" + own,
    }
    for path, content in wanted.items():
        if not path.exists() or path.read_bytes() != content:
            write_private(path, content)
    return hostname


async def follow(layout: Layout, files: TlsFiles, say: Callable[[str], None]) -> None:
    """Copy the files again whenever they were replaced, until cancelled."""
    before = _state(files)
    while True:
        await asyncio.sleep(_EVERY)
        if (now := _state(files)) == before:
            continue
        try:
            await asyncio.to_thread(install, layout, files)
        except ConfigurationError as error:
            say(f"the server keeps its certificate: {error}")
        before = now


def forget(layout: Layout) -> None:
    """Go back to the folder's own CA alone; the server's certificate is to be made anew."""
    if layout.given_tls.exists():
        write_private(layout.ca, _read(layout.authority / "ca.pem"))
        layout.server_cert.unlink(missing_ok=True)
        layout.given_tls.unlink()


def _state(files: TlsFiles) -> tuple[bytes, ...]:
    """What the files hold; a missing one is empty: it may just be on its way."""
    return tuple(path.read_bytes() if path.exists() else b"" for path in (files.cert, files.key, files.ca))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error


def _verified(files: TlsFiles, cert: bytes) -> str:
    """The first name that the certificate is good for, found by a handshake like those of agents."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        server.load_cert_chain(files.cert, files.key, password="")  # never ask a terminal for one
    except OSError as error:  # ssl.SSLError is one
        raise ConfigurationError(f"certificate {files.cert} with key {files.key}: {error}") from None
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        client.load_verify_locations(files.ca)
    except OSError as error:
        raise ConfigurationError(f"CA certificate {files.ca} cannot be used: {error}") from None
    problem = "it is for no name at all"
    for name in _names(cert):
        try:
            _shake_hands(server, client, name)
        except ssl.SSLCertVerificationError as error:
            problem = error.verify_message
        else:
            return name
    raise ConfigurationError(
        f"agents that trust {files.ca} would refuse the server certificate {files.cert}: {problem}. "
        "Give a certificate for the listen address that this CA has signed, or add its CA to the file"
    )


def _names(cert: bytes) -> Iterator[str]:
    yield DEFAULT_TLS_HOSTNAME
    yield LOOPBACK
    try:
        leaf = x509.load_pem_x509_certificate(cert)
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, x509.ExtensionNotFound):
        return
    yield from (name.replace("*", "mas") for name in names.get_values_for_type(x509.DNSName))
    yield from map(str, names.get_values_for_type(x509.IPAddress))


def _shake_hands(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> None:
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (
        client.wrap_bio(to_client, to_server, server_hostname=name),
        server.wrap_bio(to_server, to_client, server_side=True),
    )
    for _ in range(4):  # flights of a TLS 1.3 handshake, with one to spare
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue

"""``mas explorer``: a web page that shows what goes on in a namespace, and changes nothing."""

from __future__ import annotations

import contextlib
import importlib.util
from pathlib import Path
from typing import Annotated

import typer

from broker_policy.cli.app import Folder, Json, Namespace, Output, command
from broker_policy.embedded.layout import DEFAULT_FOLDER
from mas_nats.errors import ConfigurationError
from mas_nats.wire.identity import DEFAULT_NAMESPACE

_LOOPBACK = ("127.0.0.1", "::1", "localhost")


@command("explorer", example="mas explorer --port 8222 --namespace shop")
async def explorer(
    *,
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="Where to listen; 0 takes a free one.")
    ] = 8230,
    host: Annotated[
        str,
        typer.Option("--host", help="The address to listen on; another than loopback asks who looks."),
    ] = "127.0.0.1",
    token: Annotated[
        bool, typer.Option("--token", help="Ask for a token on this machine, too: other users cannot look.")
    ] = False,
    allow_host: Annotated[
        list[str] | None, typer.Option("--allow-host", help="A further name under which it is asked for.")
    ] = None,
    cert: Annotated[Path | None, typer.Option("--cert", help="Serve with TLS: the certificate, PEM.")] = None,
    key: Annotated[Path | None, typer.Option("--key", help="The key of --cert.")] = None,
    client_ca: Annotated[
        Path | None,
        typer.Option(
            "--client-ca",
            help="Mutual TLS: the inspectors and operators in policy get in with a certificate of this CA.",
        ),
    ] = None,
    namespace: Namespace = DEFAULT_NAMESPACE,
    folder: Folder = DEFAULT_FOLDER,
    json: Json = False,
) -> None:
    """Serve a read-only web page about a namespace, and the same as JSON under /api, until Ctrl-C.

    It listens on 127.0.0.1. On another address it asks for a token, which is printed once, or with
    --client-ca for a certificate. Payloads are never shown.
    """
    if any(importlib.util.find_spec(name) is None for name in ("starlette", "uvicorn")):
        raise ConfigurationError("the explorer needs more packages: pip install 'mas-nats[explorer]'")
    if (cert is None) != (key is None) or (client_ca is not None and cert is None):
        raise ConfigurationError("--cert and --key belong together, and --client-ca needs both")
    from broker_policy.explorer.feed import Feed  # noqa: PLC0415 - the packages are optional
    from broker_policy.explorer.gate import ENTER, Gate, Hosts, Pass  # noqa: PLC0415
    from broker_policy.explorer.looks import Looks  # noqa: PLC0415
    from broker_policy.explorer.people import following  # noqa: PLC0415
    from broker_policy.explorer.serving import Certificates, serve  # noqa: PLC0415
    from broker_policy.explorer.site import site  # noqa: PLC0415
    from broker_policy.explorer.sources import WRITABLE, WRITABLE_FIX, opened  # noqa: PLC0415
    from broker_policy.explorer.views import Views  # noqa: PLC0415

    out = Output(json=json)
    certificates = Certificates(cert, key, client_ca) if cert and key else None
    asked = client_ca is None and (token or host not in _LOOPBACK)
    wanted = Pass(secure=cert is not None) if asked else None
    if wanted and not cert and host not in _LOOPBACK:
        out.warn("without --cert and --key the token and all that is shown travel unencrypted")

    def told(listening: int) -> None:
        shown = f"[{host}]" if ":" in host else host
        address = f"{'https' if cert else 'http'}://{shown}:{listening}"
        enter = f"{address}{ENTER}?token={wanted.token}" if wanted else f"{address}/"
        document = {"address": address, "open": enter, "token": wanted.token if wanted else None}
        if json:
            out.line({"namespace": namespace, **document})
        else:
            out.result(document, f"{namespace}: {enter}\nCtrl-C stops it")

    async with (
        opened(folder, namespace) as sources,
        Feed(sources.store).running() as feed,
        Looks(sources.tenant).running() as looks,
        following(sources.control, namespace) if client_ca else contextlib.nullcontext() as people,
    ):
        if sources.may_write:
            out.warn(f"{WRITABLE}. {WRITABLE_FIX}")
        gate = Gate(site(Views(sources, feed, looks)), Hosts.of(host, allow_host or ()), wanted)
        await serve(gate, host, port, certificates, people, ready=told, ending=feed.end)

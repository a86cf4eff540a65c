"""``mas sidecar``: an application that knows nothing of this system, bound by it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from broker_policy.cli.agent_tls import agent_tls
from broker_policy.cli.app import ExitCode, Folder, Json, Namespace, Output, command
from broker_policy.embedded.layout import DEFAULT_FOLDER, Broker, Layout
from mas_nats.errors import ConfigurationError
from mas_nats.stopping import Stop, unless
from mas_nats.wire.identity import DEFAULT_NAMESPACE, require_id


@command("sidecar", example="mas sidecar --app shop --config applications.yaml")
async def sidecar(
    *,
    app: Annotated[
        str, typer.Option("--app", help="The application; needs its certificate (mas certs agent).")
    ],
    config: Annotated[
        Path,
        typer.Option(
            "--config", help="applications.yaml, or a manifest of CASA's form: see docs/sidecar.md."
        ),
    ],
    listen: Annotated[
        str, typer.Option("--listen", help="Where the application finds it, on loopback: 127.0.0.1:8101.")
    ] = "",
    app_url: Annotated[
        str, typer.Option("--app-url", help="Where the application listens, if not where the file says.")
    ] = "",
    namespace: Namespace = DEFAULT_NAMESPACE,
    folder: Folder = DEFAULT_FOLDER,
    json: Json = False,
) -> None:
    """Carry an application's MCP and A2A as messages, until it is stopped.

    Set HTTP_PROXY of the application to the address that is printed. Ctrl-C, SIGTERM or SIGHUP stops: calls
    that the application works on finish first; a second one ends them at once.
    """
    try:
        from mas_nats.sidecar import Sidecar  # noqa: PLC0415 - an extra
        from mas_nats.sidecar.settings_file import load  # noqa: PLC0415
    except ModuleNotFoundError as error:
        text = f"{error.name} is missing: install it with pip install 'mas-nats[sidecar]'"
        raise ConfigurationError(text) from None
    beside = load(config, require_id(app, "application"), namespace, listen=listen, app_url=app_url)
    settings, namespace = beside.settings, beside.namespace
    layout = Layout(folder.absolute())
    broker = Broker.read(layout)
    tls = agent_tls(layout, broker, require_id(namespace, "namespace"), settings.app)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # it logs every request's address
    stop = Stop()
    stop.on_signals()
    async with Sidecar(settings, server_addr=broker.url, tls=tls) as running:
        document = {"app": settings.app, "proxy": f"http://{running.address}", "namespace": namespace}
        Output(json=json).result(document, f"{settings.app}: HTTP_PROXY=http://{running.address}")
        await stop.asked.wait()
        if not await unless(stop.hurried, running.stop()):  # cancelled, it ends calls at once
            raise typer.Exit(ExitCode.FAILED)

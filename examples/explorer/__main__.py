"""``make explorer-demo``: the healthcare example with traffic, and the explorer to watch it, until Ctrl-C.

Everything is real and everything is temporary: servers, workers, certificates, and the three agents, whose
patients are made up.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

from broker_policy.embedded.layout import Broker, Layout
from broker_policy.embedded.plan import Plan
from broker_policy.embedded.up import running
from broker_policy.identity.pki import CertificateAuthority
from examples.healthcare.agents import Billing, Complaint, Invoice, Triage
from mas_nats import Agent, TlsClientConfig
from mas_nats.errors import MasError
from mas_nats.wire.identity import DEFAULT_NAMESPACE, DEFAULT_TRUST_DOMAIN, Identity, Role

MANIFEST = Path(__file__).parents[1] / "healthcare" / "mas.yaml"
_MESSAGES = (
    ("triage", "Headache since Monday."),
    ("billing", "Consultation, to be paid in cash."),
    ("triage", "Chest pain. ROOM-412, call me at (415) 555-0132 or ada@example.org."),
    ("billing", "Consultation, paid by card 4111 1111 1111 1111."),
    ("triage", "A cough."),
    ("billing", "Consultation, patient's SSN 219-09-9999."),
    ("pharmacy", "Something against headaches."),
)


async def intake(agent: Agent[dict[str, object]]) -> None:
    """Send messages as people write them, of which not every one may pass, for ever."""
    for number, (target, text) in enumerate(itertools.cycle(_MESSAGES)):
        patient = f"p-{number % 90 + 10}"
        with contextlib.suppress(MasError):  # refused: that is what there is to see
            if target == "triage":
                await agent.request(target, "assess", Complaint(patient=patient, text=text), timeout=10)
            else:
                await agent.send(target, "invoice", Invoice(patient=patient, text=text))
        await asyncio.sleep(0.3)


@contextlib.asynccontextmanager
async def agents(layout: Layout, broker: Broker) -> AsyncIterator[None]:
    """The three agents at work."""
    authority = CertificateAuthority.open_or_create(layout.authority)

    def options(name: str) -> dict[str, Any]:
        identity = Identity(DEFAULT_TRUST_DOMAIN, DEFAULT_NAMESPACE, Role.AGENT, name)
        paths = authority.issue(identity, layout.certs, lifetime=timedelta(days=1))
        return {"server_addr": broker.url, "tls": TlsClientConfig(paths.ca, paths.cert, paths.key)}

    triage = Triage("triage", capabilities=["triage"], **options("triage"))
    sender: Agent[dict[str, object]] = Agent("intake", **options("intake"))
    with contextlib.redirect_stdout(None):  # they print what they get
        async with triage, Billing("billing", **options("billing")), sender:
            sending = asyncio.create_task(intake(sender))
            try:
                yield
            finally:
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)


async def main(port: int) -> int:
    """Bring it up, and show it until somebody stops it."""
    stop = asyncio.Event()
    for each in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(each, stop.set)

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory(prefix="mas-explorer-") as folder:
        layout = Layout(Path(folder) / ".mas")
        async with running(layout, Plan(manifest=MANIFEST), say) as broker, agents(layout, broker):
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "broker_policy.cli", "explorer"),
                *("--folder", str(layout.root), "--port", str(port)),
                start_new_session=True,  # Ctrl-C comes here, and ends it below
            )
            ended = asyncio.create_task(process.wait())
            stopped = asyncio.create_task(stop.wait())
            await asyncio.wait({ended, stopped}, return_when=asyncio.FIRST_COMPLETED)
            stopped.cancel()
            if not ended.done():
                process.terminate()
            status = await ended
            return 0 if stop.is_set() else status


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m examples.explorer", description=__doc__)
    parser.add_argument("--port", type=int, default=8230, help="Where the page is; 0 takes a free one.")
    sys.exit(asyncio.run(main(parser.parse_args().port)))

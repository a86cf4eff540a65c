"""What the circuit breaker costs a message: the whole path with it off, on, and on while another's is open.

Off is there twice: how far these two differ is what the machine's other work makes of it. Before that the
step alone is measured, in memory.

``python -m benchmarks.circuit_breaker`` takes about three minutes and prints ratios. One broker with one
worker; each side is a namespace of its own, and its agents are in this process. Sides alternate, another one
first in each round, and only what belongs to the same round is compared.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from typing import Any

import uvloop
from nats.aio.client import Client

from benchmarks.site import brought_up
from broker_policy.admission.admission import Admission
from broker_policy.admission.breaker import Breaker
from broker_policy.admission.circuits import SharedCircuits
from broker_policy.admission.counters import Counters
from broker_policy.admission.rates import Rates
from broker_policy.embedded.layout import Broker, Layout
from broker_policy.identity.pki import CertificateAuthority
from broker_policy.policy.store import PolicyStore
from broker_policy.tenants.apply import apply
from broker_policy.tenants.connect import connect_control_admin
from broker_policy.tenants.controller import TenantController
from broker_policy.tenants.material import Material
from mas_nats import Agent, AgentMessage, CircuitOpen, Reject, TlsClientConfig
from mas_nats.manifest.wanted import Wanted, WantedAgent
from mas_nats.policy.call import Call
from mas_nats.policy.document import Document, Limits, Permissions
from mas_nats.policy.governance import CircuitBreaker, Governance
from mas_nats.policy.table import Table
from mas_nats.wire.identity import DEFAULT_TRUST_DOMAIN, Identity, Role

PAYLOAD = {"n": 1, "text": "x" * 1000}
OPEN = "another-open"
SIDES = {
    "off": CircuitBreaker(enabled=False),
    "off-again": CircuitBreaker(enabled=False),
    "on": CircuitBreaker(),
    OPEN: CircuitBreaker(failure_threshold=1, timeout_seconds=3_600),
}
AGENTS = ("a", "b", "c")


class Receiver(Agent[dict[str, Any]]):
    """Takes everything."""

    async def on_message(self, message: AgentMessage) -> None:
        """Nothing to do."""


class Failing(Agent[dict[str, Any]]):
    """Fails once, which opens its circuit."""

    failed = False

    async def on_message(self, message: AgentMessage) -> None:  # noqa: ARG002
        """Fail, then let it be."""
        if self.failed:
            raise Reject("enough")
        self.failed = True
        raise RuntimeError("as it should")


async def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    logging.disable()  # circuits open as they should
    for size in (1, 16, 256):
        await step(size)
    async with brought_up(workers=1) as (_, layout, broker):
        await prepare(layout, broker)
        async with senders(layout, broker) as found:
            await compare(found, 1, 100, 3 * rounds)
            await compare(found, 64, 2_000, rounds)


async def step(size: int) -> None:
    """Print microseconds a message of the step by itself, without Redis."""
    counters = Counters(None)
    table = Table.compile(Document(namespace="bench", account=""), 1)
    for name, opened in (("all closed", ""), ("another's open", "other"), ("its own open", "b")):
        breaker = Breaker(
            Client(),  # not connected: nobody hears of it
            "bench",
            shared=SharedCircuits(counters, "bench"),
            settings=lambda: SIDES[OPEN],
            there=unseen,
            removed=lambda _: False,
        )
        if opened:
            await breaker.failed(opened, "x")
        rates = Rates(counters, "bench", workers=lambda: 1)
        admission = Admission("bench", rates, breaker, known=lambda _: False)
        took: list[float] = []
        for _ in range(2_000):
            calls = [
                Call("a", "send", b"{}", "", message_id=f"m{n}", target="b", type="note") for n in range(size)
            ]
            begun = time.perf_counter()
            if admission.concerns(table):
                await admission.admit(calls, table)
            took.append(1e6 * (time.perf_counter() - begun) / size)
        await breaker.stop()
        print(f"step alone, batch {size:3}  {name:14} {statistics.median(took):6.2f} µs a message")


async def unseen(_agent: str, _sequence: int) -> bool:
    """No probe is followed here."""
    return True


async def prepare(layout: Layout, broker: Broker) -> None:
    """A namespace for each side."""
    material = Material.load(layout.keys)
    endpoint = broker.connection(layout, "controller")
    async with TenantController(endpoint, material.controller, material.public) as controller:
        control = await connect_control_admin(endpoint, material.controller)
        for namespace, breaker in SIDES.items():
            wanted = Wanted(
                namespace=namespace,
                agents={agent: WantedAgent() for agent in AGENTS},
                permissions={"a": Permissions(allowed_targets=("b", "c"))},
                limits=Limits(in_flight=256),
                governance=Governance(circuit_breaker=breaker),
            )
            await apply(controller, PolicyStore(control), wanted)
        await control.close()


@asynccontextmanager
async def senders(layout: Layout, broker: Broker) -> AsyncIterator[dict[str, Agent[dict[str, Any]]]]:
    """The sender of each side, with its receivers running."""
    authority = CertificateAuthority.open_or_create(layout.authority)

    def options(namespace: str, agent: str) -> dict[str, Any]:
        identity = Identity(DEFAULT_TRUST_DOMAIN, namespace, Role.AGENT, agent)
        paths = authority.issue(identity, layout.certs / namespace, lifetime=timedelta(hours=1))
        tls = TlsClientConfig(root_ca_path=paths.ca, client_cert_path=paths.cert, client_key_path=paths.key)
        return {"server_addr": broker.url, "tls": tls}

    async with AsyncExitStack() as stack:
        found: dict[str, Agent[dict[str, Any]]] = {}
        for namespace in SIDES:
            await stack.enter_async_context(Receiver("b", **options(namespace, "b")))
            sender = Agent[dict[str, Any]]("a", receive=False, **options(namespace, "a"))
            found[namespace] = await stack.enter_async_context(sender)
        failing = Failing("c", **options(OPEN, "c"))
        await stack.enter_async_context(failing)
        async with asyncio.timeout(20):
            while not await left_alone(found[OPEN]):  # noqa: ASYNC110 - it is in another process
                await asyncio.sleep(0.1)
        yield found


async def left_alone(sender: Agent[dict[str, Any]]) -> bool:
    """Whether the circuit of c is open."""
    try:
        await sender.send("c", "note", {})
    except CircuitOpen:
        return True
    return False


async def compare(found: dict[str, Agent[dict[str, Any]]], concurrency: int, count: int, rounds: int) -> None:
    """Print what each side costs, beside the one that is off."""
    took: dict[str, list[float]] = {side: [] for side in found}
    sides = list(found)
    for number in range(rounds + 1):
        turn = number % len(sides)
        for side in (*sides[turn:], *sides[:turn]):
            seconds = await one(found[side], concurrency, count)
            if number:  # the first round warms up
                took[side].append(seconds)
    for side in sides:
        ratios = sorted(mine / off for mine, off in zip(took[side], took["off"], strict=True))
        per_second = count / statistics.median(took[side])
        print(
            f"{concurrency:3} in flight  {side:13} {per_second:7.0f}/s  time per message / off: "
            f"median {statistics.median(ratios):.3f} (from {ratios[0]:.3f} to {ratios[-1]:.3f})"
        )


async def one(sender: Agent[dict[str, Any]], concurrency: int, count: int) -> float:
    """Seconds until ``count`` messages were accepted."""
    numbers = iter(range(count))

    async def work() -> None:
        for _ in numbers:
            await sender.send("b", "note", PAYLOAD)

    begun = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(concurrency)))
    return time.perf_counter() - begun


if __name__ == "__main__":
    uvloop.run(main())

"""Every key replaced under load: nothing accepted is lost, nothing refused gets in, the audit verifies."""

from __future__ import annotations

import asyncio

import pytest

from broker_policy.keys.inventory import KEYS
from broker_policy.keys.rotate import rotate
from broker_policy.keys.site import Site
from broker_policy.tenants.revoke import revoke
from mas_nats import Agent, IdentityRefused, MasError
from mas_nats.policy.document import Limits, Revocation
from tests.load import Handling, audit_of, send_all
from tests.system import System, mas_json

QUICK = (
    "sys-signing",
    "auth-signing",
    "auth-user",
    "tenant-signing",
    "control-worker",
    "sys-observer",
    "control-signer",
    "sealing",
    "token-signing",
    "checkpoint",
    "tls-server",
    "tls-worker",
    "tls-controller",
    "tls-signer",
    "ca",
)
WITH_RESTART = ("operator-signing", "operator")


@pytest.fixture(scope="module")
def rotating(tmp_path_factory):
    """A broker of our own: operator keys restart its server."""
    system = System.up(tmp_path_factory.mktemp("rotating") / ".mas")
    yield system
    system.down()


async def expel(site: Site, namespace: str, agent: Agent) -> None:
    """Revoke the certificate of ``agent``: within a second of that it is out."""
    accepted = await agent.send("bob", "work", {})
    assert accepted
    async with site.control() as (controller, store):
        shown = await controller.certificates_of(f"spiffe://mas/ns/{namespace}/agent/{agent.agent_id}")
        found = {each: Revocation(identity="", at=0) for each in shown}
        done = await revoke(controller, store, namespace, found)
    assert done.disconnected == 1
    async with asyncio.timeout(1):
        while True:
            try:
                await agent.send("bob", "work", {}, timeout=0.2)
            except IdentityRefused:
                return
            except MasError:
                continue


async def test_every_key_is_rotated_under_load(rotating):
    system = rotating
    limits = Limits(ack_wait=6, max_deliver=20)
    names = ("alice", "bob", "carol", "dave")
    allow = {"alice": ("bob",), "carol": ("bob",), "dave": ("bob",)}
    namespace = await system.namespace(names, allow, limits=limits)
    lines: list[str] = []
    site = Site(system.layout, lines.append)
    url = system.broker.url
    before = {key.name: key.path(system.layout).read_bytes() for key in KEYS}
    async with (
        Handling("bob", server_addr=url, tls=system.tls("bob", namespace)) as bob,
        Agent("alice", server_addr=url, tls=system.tls("alice", namespace)) as alice,
    ):
        accepted: set[str] = set()
        carol = Agent("carol", server_addr=url, tls=system.tls("carol", namespace))
        await carol.start()
        stop, kicked = asyncio.Event(), 0

        async def load() -> None:
            while not stop.is_set():
                accepted.update(await send_all(alice, "bob", 50, 10))

        running = asyncio.create_task(load())
        try:
            for place, name in enumerate((*QUICK, *WITH_RESTART)):
                count = len(accepted)
                if place % 4 == 0:  # certificates replaced, agents kicked
                    system.tls("bob", namespace)
                    system.tls("alice", namespace)
                    async with site.control() as (controller, _):
                        kicked += await controller.kick(f"spiffe://mas/ns/{namespace}/agent/alice")
                if place == 6:
                    await expel(site, namespace, carol)
                await rotate(site, name)
                async with asyncio.timeout(30):
                    while len(accepted) == count:  # traffic goes on
                        await asyncio.sleep(0.05)
                        if running.done():
                            running.result()
        finally:
            stop.set()
            await running
            await carol.stop()
        assert kicked, "an agent that just connects again cannot be kicked, but not each time"
        assert await bob.wait_handled(accepted, 60) == set()
        # A reload of the server can swallow an acknowledgement: the message comes again after the ack wait.
        await audit_of(system, namespace, accepted)
    after = {key.name: key.path(system.layout).read_bytes() for key in KEYS}
    assert [name for name in before if before[name] == after[name]] == ["accounts"]
    assert mas_json("audit", "verify", "--folder", str(system.layout.root), "-n", namespace)["intact"]

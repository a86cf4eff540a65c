"""A namespace that is served for as long as the fuzzing lasts, and what each call to it has to keep."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nats.errors

from broker_policy.audit.record import Record
from broker_policy.embedded.nats_server import NatsServer
from broker_policy.identity.pki import CertificateAuthority
from broker_policy.jetstream import direct_get_page
from mas_nats.config import Endpoint, TlsClientConfig
from mas_nats.errors import ConfigurationError
from mas_nats.policy.document import Document
from mas_nats.policy.governance import Governance
from mas_nats.resilient import ResilientClient
from mas_nats.wire import headers, subjects
from mas_nats.wire.identity import DEFAULT_TRUST_DOMAIN, Identity, Role
from mas_nats.wire.verdict import Verdict
from tests.serving import Serving, serving

LONGEST = 0.1
"""Seconds of processor time that one call may keep the service busy."""


@contextlib.contextmanager
def timed() -> Iterator[list[float]]:
    """Seconds of this thread's processor time, in the list at the end; without the garbage collector, which
    looks at all that the tests import."""
    took: list[float] = []
    gc.disable()
    before = time.thread_time()
    try:
        yield took
    finally:
        took.append(time.thread_time() - before)
        gc.enable()


@dataclass
class Served:
    """The service, the loop it runs in, and what was accepted by its own word."""

    runner: asyncio.Runner
    nc: ResilientClient
    stack: contextlib.AsyncExitStack
    here: Serving | None = None
    accepted: set[str] = field(default_factory=set)

    def under(self, policy: Document) -> bool:
        """Serve ``policy`` from here on; False where it cannot be used, and the last one stays."""
        try:
            self.runner.run(self._under(policy))
        except ConfigurationError:
            return False
        return True

    async def _under(self, policy: Document) -> None:
        if self.here is None:
            first = policy.model_copy(update={"governance": Governance()})
            self.here = await self.stack.enter_async_context(serving(self.nc, first))
        stored = await self.here.store.get(policy.namespace)
        assert stored is not None
        revision = await self.here.store.put(policy, expected=stored.sequence)
        await self.here.store.wait_confirmed(revision)

    def call(self, sender: str, op: str, body: bytes, fields: dict[str, str]) -> Verdict:
        """Call, and check what holds of every call; the verdict."""
        verdict, busy = self.runner.run(self._call(sender, op, body, fields))
        assert busy < LONGEST, f"{op} of {len(body)} bytes kept the service busy for {busy:.3f} s"
        if verdict.ok and op in ("send", "request") and not verdict.duplicate:
            self.accepted.add(verdict.message_id)
        return verdict

    async def _call(self, sender: str, op: str, body: bytes, fields: dict[str, str]) -> tuple[Verdict, float]:
        assert self.here is not None
        with timed() as took:
            answer = await self.nc.request(
                subjects.call(sender, op), body, timeout=10, headers=fields or None
            )
        return Verdict.decode(answer.data), took[0]

    def undecided(self) -> list[str]:
        """Messages in the log that no accepting decision names."""
        return self.runner.run(self._undecided())

    async def _undecided(self) -> list[str]:
        assert self.here is not None
        decided: dict[str, set[str]] = {}
        messages: list[Any] = []
        for each in await _everything(self.here):
            if not each.subject.startswith("mas.audit."):
                messages.append(each)
                continue
            record = Record.decode(each.data)
            for position, line in enumerate(record.decisions):
                decided[f"{record.writer}.{record.number}.{position}"] = {line.message_id, line.decision}
        return [
            each.headers.get(headers.MESSAGE_ID, "?")
            for each in messages
            if not _follows(each.headers, decided)
        ]


def _follows(fields: dict[str, str], decided: dict[str, set[str]]) -> bool:
    known = decided.get(fields.get(headers.AUDIT, ""))
    accepting = {"ALLOWED", "ALERT", "DLP_REDACTED"}
    return known is not None and fields.get(headers.MESSAGE_ID) in known and bool(known & accepting)


async def _everything(here: Serving) -> list[Any]:
    found: list[Any] = []
    sequence = 1
    while page := await direct_get_page(here.nc, subjects.INBOX_STREAM, ">", sequence):
        found += page
        sequence = page[-1].sequence + 1
    return found


@contextlib.contextmanager
def served() -> Iterator[Served]:
    """Start a server and serve on it for the length of the block."""
    with tempfile.TemporaryDirectory(prefix="mas-fuzz-") as name, asyncio.Runner() as runner:
        folder = Path(name)
        ca = CertificateAuthority.create(folder / "ca")
        cert = ca.issue_server(["localhost"], ["127.0.0.1"], folder / "server")
        server = NatsServer(
            folder / "nats", "", server_cert=cert.cert, server_key=cert.key, ca=cert.ca, relaxed=True
        )
        stack = contextlib.AsyncExitStack()
        nc = ResilientClient()
        try:
            runner.run(server.start())
            runner.run(_connect(nc, server, ca, folder))
            yield Served(runner, nc, stack)
        finally:
            runner.run(_end(stack, nc))
            server.kill()


async def _connect(nc: ResilientClient, server: NatsServer, ca: CertificateAuthority, folder: Path) -> None:
    paths = ca.issue(Identity(DEFAULT_TRUST_DOMAIN, "default", Role.POLICY, "worker"), folder / "worker")
    endpoint = Endpoint(server.url, TlsClientConfig(paths.ca, paths.cert, paths.key))

    async def ignore(_: Exception) -> None:
        return None

    await nc.connect_within(
        5, servers=[endpoint.url], tls=endpoint.context(), tls_hostname="localhost", error_cb=ignore
    )


async def _end(stack: contextlib.AsyncExitStack, nc: ResilientClient) -> None:
    with contextlib.suppress(nats.errors.Error):
        await stack.aclose()
    await nc.close()

"""The senders, handlers and keepers of a run: real processes, started again when they end."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from broker_policy.embedded.errors import ServerDied
from broker_policy.embedded.process import Process
from broker_policy.embedded.supervisor import Backoff, Supervisor
from mas_nats import TlsClientConfig
from tests.system import REPOSITORY

_BACKOFF = Backoff(first=0.1, most=1.0, healthy=5.0)
DIRECT, MEDIATED = "ledger", "book"
"""The agents that keep a state, named by the way on which it is written."""
_UNTIL_DECIDED = 120.0
"""Seconds that a sender gets to learn the fate of what it has on its way."""


@dataclass(frozen=True, slots=True)
class Role:
    """One process: ``role`` is send, handle or keep."""

    role: str
    name: str
    agent: str


SENDERS = (Role("send", "s1", "sender"), Role("send", "s2", "sender"), Role("send", "s3", "clerk"))
HANDLERS = (
    Role("handle", "h1", "desk"),
    Role("handle", "h2", "desk"),
    Role("handle", "h3", "shop"),
)
KEEPERS = (
    Role("keep", "k1", DIRECT),
    Role("keep", "k2", DIRECT),
    Role("keep", "k3", MEDIATED),
    Role("keep", "k4", MEDIATED),
)
"""Two instances of each agent, which update the same state."""


class Crew:
    """All processes. ``logs`` is where their histories are."""

    def __init__(
        self,
        folder: Path,
        url: str,
        tls: Callable[[str], TlsClientConfig],
        *,
        rate: float,
        seed: int,
        say: Callable[[str], None],
    ) -> None:
        self.logs = folder / "history"
        self.logs.mkdir(parents=True)
        self._folder = folder
        self._url = url
        self._tls = tls
        self._rate = rate / len(SENDERS)
        self._seed = seed
        self._senders = Supervisor(say, backoff=_BACKOFF)
        self._handlers = Supervisor(say, backoff=_BACKOFF)
        self._processes = {role.name: self._process(role) for role in (*SENDERS, *HANDLERS, *KEEPERS)}

    @property
    def processes(self) -> list[Process]:
        """Every process, senders first."""
        return list(self._processes.values())

    async def start(self) -> None:
        """Start handlers, then senders and keepers."""
        await self._handlers.start(*(self._processes[role.name] for role in HANDLERS))
        await self._senders.start(*(self._processes[role.name] for role in (*SENDERS, *KEEPERS)))

    async def stop_senders(self, undecided: Callable[[], set[str]]) -> None:
        """End senders and keepers; returns when the fate of every message is known, or cannot be learned."""
        await self._senders.stop(_UNTIL_DECIDED)
        for role in SENDERS:
            if any(one.startswith(f"{role.name}-") for one in undecided()):
                process = self._processes[role.name]  # it was down: once more, only to decide
                with contextlib.suppress(ServerDied):  # then they stay undecided, which is a fault
                    await process.start(60)
                    await process.stop(_UNTIL_DECIDED)

    async def stop(self) -> None:
        """End everything."""
        await self._senders.stop()
        await self._handlers.stop(10)

    def _process(self, role: Role) -> Process:
        tls, ready = self._tls(role.agent), self._folder / f"{role.name}.ready"
        targets = sorted({handler.agent for handler in HANDLERS})
        command: list[str | Path] = [sys.executable, "-m", "tests.chaos.program", role.role]
        command += ["--name", role.name, "--agent", role.agent, "--logs", self.logs, "--ready", ready]
        command += ["--url", self._url, "--rate", f"{self._rate:g}", "--seed", str(self._seed)]
        command += ["--certificate", str(tls.root_ca_path), str(tls.client_cert_path)]
        command += [str(tls.client_key_path), "--targets", *targets]

        async def is_ready() -> bool:
            return ready.exists()

        return Process(
            role.name,
            command,
            cwd=REPOSITORY,
            output=self._folder / f"{role.name}.log",
            ready=is_ready,
            prepare=lambda: ready.unlink(missing_ok=True),
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )

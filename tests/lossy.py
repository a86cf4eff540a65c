"""A connection on which requests and answers get lost, as they do when a server or a network goes away."""

from __future__ import annotations

import asyncio
import types
from collections.abc import Callable
from typing import Any

import nats.errors
from nats.aio.client import Client

from mas_nats.asking import Published

_FULL = b'{"error":{"code":503,"err_code":10023,"description":"insufficient resources"}}'
Which = Callable[[str, dict[str, str]], bool]


def _any(_subject: str, _fields: dict[str, str]) -> bool:
    return True


class Lossy:
    """Passes everything on to ``nc``, but for what ``lose``, ``swallow``, ``refuse`` and ``hold`` choose."""

    def __init__(self, nc: Client) -> None:
        self.nc = nc
        self._faults: list[tuple[str, Which]] = []
        self._held: list[tuple[Which, asyncio.Event]] = []
        self.happened = asyncio.Event()

    def lose(self, which: Which = _any, times: int = 1) -> None:
        """The next such requests arrive, and their answers do not."""
        self._faults += [("lose", which)] * times

    def swallow(self, which: Which = _any, times: int = 1) -> None:
        """The next such requests do not arrive."""
        self._faults += [("swallow", which)] * times

    def refuse(self, which: Which = _any, times: int = 1) -> None:
        """The next such requests do not arrive; the answer is that there is no room."""
        self._faults += [("refuse", which)] * times

    def hold(self, which: Which = _any) -> Callable[[], None]:
        """The next such request waits until what is returned here is called."""
        released = asyncio.Event()
        self._held.append((which, released))
        return released.set

    async def request(
        self,
        subject: str,
        payload: bytes = b"",
        timeout: float = 1,
        headers: dict[str, str] | None = None,
    ) -> Any:
        await self._wait(subject, headers or {})
        for fault in self._faults:
            what, which = fault
            if which(subject, headers or {}):
                self._faults.remove(fault)
                if what == "refuse":
                    self.happened.set()
                    return types.SimpleNamespace(data=_FULL)
                if what == "lose":
                    await self.nc.request(subject, payload, timeout=timeout, headers=headers)
                self.happened.set()
                raise nats.errors.TimeoutError
        return await self.nc.request(subject, payload, timeout=timeout, headers=headers)

    async def request_behind(
        self, first: Published, subject: str, payload: bytes, *, timeout: float, headers: dict[str, str]
    ) -> Any:
        """What comes first has no answer that could be lost; the rest is a request like any other."""
        await self._wait(first.subject, first.headers)
        found = next((each for each in self._faults if each[1](first.subject, first.headers)), None)
        if found is not None:
            self._faults.remove(found)
            self.happened.set()
        if found is None or found[0] == "lose":
            await self.nc.publish(first.subject, first.payload, headers=first.headers)
        return await self.request(subject, payload, timeout, headers)

    async def _wait(self, subject: str, fields: dict[str, str]) -> None:
        for held in self._held:
            if held[0](subject, fields):
                self._held.remove(held)
                self.happened.set()
                await held[1].wait()
                break

    def __getattr__(self, name: str) -> Any:
        return getattr(self.nc, name)


def from_the_second_on(which: Which) -> Which:
    """What ``which`` chooses, but for the first of it."""
    seen: list[str] = []

    def later(subject: str, fields: dict[str, str]) -> bool:
        if not which(subject, fields):
            return False
        seen.append(subject)
        return len(seen) > 1

    return later


def records(subject: str, _fields: dict[str, str]) -> bool:
    """Publishes of records that go alone."""
    return subject.startswith("mas.audit.")


def messages(subject: str, fields: dict[str, str]) -> bool:
    """Publishes of messages that go alone."""
    return subject.startswith("mas.inbox.") and "Nats-Batch-Id" not in fields


def batches(_subject: str, fields: dict[str, str]) -> bool:
    """The last message of an atomic batch, with which it is committed or not."""
    return "Nats-Batch-Commit" in fields

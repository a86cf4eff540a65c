"""An instance's registration with the policy service: said hello, kept alive, said bye."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from mas_nats.calls import Calls
from mas_nats.errors import MasError, OutcomeUnknown, Unavailable, error_of
from mas_nats.wire.state_mode import StateMode
from mas_nats.wire.subjects import Op

logger = logging.getLogger("mas_nats")

_CALL_TIMEOUT = 10.0
_BYE_TIMEOUT = 2.0
_START_PAUSE = 0.25


@dataclass(frozen=True, slots=True)
class Terms:
    """What the policy service told this instance: its name and its limits."""

    instance: str
    namespace: str
    heartbeat: float  # seconds between two hellos
    in_flight: int  # messages handled at once
    ack_wait: float  # seconds until an unacknowledged message is delivered again
    max_deliver: int  # attempts before a message is dead
    max_payload: int  # bytes
    max_state: int  # bytes
    state: StateMode
    retry_delay: float  # seconds before the second attempt; doubles with each
    retry_delay_max: float  # seconds
    retry_spread: float  # how far a delay may be off, as a part of it
    ack_many: bool = False  # whether the policy service acknowledges many together
    bundle: int = 0  # calls that may go in one message; 0: each goes on its own
    tools: Mapping[str, str] | None = None  # of an MCP server: fingerprints by name; None: it is none

    @classmethod
    def read(cls, result: Mapping[str, Any]) -> Terms:
        """Read the answer to hello."""
        return cls(
            instance=str(result["instance"]),
            namespace=str(result["namespace"]),
            heartbeat=float(result["heartbeat"]),
            in_flight=int(result["in_flight"]),
            ack_wait=float(result["ack_wait"]),
            max_deliver=int(result["max_deliver"]),
            max_payload=int(result["max_payload"]),
            max_state=int(result["max_state"]),
            state=StateMode(result.get("state", StateMode.MEDIATED)),
            retry_delay=float(result["retry_delay"]),
            retry_delay_max=float(result["retry_delay_max"]),
            retry_spread=float(result.get("retry_spread", 0.25)),
            ack_many=bool(result.get("ack_many", False)),
            bundle=int(result.get("bundle", 0)),
            tools=None if result.get("tools") is None else dict(result["tools"]),
        )


class Session:
    """The registration of one instance. ``terms`` always holds the newest answer."""

    def __init__(
        self,
        calls: Calls,
        capabilities: Sequence[str],
        metadata: Mapping[str, object],
        *,
        receives: bool = True,
    ) -> None:
        self._calls = calls
        self._receives = receives
        self._capabilities = list(capabilities)
        self._metadata = dict(metadata)
        self._terms: Terms | None = None
        self._heart: asyncio.Task[None] | None = None
        self.renamed: list[Callable[[], Awaitable[None]]] = []  # told when the instance's name changed

    @property
    def terms(self) -> Terms:
        """What the last hello answered."""
        if self._terms is None:
            raise Unavailable("this agent is not started: await agent.start()")
        return self._terms

    async def open(self, timeout: float) -> None:
        """Say hello, repeating for ``timeout`` seconds while no worker is there, then keep saying it.

        Raises:
            Refused: policy does not know this agent, or its capabilities are malformed.
            Unavailable: no worker answered within ``timeout`` seconds.

        """
        end = asyncio.get_running_loop().time() + timeout
        while True:
            try:
                await self.hello(max(0.0, end - asyncio.get_running_loop().time()))
                break
            except OutcomeUnknown as error:  # of a hello that is all the same: it changes nothing that lasts
                raise Unavailable(f"no policy worker answered within {max(timeout, 0.0):g} s") from error
            except Unavailable:
                if asyncio.get_running_loop().time() + _START_PAUSE >= end:
                    raise
                await asyncio.sleep(_START_PAUSE)
        self._heart = asyncio.create_task(self._beat())

    async def hello(self, timeout: float = _CALL_TIMEOUT, *, reconnected: bool = False) -> None:
        """Say hello once, under the same instance name as before."""
        body = {
            "capabilities": self._capabilities,
            "metadata": self._metadata,
            "instance": self._terms.instance if self._terms else None,
            "receives": self._receives,
            "reconnected": reconnected,
        }
        verdict = await self._calls.call(Op.HELLO, orjson.dumps(body), timeout=timeout)
        if not verdict.ok:
            raise Unavailable(f"{verdict.reason}. {verdict.fix}") if verdict.retry else error_of(verdict)
        before, self._terms = self._terms, Terms.read(verdict.result)
        self._calls.bundles.most = self._terms.bundle
        if before is not None and before.instance != self._terms.instance:
            for listener in self.renamed:
                await listener()

    async def resume(self) -> None:
        """After a reconnect: say hello as soon as a worker is there."""
        pause = _START_PAUSE
        while True:
            try:
                await self.hello(reconnected=True)
            except (Unavailable, OutcomeUnknown):
                await asyncio.sleep(pause)
                pause = min(2.0, pause * 2)
            else:
                return

    async def close(self) -> None:
        """Say bye, so that discovery forgets this instance at once."""
        if self._heart is not None:
            self._heart.cancel()
        if self._terms is not None:
            with contextlib.suppress(MasError):
                body = orjson.dumps({"instance": self._terms.instance})
                await self._calls.call(Op.BYE, body, timeout=_BYE_TIMEOUT)

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self.terms.heartbeat)
            try:
                await self.hello()
            except (Unavailable, OutcomeUnknown) as error:
                logger.info("heartbeat: %s", error)
            except MasError as error:
                logger.warning("heartbeat: %s", error)

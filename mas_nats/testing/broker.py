"""``MemoryBroker``: a broker for unit tests of agents, in the test's own process."""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import orjson

from mas_nats.agent import Agent
from mas_nats.errors import ConfigurationError
from mas_nats.manifest.wanted import WantedAgent
from mas_nats.names import names
from mas_nats.policy.call import Refusal
from mas_nats.policy.document import Limits, Permissions
from mas_nats.testing.connection import MemoryTransport
from mas_nats.testing.crossing import Crossing
from mas_nats.testing.declared import Agents, Reach, wanted, wanted_agent
from mas_nats.testing.faults import Effect, Fault
from mas_nats.testing.seen import DeadLetter, SeenDecision, SentMessage
from mas_nats.testing.server import MemoryServer
from mas_nats.testing.virtual_time import VirtualTime
from mas_nats.wire.identity import DEFAULT_NAMESPACE
from mas_nats.wire.verdict import Decision

A = TypeVar("A", bound=Agent[Any])
_TURNS = 50
"""Turns of the loop without anything under way after which nothing will be."""


class MemoryBroker:
    """Everything between agents, in memory: no server, no certificates, no files, no threads.

    The agents on it run the real SDK, and it decides as the real policy service does: nothing is allowed but
    what is declared.

    Time is virtual unless ``virtual_time=False``: it stands still while anything can run, and jumps to the
    next timer when nothing can, so retries, ack waits and timeouts take no time.

    Args:
        agents: the agents and the capabilities each declares; a ``WantedAgent`` says more.
        allow: whom each sender may reach; ``"*"`` is everybody.
        block: whom it may not reach, whatever ``allow`` says.
        limits: as ``limits:`` in a manifest.
        namespace: the namespace they are in.
        virtual_time: False to wait for real.
        beside: a broker of another namespace. Agents of the two may talk where both allow it, under their
            full names: ``namespace/agent``.

    """

    def __init__(
        self,
        agents: Agents = (),
        *,
        allow: Reach | None = None,
        block: Reach | None = None,
        limits: Limits | None = None,
        namespace: str = DEFAULT_NAMESPACE,
        virtual_time: bool = True,
        beside: MemoryBroker | None = None,
    ) -> None:
        self._neighbours: dict[str, Crossing] = {} if beside is None else beside._neighbours  # noqa: SLF001
        self._document = wanted(agents, allow, block, limits, namespace).document()
        self._virtual = virtual_time
        self._clock: VirtualTime | None = None
        self._server: MemoryServer | None = None
        self._epoch = 0.0

    @classmethod
    def from_manifest(
        cls,
        path: str | os.PathLike[str],
        *,
        namespace: str = DEFAULT_NAMESPACE,
        virtual_time: bool = True,
        beside: MemoryBroker | None = None,
    ) -> Self:
        """A broker with the agents, permissions and limits of a manifest.

        ``namespace`` matters where it declares several; ``beside`` is as for the class.

        Raises:
            ConfigurationError: the file is wrong, or PyYAML is missing.

        """
        try:
            from mas_nats.manifest import documents  # noqa: PLC0415 - needs PyYAML, which agents do not
        except ImportError:
            text = "reading a mas.yaml needs PyYAML: pip install 'mas-nats[server]'"
            raise ConfigurationError(text) from None
        made = cls(virtual_time=virtual_time, beside=beside)
        made._document = documents.load(Path(path)).of(namespace).wanted.document()
        return made

    # -- lifecycle ---------------------------------------------------------------------------------

    def start(self) -> Self:
        """Start in the running loop; the same as entering it."""
        if self._server is None:
            loop = asyncio.get_running_loop()
            if self._virtual:
                self._clock = VirtualTime.start()
            self._epoch = time.time() - loop.time()
            if self._document.namespace in self._neighbours:
                text = f"there is a broker of namespace {self._document.namespace!r} already"
                raise ConfigurationError(f"{text}: name another with namespace=")
            self._server = MemoryServer(self._document, lambda: self._epoch + loop.time(), self._neighbours)
        return self

    def stop(self) -> None:
        """End it; agents that still run find the broker away. What it has seen can still be looked at."""
        if self._server is not None:
            self._server.close()
        if self._clock is not None:
            self._clock.stop()
            self._clock = None

    async def __aenter__(self) -> Self:
        return self.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # -- agents ------------------------------------------------------------------------------------

    def agent(self, cls: type[A], agent_id: str, **options: Any) -> A:
        """An agent on this broker, not started: ``cls(agent_id, **options)`` with its transport."""
        return cls(agent_id, **self.options(agent_id), **options)

    def options(self, agent_id: str) -> dict[str, Any]:
        """What ``Agent(...)`` needs to be on this broker, to be passed as ``**broker.options(agent_id)``."""
        return {"transport": MemoryTransport(self._running, agent_id)}

    # -- policy ------------------------------------------------------------------------------------

    def declare(self, agent_id: str, declared: Iterable[str] | WantedAgent = ()) -> None:
        """Declare an agent with its capabilities, or declare it anew."""
        self._change(agents={**self._running.document.agents, agent_id: wanted_agent(declared).policy()})

    def forget(self, agent_id: str) -> None:
        """Take an agent out of the policy; it is disconnected."""
        agents = dict(self._running.document.agents)
        agents.pop(agent_id, None)
        self._change(agents=agents)

    def set_permissions(
        self, sender: str, *, allowed: Iterable[str] = (), blocked: Iterable[str] = ()
    ) -> None:
        """Replace whom ``sender`` may reach."""
        rule = Permissions(
            allowed_targets=names("allowed", allowed), blocked_targets=names("blocked", blocked)
        )
        self._change(permissions={**self._running.document.permissions, sender: rule})

    # -- looking -----------------------------------------------------------------------------------

    @property
    def sent(self) -> list[SentMessage]:
        """Every accepted message and request, in order."""
        return list(self._running.service.deciding.ledger.sent)

    @property
    def replies(self) -> list[SentMessage]:
        """Every reply that was delivered, in order."""
        return list(self._running.service.deciding.ledger.replies)

    @property
    def decisions(self) -> list[SeenDecision]:
        """Every decision, refusals too, in order."""
        return list(self._running.service.deciding.ledger.decisions)

    def messages_to(self, agent_id: str) -> list[SentMessage]:
        """The accepted messages and requests to an agent."""
        return [message for message in self.sent if message.target == self._declared(agent_id)]

    def messages_from(self, agent_id: str) -> list[SentMessage]:
        """The accepted messages and requests of an agent."""
        return [message for message in self.sent if message.sender == self._declared(agent_id)]

    def dead_letters(self, agent_id: str) -> list[DeadLetter]:
        """What an agent could not handle."""
        return list(self._running.service.deciding.ledger.dead.get(self._declared(agent_id), ()))

    def waiting(self, agent_id: str) -> int:
        """Messages to an agent that are not acknowledged: not delivered, being handled, or to be retried."""
        return len(self._running.service.consumers[self._declared(agent_id)].messages)

    def state_of(self, agent_id: str) -> dict[str, Any] | None:
        """The stored state of an agent as JSON; None where there is none."""
        return self._running.service.states.value(self._declared(agent_id))

    def put_state(self, agent_id: str, value: Mapping[str, object]) -> None:
        """Store a state, whatever is there: before an agent starts, or as another instance would."""
        self._running.service.states.put(self._declared(agent_id), orjson.dumps(dict(value)), {}, None)

    # -- time --------------------------------------------------------------------------------------

    @property
    def now(self) -> float:
        """The broker's unix time, in seconds."""
        return self._running.now()

    async def advance(self, seconds: float) -> None:
        """Let time pass, and everything happen that becomes due."""
        await asyncio.sleep(seconds)
        await self._settle()

    async def idle(self, *, timeout: float = 300.0) -> None:
        """Wait until no message can be delivered, none is being handled, and no call waits for its answer.

        Messages that wait for a retry, or for an agent that does not run, do not count. ``timeout`` is in
        seconds of the broker's time.

        Raises:
            TimeoutError: something is still under way; the text says what.

        """
        server = self._running
        try:
            async with asyncio.timeout(timeout):
                while True:
                    server.changed.clear()
                    await self._settle()
                    if not server.under_way():
                        return
                    await server.changed.wait()
        except TimeoutError:
            what = ", ".join(server.under_way()) or "calls keep coming"
            raise TimeoutError(f"not idle after {timeout:g} s: {what}") from None

    # -- trouble -----------------------------------------------------------------------------------

    def refuse(
        self,
        op: str = "send",
        *,
        sender: str | None = None,
        target: str | None = None,
        decision: Decision = Decision.RATE_LIMITED,
        reason: str = "the test wants it refused",
        retry: bool = False,
        times: int | None = 1,
    ) -> None:
        """Refuse the next ``times`` such calls (None: all). ``op`` is send, request, reply, state, ..."""
        refusal = Refusal(decision, "test", "refuse", reason, "Take it out of the test", retry=retry)
        self._running.faults.add(Fault(Effect.REFUSE, op, sender, target, times, refusal))

    def lose_answers(
        self,
        op: str = "send",
        *,
        sender: str | None = None,
        target: str | None = None,
        times: int | None = 1,
    ) -> None:
        """Take the next ``times`` such calls (None: all), and let their answers get lost.

        The SDK asks again, under the same id; where all answers are lost it raises ``OutcomeUnknown``.
        """
        self._running.faults.add(Fault(Effect.LOSE_ANSWER, op, sender, target, times))

    def lose_calls(
        self,
        op: str = "send",
        *,
        sender: str | None = None,
        target: str | None = None,
        times: int | None = 1,
    ) -> None:
        """Let the next ``times`` such calls (None: all) get lost on their way."""
        self._running.faults.add(Fault(Effect.LOSE_CALL, op, sender, target, times))

    @contextlib.contextmanager
    def no_workers(self) -> Iterator[None]:
        """Within the block no policy worker is there: calls raise ``Unavailable``, after a second."""
        server = self._running
        server.workers = False
        try:
            yield
        finally:
            server.workers = True

    def disconnect(self, agent_id: str) -> None:
        """Cut every instance of an agent off, until ``reconnect``."""
        self._running.cut_off(self._declared(agent_id))

    def reconnect(self, agent_id: str) -> None:
        """Let the instances of an agent reach the broker again."""
        self._running.let_back(self._declared(agent_id))

    async def renew(self, agent_id: str) -> None:
        """Make every instance of an agent connect anew in good order, as a renewed certificate does."""
        await self._running.renew(self._declared(agent_id))

    def restart(self) -> None:
        """Kill the server and start it again: messages and states are kept, stored replies are gone."""
        self._running.restart()

    # -- inside ------------------------------------------------------------------------------------

    @property
    def _running(self) -> MemoryServer:
        if self._server is None:
            raise RuntimeError("the broker is not started: use `async with MemoryBroker(...) as broker`")
        return self._server

    def _declared(self, agent_id: str) -> str:
        """Recognise a slip of the pen, which would make a test pass that asks for nothing."""
        known = self._running.service.consumers
        if agent_id not in known:
            near = difflib.get_close_matches(agent_id, known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise LookupError(f"there is no agent {agent_id!r} on this broker{hint}")
        return agent_id

    def _change(self, **update: Any) -> None:
        self._running.apply(self._running.document.model_copy(update=update))

    async def _settle(self) -> None:
        for _ in range(_TURNS):
            await asyncio.sleep(0)

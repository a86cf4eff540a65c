"""The sidecar of one application: an agent of the system, with a listener for the application."""

from __future__ import annotations

import logging
import time
from typing import Any

import orjson

from mas_nats.agent import DRAIN_TIMEOUT, Agent
from mas_nats.errors import ConfigurationError, Unavailable, error_of
from mas_nats.message import AgentMessage
from mas_nats.policy.model_answer import ANSWER, ModelAnswer
from mas_nats.policy.prompt import PLACE
from mas_nats.sidecar.application import Kind, Settings
from mas_nats.sidecar.authority import Authority, NoTokens
from mas_nats.sidecar.in_flight import InFlight, trace_of
from mas_nats.sidecar.inbound import Inbound
from mas_nats.sidecar.listener import Answer, Listener, Received
from mas_nats.sidecar.llm import LlmPassage, NobodyAsks, Selections
from mas_nats.sidecar.llm_host import Asking, LlmHost
from mas_nats.sidecar.llm_search import Passed, Said
from mas_nats.sidecar.outbound import Outbound
from mas_nats.sidecar.registration import Behind, Registration
from mas_nats.sidecar.token_endpoint import TokenEndpoint
from mas_nats.sidecar.tokens import TokenAuthority
from mas_nats.sidecar.tool_list import ToolList
from mas_nats.stream import Stream
from mas_nats.wire import headers
from mas_nats.wire.correlation import new_message_id
from mas_nats.wire.headers import MSG_ID
from mas_nats.wire.subjects import Op
from mas_nats.wire.verdict import Verdict

logger = logging.getLogger("mas_nats")

_TOOLS = "tools"
"""Where in its agent's state an MCP server's sidecar keeps what it saw of the server's tools."""
_PATIENCE = 10.0
"""Seconds that a call waits for a token."""


class Sidecar(Agent[dict[str, Any]]):
    """Speaks for an application, with the application's identity.

    ``authority`` is asked for tokens: ``tokens``, where the settings want them and no other is given.
    ``selections`` is told which tools a language model selected, ``tokens`` where no other is given. ``llm``
    takes the place of what carries to ``llm_host``. Other options are those of ``Agent``.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        authority: Authority | None = None,
        llm: LlmPassage | None = None,
        selections: Selections | None = None,
        **options: Any,
    ) -> None:
        receives = settings.own.type is not Kind.CLIENT
        super().__init__(settings.app, receive=receives, **options)
        self._settings = settings
        in_flight = InFlight()
        self.tokens = self._tokens() if settings.tokens and authority is None else None
        guard = authority or self.tokens or NoTokens()
        self._registration = self._registering() if settings.own.type is Kind.MCP_SERVER else None
        self._inbound = (
            Inbound(
                settings,
                guard,
                in_flight,
                now=time.time,
                max_payload=self._most,
                ack_wait=lambda: self._alive().session.terms.ack_wait,
                registration=self._registration,
            )
            if receives
            else None
        )
        self._llm: LlmHost | None = None
        if llm is None and settings.llm_host and settings.own.type is Kind.AGENT:
            told = selections or self.tokens or NobodyAsks()
            self._llm = LlmHost(settings, self._may_leave, self._may_come, told, now=time.monotonic)
        self._outbound = Outbound(settings, self._ask, guard, in_flight, llm or self._llm, now=time.time)
        self._endpoint = None if self.tokens is None else TokenEndpoint(settings, self.tokens)
        self._listener = Listener(settings.own.listen, settings.limits, self._received)

    @property
    def address(self) -> str:
        """Where the application finds its proxy: ``host:port``."""
        return self._listener.address

    async def stop(self, *, timeout: float = DRAIN_TIMEOUT) -> None:
        """Let calls end, as ``Agent.stop`` does; standing streams end at once. It is not started again."""
        if self._inbound is not None:
            self._inbound.leave()
        await super().stop(timeout=timeout)

    async def on_start(self) -> None:
        """Listen, where the limits fit those of the namespace.

        Raises:
            ConfigurationError: ``limits.begin`` is too long: a call might be begun by two sidecars.

        """
        terms = self._alive().session.terms
        if self._settings.limits.begin * 2 > terms.ack_wait:
            raise ConfigurationError(
                f"limits.begin is {self._settings.limits.begin:g} s; it may be at most half of the "
                f"namespace's limits.ack_wait, which is {terms.ack_wait:g} s"
            )
        await self._listener.start()
        if self._registration is not None:
            self._registration.start()
        logger.info("sidecar of %s: the application's proxy is http://%s", self.agent_id, self.address)

    async def on_stop(self) -> None:
        """Take nothing more from the application."""
        await self._listener.stop()
        if self._registration is not None:
            await self._registration.stop()
        if self._inbound is not None:
            await self._inbound.close()
        if self._llm is not None:
            await self._llm.close()

    async def on_message(self, message: AgentMessage) -> None:
        """Hand a call to the application."""
        assert self._inbound is not None, "a client receives nothing"  # noqa: S101
        await self._inbound.handle(message)

    def _ask(self, *what: Any, **options: Any) -> Stream:
        """Ask another sidecar; unlike ``stream`` with a limit of its own for the request."""
        return self._alive().messenger.stream(*what, **options)

    def _registering(self) -> Registration:
        async def ask() -> None:
            await self._alive().session.hello()

        async def keep(kept: dict[str, Any]) -> None:
            await self.refresh_state()
            await self.update_state({_TOOLS: kept})

        return Registration(
            Behind(
                approved=lambda: self._alive().session.terms.tools,
                ask=ask,
                tools=ToolList(self._settings.own),
                kept=lambda: self.state.get(_TOOLS, {}),
                keep=keep,
                now=time.monotonic,
            )
        )

    async def _may_leave(self, asking: Asking) -> Any:
        """Ask policy about a prompt: what of its body may leave."""
        fields = {
            headers.MSG_ID: asking.message_id,
            headers.TARGET: PLACE + asking.host,
            headers.TYPE: f"llm:{asking.operation}",
        }
        if trace_of(asking.traceparent):
            fields[headers.TRACEPARENT] = asking.traceparent
        verdict = await self._alive().calls.call(Op.PROMPT, orjson.dumps(asking.body), fields)
        if not verdict.ok:
            raise error_of(verdict)
        return verdict.result.get("body", asking.body)

    async def _may_come(self, said: Said) -> Passed:
        """Ask policy about a part of a language model's answer: how much of it the application may get."""
        fields = {
            headers.MSG_ID: new_message_id(),
            headers.TARGET: PLACE + said.host,
            headers.TYPE: ANSWER + said.operation,
        }
        body = ModelAnswer(asked=said.asked, chunks=tuple(said.chunks), cursor=said.cursor, final=said.final)
        verdict = await self._alive().calls.call(Op.PROMPT, orjson.dumps(body.model_dump()), fields)
        if not verdict.ok:
            raise error_of(verdict)
        gone = verdict.result.get("gone")
        if not isinstance(gone, int):
            raise Unavailable("the policy workers are older than this sidecar, and search no answers")
        changed = {int(number): chunk for number, chunk in verdict.result.get("changed", {}).items()}
        return Passed(gone, changed, str(verdict.result.get("cursor", "")))

    async def _received(self, received: Received, answer: Answer) -> None:
        if self._endpoint is not None and self._endpoint.takes(received, self.address):
            await answer.whole(await self._endpoint.answer(received))
            return
        await self._outbound.handle(received, answer)

    def _tokens(self) -> TokenAuthority:
        async def ask(body: bytes, message_id: str) -> Verdict:
            calls = self._alive().calls
            return await calls.call(Op.TOKEN, body, {MSG_ID: message_id}, timeout=_PATIENCE)

        return TokenAuthority(
            self._settings, ask, namespace=lambda: self._alive().session.terms.namespace, now=time.time
        )

    def _most(self) -> int:
        return self._alive().session.terms.max_payload

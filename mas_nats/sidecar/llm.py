"""The seams for a language model: who carries requests to ``llm_host``, and who is told what it selected."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Protocol

from mas_nats.sidecar.http_message import HttpRequest, HttpResponse


class LlmPassage(Protocol):
    """Carries a request to the language model. May look at its answer and change it."""

    def carry(self, request: HttpRequest, cause: str) -> AsyncGenerator[HttpResponse | bytes, None]:
        """The head of the answer (its body empty), then the body in parts.

        ``cause`` is the id of the message that made the application ask, "" where nothing did. ``request``
        has what an application may say to a language model in its headers, its credentials too.

        Raises:
            Refusal: it may not leave, or its answer may not pass.

        """


class Selections(Protocol):
    """Is asked before a language model is, and told which tools it selected."""

    async def may_ask(self, cause: str) -> None:
        """The application wants to ask the language model because of the message ``cause``.

        Raises:
            Refusal, MasError: it may not; nothing leaves.

        """

    async def selected(self, cause: str, tools: Sequence[str]) -> None:
        """The model selected ``tools``, or none, for the message ``cause``: recorded when this returns.

        What lets the application act on them is handed over only then.

        Raises:
            Refusal, MasError: it could not be recorded; the answer is not handed over.

        """


class NobodyAsks:
    """Nobody checks by what a language model selected."""

    async def may_ask(self, cause: str) -> None:
        """It may."""

    async def selected(self, cause: str, tools: Sequence[str]) -> None:
        """Nothing is done."""

"""The seam for a language model's traffic: who carries it to ``llm_host`` and sees its answers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from mas_nats.sidecar.http_message import HttpRequest, HttpResponse


class LlmPassage(Protocol):
    """Carries a request to the language model. May look at its answer and change it."""

    def carry(self, request: HttpRequest, cause: str) -> AsyncIterator[HttpResponse | bytes]:
        """The head of the answer (its body empty), then the body in parts.

        ``cause`` is the id of the message that made the application ask, "" where nothing did.

        Raises:
            Refusal: it may not leave, or its answer may not pass.

        """

"""How the page of a message looks for what belongs to it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from broker_policy.audit.query import Answer
from broker_policy.explorer import lifeline
from mas_nats.message import reply_id


async def test_the_replies_to_one_request_are_looked_for_once(monkeypatch: pytest.MonkeyPatch):
    """However often it was repeated: a streamed reply takes a question for each of its frames."""
    asked: list[str] = []

    async def ask(_: Any, question: Any, **__: Any) -> list[Answer]:
        asked.append(question.message_id)
        return []

    monkeypatch.setattr(lifeline, "ask", ask)
    entry: Any = {"o": "request", "f": "asker", "t": "desk", "id": "again"}
    sources: Any = SimpleNamespace(namespace="default", store=None)
    answers = [Answer(index, entry, "u", "") for index in range(1, 51)]
    assert await lifeline._related(sources, answers) == ([], True)
    wanted = reply_id("asker", "desk", "again")
    assert asked == [wanted, f"{wanted}.0"]

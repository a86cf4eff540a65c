from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, field_validator

from mas_nats import Agent, AgentMessage, ConfigurationError
from mas_nats.handlers import NotHandled, dispatch, handlers_of


class Ask(BaseModel):
    model_config = ConfigDict(strict=True)
    question: str
    when: datetime | None = None


class Desk(Agent[dict[str, object]]):
    def __init__(self) -> None:
        super().__init__("desk")
        self.seen: list[Any] = []

    @Agent.on("ask", model=Ask)
    async def ask(self, message: AgentMessage, payload: Ask) -> None:
        self.seen.append(payload)

    @Agent.on("note")
    async def note(self, message: AgentMessage) -> None:
        self.seen.append("note")

    @Agent.on("raw")
    async def raw(self, message: AgentMessage, data: dict[str, Any]) -> None:
        self.seen.append(data)


class LoudDesk(Desk):
    async def note(self, message: AgentMessage) -> None:
        self.seen.append("NOTE")

    @Agent.on("raw")
    async def other(self, message: AgentMessage) -> None:
        self.seen.append("other")

    async def on_message(self, message: AgentMessage) -> None:
        self.seen.append(("fallback", message.message_type))


def message(kind: str, data: dict[str, Any] | None = None) -> AgentMessage:
    return AgentMessage("1", "router", "desk", kind, data or {}, datetime.now(UTC))


async def run(desk: Desk, kind: str, data: dict[str, Any] | None = None) -> list[Any]:
    await dispatch(desk, handlers_of(type(desk)), message(kind, data))
    return desk.seen


async def test_payload_is_a_model():
    seen = await run(Desk(), "ask", {"question": "q", "when": "2026-01-01T00:00:00Z"})
    assert seen == [Ask(question="q", when=datetime(2026, 1, 1, tzinfo=UTC))]


async def test_wrong_payload_never_reaches_the_handler():
    desk = Desk()
    with pytest.raises(NotHandled, match=r"^question: string_type$"):
        await run(desk, "ask", {"question": 1})
    assert desk.seen == []


class Numbers(BaseModel):
    numbers: list[int]


class Counting(Desk):
    @Agent.on("count", model=Numbers)
    async def count(self, message: AgentMessage, payload: Numbers) -> None:
        self.seen.append(payload)


async def test_a_payload_that_is_wrong_throughout_is_not_told_place_by_place():
    with pytest.raises(NotHandled, match=r"^numbers\.0: int_type; numbers\.1: int_type$"):
        await run(Counting(), "count", {"numbers": [{}] * 2})
    with pytest.raises(NotHandled, match=r"^payload: 100000 places do not fit$"):
        await run(Counting(), "count", {"numbers": [{}] * 100_000})


class Faulty(BaseModel):
    question: str

    @field_validator("question")
    @classmethod
    def looked_up(cls, value: str) -> str:
        """Fails as a program does."""
        return value + None  # type: ignore[operator]


class FaultyDesk(Desk):
    @Agent.on("look", model=Faulty)
    async def look(self, message: AgentMessage, payload: Faulty) -> None:
        self.seen.append(payload)


async def test_a_fault_of_a_models_own_is_a_failure_of_the_handler():
    with pytest.raises(TypeError):
        await run(FaultyDesk(), "look", {"question": "q"})


async def test_payload_that_is_nested_too_deeply_never_reaches_the_handler():
    desk = Desk()
    deep: Any = []
    for _ in range(500):  # orjson reads a thousand levels
        deep = [deep]
    with pytest.raises(NotHandled, match="nested too deeply"):
        await run(desk, "ask", {"question": deep})
    assert desk.seen == []


async def test_without_a_model():
    assert await run(Desk(), "note") == ["note"]
    assert await run(Desk(), "raw", {"a": 1}) == [{"a": 1}]


async def test_no_handler():
    with pytest.raises(NotHandled, match="no handler for type 'unknown'"):
        await run(Desk(), "unknown")


async def test_inherited_and_overridden():
    assert await run(LoudDesk(), "ask", {"question": "q"}) == [Ask(question="q")]
    assert await run(LoudDesk(), "note") == ["NOTE"]
    assert await run(LoudDesk(), "raw") == ["other"]
    assert await run(LoudDesk(), "else") == [("fallback", "else")]


def unnamed(method: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    """A decorator that does not keep the name of what it decorates."""

    async def inner(self: Desk, message: AgentMessage) -> None:
        self.seen.append("first")
        await method(self, message)

    return inner


class ManyDesk(Desk):
    @Agent.on("open")
    @Agent.on("close")
    async def either(self, message: AgentMessage) -> None:
        self.seen.append(message.message_type)

    @Agent.on("wrapped")
    @unnamed
    async def wrapped(self, message: AgentMessage) -> None:
        self.seen.append("wrapped")

    @Agent.on("private")
    async def __private(self, message: AgentMessage) -> None:
        self.seen.append("private")


async def test_one_method_for_several_types():
    assert await run(ManyDesk(), "open") == ["open"]
    assert await run(ManyDesk(), "close") == ["close"]


async def test_a_method_is_found_whatever_it_calls_itself():
    assert await run(ManyDesk(), "wrapped") == ["first", "wrapped"]
    assert await run(ManyDesk(), "private") == ["private"]


def test_two_methods_of_one_class_for_one_type_are_refused():
    with pytest.raises(ConfigurationError, match="Twice has two handlers for 'ask': first and second"):

        class Twice(Agent[dict[str, object]]):
            @Agent.on("ask")
            async def first(self, message: AgentMessage) -> None: ...

            @Agent.on("ask")
            async def second(self, message: AgentMessage) -> None: ...


def test_sync_handler_is_refused_where_it_is_written():
    with pytest.raises(ConfigurationError, match="must be `async def`"):

        @Agent.on("x")
        def handler(self: Any, message: AgentMessage) -> None: ...


def test_wrong_arguments_are_refused():
    with pytest.raises(ConfigurationError, match=r"\(self, message, payload\)"):

        @Agent.on("x", model=Ask)  # type: ignore[arg-type]
        async def handler(self: Any, message: AgentMessage) -> None: ...


def test_unknown_option_is_a_type_error():
    with pytest.raises(TypeError, match="unknown option 'capabilites'; did you mean 'capabilities'"):
        Agent("a", capabilites=["x"])


def test_one_capability_is_not_a_list_of_letters():
    with pytest.raises(TypeError, match="list of names"):
        Agent("a", capabilities="qa")


def test_what_is_announced_is_checked_where_it_is_written():
    with pytest.raises(TypeError, match="list of names, and 1 is none"):
        Agent("a", capabilities=[1])
    with pytest.raises(ConfigurationError, match="metadata of 'a' is not serialisable as JSON"):
        Agent("a", metadata={"lock": object()})


def test_bad_id():
    with pytest.raises(ConfigurationError, match=r"agent id 'a\.b' is not a valid id"):
        Agent("a.b")


def test_repr_of_a_message_hides_the_payload():
    assert "secret" not in repr(message("x", {"a": "secret"}))

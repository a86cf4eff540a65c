"""Which method handles which message type."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import orjson
from pydantic import BaseModel, ValidationError

from mas_nats.errors import ConfigurationError, MasError
from mas_nats.message import AgentMessage

_MARK = "__mas_handler__"
_MOST_NAMED = 1_000
"""Places of a payload that do not fit, of which some are named: pydantic lists all or none, in seconds."""

A = TypeVar("A")
M = TypeVar("M", bound=BaseModel)


class NotHandled(MasError):
    """There is no handler for this type, or the payload does not fit its model. Never retried."""


@dataclass(frozen=True, slots=True)
class Handler:
    """A registered method: its name, so that a subclass may override it, and its payload's model."""

    method: str
    model: type[BaseModel] | None
    takes_payload: bool


class TypedRegistration(Protocol[M]):
    """Decorates a method that takes the message and its validated payload."""

    def __call__(  # noqa: D102
        self, method: Callable[[A, AgentMessage, M], Awaitable[None]], /
    ) -> Callable[[A, AgentMessage, M], Awaitable[None]]: ...


H = TypeVar("H", bound=Callable[..., Awaitable[None]])


class Registration(Protocol):
    """Decorates a method that takes the message, and optionally its data as a dict."""

    def __call__(self, method: H, /) -> H: ...  # noqa: D102


def registration(message_type: str, model: type[BaseModel] | None) -> Any:
    """The decorator behind ``Agent.on``.

    Raises:
        ConfigurationError: the method is not ``async def``, or takes the wrong arguments.

    """
    if not isinstance(message_type, str) or not message_type:
        raise ConfigurationError('Agent.on needs a message type: @Agent.on("ask")')

    def register(method: Any) -> Any:
        if not inspect.iscoroutinefunction(method):
            raise ConfigurationError(f"handler {method.__qualname__} must be `async def`")
        taken = len(inspect.signature(method).parameters) - 1
        if taken not in ({2} if model else {1, 2}):
            raise ConfigurationError(
                f"handler {method.__qualname__} must take (self, message{', payload' if model else ''})"
            )
        found = (message_type, model, taken == 2)
        setattr(method, _MARK, (*getattr(method, _MARK, ()), found))
        return method

    return register


def handlers_of(cls: type) -> dict[str, Handler]:
    """Every registration of ``cls`` and its bases; the most derived one counts.

    Raises:
        ConfigurationError: a class has two methods for one type.

    """
    found: dict[str, Handler] = {}
    for base in reversed(cls.__mro__):
        own: dict[str, tuple[str, object]] = {}
        for name, value in vars(base).items():
            for message_type, model, takes_payload in getattr(value, _MARK, ()):
                other, method = own.setdefault(message_type, (name, value))
                if method is not value:
                    raise ConfigurationError(
                        f"{base.__name__} has two handlers for {message_type!r}: {other} and {name}"
                    )
                # Of the class, not the method's own: a decorator between the two may have given it another.
                found[message_type] = Handler(name, model, takes_payload)
    return found


async def dispatch(agent: Any, handlers: dict[str, Handler], message: AgentMessage) -> None:
    """Run the handler of ``agent`` for ``message``, else its ``on_message``.

    Raises:
        NotHandled: the payload does not fit the handler's model.

    """
    handler = handlers.get(message.message_type)
    if handler is None:
        await agent.on_message(message)
        return
    method = getattr(agent, handler.method)
    if handler.model is not None:
        try:
            body = orjson.dumps(message.data)
        except TypeError:  # orjson reads more levels than it writes
            raise NotHandled("payload: nested too deeply") from None
        try:
            payload = handler.model.model_validate_json(body)
        except ValidationError as error:
            raise NotHandled(describe(error)) from None
        await method(message, payload)
    elif handler.takes_payload:
        await method(message, message.data)
    else:
        await method(message)


def describe(error: ValidationError) -> str:
    """Where and how a payload does not fit, without any of its values."""
    if (count := error.error_count()) > _MOST_NAMED:
        return f"payload: {count} places do not fit"
    found = error.errors(include_url=False, include_context=False, include_input=False)
    places = [f"{'.'.join(str(part) for part in each['loc']) or 'payload'}: {each['type']}" for each in found]
    return "; ".join(places[:5])

"""A call and its answer as messages.

The call is one JSON object. The answer is streamed: JSON objects with exactly one of the members below, and
text, which is a part of a body. JSON bodies and events travel as JSON, so that data-loss prevention sees what
they say and not how it is written, and so that the application gets just what was judged.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from mas_nats.handlers import describe
from mas_nats.sidecar.http_message import MAX_HEADERS, MAX_PATH
from mas_nats.sidecar.refusal import Refusal, Shape
from mas_nats.wire.frames import WHOLE


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _lower(headers: dict[str, str]) -> dict[str, str]:
    if any(name != name.lower() for name in headers):
        raise ValueError("names of headers are in lower case")
    return headers


Headers = Annotated[dict[str, str], AfterValidator(_lower), Field(max_length=MAX_HEADERS)]


def is_long(members: object) -> bool:
    """Whether there are so many members that it would take seconds to say what is wrong with each."""
    return isinstance(members, dict | list) and len(members) > MAX_HEADERS


class Carried(_Model):
    """A call on its way. ``begin_by``: unix milliseconds after which it must not be begun."""

    method: str = Field(max_length=16)
    path: str = Field(max_length=MAX_PATH)
    query: str = Field("", max_length=2048)
    headers: Headers = Field(default_factory=dict)
    body: Any = None
    begin_by: int
    authorization: str = Field("", max_length=16384, repr=False)
    cause: str = Field("", max_length=128)  # the id of the message that made the caller call

    @classmethod
    def read(cls, data: dict[str, Any]) -> Self:
        """Read a message's payload.

        Raises:
            Refusal: it is none of these.

        """
        fix = "Run sidecars of one version on both sides"
        if is_long(data) or is_long(data.get("headers")):
            raise Refusal("carriage", "the message is no call: it has too many members", fix)
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise Refusal("carriage", f"the message is no call: {describe(error)}", fix) from None


class Head(_Model):
    """Status and headers of an answer."""

    status: int = Field(ge=200, le=599)
    headers: Headers = Field(default_factory=dict)


class Event(_Model):
    """A server-sent event. ``data`` is JSON; ``""`` where the event had none."""

    event: str = Field("", max_length=100, pattern=r"^[^\r\n]*$")
    id: str | None = Field(None, max_length=1024, pattern=r"^[^\r\n\x00]*$")
    retry: int | None = Field(None, ge=0)
    data: Any = ""


class Refused(_Model):
    """A refusal by the target's sidecar. The names are those of ``Refusal``."""

    rule: str = Field(max_length=200)
    text: str = Field(max_length=4096)
    fix: str = Field("", max_length=4096)
    status: int = Field(400, ge=400, le=599)
    code: int
    ran: Literal["no", "unknown", "yes"] = "no"
    retry_after: float = Field(0.0, ge=0, le=86400)
    allow: str = Field("", max_length=100, pattern=r"^[A-Z, ]*$")

    @classmethod
    def of(cls, refusal: Refusal) -> Self:
        """A refusal as it travels."""
        return cls(**{name: getattr(refusal, name) for name in cls.model_fields})

    def refusal(self, shape: Shape, request_id: str | int | None, message_id: str) -> Refusal:
        """And back, for the caller."""
        return Refusal(shape=shape, request_id=request_id, message_id=message_id, **self.model_dump())


class Part(_Model):
    """An object in an answer: exactly one of its members is there, and that it is whole.

    ``json`` holds the whole JSON body; ``alive`` says that the call is being run.
    """

    one: Literal[True] = Field(default=True, alias=WHOLE)

    head: Head | None = None
    whole: list[Any] | None = Field(None, min_length=1, max_length=1, alias="json")
    event: Event | None = None
    refused: Refused | None = None
    alive: bool | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if len(self.model_fields_set - {"one"}) != 1:
            raise ValueError("exactly one member is there")
        return self

    def payload(self) -> dict[str, Any]:
        """As it is written."""
        return self.model_dump(exclude_unset=True, by_alias=True) | {WHOLE: True}

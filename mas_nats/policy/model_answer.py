"""A part of a language model's answer, as an agent's sidecar shows it before its application gets it.

It is a ``prompt`` call whose type says that it is an answer. ``chunks`` are objects, judged as those of a
streamed reply are: texts at the same place of one after the other are one text, unless an object is whole.
"""

from __future__ import annotations

from typing import Annotated, Any

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mas_nats.policy.call import Call

ANSWER = "llm_answer:"
"""Before the operation, in the type of the call."""
ANSWER_RULE = "llm_answer"
"""The rule that allows it."""
OPERATIONS = (
    "chat/completions",
    "responses",
    "messages",
    "embeddings",
    "messages/count_tokens",
    "models",
)
"""What a language model is asked for."""

_TYPES = frozenset(ANSWER + each for each in OPERATIONS)


class ModelAnswer(BaseModel):
    """``asked``: the id of the prompt. ``cursor``: what came with the verdict about the part before."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    asked: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    chunks: tuple[dict[str, Any], ...] = Field(repr=False)
    cursor: str = Field("", repr=False)
    final: bool = False


class BadAnswer(ValueError):
    """The body is none. Its text holds nothing of it."""


def is_answer(call: Call) -> bool:
    """Whether a ``prompt`` call is about an answer."""
    return call.type in _TYPES


def read(body: bytes) -> ModelAnswer:
    """Read a body.

    Raises:
        BadAnswer: it is none.

    """
    try:
        said = orjson.loads(body)
        if not _outlined(said):  # one that is wrong in a hundred thousand places would take seconds
            raise BadAnswer("the body is no part of a language model's answer")
        return ModelAnswer.model_validate_json(orjson.dumps(said))
    except (orjson.JSONDecodeError, orjson.JSONEncodeError, ValidationError):
        raise BadAnswer("the body is no part of a language model's answer") from None


def _outlined(said: object) -> bool:
    if not isinstance(said, dict) or not said.keys() <= ModelAnswer.model_fields.keys():
        return False
    chunks = said.get("chunks")
    return isinstance(chunks, list) and all(isinstance(each, dict) for each in chunks)

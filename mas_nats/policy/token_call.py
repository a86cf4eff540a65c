"""What a sidecar asks of the policy service about tokens: the body of a ``token`` call.

The id of the call (``Nats-Msg-Id``) is that of the message for which the token is; ``selected`` has its own.
"""

from __future__ import annotations

from typing import Annotated, Literal

import orjson
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from mas_nats.policy.applications import TOOL_NAME, Scope
from mas_nats.tokens.claims import MAX_BYTES, Purpose
from mas_nats.wire.identity import require_name

MOST_SELECTED = 128
"""Tools that one answer of a language model may select."""

_Token = Annotated[str, Field(max_length=MAX_BYTES)]
_Target = Annotated[str, AfterValidator(lambda value: require_name(value, "target"))]
_Tool = Annotated[str, Field(pattern=f"^{TOOL_NAME.pattern}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Issue(_Strict):
    """A T1, to call the agent ``target`` with a prompt. ``given``: the T1 that made the caller call, spelled.

    Searched like a message, so that what is bound is what data-loss prevention lets pass: hence the spelling.
    """

    do: Literal["issue"] = "issue"
    target: _Target
    prompt: str | None = Field(None, repr=False)
    given: str = Field("", max_length=2 * MAX_BYTES, repr=False)


class Exchange(_Strict):
    """A T2, or a T3 for ``tool`` of ``target``, in exchange for the T1 ``token``.

    ``scopes``: those that it shall say, where not all that it may.
    """

    do: Literal["exchange"] = "exchange"
    purpose: Literal[Purpose.LLM_ACCESS, Purpose.TOOL_CALL]
    token: _Token = Field("", repr=False)
    target: _Target | None = None
    tool: _Tool | None = None
    scopes: tuple[Scope, ...] = Field((), max_length=64)


class Present(_Strict):
    """A token that was presented; taken once. ``presentation`` is the same where the call is repeated."""

    do: Literal["present"] = "present"
    token: _Token = Field(repr=False)
    presentation: str = Field(min_length=1, max_length=128)


class Selected(_Strict):
    """The language model selected ``tools``, in an answer that was asked for under the T2 ``token``."""

    do: Literal["selected"] = "selected"
    token: _Token = Field(repr=False)
    tools: tuple[_Tool, ...] = Field(max_length=MOST_SELECTED)


class Keys(_Strict):
    """The public keys, as a JSON Web Key Set."""

    do: Literal["keys"] = "keys"


TokenCall = Annotated[Issue | Exchange | Present | Selected | Keys, Field(discriminator="do")]
_ADAPTER: TypeAdapter[Issue | Exchange | Present | Selected | Keys] = TypeAdapter(TokenCall)
_MOST_FIELDS = max(len(each.model_fields) for each in (Issue, Exchange, Present, Selected, Keys))


class BadTokenCall(ValueError):
    """The body is none of these."""


def write(call: Issue | Exchange | Present | Selected | Keys) -> bytes:
    """``call`` as a body. Scopes only where some are asked for: workers that know none take the rest."""
    bare = {"scopes"} if isinstance(call, Exchange) and not call.scopes else None
    return call.model_dump_json(exclude=bare).encode()


def read(body: bytes) -> Issue | Exchange | Present | Selected | Keys:
    """Read a body.

    Raises:
        BadTokenCall: it is none.

    """
    try:
        said = orjson.loads(body)
        # First its outline: a body that is wrong in a hundred thousand places would take seconds.
        if not isinstance(said, dict) or len(said) > _MOST_FIELDS or any(map(_is_long, said.values())):
            raise BadTokenCall("wrong: it has more than any call about tokens")
        return _ADAPTER.validate_json(orjson.dumps(said))
    except (orjson.JSONDecodeError, orjson.JSONEncodeError):
        raise BadTokenCall("wrong: the whole body") from None
    except ValidationError as error:
        places = sorted({".".join(map(str, each["loc"])) for each in error.errors(include_input=False)})
        raise BadTokenCall(f"wrong: {', '.join(places) or 'the whole body'}") from None


def _is_long(value: object) -> bool:
    return isinstance(value, list | dict) and len(value) > MOST_SELECTED

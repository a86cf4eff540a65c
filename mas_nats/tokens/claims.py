"""What a token says. Names are ``namespace/agent`` throughout.

Sources: RFC 7519 (``iss sub aud iat exp jti``), RFC 8693 (``act``, ``client_id``, ``scope``).
``purpose``, ``msg``, ``cause``, ``tools`` and ``prompt_sha256`` are ours.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Any

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mas_nats.policy.applications import SCOPE

LIFETIME = 300
"""Seconds that a token lives."""
TOLERANCE = 5
"""Seconds that the clocks of sidecars and workers may disagree."""
LLM = "llm"
"""The audience of a token for the language model. No application has this name: it has no slash."""
MAX_BYTES = 6000
"""Bytes of a token, at most."""
_MOST_ACTORS = 8


class Purpose(StrEnum):
    """What a token is for: one thing."""

    USER_INPUT = "user_input"  # T1: to call an agent with a user's prompt; what it does then needs it
    LLM_ACCESS = "llm_access"  # T2: to ask the language model once, and to say which tools it selected
    TOOL_CALL = "tool_call"  # T3: to call one tool


class NotClaims(ValueError):
    """It is no token of this system: a claim is missing, is one too many, or has another form."""


@dataclass(frozen=True, slots=True)
class Claims:
    """``holder`` presents it to ``audience``, in the name of ``subject``, with the message ``message``.

    ``actors`` are those who act for the subject, the one who acts now first (RFC 8693, 4.1). ``tools`` by
    server: those that may be exchanged for (T1), or the one that is called (T3). ``cause`` is the message
    that made the holder call. ``prompt`` is the prompt's SHA-256 or "". ``scopes``: those of
    everybody on the way.
    """

    issuer: str
    subject: str
    holder: str
    audience: str
    purpose: Purpose
    message: str
    issued: int
    expires: int
    token_id: str
    cause: str = ""
    actors: tuple[str, ...] = ()
    tools: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    prompt: str = ""
    scopes: tuple[str, ...] = ()

    def encode(self) -> bytes:
        """The claims as JSON; what is empty is left out."""
        act: dict[str, Any] = {}
        for actor in reversed(self.actors):
            act = {"sub": actor, **({"act": act} if act else {})}
        said = {
            "iss": self.issuer,
            "sub": self.subject,
            "aud": self.audience,
            "client_id": self.holder,
            "purpose": self.purpose,
            "msg": self.message,
            "iat": self.issued,
            "exp": self.expires,
            "jti": self.token_id,
            "cause": self.cause,
            "act": act,
            "tools": {server: list(names) for server, names in self.tools.items()},
            "prompt_sha256": self.prompt,
            "scope": " ".join(self.scopes),
        }
        return orjson.dumps({name: value for name, value in said.items() if value or name in _ALWAYS})

    @classmethod
    def decode(cls, raw: bytes) -> Claims:
        """Read what ``encode`` wrote.

        Raises:
            NotClaims: it is something else.

        """
        try:
            said = _Said.model_validate_json(raw)
        except ValidationError:
            raise NotClaims("the claims are not those of a token of this system") from None
        actors: list[str] = []
        act = said.act
        while act is not None:
            actors.append(act.sub)
            act = act.act
        if len(actors) > _MOST_ACTORS:
            raise NotClaims(f"more than {_MOST_ACTORS} act one for another")
        return cls(
            said.iss,
            said.sub,
            said.client_id,
            said.aud,
            said.purpose,
            said.msg,
            said.iat,
            said.exp,
            said.jti,
            said.cause,
            tuple(actors),
            {server: tuple(names) for server, names in said.tools.items()},
            said.prompt_sha256,
            tuple(said.scope.split(" ")) if said.scope else (),
        )

    @property
    def acting(self) -> tuple[str, ...]:
        """The actors of a token that ``audience`` gets in exchange for this one."""
        return (self.audience, *self.actors)


_ALWAYS = frozenset({"iss", "sub", "aud", "client_id", "purpose", "msg", "iat", "exp", "jti"})
_Text = Annotated[str, Field(min_length=1, max_length=200)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Act(_Strict):
    sub: _Text
    act: _Act | None = None


class _Said(_Strict):
    iss: _Text
    sub: _Text
    aud: _Text
    client_id: _Text
    purpose: Purpose
    msg: _Text
    iat: int = Field(strict=True)
    exp: int = Field(strict=True)
    jti: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    cause: str = Field("", max_length=200)
    act: _Act | None = None
    tools: dict[str, list[str]] = Field(default_factory=dict)
    prompt_sha256: str = Field("", pattern=r"^([0-9a-f]{64})?$")
    scope: str = Field("", pattern=rf"^({SCOPE.pattern}( {SCOPE.pattern})*)?$")


def digest(token: str) -> str:
    """How a token is named where others read it: its SHA-256, in hexadecimal."""
    return hashlib.sha256(token.encode()).hexdigest()


def prompt_digest(prompt: str) -> str:
    """What binds a prompt."""
    return hashlib.sha256(prompt.encode(errors="surrogatepass")).hexdigest()

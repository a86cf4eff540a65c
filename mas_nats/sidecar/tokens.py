"""Tokens for calls: obtained from the policy service where they leave, checked where they come (ADR 33).

A call of an agent with a user's input carries a T1, a call of a tool a T3; what else is said between
applications carries none. Who receives a T1 keeps it for as long as it lives: what the application does
because of that request is exchanged for it.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mas_nats.errors import MasError, error_of
from mas_nats.message import AgentMessage
from mas_nats.policy import token_call
from mas_nats.policy.applications import TOOL_NAME
from mas_nats.policy.token_call import MOST_SELECTED, Exchange, Issue, Keys, Present, Selected
from mas_nats.sidecar.application import Application, Settings
from mas_nats.sidecar.authority import Leaving
from mas_nats.sidecar.call import Call, Protocol
from mas_nats.sidecar.prompt import prompt_of
from mas_nats.sidecar.refusal import REFUSED, Refusal
from mas_nats.sidecar.told import told
from mas_nats.tokens import jwt
from mas_nats.tokens.claims import LLM, TOLERANCE, Claims, Purpose, prompt_digest
from mas_nats.tokens.jwt import InvalidToken, PublicKeys, UnknownKey
from mas_nats.tokens.spelling import spelled, unspelled
from mas_nats.wire.correlation import new_message_id
from mas_nats.wire.verdict import Verdict

logger = logging.getLogger("mas_nats")

Ask = Callable[[bytes, str], Awaitable[Verdict]]
"""Makes a ``token`` call with a body and an id; the verdict."""

_MOST_HELD = 10_000
"""T1s that are kept: each lives five minutes."""
_AGAIN = 1.0
"""Seconds between two looks at the key set, where a token names a key that is not in it."""


@dataclass(frozen=True, slots=True)
class _Held:
    token: str
    expires: int


def purpose_of(call: Call) -> Purpose | None:
    """What a token of this call has to be for; None where it carries none."""
    if call.protocol is Protocol.MCP:
        return Purpose.TOOL_CALL if call.operation == "tools/call" else None
    return Purpose.USER_INPUT if call.causes else None


class TokenAuthority:
    """An ``Authority`` with the policy service behind it. ``namespace`` is known once the agent has started.

    ``now`` gives unix time in seconds.
    """

    def __init__(
        self, settings: Settings, ask: Ask, *, namespace: Callable[[], str], now: Callable[[], float]
    ) -> None:
        self._settings = settings
        self._ask = ask
        self._namespace = namespace
        self._now = now
        self._held: dict[str, _Held] = {}  # T1 by the id of the message that brought it, oldest first
        self._asking: dict[str, str] = {}  # T2 by the same: the language model was asked
        self._keys: PublicKeys = {}
        self._looked = 0.0

    # -- leaving -----------------------------------------------------------------------------------
    async def authorize(self, leaving: Leaving) -> str:
        """The token of a call, as it travels; "" for a call that carries none.

        Raises:
            Refusal: policy gives none.

        """
        purpose = purpose_of(leaving.call)
        if purpose is None:
            return ""
        held = self._token(leaving.cause)
        if purpose is Purpose.USER_INPUT:
            path = _application(self._settings, leaving.target).prompt
            body: Issue | Exchange = Issue(
                target=leaving.target,
                prompt=prompt_of(leaving.call, path),
                given=spelled(held) if held else "",
            )
        else:
            body = Exchange(purpose=purpose, token=held, target=leaving.target, tool=leaving.call.name)
        return spelled(await self._given(body, leaving.message_id))

    async def may_ask(self, cause: str) -> None:
        """Get a T2: the application wants to ask the language model because of the message ``cause``.

        Raises:
            Refusal: it may not.

        """
        body = Exchange(purpose=Purpose.LLM_ACCESS, token=self._token(cause))
        self._asking[cause] = await self._given(body, new_message_id())

    async def selected(self, cause: str, tools: Sequence[str]) -> None:
        """Report which tools the language model selected for the message ``cause``: its T2 is used up.

        Where ``may_ask`` was not called before, it is now. Names that no tool can have are passed over.

        Raises:
            Refusal: it is not taken; the tools stay unselected.

        """
        named = tuple(dict.fromkeys(name for name in tools if TOOL_NAME.fullmatch(name)))
        if len(named) < len(set(tools)) or len(named) > MOST_SELECTED:
            logger.warning(
                "request %s: %d selected names are passed over",
                cause,
                len(set(tools)) - len(named[:MOST_SELECTED]),
            )
        if cause not in self._asking:
            await self.may_ask(cause)
        token = self._asking.pop(cause)
        await self._verdict(Selected(token=token, tools=named[:MOST_SELECTED]), new_message_id())

    async def exchange(
        self, token: str, audience: str, tool: str, scopes: Sequence[str] = ()
    ) -> tuple[str, Claims, int]:
        """What the application gets in exchange for a T1: a token, its claims, and the seconds that it lives.

        ``audience`` is a server of ``tool``, or ``llm``. ``scopes``: those that are asked for, where not all.
        The token is bound to a message that nobody sends.

        Raises:
            Refusal: it gets none.

        """
        body = (
            Exchange(purpose=Purpose.LLM_ACCESS, token=token)
            if audience == LLM
            else Exchange(
                purpose=Purpose.TOOL_CALL, token=token, target=audience, tool=tool, scopes=tuple(scopes)
            )
        )
        given = await self._given(body, new_message_id())
        try:
            claims = await self._read(given)
        except InvalidToken as error:
            raise _refused(error.rule, str(error)) from None
        return given, claims, max(0, int(claims.expires - self._now()))

    # -- coming ------------------------------------------------------------------------------------
    async def accept(self, call: Call, message: AgentMessage, authorization: str) -> str:
        """Look at the token of a call; what the application gets as ``Authorization``.

        Raises:
            Refusal: it is not the token of this call.

        """
        purpose = purpose_of(call)
        if purpose is None:
            if authorization:
                raise _refused("unexpected", f"a call of {call.operation} carries no token")
            return ""
        if not authorization:
            raise _refused("missing", f"a call of {call.operation} needs a token", "Call through a sidecar")
        try:
            token = unspelled(authorization)
            claims = await self._read(token)
        except UnicodeDecodeError:
            raise _refused("malformed", "it is no token") from None
        except InvalidToken as error:
            raise _refused(error.rule, str(error)) from None
        except ValueError:
            raise _refused("malformed", "it is no token") from None
        self._require_of(claims, purpose, call, message)
        presentation = new_message_id()
        if call.operation in self._settings.own.idempotent:  # then a message may be handled twice
            presentation = message.message_id
        await self._verdict(Present(token=token, presentation=presentation), message.message_id)
        if purpose is Purpose.USER_INPUT:
            self._keep(message.message_id, token, claims.expires)
        return f"Bearer {token}"

    def _require_of(self, claims: Claims, purpose: Purpose, call: Call, message: AgentMessage) -> None:
        """Refuse a token that is not of this call of this sender."""
        if claims.purpose is not purpose:
            raise _refused("purpose", f"it is for {claims.purpose}, and this call needs one for {purpose}")
        if claims.audience != self._full(self._settings.app):
            raise _refused("audience", "it is for another application")
        if claims.holder != self._full(message.sender):
            raise _refused("holder", "it was given to another application than the one that sent the call")
        if claims.message != message.message_id:
            raise _refused("replayed", "it was given for another message than the one that carries it")
        if claims.cause != message.data.get("cause", ""):
            raise _refused("cause", "it was given because of another request than the call says")
        if purpose is Purpose.TOOL_CALL and claims.tools != {claims.audience: (call.name,)}:
            raise _refused("tool", "it is for another tool than the one that is called")
        needed = self._settings.own.scopes
        if needed and needed.isdisjoint(claims.scopes):
            raise _refused("scope", f"it has none of the scopes {' '.join(sorted(needed))}")
        prompt = prompt_of(call, self._settings.own.prompt) if purpose is Purpose.USER_INPUT else None
        if prompt is not None and claims.prompt != prompt_digest(prompt):
            raise _refused("prompt", "it was given for another prompt than the one in the call")

    async def _read(self, token: str) -> Claims:
        try:
            return jwt.read(token, self._keys, now=self._now())
        except UnknownKey:
            if self._now() - self._looked < _AGAIN:
                raise
        await self.key_set()
        return jwt.read(token, self._keys, now=self._now())

    async def key_set(self) -> dict[str, Any]:
        """The public keys, asked for anew, as a JSON Web Key Set.

        Raises:
            Refusal: nobody says them.

        """
        self._looked = self._now()
        document = (await self._verdict(Keys(), new_message_id())).result.get("jwks")
        self._keys = jwt.keys_of(document)
        return dict(document or {})

    # -- keeping -----------------------------------------------------------------------------------
    def _keep(self, message_id: str, token: str, expires: int) -> None:
        now = self._now()
        for late in [each for each, held in self._held.items() if held.expires + TOLERANCE < now]:
            del self._held[late]
            self._asking.pop(late, None)
        while len(self._held) >= _MOST_HELD:
            self._held.pop(next(iter(self._held)))
        self._held[message_id] = _Held(token, expires)

    def _token(self, cause: str) -> str:
        held = self._held.get(cause)
        return "" if held is None else held.token

    # -- asking ------------------------------------------------------------------------------------
    async def _given(self, body: Issue | Exchange, message_id: str) -> str:
        verdict = await self._verdict(body, message_id)
        return str(verdict.result["token"])

    async def _verdict(self, body: Issue | Exchange | Present | Selected | Keys, message_id: str) -> Verdict:
        try:
            verdict = await self._ask(token_call.write(body), message_id)
            if not verdict.ok:
                raise error_of(verdict)
        except MasError as error:
            raise told(error, message_id).unrun() from None
        return verdict

    def _full(self, name: str) -> str:
        return name if "/" in name else f"{self._namespace()}/{name}"


def _application(settings: Settings, name: str) -> Application:
    found = settings.known(name)
    assert found is not None, "decided before"  # noqa: S101
    return found


def _refused(rule: str, text: str, fix: str = "") -> Refusal:
    return Refusal(f"token_{rule}", f"the token is not taken: {text}", fix, status=403, code=REFUSED)

"""Token calls: sidecars ask for tokens, exchange them, present them, and say what was selected (ADR 33).

Who asks is known by the call's subject; a token is of use only to the one it was given to, and to the one it
is for. Every one that is given, used or refused is a decision in the audit, which names it by its SHA-256.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from broker_policy.audit.record import Outcome, Way
from broker_policy.calls.acting import Acting
from broker_policy.calls.asides import Asides
from broker_policy.calls.deciding import Deciding
from broker_policy.pipeline import Call, Refusal
from broker_policy.tokens.checks import ToolDecision, ToolFacts, judge
from broker_policy.tokens.keys import NoKey, TokenKeys
from broker_policy.tokens.marks import Marks
from broker_policy.tokens.scopes import NoScope, granted
from broker_policy.tokens.shares import NoRoom
from mas_nats.policy import refusals, token_call
from mas_nats.policy.applications import ApplicationType, ToolCheck
from mas_nats.policy.shape import well_formed
from mas_nats.policy.table import Table
from mas_nats.policy.token_call import BadTokenCall, Exchange, Issue, Keys, Present, Selected
from mas_nats.tokens.claims import LIFETIME, LLM, MAX_BYTES, Claims, Purpose, digest, prompt_digest
from mas_nats.tokens.jwt import InvalidToken
from mas_nats.tokens.spelling import unspelled
from mas_nats.wire.identity import agent_of, namespace_of
from mas_nats.wire.verdict import Decision, Verdict, accepted

STEP = "token"


class _No(Exception):
    """What is refused."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.rule)
        self.refusal = refusal


@dataclass(frozen=True, slots=True)
class _Asked:
    """A call with what it is judged by."""

    call: Call
    table: Table
    me: str  # the caller's full name

    @property
    def type(self) -> ApplicationType | None:
        return self.table.document.tokens.type_of(self.call.sender)

    @property
    def unchecked(self) -> bool:
        """Whether the manifest says that nothing is checked."""
        return _unchecked(self.table)


class TokenCalls:
    """Takes the ``token`` calls of one namespace."""

    def __init__(
        self, keys: TokenKeys, marks: Marks, deciding: Deciding, acting: Acting, asides: Asides
    ) -> None:
        self._keys = keys
        self._marks = marks
        self._deciding = deciding
        self._acting = acting
        self._asides = asides

    def take(self, call: Call) -> None:
        """Decide about a call."""
        call.target, call.type = call.sender, "token"
        table = self._deciding.table(call)
        refusal = table if isinstance(table, Refusal) else well_formed(call)
        if refusal is not None or isinstance(table, Refusal):
            self._acting.refuse(call, refusal or refusals.unavailable())
            return
        try:
            wanted = token_call.read(call.body)
        except BadTokenCall as error:
            self._acting.refuse(call, refusals.invalid("token", str(error)))
            return
        asked = _Asked(call, table, f"{self._deciding.namespace}/{call.sender}")
        if isinstance(wanted, Issue):  # a prompt may be longer than what is answered aside
            self._issue(asked, wanted)
            return
        self._asides.take(call, lambda _: self._answer(asked, wanted))

    async def _answer(self, asked: _Asked, wanted: Exchange | Present | Selected | Keys) -> Verdict:
        try:
            match wanted:
                case Keys():
                    return accepted(asked.call.message_id, jwks=self._jwks())
                case Exchange():
                    return await self._exchange(asked, wanted)
                case Present():
                    return await self._present(asked, wanted)
                case Selected():
                    return await self._selected(asked, wanted)
        except _No as no:
            return await self._acting.refused(asked.call, no.refusal)
        except NoRoom as full:
            return await self._acting.refused(asked.call, _too_many(full))

    # -- T1 ----------------------------------------------------------------------------------------
    def _issue(self, asked: _Asked, wanted: Issue) -> None:
        call = asked.call
        call.target, call.type = wanted.target, f"issue:{Purpose.USER_INPUT}"
        try:
            self._give(asked, self._issued(asked, self._inspected(asked)), Purpose.USER_INPUT)
        except _No as no:
            self._acting.refuse(call, no.refusal)

    def _inspected(self, asked: _Asked) -> Issue:
        """The call as data-loss prevention lets it pass: what it redacts in a prompt it redacts in both."""
        if (refusal := self._deciding.inspected(asked.call, asked.table)) is not None:
            raise _No(refusal)
        try:
            cleaned = token_call.read(asked.call.body)
        except BadTokenCall as error:
            raise _No(refusals.invalid("token", str(error))) from None
        if not isinstance(cleaned, Issue):
            raise _No(refusals.invalid("token", "what is left of the call is another one"))
        return cleaned

    def _issued(self, asked: _Asked, wanted: Issue) -> Claims:
        call = asked.call
        there, agent = self._side(asked, wanted.target)
        input_ = self._input(asked, _unspelled(wanted.given))
        lax = asked.unchecked and _unchecked(there)  # both namespaces have their say
        if not lax and not self._of_a_user(asked, input_):
            raise _no(
                "no_input",
                f"{call.sender} is no client, so what it says is no user's input",
                "An agent calls others while it works on a user's request, and within five minutes",
            )
        tokens = there.document.tokens
        if tokens.type_of(agent) is not ApplicationType.AGENT:
            raise _no("target_type", f"{wanted.target} is no application of type agent")
        allowed = {
            f"{there.namespace}/{server}": tuple(sorted(tokens.tools_of(server)))
            for server in sorted(tokens.applications)
            if tokens.tools_of(server) and there.allows(agent, server)
        }
        prompt = wanted.prompt
        return self._claims(
            asked,
            Purpose.USER_INPUT,
            audience=f"{there.namespace}/{agent}",
            given=input_,
            tools=allowed,
            prompt="" if prompt is None else prompt_digest(prompt),
            scopes=self._scopes(asked, there, agent, input_),
        )

    # -- T2, T3 ------------------------------------------------------------------------------------
    async def _exchange(self, asked: _Asked, wanted: Exchange) -> Verdict:
        call = asked.call
        call.type = f"exchange:{wanted.purpose}" + (f":{wanted.tool}" if wanted.tool else "")
        call.target = wanted.target or call.sender
        if wanted.purpose is Purpose.LLM_ACCESS:
            input_ = self._input(asked, wanted.token)
            if asked.type is not ApplicationType.AGENT:
                raise _no("application_type", f"{call.sender} is no application of type agent")
            if input_ is None and not asked.unchecked:
                raise _no("no_input", "no user's input is known that made the application ask the model")
            self._marks.require_room(asked.me)  # before the model is asked: else its answer would be lost
            claims = self._claims(asked, Purpose.LLM_ACCESS, audience=LLM, given=input_)
            return await self._given(asked, claims, wanted.purpose)
        if wanted.target is None or wanted.tool is None:
            raise _No(refusals.invalid("token", "a token for a tool names its server and the tool"))
        there, server = self._side(asked, wanted.target)
        if asked.type not in (ApplicationType.AGENT, ApplicationType.CLIENT):
            raise _no("application_type", f"{call.sender} is no application that calls tools")
        input_ = self._input(asked, wanted.token)
        full = f"{there.namespace}/{server}"
        facts = await self._facts(asked, there, server, wanted.tool, input_)
        judgement = judge(asked.table.document.tokens.checks, facts)
        if judgement.decision is ToolDecision.ALLOW and there is not asked.table:
            judgement = judge(there.document.tokens.checks, facts)  # both namespaces have their say
        if judgement.decision is not ToolDecision.ALLOW:
            refusal = Refusal(
                Decision.AUTHZ_DENIED, "tool_check", judgement.rule, judgement.reason, judgement.fix
            )
            raise _No(refusal)
        scopes = self._scopes(asked, there, server, input_, wanted.scopes)
        claims = self._claims(
            asked,
            Purpose.TOOL_CALL,
            audience=full,
            given=input_,
            tools={full: (wanted.tool,)},
            scopes=scopes,
        )
        return await self._given(asked, claims, judgement.rule)

    async def _facts(
        self, asked: _Asked, there: Table, server: str, tool: str, input_: Claims | None
    ) -> ToolFacts:
        registered = tool in there.document.tokens.tools_of(server)
        by_user = asked.type is ApplicationType.CLIENT
        full = f"{there.namespace}/{server}"
        answered = selected = False
        checks = {*(asked.table.document.tokens.checks or ()), *(there.document.tokens.checks or ())}
        if input_ is not None and not by_user and ToolCheck.LLM_SELECTED in checks:
            cause = input_.message
            answered = await self._marks.has_answered(asked.call.sender, cause)
            selected = answered and await self._marks.has_selected(asked.call.sender, cause, tool)
        return ToolFacts(
            server=full,
            registered=registered,
            by_user=by_user,
            input_known=by_user or input_ is not None,
            allowed=registered if input_ is None else tool in input_.tools.get(full, ()),
            answered=answered,
            selected=selected,
        )

    def _scopes(
        self, asked: _Asked, there: Table, target: str, input_: Claims | None, wanted: Sequence[str] = ()
    ) -> tuple[str, ...]:
        """What a token for ``target`` says: a user's input gives nobody more than whoever sent it has."""
        registered = [asked.table.document.tokens.scopes_of(asked.call.sender)]
        if there is not asked.table:
            registered.append(there.document.tokens.source_scopes(target, asked.me))
        if input_ is not None:
            registered.append(frozenset(input_.scopes))
        try:
            return granted(there.document.tokens.scopes_of(target), registered, wanted)
        except NoScope as error:
            fix = "Register the scope in the manifest: for the target, and for everybody who calls on the way"
            raise _no("scope", f"{asked.call.target}: {error}", fix) from None

    # -- where they are used -----------------------------------------------------------------------
    async def _present(self, asked: _Asked, wanted: Present) -> Verdict:
        call, claims = asked.call, self._read(wanted.token)
        tools = [tool for names in claims.tools.values() for tool in names]
        call.type = f"present:{claims.purpose}"
        if claims.purpose is Purpose.TOOL_CALL and tools:
            call.type += f":{tools[0]}"
        if claims.purpose is Purpose.LLM_ACCESS:
            raise _no("purpose", "a token for the language model is presented with what it selected")
        if claims.audience != asked.me:
            raise _no("audience", "the token is for another application")
        if claims.message != call.message_id:
            raise _no("message", "the token was given for another message")
        needed = asked.table.document.tokens.scopes_of(call.sender)
        if needed and needed.isdisjoint(claims.scopes):  # policy may have changed since it was given
            raise _no("scope", f"the token has none of the scopes {' '.join(sorted(needed))}")
        if not await self._marks.use(claims.token_id, wanted.presentation, claims.holder):
            raise _no("used", "the token was used before")
        return await self._settled(asked, wanted.token, str(claims.purpose))

    async def _selected(self, asked: _Asked, wanted: Selected) -> Verdict:
        call, claims = asked.call, self._read(wanted.token)
        call.type = "selected"
        if claims.purpose is not Purpose.LLM_ACCESS or claims.audience != LLM:
            raise _no("purpose", f"the token is for {claims.purpose}, not for the language model")
        if claims.holder != asked.me:
            raise _no("holder", "the token was given to another application")
        if not await self._marks.use(claims.token_id, call.message_id, asked.me):
            raise _no("used", "the token was used before")
        registered = self._registered()
        tools = tuple(tool for tool in wanted.tools if tool in registered)
        await self._marks.answered(call.sender, claims.cause, tools, asked.me)
        others = len(wanted.tools) - len(tools)
        call.type = "selected:" + ",".join((*tools, *([f"+{others}"] if others else ())))
        call.message_id = claims.cause or call.message_id  # what the audit is asked for
        return await self._settled(asked, wanted.token, "llm_selected")

    # -- giving ------------------------------------------------------------------------------------
    def _claims(
        self,
        asked: _Asked,
        purpose: Purpose,
        *,
        audience: str,
        given: Claims | None,
        tools: Mapping[str, tuple[str, ...]] | None = None,
        prompt: str = "",
        scopes: tuple[str, ...] = (),
    ) -> Claims:
        now = self._deciding.clock() // 1000
        expires = now + LIFETIME
        # What is given because of a user's input ends with it. Only a T2 may end later: what a slow answer
        # selected is recorded with it, else the answer is lost; it is exchanged for nothing.
        if given is not None and purpose is not Purpose.LLM_ACCESS:
            expires = min(expires, given.expires)
        return Claims(
            issuer=f"mas/{self._deciding.namespace}",
            subject=asked.me if given is None else given.subject,
            holder=asked.me,
            audience=audience,
            purpose=purpose,
            message=asked.call.message_id,
            issued=now,
            expires=expires,
            token_id=secrets.token_hex(16),
            cause="" if given is None else given.message,
            actors=() if given is None else given.acting,
            tools=tools or {},
            prompt=prompt,
            scopes=scopes,
        )

    def _give(self, asked: _Asked, claims: Claims, rule: str) -> None:
        """Record that a token is given, then give it."""
        token = self._sign(claims)
        line = self._deciding.allowed(asked.call, rule, Way.ACT, digest(token))

        async def hand_over(_: str) -> tuple[Verdict, Outcome]:
            return accepted(asked.call.message_id, token=token), Outcome.APPLIED

        self._acting.perform(asked.call, line, hand_over)

    async def _given(self, asked: _Asked, claims: Claims, rule: str) -> Verdict:
        recorded = asked.call.awaited()
        self._give(asked, claims, rule)
        try:
            return await recorded
        finally:
            asked.call.on_verdict = None

    async def _settled(self, asked: _Asked, token: str, rule: str) -> Verdict:
        """Record what was done with ``token``."""
        line = self._deciding.allowed(asked.call, rule, Way.ACT, digest(token))

        async def said(_: str) -> tuple[Verdict, Outcome]:
            return accepted(asked.call.message_id), Outcome.APPLIED

        recorded = asked.call.awaited()
        self._acting.perform(asked.call, line, said)
        try:
            return await recorded
        finally:
            asked.call.on_verdict = None

    def _sign(self, claims: Claims) -> str:
        try:
            token = self._keys.sign(claims)
        except NoKey:
            raise _No(_no_key()) from None
        if len(token) > MAX_BYTES:
            raise _no(
                "size",
                f"the token would have {len(token)} bytes: {claims.audience} may call too many tools",
                "Let policy allow it fewer MCP servers, or split the agent",
            )
        return token

    def _jwks(self) -> Mapping[str, object]:
        try:
            return self._keys.jwks()
        except NoKey:
            raise _No(_no_key()) from None

    def _read(self, token: str) -> Claims:
        try:
            return self._keys.read(token)
        except InvalidToken as error:
            raise _no(error.rule, f"the token is not taken: {error}") from None
        except NoKey:
            raise _No(_no_key()) from None

    def _input(self, asked: _Asked, token: str) -> Claims | None:
        """The T1 under which the caller works; None where it says none."""
        if not token:
            return None
        claims = self._read(token)
        if claims.purpose is not Purpose.USER_INPUT:
            raise _no("purpose", f"a token for {claims.purpose} is not exchanged for another")
        if claims.audience != asked.me:
            raise _no("audience", "the token is for another application than the one that exchanges it")
        return claims

    def _of_a_user(self, asked: _Asked, input_: Claims | None) -> bool:
        """Whether what ``asked`` gives on, or says itself, comes from a user's own application.

        An agent's token may begin with an agent, where its namespace checks nothing.
        """
        if input_ is None or asked.type is ApplicationType.CLIENT:
            return asked.type is ApplicationType.CLIENT
        home = self._deciding.follower.table(namespace_of(input_.subject))
        subject = agent_of(input_.subject)
        return home is not None and home.document.tokens.type_of(subject) is ApplicationType.CLIENT

    def _registered(self) -> frozenset[str]:
        """The names of all tools there are: nobody fills the bucket, or the audit, with others."""
        policies = [table.document.tokens for table in self._deciding.follower.tables()]
        return frozenset(
            tool for each in policies for name in each.applications for tool in each.tools_of(name)
        )

    def _side(self, asked: _Asked, target: str) -> tuple[Table, str]:
        """The policy of the target's namespace, and its name there; where the caller may reach it."""
        call, agent, namespace = asked.call, agent_of(target), namespace_of(target)
        if not asked.table.allows(call.sender, target):
            denial = asked.table.denial(call.sender, target)
            raise _No(Refusal(Decision.AUTHZ_DENIED, "authorize", denial.rule, denial.reason, denial.fix))
        if not namespace:
            return asked.table, agent
        there = self._deciding.follower.table(namespace)
        if there is None or not there.accepts(asked.me, agent):
            raise _No(refusals.not_accepted(asked.me, target))
        return there, agent


def _unchecked(table: Table) -> bool:
    return table.document.tokens.checks == ()


def _unspelled(given: str) -> str:
    try:
        return unspelled(given) if given else ""
    except ValueError:
        raise _no("malformed", "the token is not taken: it is no token") from None


def _no(rule: str, reason: str, fix: str = "Call through the application's sidecar") -> _No:
    return _No(Refusal(Decision.AUTHZ_DENIED, STEP, f"token:{rule}", reason, fix))


def _too_many(full: NoRoom) -> Refusal:
    return Refusal(
        Decision.RATE_LIMITED,
        STEP,
        "token:marks",
        "whoever got the token has used, in five minutes, as many as one agent may",
        f"Retry in {full.wait:.3g} s, with fewer calls of tools and of language models",
        retry=True,
        retry_after=full.wait,
    )


def _no_key() -> Refusal:
    return Refusal(
        Decision.UNAVAILABLE,
        STEP,
        "no_key",
        "this worker has no key to sign tokens with",
        "Start the broker with mas up once, which makes it; on other machines copy keys/worker there",
    )

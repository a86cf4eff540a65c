"""Tokens: what is read, what is not; the decision function; the place of the prompt."""

from __future__ import annotations

import itertools
from dataclasses import replace

import orjson
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from broker_policy import dlp
from broker_policy.tenants.sealing_ring import Retired, SealingKey, SealingRing
from broker_policy.tokens.checks import ToolDecision, ToolFacts, judge
from broker_policy.tokens.keys import BELIEVED_MS, NoKey, TokenKeys
from broker_policy.tokens.scopes import NoScope, granted
from mas_nats.policy import token_call
from mas_nats.policy.applications import ToolCheck
from mas_nats.policy.governance import Dlp
from mas_nats.policy.token_call import Exchange
from mas_nats.sidecar.call import Call, Protocol
from mas_nats.sidecar.prompt import prompt_of
from mas_nats.sidecar.refusal import Refusal, Shape
from mas_nats.tokens import jwt
from mas_nats.tokens.claims import Claims, Purpose
from mas_nats.tokens.spelling import spelled, unspelled

KEY = Ed25519PrivateKey.generate()
KEYS = {"0badcafe": KEY.public_key()}
AT = 1_800_000_000
CLAIMS = Claims(
    issuer="mas/a",
    subject="a/shop",
    holder="a/echo",
    audience="a/bank",
    purpose=Purpose.TOOL_CALL,
    message="m" * 32,
    issued=AT,
    expires=AT + 300,
    token_id="0" * 32,
    cause="c",
    actors=("a/echo", "a/before"),
    tools={"a/bank": ("pay",)},
    scopes=("accounts:read", "pay"),
)
TOKEN = jwt.sign(CLAIMS, "0badcafe", KEY)


def test_what_is_signed_is_read():
    assert jwt.read(TOKEN, KEYS, now=AT) == CLAIMS
    assert orjson.loads(CLAIMS.encode())["act"] == {"sub": "a/echo", "act": {"sub": "a/before"}}
    assert orjson.loads(CLAIMS.encode())["scope"] == "accounts:read pay"
    assert "scope" not in orjson.loads(replace(CLAIMS, scopes=()).encode())
    assert jwt.read(TOKEN, jwt.keys_of(orjson.loads(orjson.dumps(jwt.jwks(KEYS)))), now=AT + 304) == CLAIMS


def test_no_byte_of_it_can_be_another():
    """Every character that is changed makes it another token, which nobody signed: it has one spelling."""
    for place, old in enumerate(TOKEN):
        changed = TOKEN[:place] + ("A" if old != "A" else "B") + TOKEN[place + 1 :]
        with pytest.raises(jwt.InvalidToken):
            jwt.read(changed, KEYS, now=AT)
    for changed in (f"{TOKEN}=", f" {TOKEN}", f"{TOKEN}\n", TOKEN.replace(".", "..", 1), TOKEN[:-1], ""):
        with pytest.raises(jwt.InvalidToken):
            jwt.read(changed, KEYS, now=AT)


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"issued": AT - 306, "expires": AT - 6}, "expired"),
        ({"issued": AT + 6}, "not_yet"),
        ({"expires": AT + 301}, "not_yet"),
        ({"token_id": "z" * 32}, "claims"),
        ({"subject": ""}, "claims"),
        ({"prompt": "no digest"}, "claims"),
        ({"actors": ("a/b",) * 9}, "claims"),
        ({"scopes": ("a", "", "b")}, "claims"),
        ({"scopes": ('a"b',)}, "claims"),
    ],
)
def test_claims_that_are_not_taken(changes, rule):
    token = jwt.sign(replace(CLAIMS, **changes), "0badcafe", KEY)
    with pytest.raises(jwt.InvalidToken) as refused:
        jwt.read(token, KEYS, now=AT)
    assert refused.value.rule == rule
    assert token not in str(refused.value)


def test_a_claim_too_many():
    class Wider(Claims):
        def encode(self) -> bytes:
            return orjson.dumps({**orjson.loads(super().encode()), "admin": True})

    fields = {name: getattr(CLAIMS, name) for name in Claims.__slots__}
    with pytest.raises(jwt.InvalidToken, match="claims"):
        jwt.read(jwt.sign(Wider(**fields), "0badcafe", KEY), KEYS, now=AT)


@given(st.text(alphabet=st.characters(codec="ascii"), min_size=1))
def test_spelling(text):
    assert unspelled(spelled(text)) == text
    assert set(spelled(text)) <= set("abcdefghijklmnop")


def test_data_loss_prevention_lets_a_spelled_token_pass():
    rules = dlp.ruleset(Dlp())
    for number in range(200):
        token = jwt.sign(replace(CLAIMS, message=f"{number:032x}"), "0badcafe", KEY)
        assert (
            dlp.judge(rules, orjson.dumps({"authorization": spelled(token), "given": spelled(token)})) is None
        )
    assert dlp.judge(rules, orjson.dumps({"authorization": token})) is not None  # the control


def test_what_is_no_spelling():
    for text in ("", "a", "abc", "aq", "AA", TOKEN):
        with pytest.raises(ValueError, match="spelled"):
            unspelled(text)


def test_a_retired_key_is_believed_as_long_as_what_it_signed_lives():
    old, new, following = SealingKey.create(), SealingKey.create(), SealingKey.create()
    at = 1000 * AT
    token = TokenKeys(lambda: SealingRing(old), lambda: at).sign(replace(CLAIMS, issued=AT))
    turned = SealingRing(new, following, (Retired(old, at),))
    assert TokenKeys(lambda: turned, lambda: at + 300_000).read(token).subject == CLAIMS.subject
    assert {key["kid"] for key in TokenKeys(lambda: turned, lambda: at).jwks()["keys"]} == {
        each.key_id for each in (old, new, following)
    }
    late = TokenKeys(lambda: turned, lambda: at + BELIEVED_MS + 1)
    with pytest.raises(jwt.UnknownKey):
        late.read(token)
    with pytest.raises(NoKey):
        TokenKeys(lambda: None, lambda: at).sign(CLAIMS)


# -- the decision function ---------------------------------------------------------------------------------
BOTH = (ToolCheck.TOOL_SELECTED, ToolCheck.LLM_SELECTED)
NAMES = ("registered", "by_user", "input_known", "allowed", "answered", "selected")


def test_every_case():
    """All 64 facts: allowed is what both checks say yes to, and a no goes before what is not known."""
    for values in itertools.product((False, True), repeat=len(NAMES)):
        facts = ToolFacts("a/bank", **dict(zip(NAMES, values, strict=True)))
        judgement = judge(BOTH, facts)
        tool = facts.registered and facts.input_known and facts.allowed
        model = facts.by_user or facts.selected
        assert (judgement.decision is ToolDecision.ALLOW) is (tool and model), facts
        blocked = not facts.registered or (facts.input_known and not facts.allowed)
        blocked = blocked or (not model and facts.answered)
        assert (judgement.decision is ToolDecision.BLOCK) is blocked, facts
        assert judgement.decision is ToolDecision.ALLOW or (judgement.reason and judgement.fix)
        assert judge((), facts).rule == "ALLOW:unchecked"
        assert judge(None, facts).rule == "BLOCK:unset"


# -- the prompt --------------------------------------------------------------------------------------------
MESSAGE = {"message": {"parts": [{"text": "pay"}, {"data": {"b": 1, "a": 2}}]}}


def test_a_message_has_other_names_in_one_binding():
    said = {"content": [{"text": "pay"}], "parts": [{"text": "not this"}]}
    for name in ("message", "request"):
        call = Call(Protocol.A2A, "0.3", "SendMessage", Shape.A2A_REST, document={name: said})
        assert prompt_of(call, "{.params.message.parts[0].text}") == "pay"
    both = Call(
        Protocol.A2A, "0.3", "SendMessage", Shape.A2A_REST, document={"message": said, "request": said}
    )
    with pytest.raises(Refusal, match="prompt"):  # two programs might read two prompts
        prompt_of(both, "{.message.parts[0].text}")


@pytest.mark.parametrize(
    ("path", "prompt"),
    [
        ("", None),
        ("{.message.parts[0].text}", "pay"),
        ("{.params.message.parts[0].text}", "pay"),
        ("{.message.parts[-1].data}", '{"a":2,"b":1}'),
    ],
)
def test_the_prompt_is_at_its_place_in_either_binding(path, prompt):
    rest = Call(Protocol.A2A, "1.0", "SendMessage", Shape.A2A_REST, document=MESSAGE)
    assert prompt_of(rest, path) == prompt
    wrapped = {"jsonrpc": "2.0", "params": MESSAGE}
    assert (
        prompt_of(Call(Protocol.A2A, "1.0", "SendMessage", Shape.A2A_RPC, document=wrapped), path) == prompt
    )


@pytest.mark.parametrize(
    "path", ["{.prompt}", "{.message.parts[2].text}", "{.message[0]}", "{.message.parts.a}"]
)
def test_no_prompt_at_its_place(path):
    call = Call(Protocol.A2A, "1.0", "SendMessage", Shape.A2A_REST, document=MESSAGE)
    with pytest.raises(Refusal) as refused:
        prompt_of(call, path)
    assert refused.value.rule == "prompt"


@pytest.mark.parametrize(
    ("offered", "registered", "wanted", "given_"),
    [
        ("", ["a b"], "", ""),  # where none are offered they play no part
        ("a b", ["a b c", "b a"], "", "a b"),
        ("a b", ["a b", "b c"], "", "b"),
        ("a b", ["a b"], "b", "b"),
        ("a", [""], "", None),
        ("a", ["a", "b"], "", None),
        ("a b", ["a"], "a b", None),
        ("", ["a"], "a", None),
    ],
)
def test_scopes(offered, registered, wanted, given_):
    """Everybody's, or those asked for; nothing where somebody lacks one."""
    said = (offered.split(), [each.split() for each in registered], wanted.split())
    if given_ is None:
        with pytest.raises(NoScope):
            granted(*said)
    else:
        assert granted(*said) == tuple(given_.split())


def test_an_exchange_without_scopes_is_read_by_workers_that_know_none():
    plain = Exchange(purpose=Purpose.TOOL_CALL, target="bank", tool="pay")
    for call in (plain, plain.model_copy(update={"scopes": ("money:move",)})):
        assert token_call.read(token_call.write(call)) == call
        assert ("scopes" in orjson.loads(token_call.write(call))) == bool(call.scopes)

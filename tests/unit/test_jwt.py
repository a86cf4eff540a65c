"""NATS JWTs: a token the real server signed, golden tokens of our own, and what must be refused."""

from __future__ import annotations

import base64
from pathlib import Path

import orjson
import pytest

from broker_policy.identity import jwt
from broker_policy.identity.jwt import Account, InvalidToken, Permissions, ScopedKey
from broker_policy.identity.nkeys import KeyPair, Kind
from broker_policy.identity.pki import identity_from_chain

SERVER_SIGNED = (Path(__file__).parent / "data" / "authorization_request.jwt").read_text()
SIGNED_AT = 1795217599
ISSUER = KeyPair(Kind.ACCOUNT, bytes(32))
USER = KeyPair(Kind.USER, bytes(31) + b"\x01").public


def body(token: str) -> dict:
    part = token.split(".")[1]
    return orjson.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))


def test_a_request_signed_by_nats_server_2_15_1():
    claims = jwt.decode(SERVER_SIGNED, issued_by=Kind.NODE, now=SIGNED_AT + 1)
    assert claims["aud"] == "nats-authorization-request"
    assert claims["iss"] == claims["nats"]["server_id"]["id"]
    holder = identity_from_chain(claims["nats"]["client_tls"]["verified_chains"][0][0])
    assert holder.identity.uri == "spiffe://mas/ns/alpha/agent/mallory"


def test_golden_token():
    claims = jwt.user_claims(USER, "a", Permissions(("x.>",), ()), expires=2_000_000_000)
    token = jwt.encode(ISSUER, claims, issued_at=1_700_000_000)
    assert body(token) == {
        "sub": USER,
        "name": "a",
        "exp": 2_000_000_000,
        "iss": ISSUER.public,
        "iat": 1_700_000_000,
        "jti": "WODH4JDUE6HCL7EXOEMQRRWF54Y5SDJMRULAJQ22SOUYF2HNG2KA",
        "nats": {
            "type": "user",
            "subs": -1,
            "data": -1,
            "payload": -1,
            "pub": {"allow": ["x.>"]},
            "sub": {"deny": [">"]},
            "version": 2,
        },
    }
    assert token == jwt.encode(ISSUER, claims, issued_at=1_700_000_000)
    assert token.startswith("eyJ0eXAiOiJKV1QiLCJhbGciOiJlZDI1NTE5LW5rZXkifQ.")


def test_what_was_encoded_is_decoded():
    token = jwt.encode(ISSUER, jwt.scoped_user_claims(USER, "w1", issuer_account=ISSUER.public))
    claims = jwt.decode(token, issued_by=Kind.ACCOUNT)
    assert claims["nats"] == {"type": "user", "issuer_account": ISSUER.public, "version": 2}


def test_a_changed_token_is_refused():
    head, middle, signature = jwt.encode(ISSUER, jwt.user_claims(USER, "a", jwt.EVERYTHING)).split(".")
    forged = body(f"{head}.{middle}.{signature}") | {"name": "b"}
    changed = base64.urlsafe_b64encode(orjson.dumps(forged)).decode().rstrip("=")
    with pytest.raises(InvalidToken, match="signature"):
        jwt.decode(f"{head}.{changed}.{signature}", issued_by=Kind.ACCOUNT)


def test_an_issuer_of_the_wrong_kind_is_refused():
    token = jwt.encode(ISSUER, jwt.user_claims(USER, "a", jwt.EVERYTHING))
    with pytest.raises(InvalidToken, match="ACCOUNT, not OPERATOR"):
        jwt.decode(token, issued_by=Kind.OPERATOR)


def test_time_is_honoured():
    claims = jwt.user_claims(USER, "a", jwt.EVERYTHING, expires=100) | {"nbf": 50}
    token = jwt.encode(ISSUER, claims)
    assert jwt.decode(token, issued_by=Kind.ACCOUNT, now=99)["exp"] == 100
    with pytest.raises(InvalidToken, match="expired"):
        jwt.decode(token, issued_by=Kind.ACCOUNT, now=100)
    with pytest.raises(InvalidToken, match="not valid yet"):
        jwt.decode(token, issued_by=Kind.ACCOUNT, now=49)


def encoded(header: object, claims: object) -> str:
    parts = (base64.urlsafe_b64encode(orjson.dumps(part)).decode().rstrip("=") for part in (header, claims))
    return ".".join([*parts, "AAAA"])


@pytest.mark.parametrize(
    "token",
    [
        "",
        "a.b",
        "a.b.c",
        "....",
        encoded({"typ": "JWT", "alg": "none"}, {"iss": ISSUER.public, "nats": {}}),
        encoded({"typ": "JWT", "alg": "ed25519-nkey"}, {"iss": 7}),
        encoded({"typ": "JWT", "alg": "ed25519-nkey"}, [1]),
        encoded([], {}),
        encoded({}, {}),
    ],
)
def test_what_is_no_token_is_refused(token):
    with pytest.raises(InvalidToken):
        jwt.decode(token, issued_by=Kind.ACCOUNT)


def test_nothing_means_nothing():
    """NATS reads an empty allow list as everything; ours becomes a denial of everything."""
    assert Permissions().claims() == {"pub": {"deny": [">"]}, "sub": {"deny": [">"]}}


def test_an_account_says_every_limit():
    """An omitted limit is 0, which means none."""
    limits = Account("A", "a").claims()["nats"]["limits"]
    assert limits == {
        "subs": -1,
        "data": -1,
        "payload": -1,
        "imports": -1,
        "exports": -1,
        "wildcards": True,
        "conn": -1,
        "leaf": -1,
        "mem_storage": 0,
        "disk_storage": 0,
        "streams": 0,
        "consumer": 0,
    }


def test_a_scoped_key_carries_its_template():
    key = ScopedKey("AK", "worker", Permissions(("a",), ("b",), answer_within=2.0))
    assert key.claims() == {
        "kind": "user_scope",
        "key": "AK",
        "role": "worker",
        "template": {
            "pub": {"allow": ["a"]},
            "sub": {"allow": ["b"]},
            "resp": {"max": 1, "ttl": 2_000_000_000},
            "subs": -1,
            "data": -1,
            "payload": -1,
        },
    }


def test_an_answer_is_either_a_user_or_a_reason():
    granted = jwt.authorization_response(user="U", server="N", issuer_account="A", user_jwt="t")
    refused = jwt.authorization_response(user="U", server="N", issuer_account="A", error="no")
    assert granted["nats"] == {"type": "authorization_response", "issuer_account": "A", "jwt": "t"}
    assert refused["nats"] == {"type": "authorization_response", "issuer_account": "A", "error": "no"}

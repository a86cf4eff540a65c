"""RFC 8693 at the sidecar's own address: for whoever brings the token of a request, and in its error form."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from mas_nats.tokens import jwt
from mas_nats.tokens.claims import Purpose
from tests.sidecar.conftest import Town
from tests.sidecar.guarded import Mint
from tests.sidecar.test_tool_checks import authority, cause, guarded, prompted

__all__ = ["guarded"]

GRANT = "urn:ietf:params:oauth:grant-type:token-exchange"
JWT = "urn:ietf:params:oauth:token-type:jwt"
WRONG: list[tuple[dict[str, str], str]] = [
    ({"grant_type": "client_credentials"}, "unsupported_grant_type"),
    ({"subject_token": ""}, "invalid_request"),
    ({"subject_token": "a.b.c"}, "invalid_request"),
    ({"subject_token_type": "urn:ietf:params:oauth:token-type:saml2"}, "invalid_request"),
    ({"requested_token_type": "urn:ietf:params:oauth:token-type:saml2"}, "invalid_request"),
    ({"audience": "nobody"}, "invalid_target"),
    ({"audience": "shop"}, "invalid_target"),
    ({"resource": "http://bank.test"}, "invalid_target"),
    ({"scope": "transfer_money balance"}, "invalid_scope"),
    ({"scope": ""}, "invalid_scope"),
    ({"scope": "large"}, "invalid_scope"),
    ({"more": "1"}, "invalid_request"),
]


async def test_an_exchange(guarded: Town):
    """Done by the application while it works on a request, with the token that came with it."""
    town = guarded
    base = f"http://{town.sidecars['echo'].address}"
    seen: dict[str, Any] = {}

    async def think(text: str) -> str:
        held = authority(town)._held[cause(town)].token
        form = {
            "grant_type": GRANT,
            "subject_token": held,
            "subject_token_type": JWT,
            "audience": "bank.test",
            "scope": "transfer_money",
        }
        await authority(town).selected(cause(town), ["transfer_money"])
        async with httpx.AsyncClient(timeout=60) as http:
            seen["wrong"] = [
                (await http.post(f"{base}/token", data={**form, **changes}), code) for changes, code in WRONG
            ]
            seen["good"] = await http.post(f"{base}/token", data=form)
            seen["llm"] = await http.post(f"{base}/token", data={**form, "audience": "llm", "scope": ""})
            seen["get"] = await http.get(f"{base}/token")
            seen["json"] = await http.post(f"{base}/token", json=form)
            seen["origin"] = await http.post(f"{base}/token", data=form, headers={"origin": "http://a.test"})
            seen["rebound"] = await http.post(f"{base}/token", data=form, headers={"host": "evil.test"})
            seen["keys"] = await http.get(f"{base}/.well-known/jwks.json")
            other = f"http://{town.sidecars['shop'].address}"
            seen["stolen"] = await http.post(f"{other}/token", data=form)
        return ""

    town.echo.think = think
    await prompted(town, "pay")
    for answer, code in seen["wrong"]:
        assert (answer.status_code, answer.json()["error"]) == (400, code), answer.text
        assert answer.headers["cache-control"] == "no-store"
    good = seen["good"].json()
    assert seen["good"].status_code == 200, good
    assert (good["token_type"], good["issued_token_type"], good["scope"]) == ("Bearer", JWT, "transfer_money")
    assert 0 < good["expires_in"] <= 300
    keys = jwt.keys_of(seen["keys"].json())
    assert keys.keys() == jwt.keys_of(Mint.of(town).keys.jwks()).keys()
    claims = jwt.read(good["access_token"], keys, now=town.sidecars["echo"].tokens._now())  # type: ignore[union-attr]
    assert claims.purpose is Purpose.TOOL_CALL
    assert claims.tools == {f"{town.namespace}/bank": ("transfer_money",)}
    assert seen["llm"].status_code == 200
    assert seen["get"].status_code == 405
    assert seen["json"].json()["error"] == "invalid_request"
    assert seen["origin"].status_code == 403
    assert seen["rebound"].json()["rule"] == "unknown_host"
    assert seen["stolen"].json()["error"] == "invalid_request"
    assert "token:audience" in seen["stolen"].text
    assert good["access_token"] not in seen["stolen"].text


@pytest.mark.parametrize("path", ["/token", "/.well-known/jwks.json"])
async def test_without_tokens_there_is_no_endpoint(town: Town, path: str):
    async with httpx.AsyncClient(timeout=60) as http:
        answer = await http.get(f"http://{town.sidecars['shop'].address}{path}")
    assert answer.status_code == 403
    assert answer.json()["rule"] == "unknown_host"

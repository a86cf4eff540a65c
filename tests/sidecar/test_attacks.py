"""What an application, or another sidecar, may try: refused by a named rule, and nothing reaches anybody."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

import httpx
import orjson
import pytest

from mas_nats import Agent, AgentMessage
from mas_nats.agent import DRAIN_TIMEOUT
from mas_nats.sidecar import Settings, Sidecar
from mas_nats.sidecar.refusal import HEADER_MISMATCH, INVALID_PARAMS, OUTCOME_UNKNOWN, REFUSED, UNAVAILABLE
from tests.sidecar.answers import SERVED, outcome
from tests.sidecar.applications import serving
from tests.sidecar.conftest import Town
from tests.sidecar.test_at_most_once import HEADERS, META
from tests.system import System, mas_json, wanted

NEW = {**HEADERS, "content-type": "application/json"}
PAY = {"name": "transfer_money", "arguments": {"number": 1}, "_meta": META}


def rpc(method: str, params: dict[str, Any]) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}


@contextlib.asynccontextmanager
async def shop(town: Town, app: str = "shop"):
    async with httpx.AsyncClient(proxy=town.proxy(app), timeout=60) as http:
        yield http


async def raw(town: Town, data: bytes, *, then: bytes = b"", app: str = "shop") -> bytes:
    """What the sidecar answers to bytes."""
    host, _, port = town.sidecars[app].address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(data)
        await writer.drain()
        async with asyncio.timeout(30):
            return await reader.read()
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


ATTACKS = [
    # body, headers, status, rule
    ([rpc("tools/call", PAY)], NEW, 400, "batch"),
    (rpc("tools/steal", PAY), NEW, 404, "unknown_method"),
    (rpc("tools/call", PAY), NEW, 400, "header_mismatch"),
    (
        rpc("tools/call", PAY),
        NEW | {"mcp-method": "tools/call", "mcp-name": "balance"},
        400,
        "header_mismatch",
    ),
    (
        rpc("tools/call", {**PAY, "name": "transfer_money\u200b"}),
        NEW | {"mcp-method": "tools/call", "mcp-name": "transfer_money"},
        200,
        "name",
    ),
    (rpc("tools/call", PAY), {"content-type": "application/json"}, 400, "protocol_version"),
]


@pytest.mark.parametrize(("body", "headers", "status", "rule"), ATTACKS)
async def test_bodies(town: Town, body: Any, headers: dict[str, str], status: int, rule: str):
    async with shop(town) as http:
        answer = await http.post("http://bank.test/mcp", content=orjson.dumps(body), headers=headers)
    assert answer.status_code == status
    assert answer.json()["error"]["data"]["rule"] == rule
    assert answer.json()["error"]["code"] == HEADER_MISMATCH or rule != "header_mismatch"
    assert rule != "name" or outcome(answer) == (INVALID_PARAMS, 400)
    assert town.bank.transfers == []


TRICKS = [
    "transfer_money\n",
    "transfer_money\x00",
    " transfer_money",
    "transfer_money ",
    "tr\u0430nsfer_money",  # a Cyrillic letter
    "transfer_money\u202e",
    "\uff54ransfer_money",  # a wide letter, which NFKC makes an ordinary one
    "../transfer_money",
    "transfer%5fmoney",
    "balance,transfer_money",
    "t" * 129,
    "",
    ["transfer_money"],
    None,
]


async def test_tool_names_with_tricks(town: Town):
    """The header says the plain name, or the trick itself where a header can hold it."""
    async with shop(town) as http:
        for name in TRICKS:
            held = isinstance(name, str) and name.isascii() and name.isprintable()
            for said in {"transfer_money", name.strip() if held else "transfer_money"}:
                headers = NEW | {"mcp-method": "tools/call", "mcp-name": said}
                body = rpc("tools/call", {**PAY, "name": name})
                answer = await http.post("http://bank.test/mcp", json=body, headers=headers)
                assert outcome(answer) == (INVALID_PARAMS, 400), name
                assert answer.json()["error"]["data"]["rule"] == "name", name
    assert town.bank.transfers == []


async def test_two_names_in_one_object(town: Town):
    body = orjson.dumps(rpc("tools/call", PAY)).replace(b'"method":', b'"method":"ping","method":')
    async with shop(town) as http:
        answer = await http.post("http://bank.test/mcp", content=body, headers=NEW)
    assert answer.json()["error"]["data"]["rule"] == "json"
    assert town.bank.transfers == []


async def test_hosts(town: Town):
    """Of nobody, of another namespace, of the application itself; and addresses that disagree."""
    async with shop(town) as http:
        for url in (
            "http://elsewhere.test/mcp",
            f"http://127.0.0.1:{town.ports['bank']}/mcp",
            "http://other-namespace.bank.test/mcp",
            f"http://{town.sidecars['shop'].address}/mcp",
        ):
            answer = await http.post(url, json=rpc("tools/call", PAY), headers=NEW)
            assert outcome(answer) == (REFUSED, 403), url
            assert answer.json()["error"]["data"]["rule"] == "unknown_host"
    assert b" 405 " in await raw(town, b"CONNECT a:443 HTTP/1.1\r\nhost: a:443\r\nconnection: close\r\n\r\n")
    for request in (
        b"GET http://bank.test/mcp HTTP/1.1\r\nhost: echo.test\r\nconnection: close\r\n\r\n",
        b"GET /mcp HTTP/1.1\r\nhost: bank.test\r\nhost: echo.test\r\nconnection: close\r\n\r\n",
        b"GET https://bank.test/mcp HTTP/1.1\r\nhost: bank.test\r\nconnection: close\r\n\r\n",
        b"GET http://[bank.test/mcp HTTP/1.1\r\nhost: bank.test\r\nconnection: close\r\n\r\n",
        b"GET http://a@bank.test/mcp HTTP/1.1\r\nhost: bank.test\r\nconnection: close\r\n\r\n",
    ):
        assert b"HTTP/1.1 400 " in await raw(town, request)
    assert town.bank.calls == 0


async def test_host_mapping_without_a_proxy(town: Town):
    """The same listener, reached under the mapped name: the request has a path and a Host only."""
    body = orjson.dumps(rpc("tools/list", {"_meta": META}))
    head = b"POST /mcp HTTP/1.1\r\nhost: bank.test:8080\r\nconnection: close\r\n"
    head += b"content-type: application/json\r\n"
    head += b"accept: application/json, text/event-stream\r\nmcp-protocol-version: 2026-07-28\r\n"
    head += b"mcp-method: tools/list\r\ncontent-length: %d\r\n\r\n" % len(body)
    answer = await raw(town, head + body)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"transfer_money" in answer


@pytest.mark.parametrize("who", [b"", b"origin: https://evil.example\r\n", b"sec-fetch-site: cross-site\r\n"])
@pytest.mark.parametrize("host", [b"echo.test", b"echo.test:80"])
async def test_a_page_of_a_browser_reaches_no_application(town: Town, who: bytes, host: bytes):
    """What a page may send anywhere without being asked first; the control is nobody's page."""
    head = b"POST /v1/tasks/one:cancel HTTP/1.1\r\nhost: %s\r\nconnection: close\r\n%s" % (host, who)
    answer = await raw(town, head + b"content-length: 0\r\n\r\n")
    assert (b" 403 " in answer.partition(b"\r\n")[0]) is bool(who), answer
    assert (orjson.loads(answer.partition(b"\r\n\r\n")[2]).get("rule") == "origin") is bool(who), answer


async def test_types_of_applications_before_anything_leaves(town: Town):
    async with shop(town, "bank") as http:
        answer = await http.post("http://echo.test/", json=rpc("message/send", {}))
    assert outcome(answer) == (REFUSED, 403)
    assert answer.json()["error"]["data"]["rule"] == "application_type"
    assert town.echo.told == []


async def test_an_oversized_body(town: Town):
    async with shop(town) as http:
        big = rpc("tools/call", {**PAY, "arguments": {"text": "x" * 1_000_000}})
        answer = await http.post("http://bank.test/mcp", json=big, headers=NEW)
    assert answer.status_code == 413
    assert answer.json()["rule"] == "request_bytes"
    assert town.bank.transfers == []


async def test_an_oversized_head(town: Town):
    """It is refused, or the connection is broken while the rest is still on its way."""
    answer = b""
    with contextlib.suppress(ConnectionError):
        answer = await raw(town, b"GET / HTTP/1.1\r\nhost: bank.test\r\nx: " + b"y" * 100_000 + b"\r\n\r\n")
    assert answer == b"" or answer.startswith(b"HTTP/1.1 4"), answer
    async with shop(town) as http:  # and others are served as before
        said = NEW | {"mcp-method": "tools/call", "mcp-name": "transfer_money"}
        served = await http.post("http://bank.test/mcp", json=rpc("tools/call", PAY), headers=said)
        assert served.status_code == 200
    assert town.bank.transfers == [1]


async def test_a_header_and_a_body_that_come_byte_by_byte(empty_town: Town):
    limits = {"begin": 5.0, "header_timeout": 0.5, "body_timeout": 0.5}
    async with contextlib.AsyncExitStack() as stack:
        await empty_town.start(stack, "shop", limits=limits)
        before = time.monotonic()
        assert b" 408 " in await raw(empty_town, b"POST /mcp HTTP/1.1\r\nhost: ba")
        head = b"POST /mcp HTTP/1.1\r\nhost: bank.test\r\ncontent-type: application/json\r\n"
        assert b" 408 " in await raw(empty_town, head + b"content-length: 100\r\n\r\n{")
        assert time.monotonic() - before < 20


async def test_requests_that_two_servers_would_read_differently(town: Town):
    """What request smuggling is made of."""
    for head in (
        b"POST /mcp HTTP/1.1\r\nhost: bank.test\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabcd",
        b"POST /mcp HTTP/1.1\r\nhost: bank.test\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"POST /mcp HTTP/1.1\r\nhost: bank.test\r\nmcp-name : a\r\n\r\n",
        b"GET /mcp HTTP/1.1\r\nconnection: close\r\nhost: bank.test\r\n folded: a\r\n\r\n",
    ):
        answer = await raw(town, head)
        assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 403 ", b"HTTP/1.1 501 ")), answer
    assert town.bank.calls == 0


async def test_a_message_that_no_sidecar_made(town: Town):
    """An agent's own code with a client's right: the target's sidecar looks at it as if nobody had before."""
    system, tls = town.system, town.system.tls("shop", town.namespace)
    later = int((time.time() + 5) * 1000)
    good = {
        "method": "POST",
        "path": "/mcp",
        "headers": {**NEW, "mcp-method": "tools/call", "mcp-name": "transfer_money"},
        "body": rpc("tools/call", PAY),
        "begin_by": later,
    }
    attacks = [
        ("mcp:tools/list", good, "message_type"),
        ("mcp:tools/call", {**good, "path": "/admin"}, "path"),
        (
            "mcp:tools/call",
            {**good, "headers": {**good["headers"], "mcp-name": "balance"}},
            "header_mismatch",
        ),
        ("mcp:tools/call", {**good, "headers": {**good["headers"], "authorization": "a"}}, "header"),
        ("mcp:tools/call", {**good, "authorization": "Bearer forged"}, "token_unexpected"),
        ("mcp:tools/call", {**good, "begin_by": later - 60_000}, "expired"),
        ("mcp:tools/call", {**good, "more": 1}, "carriage"),
        ("mcp:tools/call", {**good, "body": [good["body"]]}, "batch"),
        ("ask", {"question": "?"}, "carriage"),
    ]
    async with Agent("shop", server_addr=system.broker.url, tls=tls, receive=False) as thief:
        for message_type, data, rule in attacks:
            reply = await thief.request("bank", message_type, data, timeout=30)
            assert reply.data["refused"]["rule"] == rule
            assert reply.message_type == f"refused:{rule}"
        assert town.bank.transfers == []
        reply = await thief.request("bank", "mcp:tools/call", good, timeout=30)  # the control
    assert "refused" not in reply.data
    assert town.bank.transfers == [1]


async def test_a_session_of_somebody_else(town: Town):
    old = {"content-type": "application/json", "accept": "application/json, text/event-stream"}
    params = {
        "protocolVersion": "2025-11-25",
        "capabilities": {},
        "clientInfo": {"name": "a", "version": "1"},
    }
    async with shop(town) as http, shop(town, "echo") as other:
        opened = await http.post("http://bank.test/mcp", json=rpc("initialize", params), headers=old)
        session = opened.headers["mcp-session-id"]
        with_it = old | {"mcp-session-id": session, "mcp-protocol-version": "2025-11-25"}
        stolen = await other.post("http://bank.test/mcp", json=rpc("tools/list", {}), headers=with_it)
        assert stolen.status_code == 404
        assert stolen.json()["error"]["data"]["rule"] == "session"
        own = await http.post("http://bank.test/mcp", json=rpc("tools/list", {}), headers=with_it)
        assert outcome(own) == SERVED


async def test_what_policy_refuses_is_told_and_in_the_audit(town: Town):
    async with shop(town) as http:
        secret = {"name": "balance", "arguments": {"account": "AKIAIOSFODNN7EXAMPLE"}, "_meta": META}
        headers = NEW | {"mcp-method": "tools/call", "mcp-name": "balance"}
        answer = await http.post("http://bank.test/mcp", json=rpc("tools/call", secret), headers=headers)
    error = answer.json()["error"]
    assert outcome(answer) == (REFUSED, 403)
    assert error["data"]["rule"].startswith("policy.dlp:")
    assert error["data"]["ran"] == "no"
    assert "AKIA" not in answer.text
    assert town.bank.calls == 0
    place = ("--namespace", town.namespace, "--folder", str(town.system.layout.root))
    async with asyncio.timeout(30):
        while True:
            asked = ("audit", "query", "--message-id", error["data"]["message_id"], *place)
            found: Any = (await asyncio.to_thread(mas_json, *asked))["decisions"]
            if found:
                break
    assert found[0]["decision"] == "DLP_BLOCKED"
    assert found[0]["type"] == "mcp:tools/call"


@pytest.mark.parametrize("json_response", [True, False])
async def test_an_answer_that_policy_refuses(empty_town: Town, json_response: bool):
    """The call was run, which the caller is told; what it said reaches nobody."""
    async with contextlib.AsyncExitStack() as stack:
        app = empty_town.bank.app(json_response=json_response)
        empty_town.ports["bank"] = await stack.enter_async_context(serving(app))
        await empty_town.start(stack, "bank", "shop")
        async with shop(empty_town) as http:
            headers = NEW | {"mcp-method": "tools/call", "mcp-name": "secret"}
            body = rpc("tools/call", {"name": "secret", "arguments": {}, "_meta": META})
            answer = await http.post("http://bank.test/mcp", json=body, headers=headers)
    assert empty_town.bank.calls == 1
    assert "AKIA" not in answer.text
    assert outcome(answer) == (OUTCOME_UNKNOWN, 502)
    assert answer.json()["error"]["data"]["rule"] == "answer_refused"
    assert answer.json()["error"]["data"]["ran"] == "yes"


@pytest.mark.parametrize("second", ["ODNN7EXAMPLE, yes", "words, yes"])
async def test_a_secret_in_two_events_of_a_stream(town: Town, second: str):
    """The first has gone when the second comes, which ends the stream; and the control, which does not."""
    arguments = {"first": "it is AKIAIOSF", "second": second}
    meta = {**META, "progressToken": "t"}
    body = rpc("tools/call", {"name": "in_two", "arguments": arguments, "_meta": meta})
    headers = NEW | {"mcp-method": "tools/call", "mcp-name": "in_two"}
    said, whole = "", False
    async with (
        asyncio.timeout(60),
        shop(town) as http,
        http.stream("POST", "http://bank.test/mcp", json=body, headers=headers) as answer,
    ):
        assert answer.status_code == 200
        with contextlib.suppress(httpx.RemoteProtocolError):  # cut off: it has no end
            async for line in answer.aiter_lines():
                said += line
                if "AKIAIOSF" in line:
                    town.bank.seen.set()
            whole = True
    assert "it is AKIAIOSF" in said
    assert (second in said, "told" in said, whole) == ((True,) * 3 if "words" in second else (False,) * 3)


async def test_a_hostile_target_cannot_write_headers(empty_town: Town):
    """An agent's own code in the place of a sidecar: what it sends is an answer, or nothing."""
    system = empty_town.system

    class Hostile(Agent[dict[str, Any]]):
        async def on_message(self, message: AgentMessage) -> None:
            await message.reply("a", answers.pop(0))

    whole = {"$whole": True}
    fields = {"set-cookie": "a=b", "transfer-encoding": "chunked", "etag": "x\r\ny: z", "allow": "GET"}
    head = {"head": {"status": 200, "headers": fields | {"content-type": "application/json"}}, **whole}
    answers: list[dict[str, Any]] = [
        {"chunks": [head, {"json": [{}], **whole}]},
        {"chunks": [{"json": [{}], **whole}, head]},
        {"chunks": [head, head]},
        {"head": {"status": 101}, **whole},
        {"refused": {"rule": "r", "text": "t", "code": 1, "allow": "GET\r\nx: y"}, **whole},
        {"anything": 1},
        {},
    ]
    tls = system.tls("bank", empty_town.namespace)
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(Hostile("bank", server_addr=system.broker.url, tls=tls))
        await empty_town.start(stack, "shop")
        async with shop(empty_town) as http:
            headers = NEW | {"mcp-method": "tools/list"}
            body = rpc("tools/list", {"_meta": META})
            first = await http.post("http://bank.test/mcp", json=body, headers=headers)
            assert first.status_code == 200
            assert first.headers["allow"] == "GET"
            assert not {"set-cookie", "transfer-encoding", "etag", "y"} & first.headers.keys()
            while answers:
                answer = await http.post("http://bank.test/mcp", json=body, headers=headers)
                assert outcome(answer) == (OUTCOME_UNKNOWN, 502)
                assert answer.json()["error"]["data"]["rule"] == "carriage"


async def test_a_standing_stream_does_not_hold_up_the_stop(empty_town: Town):
    old = {"content-type": "application/json", "accept": "application/json, text/event-stream"}
    params = {"protocolVersion": "2025-11-25", "capabilities": {}}
    params["clientInfo"] = {"name": "a", "version": "1"}
    async with contextlib.AsyncExitStack() as stack:
        await empty_town.start(stack, "bank", "shop")
        async with shop(empty_town) as http:
            opened = await http.post("http://bank.test/mcp", json=rpc("initialize", params), headers=old)
            headers = {"accept": "text/event-stream", "mcp-protocol-version": "2025-11-25"}
            headers["mcp-session-id"] = opened.headers["mcp-session-id"]
            async with http.stream("GET", "http://bank.test/mcp", headers=headers) as stream:
                assert stream.status_code == 200
                before = time.monotonic()
                await empty_town.sidecars["bank"].stop()
                assert time.monotonic() - before < DRAIN_TIMEOUT / 2
                with pytest.raises(httpx.RemoteProtocolError):  # cut off: it has no end
                    await stream.aread()


async def test_an_application_that_is_away(empty_town: Town):
    empty_town.ports["bank"] = 1
    async with contextlib.AsyncExitStack() as stack:
        await empty_town.start(stack, "bank", "shop")
        async with shop(empty_town) as http:
            headers = NEW | {"mcp-method": "tools/call", "mcp-name": "transfer_money"}
            answer = await http.post("http://bank.test/mcp", json=rpc("tools/call", PAY), headers=headers)
    assert outcome(answer) == (UNAVAILABLE, 502)
    assert answer.json()["error"]["data"] == {
        "rule": "application_away",
        "ran": "no",
        "status": 502,
        "message_id": answer.json()["error"]["data"]["message_id"],
    }


async def test_an_application_of_another_namespace(empty_town: Town, system: System):
    """Declared on both sides and allowed by both policies it is reached; without a permission it is not."""
    town = empty_town
    far = await system.namespace(["shop", "stranger"], {"shop": [f"{town.namespace}/bank"]})
    near = {"shop": ["bank"], f"{far}/shop": ["bank"]}
    await system.apply(wanted(town.namespace, ["shop", "echo", "bank"], near))
    document = town.document()
    document["applications"][f"{far}/shop"] = {"type": "client"}
    bank = Settings.model_validate({**document, "app": "bank"})
    document = town.document()
    document["applications"][f"{town.namespace}/bank"] = document["applications"].pop("bank")
    caller = Settings.model_validate({**document, "app": "shop"})
    url = system.broker.url
    headers = NEW | {"mcp-method": "tools/call", "mcp-name": "transfer_money"}
    async with (
        Sidecar(bank, server_addr=url, tls=system.tls("bank", town.namespace)),
        Sidecar(caller, server_addr=url, tls=system.tls("shop", far)) as shop,
        httpx.AsyncClient(proxy=f"http://{shop.address}", timeout=60) as http,
    ):
        answer = await http.post("http://bank.test/mcp", json=rpc("tools/call", PAY), headers=headers)
        assert outcome(answer) == SERVED, answer.text
        assert town.bank.transfers == [1]
        await system.apply(wanted(town.namespace, ["shop", "echo", "bank"], {"shop": ["bank"]}))
        async with asyncio.timeout(30):
            while outcome(answer) == SERVED:
                answer = await http.post("http://bank.test/mcp", json=rpc("tools/call", PAY), headers=headers)
        assert outcome(answer) == (REFUSED, 403)

"""Applications that answer as none should: what they say reaches whom it is for, or nobody, and at once."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import orjson
import pytest

from mas_nats.sidecar.at_application import AtApplication
from mas_nats.sidecar.carriage import Head
from mas_nats.sidecar.refusal import OUTCOME_UNKNOWN, TOO_LARGE
from mas_nats.sidecar.signs_of_life import SignsOfLife
from tests.sidecar.answers import SERVED, outcome
from tests.sidecar.applications import serving
from tests.sidecar.conftest import LIMITS, Town
from tests.sidecar.test_at_most_once import HEADERS, META, tool

LIST = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {"_meta": META}}
HELLO = {"jsonrpc": "2.0", "id": 1, "result": {"tools": []}}

Said = Callable[[int], bytes]


@dataclass
class Raw:
    """An application that writes bytes; ``heads`` are those of the requests that it got."""

    port: int = 0
    heads: list[str] = field(default_factory=list)


@contextlib.asynccontextmanager
async def writing(said: Said) -> AsyncIterator[Raw]:
    """``said`` gives the answer to the first request, the second, and so on."""
    raw = Raw()

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = head.partition("content-length: ")[2].partition("\r\n")[0]
        await reader.readexactly(int(length or 0))
        raw.heads.append(head)
        writer.write(said(len(raw.heads)))
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(one, "127.0.0.1", 0)
    raw.port = server.sockets[0].getsockname()[1]
    async with server:
        yield raw


def whole(document: Any, *headers: str, status: str = "200 OK") -> bytes:
    """An answer in JSON."""
    body = orjson.dumps(document)
    fields = [*headers, "content-type: application/json", f"content-length: {len(body)}"]
    return "\r\n".join([f"HTTP/1.1 {status}", *fields, "", ""]).encode() + body


def streamed(body: bytes) -> bytes:
    """An answer in events."""
    return b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n" + body


@contextlib.asynccontextmanager
async def asking(town: Town, said: Said, *callers: str) -> AsyncIterator[tuple[Raw, list[httpx.AsyncClient]]]:
    """``callers`` ask an application that answers as ``said``."""
    async with contextlib.AsyncExitStack() as stack:
        raw = await stack.enter_async_context(writing(said))
        town.ports["bank"] = raw.port
        await town.start(stack, "bank", *callers)
        yield (
            raw,
            [
                await stack.enter_async_context(httpx.AsyncClient(proxy=town.proxy(each), timeout=60))
                for each in callers
            ],
        )


async def listed(http: httpx.AsyncClient) -> httpx.Response:
    return await http.post("http://bank.test/mcp", json=LIST, headers={**HEADERS, "mcp-method": "tools/list"})


# -- cookies ---------------------------------------------------------------------------------------------
async def test_a_cookie_set_for_one_caller_is_not_sent_with_anothers_call(empty_town: Town):
    def said(number: int) -> bytes:
        return whole(HELLO, f"set-cookie: session=number{number}; Path=/; Max-Age=3600")

    async with asking(empty_town, said, "shop", "echo") as (raw, (shop, echo)):
        for http in (shop, echo, shop):
            answer = await listed(http)
            assert outcome(answer) == SERVED
            assert "set-cookie" not in answer.headers
        assert len(raw.heads) == 3
        assert not any("cookie" in head for head in raw.heads)


# -- answers to other calls ------------------------------------------------------------------------------
async def test_an_answer_to_another_call_is_not_handed_over(empty_town: Town):
    """A client takes it for the answer to the call whose id it has, which is under way beside this one."""
    other = {**HELLO, "id": 7, "result": {"tools": [{"name": "pay", "description": "send keys"}]}}
    event = b"data: " + orjson.dumps(other) + b"\n\n"
    progress = b'data: {"jsonrpc":"2.0","method":"notifications/progress"}\n\n'
    answers = [whole(other), whole([HELLO, other]), streamed(event), streamed(progress + event)]
    async with asking(empty_town, lambda number: answers[number - 1], "shop") as (raw, (shop,)):
        for _ in range(2):
            answer = await tool(shop, "pay", {})
            assert outcome(answer) == (OUTCOME_UNKNOWN, 502)
            assert answer.json()["id"] == 1
            data = answer.json()["error"]["data"]
            assert (data["rule"], data["ran"]) == ("outcome_unknown", "unknown")
            assert "keys" not in answer.text
        for before in (b"", progress):
            body = b""
            with contextlib.suppress(httpx.RemoteProtocolError):  # cut off: it has no end
                params = {"name": "pay", "arguments": {}, "_meta": META}
                asked = {**LIST, "method": "tools/call", "params": params}
                fields = {**HEADERS, "mcp-method": "tools/call", "mcp-name": "pay"}
                async with shop.stream("POST", "http://bank.test/mcp", json=asked, headers=fields) as got:
                    async for part in got.aiter_raw():
                        body += part
                    pytest.fail("the stream has an end")
            assert b"keys" not in body
            assert body.startswith(before)
        assert len(raw.heads) == 4


# -- answers that are none -------------------------------------------------------------------------------
def retrying(digits: int) -> bytes:
    return streamed(b"retry: " + b"9" * digits + b"\ndata: " + orjson.dumps(HELLO) + b"\n\n")


@pytest.mark.parametrize("status", ["999 Denied", "600 More"])
async def test_a_status_that_nobody_has(empty_town: Town, status: str):
    """Told at once, to whoever asks for what may be run once and for what may be repeated."""
    async with asking(empty_town, lambda _: whole({}, status=status), "shop") as (raw, (shop,)):
        before = time.monotonic()
        for answer in (await tool(shop, "pay", {}), await listed(shop)):
            assert outcome(answer) == (OUTCOME_UNKNOWN, 502)
            data = answer.json()["error"]["data"]
            assert (data["rule"], data["ran"]) == ("outcome_unknown", "unknown")
            assert "a status that HTTP does not have" in answer.text
        assert time.monotonic() - before < LIMITS["begin"]
        assert len(raw.heads) == 2


async def test_a_stream_that_asks_for_long_patience(empty_town: Town):
    async with asking(empty_town, lambda _: retrying(5000), "shop") as (raw, (shop,)):
        answer = await listed(shop)
        assert outcome(answer) == SERVED
        assert answer.text == f"data: {orjson.dumps(HELLO).decode()}\n\n"
        assert len(raw.heads) == 1


@pytest.mark.parametrize("begun", [False, True])
async def test_a_failure_of_the_sidecar_is_told(
    empty_town: Town, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, begun: bool
):
    """Whatever it stumbles over in an answer: the caller learns it at once, where it is not run again."""

    async def stumbles(*given: Any) -> None:
        if begun:
            [alive] = (each for each in given if isinstance(each, SignsOfLife))
            await alive.during(asyncio.sleep(1.5))
            assert alive.said
        raise ValueError("secret")

    monkeypatch.setattr(AtApplication, "head", lambda *_: Head(status=200))
    monkeypatch.setattr(AtApplication, "whole", stumbles)
    async with asking(empty_town, lambda _: whole({}), "shop") as (raw, (shop,)):
        before = time.monotonic()
        answer = await tool(shop, "pay", {})
        assert time.monotonic() - before < LIMITS["begin"]
        assert outcome(answer) == (OUTCOME_UNKNOWN, 502)
        data = answer.json()["error"]["data"]
        assert (data["rule"], data["ran"]) == ("outcome_unknown", "unknown")
        assert "ValueError" in answer.text
        assert "secret" not in answer.text + caplog.text
        assert len(raw.heads) == 1


def told(text: str) -> dict[str, Any]:
    """The answer of a tool."""
    return {"jsonrpc": "2.0", "id": 1, "result": {"content": [{"type": "text", "text": text}]}}


PROGRESS = {
    "jsonrpc": "2.0",
    "method": "notifications/progress",
    "params": {"progressToken": 1, "progress": 1},
}
ENDS = [
    (told("AKIAIOSFODNN7EXAMPLE"), "answer_refused", OUTCOME_UNKNOWN, "yes"),
    (told("y" * 2_000_000), "response_bytes", TOO_LARGE, "yes"),
    ({"jsonrpc": "2.0", "id": 2, "result": {}}, "outcome_unknown", OUTCOME_UNKNOWN, "unknown"),
]


@pytest.mark.parametrize("resumable", [False, True])
@pytest.mark.parametrize(("last", "rule", "code", "ran"), ENDS)
async def test_who_reads_a_stream_learns_why_it_ends(
    empty_town: Town, last: dict[str, Any], rule: str, code: int, ran: str, resumable: bool
):
    """As the error of its call, at once: the official client waits for its answer without a limit.

    Where the rest can be asked for, and may be had, the stream is cut off as the application's own would be.
    """
    sent = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        head = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        mark = b"id: 1\n" if resumable else b""
        first = mark + b"data: " + orjson.dumps(PROGRESS) + b"\n\n"
        await send({"type": "http.response.body", "body": first, "more_body": True})
        await sent.wait()
        await send({"type": "http.response.body", "body": b"data: " + orjson.dumps(last) + b"\n\n"})

    said: list[Any] = []

    async def read(answer: httpx.Response) -> None:
        async for line in answer.aiter_lines():
            if line.startswith("data: "):
                said.append(orjson.loads(line[6:]))
                sent.set()

    async with contextlib.AsyncExitStack() as stack:
        empty_town.ports["bank"] = await stack.enter_async_context(serving(app))
        await empty_town.start(stack, "bank", "shop")
        shop = await stack.enter_async_context(httpx.AsyncClient(proxy=empty_town.proxy("shop"), timeout=60))
        call = {"name": "pay", "arguments": {}, "_meta": META}
        body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": call}
        named = HEADERS | {"mcp-method": "tools/call", "mcp-name": "pay"}
        async with shop.stream("POST", "http://bank.test/mcp", json=body, headers=named) as answer:
            assert answer.status_code == 200
            before = time.monotonic()
            with pytest.raises(httpx.RemoteProtocolError):  # cut off: it has no end
                await read(answer)
            assert time.monotonic() - before < LIMITS["begin"] / 2
    assert said[0] == PROGRESS
    if resumable and ran == "unknown":
        assert len(said) == 1
        return
    [error] = said[1:]
    assert error["id"] == 1
    assert (error["error"]["data"]["rule"], error["error"]["data"]["ran"]) == (rule, ran)
    assert (error["error"]["code"], error["error"]["data"]["status"]) == (code, 502)
    assert "AKIA" not in str(error)


@pytest.mark.parametrize("first", [b"data: nonsense\n\n", b"data: \xff\n\n"])
async def test_a_stream_that_is_none_from_its_beginning_is_told_at_once(empty_town: Town, first: bytes):
    """Nothing of it was sent by then, so that its end says nothing either."""
    async with asking(empty_town, lambda _: streamed(first), "shop") as (raw, (shop,)):
        before = time.monotonic()
        answer = await tool(shop, "pay", {})
        assert time.monotonic() - before < LIMITS["begin"] / 2
        assert outcome(answer) == (OUTCOME_UNKNOWN, 502)
        data = answer.json()["error"]["data"]
        assert (data["rule"], data["ran"]) == ("outcome_unknown", "unknown")
        assert "stream broke off" in answer.text
        assert len(raw.heads) == 1

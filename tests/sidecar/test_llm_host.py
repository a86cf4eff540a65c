"""The way to a language model and back: what leaves, what is held, what is refused."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from broker_policy.identity.certificate_paths import CertificatePaths
from mas_nats.errors import OutcomeUnknown, Unavailable
from mas_nats.sidecar import Settings, llm_api
from mas_nats.sidecar.http_message import HttpRequest, HttpResponse
from mas_nats.sidecar.llm_host import Asking, LlmHost
from mas_nats.sidecar.llm_search import Passed, Said
from mas_nats.sidecar.refusal import Refusal
from tests.sidecar.applications import serving

KEY = "Bearer sk-of-the-application"
HEADERS = {"content-type": "application/json", "authorization": KEY}
CHAT = "/v1/chat/completions"
WHOLE = {
    "choices": [
        {
            "message": {"tool_calls": [{"id": "a", "function": {"name": "bank__pay", "arguments": "{}"}}]},
            "finish_reason": "tool_calls",
        }
    ]
}


def request(path: str = CHAT, body: Any = None, **more: Any) -> HttpRequest:
    raw = orjson.dumps({"messages": []} if body is None else body)
    return HttpRequest("POST", path, headers=HEADERS, body=raw, **more)


@dataclass
class Model:
    """A language model that answers as a test says; and policy, and whoever asks what it selected."""

    answer: Callable[[], Awaitable[Response]] = field(default=lambda: _json(WHOLE))
    asked: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    searched: list[Asking] = field(default_factory=list)
    told: list[tuple[str, list[str]]] = field(default_factory=list)
    policy: Callable[[Asking], Any] = lambda asking: asking.body
    gone: Callable[[Said], int] = lambda said: len(said.chunks)
    recording: Callable[[], Awaitable[None]] | None = None

    async def serve(self, request: Request) -> Response:
        body = await request.body()
        self.asked.append(orjson.loads(body) if body else {})
        self.headers.append(dict(request.headers))
        return await self.answer()

    async def ask(self, asking: Asking) -> Any:
        self.searched.append(asking)
        return self.policy(asking)

    async def look(self, said: Said) -> Passed:
        return Passed(self.gone(said))

    async def may_ask(self, cause: str) -> None:
        self.told.append((cause, []))

    async def selected(self, cause: str, tools: Sequence[str]) -> None:
        if self.recording is not None:
            await self.recording()
        self.told.append((cause, list(tools)))


async def _json(document: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(document), status, media_type="application/json")


def events(*parts: bytes) -> Callable[[], Awaitable[Response]]:
    async def answer() -> Response:
        return StreamingResponse(iter(parts), media_type="text/event-stream")

    return answer


def event(data: Any) -> bytes:
    return b"data: " + orjson.dumps(data) + b"\n\n"


def delta(why: str | None = None, **said: Any) -> bytes:
    return event({"choices": [{"index": 0, "delta": said, "finish_reason": why}]})


@contextlib.asynccontextmanager
async def reaching(model: Model, **limits: Any) -> AsyncIterator[LlmHost]:
    """A way to ``model``."""
    routes = [Route("/{path:path}", model.serve, methods=["GET", "POST"])]
    async with serving(Starlette(routes=routes)) as port:
        desk = {"type": "agent", "base_url": "http://127.0.0.1:1", "tool_names": {"bank__pay": "pay"}}
        settings = Settings.model_validate(
            {
                "app": "desk",
                "applications": {"desk": desk},
                "llm_host": "llm.test",
                "llm_base_url": f"http://127.0.0.1:{port}",
                "limits": limits,
            }
        )
        host = LlmHost(settings, model.ask, model.look, model, now=time.monotonic)
        try:
            yield host
        finally:
            await host.close()


async def gathered(host: LlmHost, asked: HttpRequest, cause: str = "m") -> tuple[int, bytes]:
    status, body = 0, b""
    async for part in host.carry(asked, cause):
        if isinstance(part, HttpResponse):
            status = part.status
        else:
            body += part
    return status, body


async def refused(host: LlmHost, asked: HttpRequest | None = None) -> Refusal:
    with pytest.raises(Refusal) as found:
        await gathered(host, asked or request())
    return found.value


# -- there -----------------------------------------------------------------------------------------------
async def test_what_leaves_is_what_policy_lets_pass():
    model = Model(policy=lambda asking: {**asking.body, "body": {"messages": ["[REDACTED]"]}})
    async with reaching(model) as host:
        status, body = await gathered(host, request(body={"messages": ["secret"]}))
    assert (status, orjson.loads(body)) == (200, WHOLE)
    assert model.asked == [{"messages": ["[REDACTED]"]}]
    [searched] = model.searched
    assert (searched.host, searched.operation) == ("llm.test", "chat/completions")
    shown = {"content-type": "application/json"}
    assert searched.body == {"path": CHAT, "headers": shown, "body": {"messages": ["secret"]}}
    assert model.told == [("m", []), ("m", ["pay"])]


async def test_credentials_go_to_the_model_and_nowhere_else(caplog: pytest.LogCaptureFixture):
    caplog.set_level("DEBUG")
    model = Model()
    async with reaching(model) as host:
        await gathered(host, request())
        assert KEY not in repr(request())
    assert model.headers[0]["authorization"] == KEY
    assert "traceparent" not in model.headers[0]
    assert KEY not in repr(model.searched)
    assert KEY not in caplog.text


async def test_cookies_of_a_model_are_not_sent_back():
    """Requests of all users go over one client: what identifies one is not sent with another's."""

    async def answer() -> Response:
        response = await _json(WHOLE)
        response.set_cookie("session", "of-the-first", max_age=3600)
        return response

    model = Model(answer=answer)
    async with reaching(model) as host:
        for _ in range(2):
            assert (await gathered(host, request()))[0] == 200
    assert [("cookie" in headers) for headers in model.headers] == [False, False]


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_policy_is_shown_everything_that_leaves_but_the_key(method: str):
    model = Model()
    said = dict.fromkeys(llm_api.HEADERS, "a name")
    said["content-type"] = "application/json"
    path, body = (CHAT, b"{}") if method == "POST" else ("/v1/models", b"")
    async with reaching(model) as host:
        await gathered(host, HttpRequest(method, path, "api-version=2025-01-01", said, body))
    keys = {"authorization", "api-key", "x-api-key"}
    assert model.headers[0].items() >= {name: said[name] for name in said if name != "traceparent"}.items()
    own = {"host", "connection", "accept-encoding", "user-agent", "content-length"}
    assert model.headers[0].keys() - own == llm_api.HEADERS - {"traceparent"}
    [searched] = model.searched
    assert searched.body == {
        "path": path,
        "query": "api-version=2025-01-01",
        "headers": {name: value for name, value in said.items() if name not in {*keys, "traceparent"}},
        **({"body": {}} if method == "POST" else {}),
    }


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("place", ["path", "query", "headers"])
async def test_what_policy_redacts_beside_the_body_does_not_leave(method: str, place: str):
    """A part of a path or of an id would be another one: nothing is sent."""

    def redacts(asking: Asking) -> Any:
        said = asking.body[place]
        redacted = "[REDACTED]" if isinstance(said, str) else dict.fromkeys(said, "[REDACTED]")
        return {**asking.body, place: redacted}

    model = Model(policy=redacts)
    fields = {**HEADERS, "idempotency-key": "secret"}
    path, body = (CHAT, b"{}") if method == "POST" else ("/v1/models", b"")
    async with reaching(model) as host:
        found = await refused(host, HttpRequest(method, path, "beta=true", fields, body))
    assert (found.rule, found.status, found.ran) == ("llm_header", 403, "no")
    assert found.message_id == model.searched[0].message_id
    assert model.asked == []


@pytest.mark.parametrize(
    "error", [Unavailable("no policy worker answers"), OutcomeUnknown("id", "no answer")]
)
async def test_nothing_leaves_when_policy_cannot_be_asked(error: Exception):
    def away(_: Asking) -> Any:
        raise error

    model = Model(policy=away)
    async with reaching(model) as host:
        found = await refused(host)
    assert (found.rule, found.status, found.ran) == ("unavailable", 503, "no")
    assert model.asked == []


@pytest.mark.parametrize(
    ("asked", "rule"),
    [
        (request("/v1/files"), "llm_path"),
        (request("/v1/chat/completions/"), "llm_path"),
        (request("/v1/../chat/completions"), "llm_path"),
        (request("/v1/chat%2fcompletions"), "llm_path"),
        (request(query="key=secret"), "llm_path"),
        (HttpRequest("GET", CHAT, headers={}), "llm_path"),
        (HttpRequest("DELETE", "/v1/models/a", headers={}), "llm_path"),
        (HttpRequest("POST", CHAT, headers={"content-type": "text/plain"}, body=b"{}"), "content_type"),
        (HttpRequest("POST", CHAT, headers=HEADERS, body=b'{"a":1,"a":2}'), "json"),
        (HttpRequest("POST", CHAT, headers=HEADERS, body=b"[]"), "json"),
        (HttpRequest("POST", CHAT, headers=HEADERS | {"cookie": "a"}, body=b"{}"), "header"),
        (HttpRequest("POST", CHAT, headers=HEADERS | {"x-api-key": "a\nb"}, body=b"{}"), "header"),
        (
            request("/v1/responses", {"tools": [{"type": "mcp", "server_url": "https://x"}]}),
            "llm_outside_tools",
        ),
        (request("/v1/responses", {"tools": [{"type": " MCP "}]}), "llm_outside_tools"),
        (request("/v1/messages", {"mcp_servers": [{"url": "https://x"}]}), "llm_outside_tools"),
        (request("/v1/messages", {"tools": [{"type": "mcp_toolset"}]}), "llm_outside_tools"),
    ],
)
async def test_what_may_not_leave(asked: HttpRequest, rule: str):
    model = Model()
    async with reaching(model) as host:
        assert (await refused(host, asked)).rule == rule
    assert model.asked == model.searched == []


async def test_what_selects_nothing_passes_too():
    model = Model(answer=lambda: _json({"data": []}))
    async with reaching(model) as host:
        models = HttpRequest("GET", "/v1/models", headers={"authorization": KEY})
        assert await gathered(host, models) == (200, b'{"data":[]}')
        assert await gathered(host, request("/v1/embeddings")) == (200, b'{"data":[]}')
        await gathered(
            host, request("/openai/deployments/x/chat/completions", query="api-version=2025-01-01")
        )
    assert [each.operation for each in model.searched] == ["models", "embeddings", "chat/completions"]
    assert model.told == [("m", []), ("m", [])]  # of the one that could have selected a tool


async def test_by_https_the_model_has_to_be_who_it_says(server_certificate: CertificatePaths):
    model, cert = Model(), server_certificate
    routes = [Route("/{path:path}", model.serve, methods=["POST"])]
    served = serving(Starlette(routes=routes), ssl_certfile=str(cert.cert), ssl_keyfile=str(cert.key))
    async with served as port:
        desk = {"type": "agent", "base_url": "http://127.0.0.1:1"}
        settings = Settings(app="desk", applications={"desk": desk}, llm_host=f"localhost:{port}")
        assert settings.llm_url == f"https://localhost:{port}"
        own = ssl.create_default_context(cafile=str(cert.ca))
        knows = LlmHost(settings, model.ask, model.look, model, now=time.monotonic, verify=own)
        knows_not = LlmHost(settings, model.ask, model.look, model, now=time.monotonic)
        assert (await gathered(knows, request()))[0] == 200
        assert (await refused(knows_not)).rule == "llm_away"
        await knows.close()
        await knows_not.close()
    assert len(model.asked) == 1


# -- and back --------------------------------------------------------------------------------------------
async def test_a_whole_answer_waits_until_its_calls_are_recorded():
    recorded = asyncio.Event()
    model = Model(recording=recorded.wait)
    async with reaching(model) as host, asyncio.timeout(30):
        parts = host.carry(request(), "m")
        first = asyncio.ensure_future(anext(parts))
        await asyncio.wait({first}, timeout=0.3)
        assert not first.done()
        recorded.set()
        assert isinstance(await first, HttpResponse)
        assert model.told[-1] == ("m", ["pay"])
        await parts.aclose()


async def test_a_stream_comes_as_it_comes_and_the_event_that_completes_a_call_waits():
    seen, recorded = asyncio.Event(), asyncio.Event()

    async def said() -> AsyncIterator[bytes]:
        yield b": hello\n\n" + delta(content="let me")
        await seen.wait()  # only goes on when the application has it
        yield delta(tool_calls=[{"index": 0, "function": {"name": "bank__", "arguments": ""}}])
        yield delta(tool_calls=[{"index": 0, "function": {"name": "pay", "arguments": "{}"}}])
        yield delta(content="done") + delta("tool_calls") + b"data: [DONE]\n\n"

    async def answer() -> Response:
        return StreamingResponse(said(), media_type="text/event-stream")

    model = Model(answer=answer, recording=recorded.wait)
    async with reaching(model) as host, asyncio.timeout(30):
        parts = host.carry(request(), "m")
        head = await anext(parts)
        assert isinstance(head, HttpResponse)
        body = await anext(parts)
        assert body == b": alive\n\n" + delta(content="let me")  # written anew
        seen.set()
        while b'"done"' not in body:
            body += await anext(parts)
        rest = asyncio.ensure_future(anext(parts))
        await asyncio.wait({rest}, timeout=0.3)
        assert not rest.done()
        assert b'"finish_reason":"tool_calls"' not in body
        recorded.set()
        assert (await rest).endswith(b"data: [DONE]\n\n")
        assert model.told == [("m", []), ("m", ["pay"])]
        assert await anext(parts, None) is None


@pytest.mark.parametrize("stream", [True, False])
async def test_an_answer_whose_calls_cannot_be_recorded_is_not_handed_over(stream: bool):
    async def fails() -> None:
        raise Unavailable("no policy worker answers")

    model = Model(recording=fails)
    said = delta(tool_calls=[{"index": 0, "function": {"name": "pay", "arguments": "{}"}}])
    if stream:
        model.answer = events(said, delta("tool_calls"))
    body = b""
    async with reaching(model) as host:
        parts = host.carry(request(), "m")
        if stream:
            assert isinstance(await anext(parts), HttpResponse)
            body = bytes(await anext(parts))  # type: ignore[arg-type]
            error = orjson.loads(bytes(await anext(parts)).removeprefix(b"data: "))  # type: ignore[arg-type]
            assert error["error"]["code"] == "llm_selection"
        with pytest.raises(Refusal) as found:
            await anext(parts)
    assert (found.value.rule, found.value.ran) == ("llm_selection", "yes")
    assert body == (said if stream else b"")


@pytest.mark.parametrize("stream", [True, False])
async def test_that_nothing_was_selected_is_told_too(stream: bool):
    model = Model(answer=lambda: _json({"choices": []}))
    if stream:
        model.answer = events(delta(content="a"), delta("stop"), b"data: [DONE]\n\n")
    async with reaching(model) as host:
        assert (await gathered(host, request()))[0] == 200
    assert model.told == [("m", []), ("m", [])]


async def test_without_a_cause_nothing_is_recorded():
    model = Model()
    async with reaching(model) as host:
        assert (await gathered(host, request(), cause=""))[0] == 200
    assert model.told == []


async def test_errors_pass_as_they_are():
    model = Model(answer=lambda: _json({"error": {"message": "no such model"}}, 404))
    async with reaching(model) as host:
        assert await gathered(host, request()) == (404, b'{"error":{"message":"no such model"}}')
    assert model.told == [("m", [])]


def _plain(body: bytes, **more: Any) -> Callable[[], Awaitable[Response]]:
    async def answer() -> Response:
        return Response(body, **{"media_type": "application/json", **more})

    return answer


MANY = [{"id": str(n), "function": {"name": "pay", "arguments": "{}"}} for n in range(1000)]
HOSTILE = {
    "no json": _plain(b"<html>"),
    "a page": _plain(b"<html>", media_type="text/html"),
    "nothing": _plain(b""),
    "two choices": _plain(b'{"choices": [], "choices": []}'),
    "deep": _plain(b'{"choices":' + b"[" * 5000 + b"]" * 5000 + b"}"),
    "half a character": _plain(b'{"choices": "\\ud800"}'),
    "enormous": _plain(b'{"choices": "' + b"x" * 300_000 + b'"}'),
    "an enormous error": _plain(b"x" * 300_000, status_code=500),
    "many calls": _plain(orjson.dumps({"choices": [{"message": {"tool_calls": MANY}}]})),
    "compressed": _plain(b"{}", headers={"content-encoding": "gzip"}),
    "elsewhere": _plain(b"{}", status_code=307, headers={"location": "http://127.0.0.1:1/"}),
    "no json in an event": events(b"data: {\n\n"),
    "two names in an event": events(b'data: {"choices": [], "choices": []}\n\n'),
    "a list in an event": events(event([{"choices": [{"delta": {"content": "a"}}]}])),
    "a text in an event": events(event("a")),
    "a number in an event": events(event(7)),
    "an enormous event": events(*[b"data: " + b"x" * 60_000] * 5),
    "an endless line": events(*[b"x" * 60_000] * 5),
    "no text": events(b"data: \xff\n\n"),
    "many calls in events": events(
        *(
            delta(tool_calls=[{"index": n, "function": {"name": "pay", "arguments": "{}"}}])
            for n in range(500)
        )
    ),
}


@pytest.mark.parametrize("what", HOSTILE)
async def test_hostile_answers(what: str):
    model = Model(answer=HOSTILE[what])
    async with reaching(model, response_bytes=200_000) as host, asyncio.timeout(30):
        found = await refused(host)
    assert found.status == 502
    assert found.rule in {"llm_answer", "response_bytes"}
    assert "x" * 10 not in str(found)


async def test_a_model_that_is_silent_and_one_that_is_away():
    async def never() -> Response:
        await asyncio.sleep(20)
        return Response()

    async def stops() -> Response:
        async def said() -> AsyncIterator[bytes]:
            yield delta(content="a")
            await asyncio.sleep(20)

        return StreamingResponse(said(), media_type="text/event-stream")

    for answer in (never, stops):
        model = Model(answer=answer)
        async with reaching(model, answer=0.5) as host, asyncio.timeout(30):
            found = await refused(host)
            assert (found.rule, found.status, found.ran) == ("llm_answer", 504, "unknown")
    async with reaching(model) as host:
        pass
    settings = {"desk": {"type": "agent", "base_url": "http://127.0.0.1:1"}}
    away = LlmHost(
        Settings(app="desk", applications=settings, llm_host="a", llm_base_url="http://127.0.0.1:1"),
        model.ask,
        model.look,
        model,
        now=time.monotonic,
    )
    assert (await refused(away)).rule == "llm_away"
    await away.close()


async def test_who_leaves_ends_the_answer_of_the_model():
    ended = asyncio.Event()

    async def said() -> AsyncIterator[bytes]:
        try:
            while True:
                yield delta(content="a" * 1000)
                await asyncio.sleep(0)
        finally:
            ended.set()

    async def answer() -> Response:
        return StreamingResponse(said(), media_type="text/event-stream")

    async with reaching(Model(answer=answer)) as host, asyncio.timeout(30):
        parts = host.carry(request(), "m")
        await anext(parts)
        await anext(parts)
        await parts.aclose()
        await ended.wait()


async def test_a_stream_may_be_longer_than_what_may_wait_of_it():
    """What has gone is not kept. A stream of which nothing goes is ended, and one that policy keeps back."""
    said = [delta(content=f"{number} " + "words " * 1000) for number in range(60)]
    model = Model(answer=events(*said, delta("stop"), b"data: [DONE]\n\n"))
    async with reaching(model, response_bytes=200_000) as host, asyncio.timeout(30):
        _, body = await gathered(host, request())
        assert body.startswith(b"".join(said))
        model.gone = lambda _: 0
        assert "too much that waits" in str(await refused(host))
        model.answer = events(said[0], delta("stop"), b"data: [DONE]\n\n")
        assert (await refused(host)).rule == "llm_answer"


@pytest.mark.parametrize("stream", [True, False])
async def test_more_than_was_shown_cannot_go(stream: bool):
    model = Model(gone=lambda said: len(said.chunks) + 1)
    if stream:
        model.answer = events(delta(content="a"), b"data: [DONE]\n\n")
    async with reaching(model) as host:
        assert (await refused(host)).rule == "llm_answer"

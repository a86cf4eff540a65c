"""The addresses of the explorer: pages, their files, and the same data as JSON under ``/api``."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from importlib.resources import files
from typing import Any

import nats.errors
import orjson
from redis.exceptions import RedisError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from broker_policy.dead_letters.letters import Wanted
from broker_policy.explorer.feed import Row
from broker_policy.explorer.lifeline import lifeline
from broker_policy.explorer.tokens import about_tokens
from broker_policy.explorer.views import LONGEST, MOST, PATIENCE, Views, question
from broker_policy.jetstream import JetStreamError
from mas_nats.errors import MasError
from mas_nats.wire.identity import require_id

log = logging.getLogger(__name__)

PAGES = ("/", "/topology", "/live", "/message/{id:path}", "/agents", "/dead-letters", "/audit", "/tokens")
_BEAT = 10.0
"""Seconds after which a stream says that it still is there, and finds out whether anybody listens."""
_KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_KEPT = "private, max-age=31536000, immutable"
_FILTERS = ("sender", "target", "decision", "op")

Answering = Callable[[Request], Awaitable[dict[str, Any]]]


class Missing(Exception):
    """There is nothing of this name; the text says what was looked for."""


def site(views: Views) -> Starlette:
    """The application, without its gate."""
    page, assets = _assets()

    async def shown(_: Request) -> Response:
        return page

    async def asset(request: Request) -> Response:
        found = assets.get((request.path_params["version"], request.path_params["name"]))
        return found or Response("there is no such file\n", 404, media_type="text/plain")

    routes = [Route(path, shown) for path in PAGES]
    routes += [Route("/assets/{version}/{name}", asset)]
    routes += [Route(f"/api/{name}", _answering(found)) for name, found in _documents(views).items()]
    routes += [Route("/api/live", _live(views))]
    return Starlette(routes=routes)


def _documents(views: Views) -> dict[str, Answering]:
    async def overview(_: Request) -> dict[str, Any]:
        return await views.overview()

    async def topology(_: Request) -> dict[str, Any]:
        return await views.topology()

    async def agents(_: Request) -> dict[str, Any]:
        return await views.agents()

    async def message(request: Request) -> dict[str, Any]:
        wanted = request.path_params["id"]
        found = await lifeline(views.sources, views, wanted)
        if found is None:
            raise Missing("the audit in Redis has no decision about this message id")
        return found

    async def dead_letters(request: Request) -> dict[str, Any]:
        fields = request.query_params
        agent = fields.get("agent", "")
        if agent:
            require_id(agent, "agent id")
        wanted = Wanted(
            agent=agent,
            reason=fields.get("reason", ""),
            sender=fields.get("sender", ""),
            after=_number(request, "after", 0),
        )
        return await views.dead_letters(wanted, _limit(request))

    async def decisions(request: Request) -> dict[str, Any]:
        cursor = _number(request, "cursor", 0) or None
        wanted = question(dict(request.query_params))
        return await views.decisions(wanted, _limit(request), cursor, _within(request))

    async def tokens(_: Request) -> dict[str, Any]:
        return about_tokens(views.sources.namespace, views.feed.kept())

    async def verification(_: Request) -> dict[str, Any]:
        return await views.verification()

    async def checkpoints(request: Request) -> dict[str, Any]:
        return await views.checkpoints(_limit(request))

    return {
        "overview": overview,
        "topology": topology,
        "agents": agents,
        "message/{id:path}": message,
        "dead-letters": dead_letters,
        "decisions": decisions,
        "tokens": tokens,
        "verify": verification,
        "checkpoints": checkpoints,
    }


def _answering(answer: Answering) -> Callable[[Request], Awaitable[Response]]:
    async def respond(request: Request) -> Response:
        try:
            return _json(await answer(request))
        except Missing as error:
            return _failed(404, str(error), "")
        except (RedisError, nats.errors.Error, JetStreamError, OSError) as error:
            log.warning("%s: %s", request.url.path, type(error).__name__)
            return _failed(503, f"a store does not answer ({type(error).__name__})", "mas doctor says which")
        except (MasError, ValueError) as error:
            return _failed(400, str(error), "")

    return respond


def _live(views: Views) -> Callable[[Request], Awaitable[Response]]:
    async def respond(request: Request) -> Response:
        wanted = {name: value for name in _FILTERS if (value := request.query_params.get(name))}
        return StreamingResponse(_events(views, wanted), media_type="text/event-stream")

    return respond


async def _events(views: Views, wanted: dict[str, str]) -> AsyncIterator[bytes]:
    """What is there already, newest last, then what comes; as server-sent events."""
    async with aclosing(views.feed.listen()) as rows:
        coming = asyncio.ensure_future(anext(rows))
        await asyncio.sleep(0)  # it listens from here on
        try:
            for row in [row for row in views.feed.kept() if _fits(row, wanted)][-100:]:
                yield _event(row)
            yield b"event: ready\ndata: %s\n\n" % orjson.dumps({"namespace": views.sources.namespace})
            while True:
                done, _ = await asyncio.wait({coming}, timeout=_BEAT)
                if not done:
                    yield b": still here\n\n"
                    continue
                try:
                    row = coming.result()
                except StopAsyncIteration:
                    return
                coming = asyncio.ensure_future(anext(rows))
                if _fits(row, wanted):
                    yield _event(row)
        finally:
            coming.cancel()
            await asyncio.gather(coming, return_exceptions=True)


def _event(row: Row) -> bytes:
    return b"id: %d\ndata: %s\n\n" % (row["index"], orjson.dumps(row))


def _fits(row: Row, wanted: dict[str, str]) -> bool:
    for name, value in wanted.items():
        if name == "decision" and value == "refused":
            if not row["refused"]:
                return False
        elif row[name] != value:
            return False
    return True


def _limit(request: Request) -> int:
    return min(max(_number(request, "limit", 50), 1), MOST)


def _within(request: Request) -> float:
    """Seconds for which a search may walk."""
    return min(_number(request, "within", round(PATIENCE * 1000)) / 1000, LONGEST)


def _number(request: Request, name: str, default: int) -> int:
    text = request.query_params.get(name, "")
    if not text:
        return default
    if not (text.isascii() and text.isdecimal() and len(text) < 17):
        raise ValueError(f"{name} must be a whole number")
    return int(text)


def _json(document: dict[str, Any], status: int = 200) -> Response:
    return Response(orjson.dumps(document, default=str), status, media_type="application/json")


def _failed(status: int, text: str, fix: str) -> Response:
    return _json({"error": {"text": text, "fix": fix}}, status)


def _assets() -> tuple[Response, dict[tuple[str, str], Response]]:
    """The page, and the files that it loads by version and name.

    A browser keeps the files: the version is a digest of all of them, so those of another one have other
    addresses, also where one file loads another.
    """
    contents = {
        each.name: each.read_bytes() for each in files("broker_policy.explorer").joinpath("assets").iterdir()
    }
    digest = hashlib.sha256()
    for name in sorted(contents):
        digest.update(b"%s %d\n%s" % (name.encode(), len(contents[name]), contents[name]))
    version = digest.hexdigest()[:16]
    page = contents.pop("index.html").replace(b"/assets/", f"/assets/{version}/".encode())
    found = {
        (version, name): Response(content, headers={"Cache-Control": _KEPT}, media_type=kind)
        for name, content in contents.items()
        if (kind := _KINDS.get(f".{name.rpartition('.')[2]}"))
    }
    return Response(page, media_type=_KINDS[".html"]), found

"""Asks an MCP server itself, beside which the sidecar stands, which tools it has.

In the newer revision where the server knows it, else in the one with sessions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx2
import orjson

from mas_nats.sidecar import strict_json
from mas_nats.sidecar.application import Application
from mas_nats.sidecar.events import BrokenStream, EventReader
from mas_nats.sidecar.http_message import EVENTS, JSON, media_type
from mas_nats.sidecar.mcp import VERSION_META, WITH_SESSIONS, WITHOUT_SESSIONS
from mas_nats.sidecar.strict_json import NotStrict

MOST_TOOLS = 512
_MOST_PAGES = 64
_MOST_BYTES = 4 << 20
_TIMEOUT = 10.0
_CLIENT = {"name": "mas-sidecar", "version": "1"}


class NoList(Exception):
    """The server does not say which tools it has. Holds nothing of what it said."""


class ToolList:
    """Lists the tools of ``application``."""

    def __init__(self, application: Application) -> None:
        self._path = application.path
        self._base = application.base_url

    async def __call__(self) -> list[dict[str, Any]]:
        """All tools, as the server describes them.

        Raises:
            NoList: it does not say.

        """
        async with httpx2.AsyncClient(base_url=self._base, trust_env=False, timeout=_TIMEOUT) as http:
            try:
                try:
                    return await self._pages(_Newer(http, self._path))
                except NoList:
                    older = _Older(http, self._path)
                    await older.begin()
                    try:
                        return await self._pages(older)
                    finally:
                        await older.end()
            except httpx2.HTTPError as error:
                raise NoList(f"it does not answer ({type(error).__name__})") from None

    async def _pages(self, asking: _Newer | _Older) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        cursor: str | None = None
        for _ in range(_MOST_PAGES):
            result = await asking.ask("tools/list", {} if cursor is None else {"cursor": cursor})
            tools = result.get("tools")
            if not isinstance(tools, list):
                raise NoList("its answer has no tools")
            found += [each for each in tools if isinstance(each, dict)]
            if len(found) > MOST_TOOLS:
                raise NoList(f"it has more than {MOST_TOOLS} tools")
            following = result.get("nextCursor")
            if not isinstance(following, str) or not following:
                return found
            cursor = following
        raise NoList("its list has no end")


class _Newer:
    """The revision without sessions."""

    def __init__(self, http: httpx2.AsyncClient, path: str) -> None:
        self._http = http
        self._path = path

    async def ask(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        version = WITHOUT_SESSIONS[0]
        meta = {
            VERSION_META: version,
            "io.modelcontextprotocol/clientInfo": _CLIENT,
            "io.modelcontextprotocol/clientCapabilities": {},
        }
        fields = {"mcp-protocol-version": version, "mcp-method": method}
        return await _asked(self._http, self._path, method, params | {"_meta": meta}, fields)


class _Older:
    """The revision with sessions."""

    def __init__(self, http: httpx2.AsyncClient, path: str) -> None:
        self._http = http
        self._path = path
        self._fields: dict[str, str] = {}

    async def begin(self) -> None:
        params = {"protocolVersion": WITH_SESSIONS[-1], "capabilities": {}, "clientInfo": _CLIENT}
        opened = await _post(self._http, self._path, _rpc("initialize", params), {})
        result = _result(opened)
        session = opened.headers.get("mcp-session-id", "")
        self._fields = {"mcp-protocol-version": str(result.get("protocolVersion", WITH_SESSIONS[-1]))}
        self._fields |= {"mcp-session-id": session} if session else {}
        ready = {"jsonrpc": "2.0", "method": "notifications/initialized"}
        await _post(self._http, self._path, ready, self._fields)

    async def ask(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        return await _asked(self._http, self._path, method, params, self._fields)

    async def end(self) -> None:
        if "mcp-session-id" in self._fields:
            await self._http.delete(self._path, headers=self._fields)


async def _asked(
    http: httpx2.AsyncClient, path: str, method: str, params: dict[str, Any], fields: Mapping[str, str]
) -> dict[str, Any]:
    return _result(await _post(http, path, _rpc(method, params), fields))


def _rpc(method: str, params: dict[str, Any]) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}


async def _post(
    http: httpx2.AsyncClient, path: str, document: dict[str, Any], fields: Mapping[str, str]
) -> httpx2.Response:
    headers = {"content-type": JSON, "accept": f"{JSON}, {EVENTS}", "accept-encoding": "identity", **fields}
    request = http.build_request("POST", path, headers=headers, content=orjson.dumps(document))
    answer = await http.send(request, stream=True)
    try:
        body = b""
        async for part in answer.aiter_raw():
            body += part
            if len(body) > _MOST_BYTES:
                raise NoList("its answer is too large")
    finally:
        await answer.aclose()
    return httpx2.Response(answer.status_code, headers=answer.headers, content=body, request=request)


def _result(answer: httpx2.Response) -> dict[str, Any]:
    """The result of the one request that was made."""
    if not answer.is_success:
        raise NoList(f"it answers with status {answer.status_code}")
    try:
        if media_type(answer.headers.get("content-type", "")) == EVENTS:
            said = [event.data for event in EventReader(_MOST_BYTES).feed(answer.content)]
        else:
            said = [strict_json.parse(answer.content)]
    except (NotStrict, BrokenStream) as error:
        raise NoList(f"its answer cannot be taken: {error}") from None
    for each in said:
        if isinstance(each, dict) and each.get("id") == 1 and isinstance(each.get("result"), dict):
            result: dict[str, Any] = each["result"]
            return result
    raise NoList("it gives no result")

"""What "accepted" rests on: both servers flush to disk before they acknowledge (DESIGN 8).

nats-server flushes every two minutes unless ``sync_interval: always`` is set; Jepsen lost 14 % of the
acknowledged writes of 2.12.1 in a power cut. Each check returns findings, each of which says what to do;
no findings means durable.
"""

from __future__ import annotations

import asyncio
import http.client
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import orjson
from nats.aio.client import Client
from redis.asyncio import Redis
from redis.exceptions import RedisError

from broker_policy.embedded.binaries import NATS_SERVER_MIN, REDIS_MIN, Version, parse_version
from broker_policy.embedded.errors import NotDurable
from mas_nats.wire import headers

log = logging.getLogger(__name__)

_PING_VARZ = "$SYS.REQ.SERVER.PING.VARZ"
_PING_JSZ = "$SYS.REQ.SERVER.PING.JSZ"
_STREAMS = {"accounts": True, "streams": True, "config": True}
_QUIET = 0.25
"""Seconds without a further answer after which every server is taken to have answered."""
_NOBODY = "503"
_AGAIN = 0.1
"""Seconds after which a server is asked again that does not serve the subject yet."""

_REDIS_SETTINGS = {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One reason why an acknowledged write could be lost."""

    server: str
    problem: str
    fix: str

    def __str__(self) -> str:
        return f"{self.server}: {self.problem}. {self.fix}"


async def nats_findings(observer: Client, *, servers: int = 1, timeout: float = 5.0) -> list[Finding]:
    """Ask every nats-server of the cluster, over a connection that may ping for VARZ.

    ``servers`` is how many there are. A majority must answer within ``timeout`` seconds, less is a finding: a
    worker can start while a node is down, and what is acknowledged lies on a majority.
    """
    answers = await server_variables(observer, servers=servers, timeout=timeout)
    findings = [finding for varz in answers for finding in judge_nats(varz)]
    if len(answers) <= servers // 2:
        findings.append(
            Finding(
                "nats-server",
                f"{len(answers)} of {servers} servers answered {_PING_VARZ}",
                "Start the missing servers, and let the observer's permissions allow that subject",
            )
        )
        return findings
    if len(answers) < servers:
        log.warning("%d of %d nats-servers answer: the others are not checked", len(answers), servers)
    for jsz in await _ping(observer, _PING_JSZ, _STREAMS, len(answers), timeout):
        findings += judge_streams(jsz)
    return findings


async def jetstream_summaries(observer: Client, *, timeout: float = 2.0) -> list[dict[str, Any]]:
    """What each nats-server says of its JetStream as a whole: storage used, its limits."""
    return [dict(jsz) for jsz in await _ping(observer, _PING_JSZ, {}, 1, timeout)]


async def server_variables(
    observer: Client, *, servers: int = 1, timeout: float = 5.0
) -> list[Mapping[str, Any]]:
    """VARZ of at least ``servers`` servers, fewer where they do not answer within ``timeout`` seconds."""
    return await _ping(observer, _PING_VARZ, {}, servers, timeout)


async def monitor_findings(monitor_url: str) -> list[Finding]:
    """Ask one nats-server through its monitoring port."""
    try:
        varz = await asyncio.to_thread(monitor, monitor_url, "/varz")
        jsz = await asyncio.to_thread(monitor, monitor_url, "/jsz?accounts=true&streams=true&config=true")
    except (OSError, ValueError, http.client.HTTPException) as error:
        fix = "Start the server with 'http: 127.0.0.1:<port>' and name that address"
        return [Finding("nats-server", f"{monitor_url}/varz does not answer ({error})", fix)]
    return judge_nats(varz) + judge_streams(jsz)


def judge_nats(varz: Mapping[str, Any]) -> list[Finding]:
    """What one server's VARZ says."""
    name = f"nats-server {varz.get('server_name', '?')}"
    findings = []
    shown = str(varz.get("version", ""))
    if (version := _version(shown)) is None or version < NATS_SERVER_MIN:
        wanted = _text(NATS_SERVER_MIN)
        findings.append(
            Finding(name, f"its version is {shown or 'unknown'}", f"Upgrade it to {wanted} or newer")
        )
    stored = varz.get("jetstream", {}).get("config")
    if not stored:
        findings.append(Finding(name, "JetStream is off", "Add a jetstream block to its configuration"))
    elif not stored.get("sync_always"):
        findings.append(
            Finding(
                name,
                "it acknowledges before it flushes",
                "Put 'sync_interval: always' on a line of its own into its jetstream block, and restart it",
            )
        )
    return findings


def judge_streams(jsz: Mapping[str, Any]) -> list[Finding]:
    """The streams of one server that flush late although the server would not."""
    return [
        Finding(
            f"stream {stream['name']} of account {account.get('name', '?')}",
            "its persist_mode is async",
            "Copy it into a stream without persist_mode, which cannot be changed, and delete it",
        )
        for account in jsz.get("account_details") or ()
        for stream in account.get("stream_detail") or ()
        if (stream.get("config") or {}).get("persist_mode") == "async"
    ]


async def redis_findings(redis: Redis) -> list[Finding]:
    """Ask a redis-server for its version and settings."""
    try:
        info = await redis.info("server")
        settings = {name: (await redis.config_get(name)).get(name) for name in _REDIS_SETTINGS}
    except (RedisError, OSError) as error:
        fix = "Start it, and let its user run INFO and CONFIG GET"
        return [Finding("redis-server", f"it does not say how it is set ({type(error).__name__})", fix)]
    return judge_redis(str(info.get("redis_version", "")), settings)


def judge_redis(shown: str, settings: Mapping[str, str | None]) -> list[Finding]:
    """What a redis-server's version and settings say."""
    findings = []
    if (version := _version(shown)) is None or version < REDIS_MIN:
        fix = f"Upgrade it to {_text(REDIS_MIN)} or newer"
        findings.append(Finding("redis-server", f"its version is {shown or 'unknown'}", fix))
    for name, wanted in _REDIS_SETTINGS.items():
        if (value := settings.get(name)) != wanted:
            fix = f"Put '{name} {wanted}' into redis.conf, and restart it"
            findings.append(Finding("redis-server", f"{name} is {value or 'unknown'}", fix))
    return findings


def require(findings: Sequence[Finding]) -> None:
    """Refuse to go on when there are findings.

    Raises:
        NotDurable: there are; its text has a line for each.

    """
    if findings:
        lines = "\n".join(f"- {finding}" for finding in findings)
        raise NotDurable(
            f"an accepted message could be lost in a power cut:\n{lines}\n"
            "For a laptop there is the relaxed profile: mas up --relaxed"
        )


async def _ping(
    observer: Client, subject: str, options: Mapping[str, Any], servers: int, timeout: float
) -> list[Mapping[str, Any]]:
    """The answers of at least ``servers`` servers, unless time runs out, and of all that follow at once.

    A server that has just started says that nobody serves the subject, for a moment: it is asked again.
    """
    inbox, asked = observer.new_inbox(), orjson.dumps(options)
    subscription = await observer.subscribe(inbox)
    await observer.publish(subject, asked, reply=inbox)
    answers: list[Mapping[str, Any]] = []
    deadline = time.monotonic() + timeout
    try:
        while (left := deadline - time.monotonic()) > 0:
            wait = left if len(answers) < servers else min(left, _QUIET)
            message = await subscription.next_msg(wait)
            if (message.headers or {}).get(headers.STATUS) == _NOBODY:
                await asyncio.sleep(min(left, _AGAIN))
                await observer.publish(subject, asked, reply=inbox)
                continue
            answers.append(orjson.loads(message.data).get("data", {}))
    except TimeoutError:
        pass
    finally:
        await subscription.unsubscribe()
    return answers


def monitor(monitor_url: str, path: str) -> Mapping[str, Any]:
    """What a nats-server's monitoring answers.

    Raises:
        OSError, ValueError, http.client.HTTPException: it does not.

    """
    address = urlsplit(monitor_url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=5)
    try:
        connection.request("GET", path)
        raw: Mapping[str, Any] = orjson.loads(connection.getresponse().read())
    finally:
        connection.close()
    return raw


def _version(shown: str) -> Version | None:
    try:
        return parse_version(shown)
    except ValueError:
        return None


def _text(version: Version) -> str:
    return ".".join(map(str, version))

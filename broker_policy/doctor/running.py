"""What the running broker says: servers, durability, policy, workers, clocks, and how far the audit is."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import itertools
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from datetime import datetime
from typing import Any

import nats.errors
import redis.exceptions
from pydantic import ValidationError
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from broker_policy.audit.checkpoint_stream import CheckpointStream
from broker_policy.audit.complaint import complaint
from broker_policy.audit.key_history import CheckpointKeys
from broker_policy.audit.store import Store
from broker_policy.audit.waiting import Waiting, waiting
from broker_policy.doctor import copies, signing
from broker_policy.doctor.check import Check, fail, ok, warn
from broker_policy.embedded import durability, lock
from broker_policy.embedded.errors import NotRunning
from broker_policy.embedded.layout import Broker, Layout
from broker_policy.jetstream import JetStreamError, get_last_of_each
from broker_policy.policy.store import PolicyStore
from broker_policy.tenants.connect import connect_control_admin, connect_system, connect_tenant_admin
from broker_policy.tenants.endpoint import Endpoint
from broker_policy.tenants.material import ControllerKeys, PublicMaterial
from broker_policy.tenants.restore import missing_consumers, missing_streams
from broker_policy.tenants.streams import control_stream_names, tenant_stream_names
from mas_nats.errors import MasError
from mas_nats.policy.document import Document
from mas_nats.wire import subjects

_PATIENCE = 3.0
"""Seconds for which a server may keep silent."""
_CLOCK_WARN, _CLOCK_FAIL = 1.0, 60.0
_LAG_FAIL = 60.0
_FIELDS = 3
_NO_KEY = "mas:doctor"
"""Of Redis, where nothing is."""
_SILENT = (OSError, ValueError, http.client.HTTPException)
_NO_ANSWER = (MasError, nats.errors.Error, JetStreamError, OSError)


async def look(layout: Layout, clock: Callable[[], float] = time.time) -> list[Check]:
    """Every check of what runs from the folder; ``clock`` is this machine's, unix seconds."""
    try:
        broker = Broker.read(layout)
    except NotRunning:
        return [fail("broker", f"nothing runs in {layout.root}", "mas up")]
    except MasError as error:
        return [fail("broker", str(error), "mas down, then mas up")]
    if broker.contained:
        checks = await _nats_in_containers(layout, broker, clock)
    else:
        checks = [_held(layout, broker), *await _nats(broker, clock)]
    async with AsyncExitStack() as stack:
        client = Redis.from_url(
            broker.redis_url(),
            socket_timeout=_PATIENCE,
            socket_connect_timeout=_PATIENCE,
            retry=Retry(NoBackoff(), 0),
        )
        stack.push_async_callback(client.aclose)
        found, answers = await _redis(client, broker)
        checks += found
        try:
            keys = ControllerKeys.load(layout.keys)
            endpoint = broker.connection(layout, "controller")
            patience = _patience(broker)
            control = await connect_control_admin(endpoint, keys, name="doctor", patience=patience)
            stack.push_async_callback(control.close)
            if lost := judge_control(await missing_streams(control, control_stream_names())):
                return [*checks, lost]
            documents, found = await _policy(control)
            checks += [*found, await _workers(control)]
        except _NO_ANSWER as error:
            fix = "Look at the checks above, and at the logs of nats-server and the workers"
            return [*checks, fail("policy", f"it cannot be asked ({type(error).__name__}: {error})", fix)]
        looks = [_namespace(endpoint, keys, client if answers else None, each, clock) for each in documents]
        checks += itertools.chain.from_iterable(await asyncio.gather(*looks))
        if answers:
            checks += await _copies(client, layout, broker, documents, clock)
            theirs = PublicMaterial.load(layout.keys).checkpoint_keys
            names = [each.namespace for each in documents]
            checks += await asyncio.gather(*(_signed(client, control, each, theirs, clock) for each in names))
    return checks


def _held(layout: Layout, broker: Broker) -> Check:
    holder = lock.holder_of(layout.lock)
    if holder is None:
        text = f"{layout.endpoint} says process {broker.pid}, which is gone"
        return fail("broker", text, "mas up: what was accepted is kept")
    return ok("broker", f"process {holder.pid} since {holder.since}")


async def _nats(broker: Broker, clock: Callable[[], float]) -> list[Check]:
    """Each node: whether it is well, flushes before it acknowledges, and agrees with this clock."""
    checks = []
    for url in broker.monitor.split(","):
        try:
            asked = clock()
            varz = await asyncio.to_thread(durability.monitor, url, "/varz")
            offset = _offset(varz, (asked + clock()) / 2)
            health = await asyncio.to_thread(durability.monitor, url, "/healthz")
        except _SILENT as error:
            text = f"{url} does not answer ({type(error).__name__})"
            checks.append(fail("nats-server", text, "Look at its log; mas up starts it"))
            continue
        name, status = varz.get("server_name", "?"), health.get("status", "?")
        if status == "ok":
            checks.append(ok("nats-server", f"{name} {varz.get('version', '?')} is well"))
        else:
            text = f"{name} says {health.get('error') or status}"
            checks.append(fail("nats-server", text, "Look at its log"))
        checks.append(judge_clock(offset))
        checks += _durable("nats durability", await durability.monitor_findings(url), broker)
    return checks


async def _nats_in_containers(layout: Layout, broker: Broker, clock: Callable[[], float]) -> list[Check]:
    """The same of nodes whose monitoring cannot be reached from here: asked over the system account."""
    keys, public = ControllerKeys.load(layout.keys), PublicMaterial.load(layout.keys)
    endpoint = broker.connection(layout, "controller")
    fix = "docker compose ps, and docker compose logs nats"
    try:
        system = await connect_system(endpoint, keys, public, name="doctor", patience=_patience(broker))
    except _NO_ANSWER as error:
        return [fail("nats-server", f"{broker.url} does not answer ({type(error).__name__})", fix)]
    try:
        asked = clock()
        answers = await durability.server_variables(system, servers=broker.nodes, timeout=_PATIENCE)
        middle = (asked + clock()) / 2
    finally:
        await system.close()
    checks = []
    if len(answers) < broker.nodes:
        checks.append(fail("nats-server", f"{len(answers)} of {broker.nodes} answer", fix))
    for varz in answers:
        checks.append(ok("nats-server", f"{varz.get('server_name', '?')} {varz.get('version', '?')} answers"))
        checks += [judge_clock(_offset(varz, middle))] if len(answers) == broker.nodes else []
        checks += _durable("nats durability", durability.judge_nats(varz), broker)
    return checks


def _patience(broker: Broker) -> float:
    """Seconds to connect within: each of several nodes may be the one that keeps silent."""
    return _PATIENCE * broker.nodes


async def _redis(client: Redis, broker: Broker) -> tuple[list[Check], bool]:
    place = broker.redis.partition("?")[0]
    refused = None
    try:
        # It would be stored where it is already, and it never is: nothing is changed.
        await client.set(_NO_KEY, "", xx=True)
    except redis.exceptions.ResponseError as error:
        fix = "See to what it says: messages are accepted, the audit waits in the log until that is full"
        refused = fail("redis-server", f"{place} takes no writes ({complaint(error)})", fix)
    except (redis.exceptions.RedisError, OSError) as error:
        text = f"{place} does not answer ({complaint(error)})"
        fix = "Look at its log: messages are accepted, the audit waits in the log until that is full"
        return [fail("redis-server", text, fix)], False
    findings = await durability.redis_findings(client)
    first = refused or ok("redis-server", f"{place} answers")
    return [first, *_durable("redis durability", findings, broker)], True


def _durable(name: str, findings: Sequence[durability.Finding], broker: Broker) -> list[Check]:
    if not findings:
        return [ok(name, "what is acknowledged is on disk")]
    if broker.durable:
        return [fail(name, f"{each.server}: {each.problem}", each.fix) for each in findings]
    said = "; ".join(each.problem for each in findings)
    return [warn(name, f"relaxed: a power cut loses accepted messages ({said})", "mas up without --relaxed")]


def _offset(varz: Any, now: float) -> float:
    """Seconds that the server's clock is ahead of this one."""
    return datetime.fromisoformat(str(varz["now"])).timestamp() - now


def judge_clock(offset: float) -> Check:
    """What a difference between the server's clock and this one means."""
    if abs(offset) <= _CLOCK_WARN:
        return ok("clock", "agrees with the server's")
    text = f"this machine's is {abs(offset):.1f} s {'behind' if offset > 0 else 'ahead of'} the server's"
    make = fail if abs(offset) > _CLOCK_FAIL else warn
    return make("clock", text, "Set it right (NTP): workers correct it, certificates and agents do not")


async def _policy(control: Any) -> tuple[list[Document], list[Check]]:
    """Every namespace's policy, and whether it can be read: what cannot closes its namespace."""
    stream = subjects.kv_stream(subjects.POLICY_BUCKET)
    found = await get_last_of_each(control, stream, subjects.kv_key(subjects.POLICY_BUCKET, ">"))
    documents, checks = [], []
    for entry in found:
        if not entry.data:
            continue
        name = entry.subject.rpartition(".")[2]
        try:
            documents.append(Document.model_validate_json(entry.data))
        except ValidationError as error:
            fields = ", ".join(".".join(map(str, each["loc"])) or "all" for each in error.errors()[:_FIELDS])
            text = f"namespace {name} is closed, its policy cannot be read ({fields})"
            fix = "Apply its manifest again; where a newer version wrote it, upgrade this one"
            checks.append(fail("policy", text, fix))
    if not checks:
        checks.append(ok("policy", f"{len(documents)} namespaces can be read"))
    return documents, checks


async def _workers(control: Any) -> Check:
    beats = await PolicyStore(control).beats()
    return judge_workers({name: int(beat["revision"]) for name, beat in beats.items()})


def judge_workers(revisions: dict[str, int]) -> Check:
    """Whether workers live and agree on the policy."""
    if not revisions:
        return fail(
            "workers", "none is alive: nothing can be sent", "Look at the logs of the workers; mas up"
        )
    counted = Counter(revisions.values())
    if len(counted) == 1:
        [revision] = counted
        return ok("workers", f"{len(revisions)} alive, all on revision {revision}")
    said = ", ".join(f"{count} on {revision}" for revision, count in sorted(counted.items()))
    return warn(
        "workers", f"they disagree: {said}", "Ask again in a second; else look at the logs of the slow ones"
    )


def judge_control(lost: Sequence[str]) -> Check | None:
    """What it means that the CONTROL account lacks the streams ``lost``; None where it lacks none."""
    if not lost:
        return None
    if subjects.kv_stream(subjects.POLICY_BUCKET) in lost:
        fix = "Everything is refused: mas apply each manifest, which makes it again"
    elif subjects.CHECKPOINTS_STREAM in lost:
        fix = "Nothing says what was signed: find out who removed it; mas apply makes it again, empty"
    else:
        fix = "mas apply makes it again"
    return fail("policy", f"account CONTROL lacks {', '.join(lost)}", fix)


async def _namespace(
    endpoint: Endpoint,
    keys: ControllerKeys,
    client: Redis | None,
    document: Document,
    clock: Callable[[], float],
) -> list[Check]:
    """Whether a namespace has its streams and consumers, and how far its audit is where Redis answers."""
    name = document.namespace
    try:
        patience = _PATIENCE * endpoint.nodes
        tenant = await connect_tenant_admin(endpoint, keys, name, name="doctor", patience=patience)
        try:
            lost = await missing_streams(tenant, tenant_stream_names())
            if subjects.INBOX_STREAM not in lost:
                lost += await missing_consumers(tenant, lambda: document)
            if lost:
                return [judge_streams(name, lost)]
            if client is None:
                return []
            behind = await waiting(Store(client, name), tenant, clock)
        finally:
            await tenant.close()
    except (*_NO_ANSWER, redis.exceptions.RedisError) as error:
        text = f"it cannot be asked ({type(error).__name__}: {error})"
        return [fail(f"audit of {name}", text, "Look at the checks above")]
    return [judge_projection(f"audit of {name}", behind)]


async def _copies(
    client: Redis, layout: Layout, broker: Broker, documents: Sequence[Document], clock: Callable[[], float]
) -> list[Check]:
    """The copies of the audit that workers of this machine keep; a container has those of its own."""
    if broker.contained:
        return []
    checks = []
    for each in documents:
        if (settings := each.governance.audit).file_path:
            with contextlib.suppress(ValueError, redis.exceptions.RedisError):  # other checks say that
                checks.append(
                    await copies.look(Store(client, each.namespace), settings, layout.root, clock())
                )
    return checks


async def _signed(
    client: Redis, control: Any, namespace: str, keys: CheckpointKeys, clock: Callable[[], float]
) -> Check:
    """Whether what was signed of a namespace is there, and what came since is signed."""
    try:
        found = await signing.read(Store(client, namespace), CheckpointStream(control, namespace))
    except (*_NO_ANSWER, redis.exceptions.RedisError, ValueError, KeyError) as error:
        text = f"it cannot be asked ({type(error).__name__}: {error})"
        return fail(f"signer of {namespace}", text, "Look at the checks above, and run mas audit verify")
    return signing.judge_signing(namespace, found, keys, clock())


def judge_streams(namespace: str, lost: Sequence[str]) -> Check:
    """What it means that a namespace lacks the streams and consumers ``lost``."""
    fix = (
        "Workers make them again within seconds, empty: ask once more, else look at their logs. Then find out"
        " who removed them"
    )
    return fail(f"streams of {namespace}", f"{', '.join(lost)} are gone", fix)


def judge_projection(name: str, behind: Waiting) -> Check:
    """What it means how far the audit is behind."""
    if not behind.long:
        return ok(name, f"{behind.records} records wait")
    make = fail if behind.age > _LAG_FAIL else warn
    return make(
        name,
        str(behind),
        "Look at the workers' logs and at Redis: when the log is full, messages are refused",
    )

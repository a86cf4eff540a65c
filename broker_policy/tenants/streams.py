"""Every stream, bucket and consumer, with its limits and the reason for each.

``ensure`` makes what is missing and updates what differs; what is as it should be is left alone.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import cache
from typing import TypeVar

import nats.errors
from nats.js import JetStreamContext
from nats.js.api import (
    AckPolicy,
    ConsumerConfig,
    DeliverPolicy,
    DiscardPolicy,
    RePublish,
    RetentionPolicy,
    StorageType,
    StreamConfig,
)
from nats.js.errors import APIError

from broker_policy.jetstream import JetStreamError, Unsettled
from mas_nats.errors import ConfigurationError
from mas_nats.policy.document import Limits
from mas_nats.tokens.claims import LIFETIME, TOLERANCE
from mas_nats.wire import subjects

_T = TypeVar("_T")

DEDUP_WINDOW = 600.0
"""Seconds for which ``INBOX`` knows an id; the SDK's retries end well within (DESIGN 4)."""
BURIAL_WINDOW = 86400.0
"""Seconds for which a burial that was interrupted may be finished without a second dead letter."""
REPLY_AGE = 120.0
"""Seconds for which a reply can be fetched after a reconnect."""
REGISTRY_AGE = 30.0
"""Seconds after which an instance that says nothing is taken for gone."""
HEARTBEAT_AGE = 3.0
"""Seconds after which a worker that says nothing is taken for gone."""
LEASE_AGE = 4.0
"""Seconds after which a worker that does not renew its lease has lost it."""
TOKENS_AGE = float(LIFETIME + 2 * TOLERANCE)
"""Seconds for which is known what became of a token: it lives no longer, whoever's clock one goes by."""
MOST_MARKS = 200_000
"""Marks of tokens in a namespace, of at most some 300 bytes each; one agent leaves no more than its share."""
STATE_HISTORY = 64
"""Revisions kept of each agent's state; so many can a worker be behind with the audit of a direct one."""
STATE_HEADERS = 4096
"""Bytes of headers that a state may have beside its JSON."""
AUDIT_GUARD = "AUDIT"
"""The consumer that guards audit records. Upper case, so that no agent can have its name."""

_MEBIBYTE = 1 << 20
_NAME_IN_USE = 10058
_NOT_NOW = (10005, 10008, 10009, 10035, 10039)
"""No suitable peers, system temporarily unavailable, not the leader, account not found, JetStream not enabled
for the account (errors.json): the last two of a node that has just heard of the account."""
_PATIENCE = 15.0
"""Seconds for which that is repeated; an election takes up to nine."""
_PAUSE = 0.1
_NO_RESOURCES = (10023, 10028, 10047)


def tenant_streams(limits: Limits, copies: int = 1) -> list[StreamConfig]:
    """The streams and buckets of a tenant account, each kept by ``copies`` nodes."""
    return [stream.evolve(num_replicas=copies) for stream in _tenant_streams(limits)]


@cache
def tenant_stream_names() -> frozenset[str]:
    """The names of those streams and buckets."""
    return frozenset(str(stream.name) for stream in _tenant_streams(Limits()))


def _tenant_streams(limits: Limits) -> list[StreamConfig]:
    return [
        _inbox(limits),
        # Full means that dead letters stay in the inbox stream: refused, not dropped.
        StreamConfig(
            name=subjects.DLQ_STREAM,
            subjects=[subjects.DLQ_SUBJECTS],
            storage=StorageType.FILE,
            discard=DiscardPolicy.NEW,
            max_bytes=limits.log_bytes,
            duplicate_window=BURIAL_WINDOW,
            allow_direct=True,
        ),
        # One message for each sender and id; full means refused, for the sender of the message.
        StreamConfig(
            name=subjects.DELAYED_STREAM,
            subjects=[subjects.DELAYED_SUBJECTS],
            storage=StorageType.FILE,
            discard=DiscardPolicy.NEW,
            discard_new_per_subject=True,
            max_msgs_per_subject=1,
            max_bytes=limits.log_bytes,
            allow_direct=True,
        ),
        # Never full: what was released or cancelled in the last ten minutes.
        StreamConfig(
            name=subjects.CLAIMS_STREAM,
            subjects=[subjects.CLAIM_SUBJECTS],
            storage=StorageType.FILE,
            discard=DiscardPolicy.NEW,
            discard_new_per_subject=True,
            max_msgs_per_subject=1,
            allow_msg_ttl=True,
            allow_direct=True,
        ),
        # Stored once, then said again under another subject: so a repeated reply is delivered once.
        StreamConfig(
            name=subjects.REPLIES_STREAM,
            subjects=[subjects.ANSWERS],
            storage=StorageType.MEMORY,
            discard=DiscardPolicy.OLD,
            max_bytes=128 * _MEBIBYTE,
            max_age=REPLY_AGE,
            duplicate_window=REPLY_AGE,
            allow_direct=True,
            republish=RePublish(src=subjects.ANSWERS, dest=subjects.REPLIES),
        ),
        # With limits, since one agent's naks alone can make 2000 advisories a second.
        StreamConfig(
            name=subjects.ADVISORIES_STREAM,
            subjects=[subjects.ADVISORY_MAX_DELIVERIES],
            storage=StorageType.FILE,
            discard=DiscardPolicy.OLD,
            max_msgs=100_000,
            max_age=7 * 86400.0,
            allow_direct=True,
        ),
        _bucket(
            subjects.STATE_BUCKET,
            "*",
            storage=StorageType.FILE,
            max_msgs_per_subject=STATE_HISTORY,
            max_bytes=limits.log_bytes,
            # An agent whose state is direct writes here itself, so what limits it has to be here.
            max_msg_size=limits.max_state + STATE_HEADERS,
            republish=RePublish(src=subjects.kv_key(subjects.STATE_BUCKET, "*"), dest=subjects.STATE_CHANGES),
        ),
        _bucket(subjects.REGISTRY_BUCKET, "*.*", max_age=REGISTRY_AGE, max_bytes=32 * _MEBIBYTE),
        _bucket(subjects.IDENTITIES_BUCKET, "*", max_bytes=32 * _MEBIBYTE),
        _bucket(subjects.LEASES_BUCKET, "*", max_age=LEASE_AGE, max_bytes=_MEBIBYTE),
        # Hints: the oldest may go.
        _bucket(subjects.ATTEMPTS_BUCKET, "*", max_age=3600.0, max_bytes=32 * _MEBIBYTE).evolve(
            discard=DiscardPolicy.OLD
        ),
        # On disk: what is forgotten could be used again. Full means that no token is used. Counted, since
        # a limit in bytes would be taken from the server's store at once.
        _bucket(subjects.TOKENS_BUCKET, "*.*", storage=StorageType.FILE, max_age=TOKENS_AGE).evolve(
            max_msgs=MOST_MARKS
        ),
        _bucket(subjects.AUDITED_BUCKET, "*", storage=StorageType.FILE, max_bytes=32 * _MEBIBYTE),
    ]


def control_streams(copies: int = 1) -> list[StreamConfig]:
    """The streams and buckets of the CONTROL account, each kept by ``copies`` nodes."""
    return [stream.evolve(num_replicas=copies) for stream in _control_streams()]


@cache
def control_stream_names() -> frozenset[str]:
    """The names of those streams and buckets."""
    return frozenset(str(stream.name) for stream in _control_streams())


@cache
def lasting(names: frozenset[str]) -> frozenset[str]:
    """Those of them that are on disk: no restart of the server takes them."""
    streams = (*_tenant_streams(Limits()), *_control_streams())
    return names & {str(stream.name) for stream in streams if stream.storage is StorageType.FILE}


def _control_streams() -> list[StreamConfig]:
    return [
        _bucket(subjects.POLICY_BUCKET, ">", storage=StorageType.FILE, max_msgs_per_subject=10),
        _bucket(subjects.WORKERS_BUCKET, "*", max_age=HEARTBEAT_AGE, max_bytes=16 * _MEBIBYTE),
        # Nothing is ever removed: a checkpoint that is gone cannot speak against a cut.
        StreamConfig(
            name=subjects.CHECKPOINTS_STREAM,
            subjects=[subjects.checkpoint("*")],
            storage=StorageType.FILE,
            discard=DiscardPolicy.NEW,
            allow_direct=True,
            deny_delete=True,
            deny_purge=True,
        ),
    ]


def inbox_consumer(agent: str, limits: Limits) -> ConsumerConfig:
    """The durable that all instances of ``agent`` pull from.

    No ``backoff``: a plain nak ignores it, and it would replace the ack wait (DESIGN 5).
    """
    return ConsumerConfig(
        name=agent,
        durable_name=agent,
        filter_subject=subjects.inbox(agent),
        deliver_policy=DeliverPolicy.ALL,
        ack_policy=AckPolicy.EXPLICIT,
        ack_wait=limits.ack_wait,
        max_deliver=limits.max_deliver,
        max_ack_pending=limits.max_ack_pending,
        max_waiting=512,
    )


def audit_guard() -> ConsumerConfig:
    """A consumer that nobody pulls from: it must be there, and that is all.

    On a work queue an agent may acknowledge *any* sequence on its own consumer, and the server removes the
    message when no other consumer's filter covers it (tried on nats-server 2.15.1). Messages are covered
    by their agent's consumer; records, which the projector reads without one, by this.
    """
    return ConsumerConfig(
        name=AUDIT_GUARD,
        durable_name=AUDIT_GUARD,
        filter_subject=subjects.AUDIT_SUBJECTS,
        deliver_policy=DeliverPolicy.ALL,
        ack_policy=AckPolicy.EXPLICIT,
        max_waiting=1,
    )


async def ensure_stream(js: JetStreamContext, config: StreamConfig) -> None:
    """Make the stream, or bring it to ``config``.

    Raises:
        ConfigurationError: the server has not enough room for its limits.
        nats.js.errors.APIError: the server refused a change; the text says which.

    """

    async def make() -> None:
        try:
            await js.add_stream(config)
        except APIError as error:
            if error.err_code != _NAME_IN_USE:
                raise
            await js.update_stream(await _without_loss(js, config))

    try:
        await patiently(make)
    except APIError as error:
        if error.err_code in _NO_RESOURCES:
            raise ConfigurationError(
                f"the NATS server has not enough room for stream {config.name} "
                f"({config.max_bytes} bytes): raise its max_file_store or max_memory_store, or lower "
                f"log_bytes ({error.description})"
            ) from error
        raise


async def _without_loss(js: JetStreamContext, config: StreamConfig) -> StreamConfig:
    """``config``, but with no fewer messages of a subject than now where each one is still wanted.

    The server deletes the oldest of those that are too many, whatever ``discard`` says (nats-server 2.15.1).
    A lower ``inbox_messages`` is kept by the workers (ADR 11).
    """
    if config.retention is not RetentionPolicy.WORK_QUEUE:
        return config
    now = (await js.stream_info(str(config.name))).config.max_msgs_per_subject or 0
    return config.evolve(max_msgs_per_subject=max(now, config.max_msgs_per_subject or 0))


async def add_missing_stream(js: JetStreamContext, config: StreamConfig) -> None:
    """Make the stream; whoever made it meanwhile knows better how it should be."""

    async def make() -> None:
        try:
            await js.add_stream(config)
        except APIError as error:
            if error.err_code != _NAME_IN_USE:
                raise

    await patiently(make)


async def ensure_tenant_streams(js: JetStreamContext, limits: Limits, copies: int = 1) -> None:
    """Everything in a tenant account that does not depend on its agents."""
    await asyncio.gather(*(ensure_stream(js, config) for config in tenant_streams(limits, copies)))
    await ensure_consumer(js, audit_guard())


async def ensure_control_streams(js: JetStreamContext, copies: int = 1) -> None:
    """Everything in the CONTROL account."""
    for config in control_streams(copies):
        await ensure_stream(js, config)


async def ensure_inbox_consumer(js: JetStreamContext, agent: str, limits: Limits) -> None:
    """Make the consumer of ``agent``, or bring it to ``limits``."""
    await ensure_consumer(js, inbox_consumer(agent, limits))


async def ensure_consumer(js: JetStreamContext, config: ConsumerConfig) -> None:
    """Make a consumer of the inbox stream, or bring it to ``config``."""

    async def make() -> None:
        await js.add_consumer(subjects.INBOX_STREAM, config)

    await patiently(make)


async def patiently(make: Callable[[], Awaitable[_T]]) -> _T:
    """Repeat what a cluster cannot do yet: it elects a leader, or a node has not met the account."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            return await make()
        except (APIError, JetStreamError) as error:
            code = error.err_code if isinstance(error, APIError) else error.code
            if code not in _NOT_NOW or time.monotonic() > deadline:
                raise
        except (nats.errors.TimeoutError, Unsettled):
            if time.monotonic() > deadline:
                raise
        await asyncio.sleep(_PAUSE)


def _inbox(limits: Limits) -> StreamConfig:
    """The one log. A work queue: there a message waits for its consumer, and acknowledged means stored.

    Without a byte limit: with one, nats-server stores parts of batches (ADR 11). Workers keep ``log_bytes``.
    """
    return StreamConfig(
        name=subjects.INBOX_STREAM,
        subjects=[subjects.INBOX_SUBJECTS, subjects.AUDIT_SUBJECTS],
        storage=StorageType.FILE,
        retention=RetentionPolicy.WORK_QUEUE,
        discard=DiscardPolicy.NEW,
        discard_new_per_subject=True,
        max_msgs_per_subject=limits.inbox_messages,
        duplicate_window=DEDUP_WINDOW,
        allow_direct=True,
        allow_atomic=True,
    )


def _bucket(
    name: str,
    keys: str,
    *,
    storage: StorageType = StorageType.MEMORY,
    max_msgs_per_subject: int = 1,
    max_bytes: int = -1,
    max_age: float = 0.0,
    max_msg_size: int = -1,
    republish: RePublish | None = None,
) -> StreamConfig:
    """A KV bucket by hand: nats-py's own turns rollups on, and one rollup header wipes a bucket."""
    return StreamConfig(
        name=subjects.kv_stream(name),
        subjects=[subjects.kv_key(name, keys)],
        storage=storage,
        discard=DiscardPolicy.NEW,
        max_msgs_per_subject=max_msgs_per_subject,
        max_bytes=max_bytes,
        max_age=max_age,
        max_msg_size=max_msg_size,
        republish=republish,
        allow_direct=True,
        allow_rollup_hdrs=False,
        deny_delete=True,
    )

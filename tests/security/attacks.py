"""The attack suite: what a hostile agent ``mallory`` of namespace ``alpha`` may try, as data.

Direct attacks publish to a foreign or administrative subject. Redirected ones make a request that mallory
is allowed, and name such a subject as the place for its answer. Each is sent with hostile headers too.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import orjson
from installation import Installation, Peer

from broker_policy.identity import jwt
from broker_policy.identity.nkeys import KeyPair, Kind
from mas_nats.wire import subjects

ATTACKER, VICTIM = "mallory", "victim"
STREAMS = (
    "INBOX",
    "DLQ",
    "DELAYED",
    "CLAIMS",
    "REPLIES",
    "ADVISORIES",
    "KV_state",
    "KV_registry",
    "KV_attempts",
    "KV_tokens",
)
CALLS = "calls"
PULLS = "pulls"
ACKS = "acks"
GETS = "gets"
STATES = "states"
SOURCES = (CALLS, PULLS, ACKS, GETS)
"""What every agent may ask; with ``STATES``, what an agent may whose state is direct."""


@dataclass(frozen=True)
class Target:
    """A subject mallory must not reach, and what it would like to be there."""

    subject: str
    body: bytes = b""


HEADERS: tuple[dict[str, str], ...] = (
    {},
    {"Nats-Rollup": "all"},
    {"Nats-Rollup": "sub"},
    {"Nats-Schedule": "@at 2020-01-01T00:00:00Z", "Nats-Schedule-Target": subjects.inbox(VICTIM)},
    {"Nats-Schedule": "@every 1s", "Nats-Schedule-Target": f"$KV.state.{VICTIM}", "Nats-Schedule-TTL": "5m"},
    {"Nats-Expected-Stream": "INBOX", "Nats-Expected-Last-Sequence": "0"},
    {"Nats-Expected-Last-Subject-Sequence": "0", "Nats-Expected-Last-Subject-Sequence-Subject": ">"},
    {"Nats-Batch-Id": "b1", "Nats-Batch-Sequence": "1", "Nats-Batch-Commit": "1"},
    {"Nats-TTL": "1s", "Nats-Msg-Id": "known"},
    {"KV-Operation": "PURGE", "Nats-Marker-Reason": "MaxAge"},
    {"Nats-Incr": "+1"},
    {"Nats-Trace-Dest": subjects.inbox(VICTIM)},
    {"Nats-Trace-Dest": f"$KV.state.{VICTIM}", "Nats-Trace-Only": "true"},
    {"Mas-Sender": "ceo", "Mas-Record-Mac": "00", "Mas-Audit": "w1.1.0", "Mas-Salt": "x"},
    {"Nats-Subject": subjects.inbox(VICTIM), "Nats-Stream": "INBOX", "Nats-Sequence": "1"},
    {"Nats-Required-Api-Level": "0", "Nats-Request-Info": '{"acc":"SYS"}', "Status": "503"},
    {"Nats-Stream-Source": "INBOX 1 > > >", "Nats-Response-Type": "x"},
)


def data_targets() -> Iterator[Target]:
    """Subjects that streams capture, or that somebody listens to."""
    forged = orjson.dumps({"forged": True})
    for subject in (
        subjects.inbox(VICTIM),
        subjects.inbox(ATTACKER),
        subjects.audit_record("w1", 4),
        subjects.audit_record("w9", 1),
        subjects.answer(VICTIM, "i1", "c1", 0),
        subjects.answer(VICTIM, "i1", "c2", 0),
        subjects.answer(ATTACKER, "i1", "c1", 0),
        f"mas.reply.{VICTIM}.i1.c1.0",
        subjects.dead_letter(VICTIM),
        subjects.dead_letter(ATTACKER),
        f"$KV.state.{VICTIM}",
        f"$KV.state.{ATTACKER}",
        f"$KV.registry.{VICTIM}.i1",
        f"$KV.registry.{ATTACKER}.i9",
        f"$KV.attempts.{VICTIM}",
        subjects.kv_key(subjects.TOKENS_BUCKET, f"selected.{VICTIM}"),
        "$KV.policy.ns.alpha",
        "$KV.workers.w1",
        subjects.checkpoint("alpha"),
        subjects.delayed(VICTIM, "1"),
        subjects.delayed(ATTACKER, "1"),
        subjects.claim(VICTIM, "1"),
        f"$KV.{subjects.LEASES_BUCKET}.delayed",
        "$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.INBOX." + VICTIM,
        *(subjects.admin(op) for op in subjects.AdminOp),
        f"{subjects.view('watcher')}.KV_state.x",
        subjects.viewed("watcher", "x"),
        subjects.LATENCY,
        subjects.micro("PING"),
        "_INBOX.victim.1",
        "_R_.victim.1",
        "mas.>",
        "$KV.state.*",
    ):
        yield Target(subject, forged)


def api_targets() -> Iterator[Target]:
    """The JetStream API and acknowledgements."""
    now = time.time_ns()
    for stream in STREAMS:
        config = orjson.dumps({"name": stream, "subjects": [f"stolen.{stream}"], "storage": "memory"})
        yield Target(f"$JS.API.STREAM.PURGE.{stream}")
        yield Target(f"$JS.API.STREAM.MSG.DELETE.{stream}", b'{"seq":1}')
        yield Target(f"$JS.API.STREAM.UPDATE.{stream}", config)
        yield Target(f"$JS.API.STREAM.MSG.GET.{stream}", b'{"seq":1}')
        yield Target(f"$JS.API.STREAM.SNAPSHOT.{stream}", b'{"deliver_subject":"_INBOX.mallory"}')
        yield Target(f"$JS.API.STREAM.INFO.{stream}")
        yield Target(f"$JS.API.DIRECT.GET.{stream}", b'{"seq":1}')
        yield Target(f"$JS.API.STREAM.LEADER.STEPDOWN.{stream}")
    mirror = {"name": "STOLEN", "mirror": {"name": "INBOX"}, "storage": "memory"}
    yield Target("$JS.API.STREAM.CREATE.STOLEN", orjson.dumps(mirror))
    yield Target("$JS.API.STREAM.LIST")
    yield Target("$JS.API.STREAM.NAMES")
    yield Target("$JS.API.INFO")
    config = {
        "stream_name": "INBOX",
        "config": {"filter_subject": subjects.inbox(VICTIM), "durable_name": "x"},
    }
    yield Target(f"$JS.API.CONSUMER.CREATE.INBOX.x.{subjects.inbox(VICTIM)}", orjson.dumps(config))
    yield Target("$JS.API.CONSUMER.DURABLE.CREATE.INBOX.x", orjson.dumps(config))
    pause = b'{"pause_until":"2099-01-01T00:00:00Z"}'
    for consumer in (VICTIM, "AUDIT"):
        yield Target(f"$JS.API.CONSUMER.PAUSE.INBOX.{consumer}", pause)
        yield Target(f"$JS.API.CONSUMER.RESET.INBOX.{consumer}", b'{"seq":1}')
        yield Target(f"$JS.API.CONSUMER.MSG.NEXT.INBOX.{consumer}", b'{"batch":1,"no_wait":true}')
        yield Target(f"$JS.API.CONSUMER.INFO.INBOX.{consumer}")
        for sequence in range(1, 10):
            for body in (b"+ACK", b"-NAK", b"+TERM"):
                yield Target(f"$JS.ACK.INBOX.{consumer}.1.{sequence}.1.{now}.0", body)
        yield Target(f"$JS.API.CONSUMER.DELETE.INBOX.{consumer}")
    yield Target(f"$JS.API.DIRECT.GET.REPLIES.mas.answer.{VICTIM}.i1.c1.0")
    yield Target(f"$JS.API.DIRECT.GET.KV_state.$KV.state.{VICTIM}")
    yield Target("$JS.API.META.LEADER.STEPDOWN")
    yield Target("$JS.API.SERVER.REMOVE", b'{"peer":"x"}')
    for stream in STREAMS:
        yield Target(f"$JS.API.STREAM.DELETE.{stream}")


def system_targets(installation: Installation) -> Iterator[Target]:
    """The system and callout accounts."""
    key = KeyPair.create(Kind.ACCOUNT)
    tenant = installation.documents["alpha"].account
    own = jwt.encode(key, jwt.Account(tenant, "alpha").claims()).encode()
    kick = b'{"cid":%d}' % installation.admins["alpha"].client_id
    server = installation.admins["alpha"]._server_info["server_id"]
    yield Target("$SYS.REQ.CLAIMS.UPDATE", own)
    yield Target("$SYS.REQ.CLAIMS.DELETE", own)
    yield Target(f"$SYS.REQ.ACCOUNT.{tenant}.CLAIMS.UPDATE", own)
    yield Target(f"$SYS.REQ.ACCOUNT.{tenant}.CONNZ")
    yield Target("$SYS.REQ.ACCOUNT.PING.CONNZ")
    yield Target("$SYS.REQ.SERVER.PING.CONNZ")
    yield Target("$SYS.REQ.SERVER.PING.JSZ", b'{"config":true}')
    yield Target(f"$SYS.REQ.SERVER.{server}.KICK", kick)
    yield Target(f"$SYS.REQ.SERVER.{server}.RELOAD")
    yield Target(f"$SYS.ACCOUNT.{tenant}.DISCONNECT", b"{}")
    yield Target(f"$JS.API.ACCOUNT.PURGE.{tenant}")
    yield Target(subjects.AUTH_CALLOUT, b"{}")


def targets(installation: Installation) -> list[Target]:
    """Every subject mallory must not reach; what destroys most comes last."""
    calls = [
        Target(subjects.call(VICTIM, op), b"{}")
        for op in ("send", "reply", "state", "hello", "delay", "withdraw", "odd")
    ]
    return [*calls, *data_targets(), *system_targets(installation), *api_targets()]


def _requests(source: str, target: Target) -> Iterator[Target]:
    """The requests mallory is allowed; the answers to them are what reaches ``target``."""
    if source == CALLS:
        for op in ("send", "state", "x"):
            yield Target(subjects.call(ATTACKER, op), target.body)
    elif source == PULLS:
        yield Target(subjects.pull(ATTACKER), b'{"batch":1,"no_wait":true}')
    elif source == ACKS:
        base = f"$JS.ACK.INBOX.{ATTACKER}.1"
        for body in (b"+ACK", b'+NXT {"batch":1,"no_wait":true}'):
            yield Target(f"{base}.3.1.1.0", body)
    elif source == STATES:
        yield Target(subjects.kv_key(subjects.STATE_BUCKET, ATTACKER), target.body)
        yield Target(subjects.stored_state(ATTACKER))
    else:
        yield Target(subjects.stored_reply(ATTACKER, "i1", "c1", 0))
        yield Target(subjects.stored_reply(ATTACKER, "i1", "none", 0))


async def direct(peer: Peer, installation: Installation, *, everywhere: str = "_INBOX.mallory") -> int:
    """Publish to every target, with every set of headers; the number of messages."""
    count = 0
    for target in targets(installation):
        for fields in HEADERS:
            await peer.client.publish(target.subject, target.body, reply=everywhere, headers=fields or None)
            count += 1
    await arrived(peer)
    return count


async def redirected(peer: Peer, installation: Installation, source: str) -> int:
    """Let the answers of ``source`` go to every target, with every set of headers; the number."""
    count = 0
    for target in targets(installation):
        for request in _requests(source, target):
            for fields in HEADERS:
                await peer.client.publish(
                    request.subject, request.body, reply=target.subject, headers=fields or None
                )
                count += 1
    await arrived(peer)
    return count


async def forged_acks(peer: Peer) -> int:
    """Acknowledge, on mallory's own consumer, every sequence of the stream: also those of others."""
    count = 0
    for sequence in range(1, 12):
        for body in (b"+ACK", b"", b"-NAK", b"+TERM", b"+WPI", b'+NXT {"batch":1,"no_wait":true}'):
            for delivered in (1, 2, 3):
                await peer.client.publish(
                    f"$JS.ACK.INBOX.{ATTACKER}.1.{sequence}.{delivered}.{time.time_ns()}.0",
                    body,
                    reply="_INBOX.mallory",
                )
                count += 1
    await arrived(peer)
    return count


async def foreign_gets(peer: Peer) -> None:
    """Ask, on the one direct get that mallory may use, for what is not its own."""
    bodies = (
        {"seq": 1},
        {"last_by_subj": f"mas.answer.{VICTIM}.i1.c1.0"},
        {"multi_last": ["mas.answer.>"]},
        {"seq": 1, "next_by_subj": "mas.answer.>", "batch": 9},
    )
    own = subjects.stored_replies(ATTACKER).removesuffix(">")
    for name in ("i1.c1.0", "*.*.0", ">"):
        for body in bodies:
            await peer.client.publish(own + name, orjson.dumps(body), reply="_INBOX.mallory")
    await arrived(peer)


async def arrived(peer: Peer) -> None:
    """Return when the server, and the echo behind it, have worked off all that mallory sent."""
    await peer.client.flush(timeout=30)
    await peer.client.request(subjects.call(ATTACKER, "send"), b"done", timeout=30)

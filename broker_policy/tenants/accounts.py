"""What each role may use: one list a role, from which come exports, imports and user permissions.

Inside one account NATS permissions do not contain a JetStream client, since the reply subject of a
request is never checked (DESIGN 2). So whoever is not fully trusted has an account of its own that
imports exactly its list; the same list as user permissions is the second line, and readable in the JWT.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from broker_policy.identity.jwt import EVERYTHING, Permissions
from mas_nats.wire import subjects
from mas_nats.wire.identity import Identity, Role
from mas_nats.wire.state_mode import StateMode

if TYPE_CHECKING:  # its models take a tenth of a second, and most only connect
    from mas_nats.policy.document import Document

_THRESHOLD = 60_000_000_000
"""Nanoseconds for which the reply mapping of a ``STREAM`` answer lives after its last message. A pull, or
a batched get, must expire sooner."""

_SAMPLED = 5
"""Percent of the agents' calls of which the server says how long they took."""

USER_INFO = "$SYS.REQ.USER.INFO"
CLIENT_INBOX = "_INBOX.>"
_REFERENCE = re.compile(r"\$\d+")


class Answers(StrEnum):
    """How many answers a service gives to one request."""

    ONE = "Singleton"
    MANY = "Stream"


@dataclass(frozen=True, slots=True)
class Service:
    """A subject that may be asked.

    ``local`` is what the account that asks calls it, where that differs; ``$1`` stands for the first
    wildcard of ``subject``. ``sampled`` is of how many percent of the requests the server measures how
    long they took (``subjects.LATENCY``).
    """

    subject: str
    answers: Answers = Answers.ONE
    local: str = ""
    sampled: int = 0

    @property
    def asked(self) -> str:
        """What whoever asks publishes to."""
        return _REFERENCE.sub("*", self.local) or self.subject

    def export(self) -> dict[str, Any]:
        """As an export of the account that answers."""
        out: dict[str, Any] = {
            "name": self.subject,
            "subject": self.subject,
            "type": "service",
            "response_type": self.answers,
        }
        if self.answers is Answers.MANY:
            out["response_threshold"] = _THRESHOLD
        if self.sampled:
            out["service_latency"] = {"sampling": self.sampled, "results": subjects.LATENCY}
        return out


@dataclass(frozen=True, slots=True)
class Feed:
    """A subject that may be listened to; ``local`` as of a ``Service``."""

    subject: str
    local: str = ""

    @property
    def heard(self) -> str:
        """What whoever listens subscribes to."""
        return _REFERENCE.sub("*", self.local) or self.subject

    def export(self) -> dict[str, Any]:
        """As an export of the account that speaks."""
        return {"name": self.subject, "subject": self.subject, "type": "stream"}


@dataclass(frozen=True, slots=True)
class Void:
    """A subject that may be published to and that nobody hears: a tool would call the refusal an error."""

    subject: str


Use = Service | Feed | Void


def imports(account: str, uses: Sequence[Use]) -> list[dict[str, Any]]:
    """``uses`` as imports from ``account`` (a public key)."""
    return [
        {
            "name": use.subject,
            "subject": use.subject,
            "account": account,
            "type": "service" if isinstance(use, Service) else "stream",
            **({"local_subject": use.local} if use.local else {}),
        }
        for use in uses
        if not isinstance(use, Void)
    ]


def permissions(uses: Sequence[Use]) -> Permissions:
    """``uses`` as permissions of a user."""
    return Permissions(
        publish=(
            *(use.asked for use in uses if isinstance(use, Service)),
            *(use.subject for use in uses if isinstance(use, Void)),
            USER_INFO,
        ),
        subscribe=(CLIENT_INBOX, *(use.heard for use in uses if isinstance(use, Feed))),
    )


# -- in a tenant account ------------------------------------------------------------------------------
_ACCOUNT_INFO = Service("$JS.API.INFO")
"""Whoever imports a ``$JS.API`` subject must import this one too. It makes the server take its own JetStream
API out of the importing account; else each request is answered twice, first "JetStream not enabled"
(tried on nats-server 2.15.1; pulls and direct gets are not part of that API and need it not)."""

INSPECTOR: tuple[Service | Feed, ...] = (
    _ACCOUNT_INFO,
    Service("$JS.API.STREAM.LIST"),
    Service("$JS.API.STREAM.NAMES"),
    Service("$JS.API.STREAM.INFO.*"),
    Service("$JS.API.STREAM.MSG.GET.*"),
    Service("$JS.API.CONSUMER.LIST.*"),
    Service("$JS.API.CONSUMER.NAMES.*"),
    Service("$JS.API.CONSUMER.INFO.*.*"),
    Service("$JS.API.DIRECT.GET.>"),
    Service(subjects.MICRO, Answers.MANY),
    Feed(subjects.LATENCY),
)
"""What every inspector may use: it reads everything of its namespace and changes nothing."""


def inspector(name: str) -> tuple[Use, ...]:
    """What the inspector ``name`` may use of its tenant account.

    What needs a consumer (to page a stream, to list the keys of a bucket) is asked of the policy service
    under the JetStream API's name for it: that makes one of these names, which takes nothing away and
    delivers to this inspector alone (ADR 29).
    """
    asked = subjects.view(name)
    return (
        *INSPECTOR,
        Service(f"{asked}.*", local="$JS.API.CONSUMER.CREATE.$1"),
        Service(f"{asked}.*.>", local="$JS.API.CONSUMER.CREATE.$1.>"),
        Service(f"{asked}.*.*", local="$JS.API.CONSUMER.DURABLE.CREATE.$1.$2"),
        Feed(subjects.viewed(name, "*"), local="_INBOX.$1"),
        *(Service(_next("*", own), Answers.MANY) for own in subjects.view_consumers(name)),
        *(Service(f"$JS.API.CONSUMER.DELETE.*.{own}") for own in subjects.view_consumers(name)),
        *(Void(f"$JS.ACK.*.{own}.>") for own in subjects.view_consumers(name)),
    )


def _next(stream: str, consumer: str) -> str:
    return f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"


def agent(name: str, state: StateMode = StateMode.MEDIATED) -> tuple[Use, ...]:
    """What the agent ``name`` may use of its tenant account; its own state only where that is direct.

    Every call by its name, no wildcard: nats-server lets any byte but a blank into a token, and nats-py takes
    what is no UTF-8 for the end of its reading, and a vertical tab for the end of the subject (tried).
    """
    return (
        *(Service(subjects.call(name, op)) for op in subjects.Op),
        Service(subjects.pull(name), Answers.MANY),
        Service(subjects.acks(name)),
        Service(subjects.stored_replies(name)),
        Feed(subjects.replies_of(name).removesuffix("*.>") + ">"),
        *(_direct_state(name) if state is StateMode.DIRECT else ()),
    )


def _direct_state(name: str) -> tuple[Use, ...]:
    return Service(subjects.kv_key(subjects.STATE_BUCKET, name)), Service(subjects.stored_state(name))


TENANT_EXPORTS: tuple[Service | Feed, ...] = (
    Service(subjects.CALLS, sampled=_SAMPLED),
    Service(_next("*", "*"), Answers.MANY),
    Service(subjects.acks("*").removesuffix("*.>") + ">"),
    Feed(subjects.REPLIES),
    Service(subjects.kv_key(subjects.STATE_BUCKET, "*")),
    *INSPECTOR,
    Service(subjects.VIEWS),
    Service("$JS.API.CONSUMER.DELETE.*.*"),
    Feed(subjects.viewed("*", "*")),
)
"""All that a tenant account exports. It is the same for every tenant and never changes as agents come and
go: pushing the tenant account again would drop the pulls that are under way (DESIGN 9)."""


# -- in the CONTROL and SYS accounts --------------------------------------------------------------------
_POLICY_STREAM = subjects.kv_stream(subjects.POLICY_BUCKET)
_WORKER_BEATS = subjects.kv_key(subjects.WORKERS_BUCKET, "*")
WORKER: tuple[Service | Feed, ...] = (
    _ACCOUNT_INFO,
    Service(f"$JS.API.STREAM.INFO.{_POLICY_STREAM}"),
    Service(f"$JS.API.DIRECT.GET.{_POLICY_STREAM}", Answers.MANY),
    Service(f"$JS.API.DIRECT.GET.{_POLICY_STREAM}.>"),
    Service(_WORKER_BEATS),
    Feed(subjects.kv_key(subjects.POLICY_BUCKET, ">")),
)
"""What a worker may use of CONTROL: read and follow the policy, say that it lives."""

SIGNER: tuple[Service | Feed, ...] = (
    Service(subjects.checkpoint("*")),
    Service(f"$JS.API.DIRECT.GET.{subjects.CHECKPOINTS_STREAM}.>"),
)
"""What the checkpoint signer may use of CONTROL: append checkpoints and read them back."""

OBSERVER: tuple[Service | Feed, ...] = (
    Service("$SYS.REQ.SERVER.PING.JSZ", Answers.MANY),
    Service("$SYS.REQ.SERVER.PING.VARZ", Answers.MANY),
)
"""What a worker may use of SYS: to check the servers' durability settings."""

TENANT_READER: tuple[Service, ...] = (
    *(use for use in INSPECTOR if isinstance(use, Service)),
    Service(subjects.admin(subjects.AdminOp.CIRCUITS)),
    Service(subjects.admin(subjects.AdminOp.REVISIONS)),
)
"""What the explorer may use of a tenant account: what an inspector may, the state of circuits, and which
revisions the states of agents are at."""

CONTROL_READER: tuple[Service, ...] = (
    Service(f"$JS.API.STREAM.MSG.GET.{subjects.CHECKPOINTS_STREAM}"),
    Service(f"$JS.API.DIRECT.GET.{subjects.CHECKPOINTS_STREAM}"),
    Service(f"$JS.API.DIRECT.GET.{subjects.CHECKPOINTS_STREAM}.>"),
    Service(f"$JS.API.STREAM.INFO.{_POLICY_STREAM}"),
    Service(f"$JS.API.DIRECT.GET.{_POLICY_STREAM}", Answers.MANY),
)
"""What the explorer may use of CONTROL: read the checkpoints, and the policy that says who may look."""

CONTROL_EXPORTS: tuple[Service | Feed, ...] = (*WORKER, *SIGNER)


def worker_permissions() -> Permissions:
    """``WORKER``, with the heartbeat narrowed to the worker's own name."""
    own_beat = subjects.kv_key(subjects.WORKERS_BUCKET, "{{name()}}")
    general = permissions(WORKER)
    publish = tuple(own_beat if subject == _WORKER_BEATS else subject for subject in general.publish)
    return Permissions(publish, general.subscribe)


# -- the callout's answer -------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Grant:
    """Where an identity belongs and what it may do there."""

    account: str  # public key
    permissions: Permissions


def grant_for(document: Document, identity: Identity) -> Grant | None:
    """What the policy of its namespace grants to ``identity``; None when it is not in it.

    Processes of the policy service are never granted anything here: they bring a JWT of their own.
    """
    if identity.namespace != document.namespace:
        return None
    match identity.role:
        case Role.AGENT if identity.name in document.agents:
            policy = document.agents[identity.name]
            return Grant(policy.account, permissions(agent(identity.name, policy.state)))
        case Role.INSPECTOR if identity.name in document.inspectors:
            return Grant(document.inspectors[identity.name], permissions(inspector(identity.name)))
        case Role.OPERATOR if identity.name in document.operators:
            return Grant(document.account, EVERYTHING)
        case _:
            return None

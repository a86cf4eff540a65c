"""Every subject, stream and bucket name, in one place.

All of them are inside a tenant account unless a comment says otherwise. The agent token of a call
subject is fixed by the import of that agent's account, so a sender cannot be forged (DESIGN 2, 4).
"""

from __future__ import annotations

from enum import StrEnum

# -- calls: agent -> policy service -------------------------------------------------------------
CALLS = "mas.call.*.*"
WORKER_QUEUE = "policy"


class Op(StrEnum):
    """What an agent may ask of the policy service."""

    HELLO = "hello"
    BYE = "bye"
    SEND = "send"
    REQUEST = "request"
    REPLY = "reply"
    FRAME = "frame"
    FLOW = "flow"
    CANCEL = "cancel"
    FAIL = "fail"
    ACK = "ack"
    DISCOVER = "discover"
    STATE = "state"
    DELAY = "delay"
    WITHDRAW = "withdraw"
    PROMPT = "prompt"
    TOKEN = "token"  # noqa: S105 - no secret


ANSWERING = frozenset({Op.REPLY, Op.FRAME})
"""Calls that say by a reply capability to whom they go."""

RELEASE = "release"
"""What becomes of a ``delay`` that has come due. No agent can call it."""
CROSSING = frozenset({Op.SEND, Op.REQUEST, Op.DELAY, RELEASE})
"""Calls that may name an agent of another namespace."""


def call(agent: str, op: str) -> str:
    """Where ``agent`` asks for ``op``."""
    return f"mas.call.{agent}.{op}"


# -- operators -> policy service: never exported, so only who is inside the tenant account can ask ---------
ADMIN = "mas.admin.*"


class AdminOp(StrEnum):
    """What an operator, or the tenant controller, may ask of the policy service."""

    REDRIVE = "redrive"
    PURGE = "purge"
    RETIRE = "retire"
    WITHDRAW = "withdraw"
    CIRCUITS = "circuits"
    RESET = "reset"
    STATE = "state"
    REVISIONS = "revisions"


def admin(op: AdminOp) -> str:
    """Where an operator asks for ``op``."""
    return f"mas.admin.{op}"


# -- inspectors -> policy service: consumers that take nothing away (ADR 29) --------------------------------
VIEWS = "mas.inspect.*.>"
MOST_VIEWS = 8
"""Consumers that one inspector has on one stream at once."""


def view(inspector: str) -> str:
    """Where ``inspector`` asks for a consumer, before stream and name."""
    return f"mas.inspect.{inspector}"


def viewed(inspector: str, token: str) -> str:
    """Where a consumer delivers to the inbox ``token`` of ``inspector``."""
    return f"mas.view.{inspector}.{token}"


def view_consumers(inspector: str) -> tuple[str, ...]:
    """The names that the consumers of ``inspector`` may have. In upper case: no agent has one of them."""
    return tuple(f"VIEW-{inspector}-{number}" for number in range(1, MOST_VIEWS + 1))


# -- policy service -> inspectors and operators: the NATS service protocol (ADR-32 of NATS) -----------------
MICRO = "$SRV.>"
LATENCY = "mas.latency"
"""Where the server says how long calls took, of a sample of them."""


def micro(verb: str, *names: str) -> str:
    """Where ``verb`` is asked of all services, of those of a name, or of one instance."""
    return ".".join(("$SRV", verb, *names))


# -- worker -> workers of the same namespace: not exported either ------------------------------------------
CENSUS = "mas.census"
"""Where every worker says that it is there."""
CIRCUIT = "mas.circuit"
"""Where a worker says whose circuit it has opened or closed."""


# -- the one log: messages and the records of the decisions about them -----------------------------
INBOX_STREAM = "INBOX"
INBOX_SUBJECTS = "mas.inbox.*"
AUDIT_SUBJECTS = "mas.audit.*.*"


def inbox(agent: str) -> str:
    """Where messages for ``agent`` wait."""
    return f"mas.inbox.{agent}"


def audit_record(writer: str, number: int) -> str:
    """The subject of record ``number`` of ``writer``: its own, so that no per-subject limit binds."""
    return f"mas.audit.{writer}.{number}"


# -- replies: stored once under ``mas.answer``, republished to ``mas.reply`` after deduplication -----
REPLIES_STREAM = "REPLIES"
ANSWERS = "mas.answer.>"
REPLIES = "mas.reply.>"


EVERY_INSTANCE = "all"
"""Stands for all instances of an agent where ``mas.reply`` names one."""


def answer(agent: str, instance: str, correlation: str, frame: int) -> str:
    """Where a worker stores a reply."""
    return f"mas.answer.{agent}.{instance}.{correlation}.{frame}"


def replies_of(agent: str, instance: str = "*") -> str:
    """What an instance subscribes to for its replies."""
    return f"mas.reply.{agent}.{instance}.>"


def answers_to(agent: str, instance: str, correlation: str) -> str:
    """All that is stored in answer to one request."""
    return f"mas.answer.{agent}.{instance}.{correlation}.>"


def flow(agent: str, instance: str, correlation: str) -> str:
    """Where the instance of ``agent`` that streams an answer hears how far its reader is. Never stored."""
    return f"mas.reply.{agent}.{instance}.flow.{correlation}"


# -- delayed messages: held by the policy service until they are due -----------------------------------
DELAYED_STREAM = "DELAYED"
DELAYED_SUBJECTS = "mas.delayed.*.*"
CLAIMS_STREAM = "CLAIMS"
CLAIM_SUBJECTS = "mas.claim.*.*"
LEASES_BUCKET = "leases"  # which worker does what only one shall do


def delayed(sender: str, token: str = "*") -> str:  # noqa: S107 - of a subject
    """Where a delayed message of ``sender`` waits; ``token`` is the correlation of its id."""
    return f"mas.delayed.{sender}.{token}"


def claim(sender: str, token: str) -> str:
    """Where is said whether a delayed message is released or cancelled: the first to say it wins."""
    return f"mas.claim.{sender}.{token}"


# -- dead letters, advisories, state, registry ----------------------------------------------------
DLQ_STREAM = "DLQ"
DLQ_SUBJECTS = "mas.dlq.*"
ADVISORIES_STREAM = "ADVISORIES"
ADVISORY_MAX_DELIVERIES = f"$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.{INBOX_STREAM}.*"
STATE_BUCKET = "state"
REGISTRY_BUCKET = "registry"
ATTEMPTS_BUCKET = "attempts"  # the last error reported for a message that will be tried again
IDENTITIES_BUCKET = "identities"  # the certificate with which an agent last authenticated
TOKENS_BUCKET = "tokens"  # which tokens were used, what language models selected; as long as a token lives
AUDITED_BUCKET = "audited"  # up to which revision an agent's direct state is audited, and by whom
STATE_CHANGES = "mas.changed.{{wildcard(1)}}"
"""Where the server says again what was stored in the state bucket, with its revision and the one before."""


def dead_letter(agent: str) -> str:
    """Where messages that ``agent`` could not handle are kept."""
    return f"mas.dlq.{agent}"


def kv_stream(bucket: str) -> str:
    """The stream behind a bucket."""
    return f"KV_{bucket}"


def kv_key(bucket: str, key: str) -> str:
    """The subject of a key in a bucket."""
    return f"$KV.{bucket}.{key}"


def state_changes(agent: str) -> str:
    """What is stored as the state of ``agent``, as workers hear it."""
    return f"mas.changed.{agent}"


# -- JetStream API subjects an agent's account imports ----------------------------------------------
def pull(agent: str) -> str:
    """Where ``agent`` asks its consumer for messages."""
    return f"$JS.API.CONSUMER.MSG.NEXT.{INBOX_STREAM}.{agent}"


def acks(agent: str) -> str:
    """The acknowledgement subjects of deliveries to ``agent``."""
    return f"$JS.ACK.{INBOX_STREAM}.{agent}.>"


def stored_replies(agent: str) -> str:
    """Direct get of replies to ``agent``, to fetch what a reconnect missed."""
    return f"$JS.API.DIRECT.GET.{REPLIES_STREAM}.mas.answer.{agent}.>"


def stored_reply(agent: str, instance: str, correlation: str, frame: int) -> str:
    """Direct get of one stored reply."""
    return f"$JS.API.DIRECT.GET.{REPLIES_STREAM}.{answer(agent, instance, correlation, frame)}"


def stored_state(agent: str) -> str:
    """Direct get of the state of ``agent``, for an agent whose state is direct."""
    return f"$JS.API.DIRECT.GET.{kv_stream(STATE_BUCKET)}.{kv_key(STATE_BUCKET, agent)}"


# -- in the CONTROL account --------------------------------------------------------------------------
POLICY_BUCKET = "policy"
WORKERS_BUCKET = "workers"
CHECKPOINTS_STREAM = "CHECKPOINTS"


def checkpoint(namespace: str) -> str:
    """Where signed checkpoints of a namespace's audit chain go."""
    return f"mas.checkpoint.{namespace}"


SIGNED_NAMESPACES = checkpoint("_namespaces")
"""Where the signer keeps which namespaces have checkpoints; no namespace is called so."""


# -- in the AUTH account -----------------------------------------------------------------------------
AUTH_CALLOUT = "$SYS.REQ.USER.AUTH"

"""Every header, in one place.

``READ_FROM_AGENTS`` is all that the policy service reads of what an agent sent. What goes out is built
from nothing, so a header an agent invents ends at the policy service.
"""

from __future__ import annotations

# -- from agents ----------------------------------------------------------------------------------
MSG_ID = "Nats-Msg-Id"
TARGET = "Mas-Target"
TYPE = "Mas-Type"
DEADLINE = "Mas-Deadline"  # unix time in milliseconds
REPLY_TOKEN = "Mas-Reply-Token"  # noqa: S105 - a header's name
DUE = "Mas-Due"  # when a delayed message shall be delivered, unix time in milliseconds
DELAY = "Mas-Delay"  # the same, in milliseconds after the call arrived
INSTANCE = "Mas-Instance"  # which of its own instances a reply shall reach
STREAM = "Mas-Stream"  # "1" on a request whose answer may come in frames; also on its delivery
BUNDLE = "Mas-Bundle"  # "1" on a message that holds several calls: see ``wire.bundle``
REPEATED = "Mas-Repeated"  # "1" on a call that was made before, under the same id, and not answered
TRACEPARENT = "traceparent"
TRACESTATE = "tracestate"

READ_FROM_AGENTS = frozenset(
    {
        MSG_ID,
        TARGET,
        TYPE,
        DEADLINE,
        DUE,
        DELAY,
        REPLY_TOKEN,
        INSTANCE,
        STREAM,
        REPEATED,
        BUNDLE,
        TRACEPARENT,
        TRACESTATE,
    }
)

# -- on deliveries and replies -------------------------------------------------------------------
MESSAGE_ID = "Mas-Message-Id"  # the sender's id, the same on every delivery
SENDER = "Mas-Sender"
SENT = "Mas-Sent"  # unix time in milliseconds
AUDIT = "Mas-Audit"  # <writer>.<record number>.<position>: the decision about this message
SALT = "Mas-Salt"  # opens the commitment in the audit entry
FAILURE = "Mas-Failure"  # on an answer that says why there will be no reply: a decision code
FRAME = "Mas-Frame"  # <run>.<units>.<mac> on a frame of a streamed reply: see ``wire.frames``
END = "Mas-End"  # "1" on the last frame

# -- on dead letters -------------------------------------------------------------------------------
DEAD_REASON = "Mas-Dead-Reason"
DEAD_ATTEMPTS = "Mas-Dead-Attempts"
DEAD_ERROR = "Mas-Dead-Error"
DEAD_SEQUENCE = "Mas-Dead-Sequence"
DEAD_TIME = "Mas-Dead-Time"
REDRIVES = "Mas-Redrives"  # also on the delivery: how often the message was redriven

# -- on audit records --------------------------------------------------------------------------------
RECORD_MAC = "Mas-Record-Mac"

# -- on a state that a worker wrote after its decision --------------------------------------------------
STATE_MAC = "Mas-State-Mac"  # for this very revision; beside ``Mas-Audit``, which names the decision

# -- JetStream's own -----------------------------------------------------------------------------------
BATCH_ID = "Nats-Batch-Id"
BATCH_SEQUENCE = "Nats-Batch-Sequence"
BATCH_COMMIT = "Nats-Batch-Commit"
EXPECTED_LAST_MSG_ID = "Nats-Expected-Last-Msg-Id"
EXPECTED_LAST_SUBJECT_SEQUENCE = "Nats-Expected-Last-Subject-Sequence"
STATUS = "Status"
TTL = "Nats-TTL"
KV_OPERATION = "KV-Operation"
STORED_SUBJECT = "Nats-Subject"  # put by the server behind all stored headers, as the next three are
STORED_SEQUENCE = "Nats-Sequence"
STORED_TIME = "Nats-Time-Stamp"
STORED_PREVIOUS = "Nats-Last-Sequence"  # on what a stream says again: the one before on the same subject
PENDING_MESSAGES = "Nats-Pending-Messages"  # of a pull that ended, how many it may still be given
NUM_PENDING = "Nats-Num-Pending"  # of a message that was got from a stream, how many match behind it

MAX_VALUE_BYTES = 1024
"""A header value from an agent longer than this is refused (the reply token excepted)."""
MAX_ID_BYTES = 128

"""Claims: whether a delayed message is released or cancelled is said once, and the first to say it wins.

A claim names the message by its sequence: an old one says nothing about a new message under the same id,
but that a release of that id was begun. What is released cannot be cancelled by cancelling its repetition.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum

import orjson
from nats.aio.client import Client

from broker_policy.commit.answered import MaybeStored, publish_until_answered
from broker_policy.jetstream import (
    JetStreamError,
    StoredMessage,
    delete_message,
    get_last,
    subject_full,
)
from mas_nats.wire import headers, subjects

REMEMBERED = 600
"""Seconds for which a claim is kept, and with it known what became of a message: as long as the inbox knows
the dedup id of a release."""
_PATIENCE = 20.0
_TRIES = 5


class For(StrEnum):
    """What a claim is for."""

    RELEASE = "release"
    CANCEL = "cancel"


@dataclass(frozen=True, slots=True)
class Claim:
    """A claim as it is stored. ``message`` is the sequence of the delayed message."""

    what: For
    message: int
    sequence: int
    content: str = ""  # of what is released
    new: bool = False  # made just now: nobody had claimed the message before


class Claims:
    """The claims of one namespace."""

    def __init__(self, nc: Client) -> None:
        self._nc = nc

    async def claim(
        self, sender: str, token: str, message: int, what: For, content: str = ""
    ) -> Claim | None:
        """Claim the message at sequence ``message``; the claim that holds, this one or an earlier.

        None: it is about a later message, so the one at ``message`` is gone. A cancellation does not hold
        where an earlier message under the same id was claimed for its release.

        Raises:
            JetStreamError, nats.errors.Error, LogUnreachable: no answer, or none that was expected.

        """
        subject = subjects.claim(sender, token)
        body = orjson.dumps({"for": what, "message": message, "content": content})
        fields = {headers.TTL: f"{REMEMBERED}s"}
        for _ in range(_TRIES):
            try:
                ack = await publish_until_answered(self._nc, subject, body, fields, patience=_PATIENCE)
            except (JetStreamError, MaybeStored) as error:
                refused = error.__cause__ if isinstance(error, MaybeStored) else error
                if not isinstance(refused, JetStreamError) or not subject_full(refused):
                    raise
            else:
                return Claim(what, message, ack.sequence, content, new=True)
            there = await self.find(sender, token)
            if there is None:
                continue
            if there.message == message:
                return there
            if there.message > message:
                return None
            if what is For.CANCEL and there.what is For.RELEASE:
                return there
            await self.drop(there)
        raise OSError(f"the claim of a delayed message of {sender} changes all the time")

    async def find(self, sender: str, token: str) -> Claim | None:
        """The claim about a message, if there is one."""
        stored = await get_last(self._nc, subjects.CLAIMS_STREAM, subjects.claim(sender, token))
        return None if stored is None else _read(stored)

    async def drop(self, claim: Claim) -> None:
        """Take a claim back, or remove one of an earlier message."""
        await delete_message(self._nc, subjects.CLAIMS_STREAM, claim.sequence)


def _read(stored: StoredMessage) -> Claim:
    raw = orjson.loads(stored.data)
    return Claim(For(raw["for"]), int(raw["message"]), stored.sequence, raw.get("content", ""))


def content_of(target: str, message_type: str, body: bytes) -> str:
    """What a claim says of the content of a message, to know it again when it is repeated."""
    content = hashlib.sha256(body).digest()
    return hashlib.sha256(b"\0".join((target.encode(), message_type.encode(), content))).hexdigest()

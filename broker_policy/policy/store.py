"""The policy bucket as the tenant controller uses it: write a document, wait until workers follow it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import nats.errors
import orjson
from nats.aio.client import Client
from pydantic import ValidationError

from broker_policy.jetstream import (
    JetStreamError,
    Unsettled,
    get_last,
    get_last_of_each,
    publish,
)
from mas_nats.errors import ConfigurationError
from mas_nats.policy.document import Document, key
from mas_nats.wire import headers, subjects
from mas_nats.wire.stored import WRONG_LAST_SEQUENCE

T = TypeVar("T")

_LEADERLESS = 10.0
"""Seconds that nodes of a cluster may take to elect who leads the bucket."""


class PolicyConflict(Exception):
    """Somebody else changed the policy meanwhile; read it again and decide anew."""


class NotConfirmed(Exception):
    """Some live workers did not confirm a revision in time."""

    def __init__(self, revision: int, workers: list[str]) -> None:
        super().__init__(
            f"policy revision {revision} is stored, but {', '.join(workers)} did not confirm it in time; "
            "a worker that has not confirmed it refuses traffic with POLICY_STALE"
        )
        self.revision = revision
        self.workers = workers


@dataclass(frozen=True, slots=True)
class Stored:
    """A document and the bucket's sequence of this version of it."""

    document: Document
    sequence: int


class PolicyStore:
    """Reads and writes policy documents. Needs a connection with rights in the CONTROL account."""

    def __init__(self, nc: Client) -> None:
        self._nc = nc

    async def get(self, namespace: str) -> Stored | None:
        """The current document of ``namespace``."""
        stream, subject = subjects.kv_stream(subjects.POLICY_BUCKET), _subject(namespace)
        entry = await _read(lambda: get_last(self._nc, stream, subject))
        if entry is None or not entry.data:
            return None
        return Stored(Document.model_validate_json(entry.data), entry.sequence)

    async def namespaces(self) -> list[Stored]:
        """Every document."""
        stream = subjects.kv_stream(subjects.POLICY_BUCKET)
        every = subjects.kv_key(subjects.POLICY_BUCKET, ">")
        found = await _read(lambda: get_last_of_each(self._nc, stream, every))
        return [
            Stored(Document.model_validate_json(entry.data), entry.sequence) for entry in found if entry.data
        ]

    async def put(self, document: Document, *, expected: int) -> int:
        """Store ``document`` over version ``expected`` (0: there is none any more); the new revision.

        Raises:
            PolicyConflict: the current version is another one.
            ConfigurationError: it is none, or its rules of data-loss prevention cannot be compiled.

        """
        body = document.stored()
        try:  # a changed copy was not checked, and workers close a namespace whose policy they cannot read
            Document.model_validate_json(body)
        except ValidationError as error:
            said = "; ".join(each["msg"] for each in error.errors(include_input=False))
            raise ConfigurationError(f"the policy of {document.namespace} would be wrong: {said}") from error
        from broker_policy.dlp import ruleset  # noqa: PLC0415 - who only reads needs none of it

        ruleset(document.governance.dlp)
        subject = _subject(document.namespace)
        try:
            return await self._put(subject, body, expected)
        except PolicyConflict:
            stream = subjects.kv_stream(subjects.POLICY_BUCKET)
            last = None if expected else await _read(lambda: get_last(self._nc, stream, subject))
            if last is None or last.data:
                raise
            return await self._put(subject, body, last.sequence)  # a deleted one leaves a mark

    async def _put(self, subject: str, body: bytes, expected: int) -> int:
        condition = {headers.EXPECTED_LAST_SUBJECT_SEQUENCE: str(expected)}

        async def publishing() -> int:
            return (await publish(self._nc, subject, body, condition)).sequence

        try:
            return await _led(publishing, nats.errors.NoRespondersError)  # so it was not stored
        except JetStreamError as error:
            if error.code in WRONG_LAST_SEQUENCE:
                raise PolicyConflict(subject) from error
            raise

    async def wait_confirmed(self, revision: int, *, timeout: float = 5.0) -> None:
        """Return when every live worker follows ``revision`` or a later one.

        A worker that does not beat its heart for 3 s is not live; it has refused traffic by itself since
        2 s (``POLICY_STALE``).

        Raises:
            NotConfirmed: ``timeout`` seconds have passed.

        """
        deadline = time.monotonic() + timeout
        changed = asyncio.Event()

        async def beat(_: object) -> None:
            changed.set()

        subscription = await self._nc.subscribe(subjects.kv_key(subjects.WORKERS_BUCKET, "*"), cb=beat)
        try:
            while behind := await self._behind(revision):
                if time.monotonic() > deadline:
                    raise NotConfirmed(revision, behind)
                changed.clear()
                try:
                    await asyncio.wait_for(changed.wait(), 0.2)
                except TimeoutError:
                    continue
        finally:
            with contextlib.suppress(nats.errors.Error):
                await subscription.unsubscribe()

    async def beats(self) -> dict[str, dict[str, Any]]:
        """What every live worker last said of itself, by its name."""
        stream = subjects.kv_stream(subjects.WORKERS_BUCKET)
        beats = await get_last_of_each(self._nc, stream, subjects.kv_key(subjects.WORKERS_BUCKET, "*"))
        return {beat.subject.rpartition(".")[2]: orjson.loads(beat.data) for beat in beats}

    async def _behind(self, revision: int) -> list[str]:
        beats = await _read(self.beats)
        return sorted(name for name, beat in beats.items() if beat["revision"] < revision)


def _subject(namespace: str) -> str:
    return subjects.kv_key(subjects.POLICY_BUCKET, key(namespace))


async def _read(reading: Callable[[], Awaitable[T]]) -> T:
    """What ``reading`` finds, repeated while nobody leads the bucket: then it may also get no answer."""
    return await _led(reading, Unsettled, TimeoutError, nats.errors.NoRespondersError)


async def _led(asking: Callable[[], Awaitable[T]], *leaderless: type[Exception]) -> T:
    """What ``asking`` gets, repeated after ``leaderless`` errors."""
    deadline = time.monotonic() + _LEADERLESS
    while True:
        try:
            return await asking()
        except leaderless:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.1)

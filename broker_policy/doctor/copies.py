"""Whether the copy of an audit in a file is written (ADR 26): nothing waits for it, so nothing else shows."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

from broker_policy.audit.file_sink import path_of
from broker_policy.audit.rotated_file import NotACopy, Place, RotatedFile
from broker_policy.audit.store import Store
from broker_policy.doctor.check import Check, fail, ok, warn
from mas_nats.policy.governance import AuditSink

_LATE, _LOST = 10.0, 120.0
"""Seconds for which an entry may be missing in the file. After failures a worker tries each minute."""
_FIX = "Look at the workers' logs (ALARM: the copy of the audit), at the disk and the folder's permissions"


@dataclass(frozen=True, slots=True)
class Copied:
    """How far a file goes, beside the chain."""

    file: Path
    place: int  # index of its last entry
    end: int  # index of the last entry of the chain
    following: int  # unix milliseconds, of the first entry that it lacks; 0 where there is none


async def look(store: Store, settings: AuditSink, root: Path, now: float) -> Check:
    """Read the end of the file that ``settings`` name, from ``root`` on, and of the chain.

    ``now`` is unix seconds.

    Raises:
        ValueError, redis.exceptions.RedisError: an entry was damaged, Redis is away.

    """
    namespace = store.layout.namespace
    path = path_of(settings, namespace, root)
    file = RotatedFile(path, namespace, max_bytes=settings.max_bytes, backups=settings.backup_count)
    try:
        place = await asyncio.to_thread(_end, file)
    except (NotACopy, OSError) as error:
        return fail(_name(namespace), str(error), _FIX)
    following = await store.page(place.index + 1, 1)
    time = int(following[0].entry()["at"]) if following else 0
    return judge(namespace, Copied(path, place.index, (await store.head()).index, time), now)


def judge(namespace: str, found: Copied, now: float) -> Check:
    """What that means; ``now`` is unix seconds."""
    goes = f"{found.file} has entries up to {found.place} of {found.end}"
    age = now - found.following / 1000 if found.following else 0.0
    if age <= _LATE:
        return ok(_name(namespace), goes)
    make = fail if age > _LOST else warn
    return make(_name(namespace), f"{goes}, and no more for {age:.0f} s", _FIX)


def _name(namespace: str) -> str:
    return f"copy of the audit of {namespace}"


def _end(file: RotatedFile) -> Place:
    for number in (0, 1):  # a worker that was killed while it rotated left the file before alone
        for place in file.backwards(file.numbered(number) if number else file.path):
            return place
    return Place()

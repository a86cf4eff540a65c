"""A copy of the audit in a file of JSON lines, kept by the workers of the machine that has the file (ADR 26).

It follows the chain in Redis. Projection never waits for it, and a disk that is full costs nothing but the
copy's age: the chain holds what the file lacks.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypeVar

from redis.exceptions import RedisError

from broker_policy.audit.complaint import complaint
from broker_policy.audit.rotated_file import NotACopy, Place, RotatedFile
from broker_policy.audit.store import Store, StoredEntry
from mas_nats.policy.governance import AuditSink

_T = TypeVar("_T")
logger = logging.getLogger(__name__)

PAGE = 500
"""Entries written at once."""
EVERY = 1.0
"""Seconds between two looks at a chain in which nothing happens."""
_BACKOFF = (1.0, 60.0)  # seconds, first and longest
_REPEAT_ALARM = 60.0
_ASK_AGAIN = 5.0
"""Seconds after which a worker asks again whether another process of its machine writes the file."""


def path_of(settings: AuditSink, namespace: str, root: Path) -> Path:
    """The file that ``settings`` name; ``root`` is where relative paths begin."""
    return root / settings.file_path.replace("{namespace}", namespace)


class FileSink:
    """Keeps the file that ``settings`` name, as they are at the moment; none: nothing is done.

    ``root`` is where relative paths begin.
    """

    def __init__(
        self,
        store: Store,
        settings: Callable[[], AuditSink | None],
        *,
        root: Path = Path(),
        every: float = EVERY,
        backoff: tuple[float, float] = _BACKOFF,
    ) -> None:
        self._store = store
        self._settings = settings
        self._root = root
        self._every = every
        self._backoff = backoff
        self._alarmed: float | None = None

    async def run(self) -> None:
        """Follow the chain until cancelled. Nothing else ends it."""
        pause = self._every
        while True:
            try:
                pause = self._every if await self._keep() else _ASK_AGAIN
            except (OSError, RedisError, NotACopy) as error:
                pause = min(max(2 * pause, self._backoff[0]), self._backoff[1])
                self._alarm(error)
            except Exception as error:  # it must not end unnoticed
                pause = self._backoff[1]
                logger.exception("audit of %s: the copy failed, trying again", self._store.layout.namespace)
                self._alarm(error)
            await asyncio.sleep(pause)

    async def _keep(self) -> bool:
        """Write until the settings change or something fails; False when another process writes."""
        settings = self._settings()
        if settings is None or not settings.file_path:
            return True
        namespace = self._store.layout.namespace
        path = path_of(settings, namespace, self._root)
        file = RotatedFile(path, namespace, max_bytes=settings.max_bytes, backups=settings.backup_count)
        with _locked(path) as mine:
            if not mine:
                return False
            copy = FileCopy(self._store, file)
            while self._settings() == settings:
                written = await copy.write_some()
                self._recovered()
                if not written:
                    await asyncio.sleep(self._every)
        return True

    def _recovered(self) -> None:
        if self._alarmed is not None:
            self._alarmed = None
            logger.info("audit of %s: its copy is written again", self._store.layout.namespace)

    def _alarm(self, error: Exception) -> None:
        now = time.monotonic()
        if self._alarmed is not None and now - self._alarmed < _REPEAT_ALARM:
            return
        self._alarmed = now
        said = str(error) if isinstance(error, NotACopy | OSError) else complaint(error)
        logger.critical(
            "ALARM: the copy of the audit of %s is not written: %s. The audit itself goes on; the copy "
            "follows when this is repaired",
            self._store.layout.namespace,
            said,
        )


class FileCopy:
    """One file after one chain."""

    def __init__(self, store: Store, file: RotatedFile) -> None:
        self._store = store
        self._file = file
        self._place: Place | None = None

    async def write_some(self) -> int:
        """Write a page of what the file lacks; returns how many entries.

        Raises:
            NotACopy, OSError: the file cannot be written.
            redis.exceptions.RedisError: Redis does not answer.

        """
        place, self._place = self._place, None
        if place is None:
            place = await _to_its_end(self._file.place)
        if place.index and not await self._continues(place):
            place = await self._fork(place)
        page = await self._store.page(place.index + 1, PAGE)
        if page:
            lines = list(_lines(page, place))
            await _to_its_end(partial(self._file.append, lines, place))
            place = Place(page[-1].index, page[-1].hash)
        self._place = place
        return len(page)

    async def _continues(self, place: Place) -> bool:
        """Whether the chain is the one the file holds, as far as the chain can tell."""
        stored = (await self._store.entries_at([place.index])).get(place.index)
        if stored is not None:
            return stored.hash == place.hash
        oldest = await self._store.page(1, 1)
        return (
            bool(oldest) and oldest[0].index > place.index
        )  # the entry left Redis with others, in a segment

    async def _fork(self, place: Place) -> Place:
        """Redis lost what the file holds: go on after the last entry that both have, and say so."""
        found = await self._last_common()
        logger.critical(
            "ALARM: the copy of the audit of %s holds entries up to %d that the chain no longer has after %d",
            self._store.layout.namespace,
            place.index,
            found.index,
        )
        line = b'{"fork":[%d,"%s"]}\n' % (found.index, found.hash.encode())
        await _to_its_end(partial(self._file.append, [line], place))
        return found

    async def _last_common(self) -> Place:
        """The last entry that both have, in whichever file it is; the beginning where there is none."""
        known = self._file.all_backwards()
        while places := await _to_its_end(lambda: list(islice(known, PAGE))):
            stored = await self._store.entries_at(sorted({each.index for each in places}))
            for each in places:
                if (same := stored.get(each.index)) is not None and same.hash == each.hash:
                    return each
        return Place()


def _lines(page: list[StoredEntry], place: Place) -> Iterator[bytes]:
    expected = place.index + 1
    for stored in page:
        if stored.index > expected:
            yield b'{"gap":[%d,%d]}\n' % (expected, stored.index - 1)
        yield b'{"e":%s,"h":"%s"}\n' % (stored.body, stored.hash.encode())
        expected = stored.index + 1


async def _to_its_end(work: Callable[[], _T]) -> _T:
    """``work`` in a thread, which cannot be cancelled: who is cancelled meanwhile ends when it has ended.

    Else the file would be given to another worker while this one still writes it.
    """
    doing = asyncio.get_running_loop().run_in_executor(None, work)
    cancelled = False
    while not doing.done():
        try:
            await asyncio.wait([doing])
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        doing.exception()  # nobody asks for it any more
        raise asyncio.CancelledError
    return doing.result()


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Hold the file against other processes of this machine; whether it is ours."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(path.with_name(f"{path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)

"""What a server had on disk, and since when: its writes and its finished syncs, seen by strace.

A process that is killed proves nothing about this, and neither does a file that can be read: the system
hands out pages that no disk has seen.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

OPTIONS = ("-ttt", "-T", "-s", "1000000", "-e", "trace=fsync,fdatasync,write,pwrite64,pwritev,writev")
"""For ``syncs.watched``: with times and whole contents."""

_CALL = re.compile(r"(?P<thread>\d+) +(?P<at>\d+\.\d+) (?P<call>\w+)\(\d+<(?P<path>[^>]*)>(?P<rest>.*)")
_RESUMED = re.compile(r"(?P<thread>\d+) +\d+\.\d+ <\.\.\. \w+ resumed>.*<(?P<took>\d+\.\d+)>$")
_TOOK = re.compile(r" = \d+ <(\d+\.\d+)>$")
_SYNCS = ("fsync", "fdatasync")


@dataclass(frozen=True, slots=True)
class Step:
    """A write to a file, or a sync of it, that succeeded. Times are unix seconds."""

    path: str
    sync: bool
    content: str
    began: float
    ended: float


@dataclass
class Disk:
    """What a trace says of the files whose path contains ``files``."""

    trace: Path
    files: str

    @cached_property
    def steps(self) -> list[Step]:
        """The steps in the order in which they began."""
        return [step for step in _steps(self.trace) if self.files in step.path]

    @property
    def syncs(self) -> int:
        """How many syncs."""
        return sum(step.sync for step in self.steps)

    def written(self, *texts: str) -> float | None:
        """When the first write that contains all ``texts`` began; None: there was none."""
        step = self._write_of(texts)
        return step.began if step else None

    def safe(self, *texts: str) -> float | None:
        """Since when the first write that contains all ``texts`` is on disk; None: it is not."""
        write = self._write_of(texts)
        if write is None:
            return None
        after = (each for each in self.steps if each.sync and each.path == write.path)
        return next((sync.ended for sync in after if sync.began >= write.ended), None)

    def _write_of(self, texts: Iterable[str]) -> Step | None:
        wanted = tuple(texts)
        writes = (step for step in self.steps if not step.sync)
        return next((step for step in writes if all(text in step.content for text in wanted)), None)


def _steps(trace: Path) -> Iterator[Step]:
    under_way: dict[str, re.Match[str]] = {}
    found = []
    for line in trace.read_text(errors="replace").splitlines():
        if (call := _CALL.match(line)) is not None:
            if call["rest"].endswith("<unfinished ...>"):
                under_way[call["thread"]] = call
            elif (took := _TOOK.search(line)) is not None:
                found.append(_step(call, float(took[1])))
        elif (resumed := _RESUMED.match(line)) is not None and _TOOK.search(line):
            began = under_way.pop(resumed["thread"], None)
            if began is not None:
                found.append(_step(began, float(resumed["took"])))
    yield from sorted(found, key=lambda step: step.began)


def _step(call: re.Match[str], took: float) -> Step:
    began = float(call["at"])
    return Step(call["path"], call["call"] in _SYNCS, call["rest"], began, began + took)

"""A process's memory on huge pages, where the processor finds it again with fewer looks (ADR 42).

Transparent huge pages are on for whoever asks for them on most systems, and CPython does not ask. Only what
lies there already is gathered, so that nothing takes memory that did not before.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

_SYSTEM = Path("/sys/kernel/mm/transparent_hugepage")
_MAPPINGS = Path("/proc/self/smaps")
_COLLAPSE = 25
"""``MADV_COLLAPSE`` of Linux 6.1; an older one answers that it does not know it."""
_FULL = 0.9
"""What part of a mapping has to be in memory: what is missing of it would be added."""
_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) rw-p \S+ \S+ 0 *(?:\[heap\])?\n")
_FIELD = re.compile(r"(Rss|AnonHugePages): +(\d+) kB\n")
_HEADER = re.compile(r"[0-9a-f]+-[0-9a-f]+ ")


def gather() -> int:
    """Move what this process has in memory to huge pages: how many bytes there were to move.

    Other threads go on meanwhile. Does nothing where the system has no huge pages, or never gives any.
    """
    try:
        if "[never]" in (_SYSTEM / "enabled").read_text():
            return 0
        size = int((_SYSTEM / "hpage_pmd_size").read_text())
        with _MAPPINGS.open() as lines:
            pages = list(_pages(lines, size))
    except (OSError, ValueError):
        return 0
    advise = ctypes.CDLL(None).madvise
    advise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for page in pages:
        advise(page, size, _COLLAPSE)  # one that cannot be moved stays as it is
    return len(pages) * size


def _pages(lines: Iterable[str], size: int) -> Iterator[int]:
    """Where huge pages of ``size`` bytes fit into the mappings that ``lines`` (proc(5), smaps) list."""
    begin = end = 0
    said: dict[str, int] = {}
    for line in (*lines, "0-0 \n"):
        if _HEADER.match(line):
            if end and said.get("Rss", 0) * 1024 >= _FULL * (end - begin):
                first, last = -(-begin // size) * size, end // size * size
                if said.get("AnonHugePages", 0) * 1024 < last - first:
                    yield from range(first, last, size)
            found = _MAPPING.fullmatch(line)
            begin, end = (int(found[1], 16), int(found[2], 16)) if found else (0, 0)
            said = {}
        elif end and (field := _FIELD.fullmatch(line)):
            said[field[1]] = int(field[2])

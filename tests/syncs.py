"""What a server does between a client's write and its answer, seen by strace."""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

_COUNTING = ("-s", "8", "-e", "trace=fsync,fdatasync,write")
_SYNC = re.compile(r"\bf(?:data)?sync(?:\(| resumed>)")
_ANSWER = re.compile(r"\bwrite\(\d+<TCP:")


@dataclass
class Trace:
    """The syscalls of one server while it was watched."""

    path: Path

    @property
    def events(self) -> str:
        """``s`` for each finished sync, ``a`` for each answer to a client, in order."""
        out = []
        for line in self.path.read_text(errors="replace").splitlines():
            if _SYNC.search(line) and "<unfinished" not in line:
                out.append("s")
            elif _ANSWER.search(line):
                out.append("a")
        return "".join(out)

    @property
    def syncs(self) -> int:
        """How many syncs."""
        return self.events.count("s")


@contextlib.asynccontextmanager
async def watched(pid: int, path: Path, options: Sequence[str] = _COUNTING) -> AsyncIterator[Trace]:
    """Watch the process ``pid`` for the length of the block; read the trace afterwards.

    ``options`` are strace's: what is watched, and how much of it is written down. Skips the test where strace
    is missing or may not watch.
    """
    strace = _attach(pid, path, options)
    try:
        attached = await asyncio.to_thread(strace.stderr.readline)
        if "attached" not in attached:
            pytest.skip(f"strace may not watch: {attached.strip()}")
        yield Trace(path)
    finally:
        strace.terminate()
        await asyncio.to_thread(strace.communicate)


def _attach(pid: int, path: Path, options: Sequence[str]) -> subprocess.Popen[str]:
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed (Debian: apt-get install strace)")
    return subprocess.Popen(
        ["strace", "-f", "-yy", *options, "-o", path, "-p", str(pid)],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )

"""What a worker has in memory is gathered on huge pages, and nothing else."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from pathlib import Path

import pytest

from broker_policy import huge_pages, worker

MIB = 1 << 20


def mapping(first: int, last: int, name: str = "", mode: str = "rw-p", inode: int = 0, **said: int) -> str:
    """A mapping of ``first`` to ``last`` MiB, as the system lists it; ``said`` in MiB."""
    fields = {"Size": last - first, "Rss": last - first, "AnonHugePages": 0} | said
    head = f"{first * MIB:x}-{last * MIB:x} {mode} 00000000 00:00 {inode}"
    head += f"  {name}" if name else " "
    return "\n".join(
        [head, *(f"{key}: {value * 1024:>10} kB" for key, value in fields.items()), "THPeligible: 1", ""]
    )


def found(*mappings: str) -> list[int]:
    """Where there is something to be moved, in MiB."""
    lines = "".join(mappings).splitlines(keepends=True)
    return [page // MIB for page in huge_pages._pages(lines, 2 * MIB)]


def test_whole_pages_of_what_is_in_memory():
    assert found(mapping(3, 9)) == [4, 6]
    assert found(mapping(4, 10, "[heap]"), mapping(20, 22)) == [4, 6, 8, 20]
    assert found(mapping(3, 5)) == []


@pytest.mark.parametrize(
    "other",
    [
        mapping(4, 8, "[stack]"),
        mapping(4, 8, "/usr/lib/libpython3.so", inode=7),
        mapping(4, 8, "/dev/zero (deleted)", mode="rw-s", inode=7),
        mapping(4, 8, mode="r-xp"),
        mapping(4, 8, Rss=3),  # as a thread's stack: what is missing would be added
        mapping(4, 8, AnonHugePages=4),
    ],
)
def test_everything_else_stays_where_it_is(other: str):
    assert found(mapping(2, 4), other, mapping(10, 12)) == [2, 10]


def test_nothing_is_done_where_the_system_never_gives_any(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "hpage_pmd_size").write_text(f"{2 * MIB}\n")
    (tmp_path / "smaps").write_text(mapping(4, 8))
    monkeypatch.setattr(huge_pages, "_SYSTEM", tmp_path)
    monkeypatch.setattr(huge_pages, "_MAPPINGS", tmp_path / "smaps")
    assert huge_pages.gather() == 0  # a system without any
    (tmp_path / "enabled").write_text("always madvise [never]\n")
    assert huge_pages.gather() == 0
    monkeypatch.setattr(huge_pages, "_COLLAPSE", 0)  # MADV_NORMAL, of an address where nothing is
    (tmp_path / "enabled").write_text("always [madvise] never\n")
    assert huge_pages.gather() == 4 * MIB


_PROGRAM = """
import ctypes, errno, mmap
from pathlib import Path
from broker_policy import huge_pages, worker

def said():
    text = Path("/proc/self/smaps_rollup").read_text()
    return {line.split(":")[0]: int(line.split()[1]) for line in text.splitlines() if line.endswith("kB")}

size = int(Path("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size").read_text())
tried = mmap.mmap(-1, 2 * size, mmap.MAP_PRIVATE)
tried[:] = bytes(2 * size)
at = -(-ctypes.addressof(ctypes.c_char.from_buffer(tried)) // size) * size
madvise = ctypes.CDLL(None, use_errno=True).madvise
madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
if madvise(at, size, 25):
    raise SystemExit(f"refused: {errno.errorcode[ctypes.get_errno()]}")

content = [bytes([number % 251]) * 500 for number in range(60_000)]
before = said()
moved = huge_pages.gather()
after = said()
assert all(each == bytes([number % 251]) * 500 for number, each in enumerate(content))
again = huge_pages.gather()
print(moved, before["Rss"], after["Rss"], before["AnonHugePages"], after["AnonHugePages"], again)
"""


def test_a_real_process():
    enabled = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not enabled.exists() or "[never]" in enabled.read_text():
        pytest.skip("this system has no transparent huge pages")
    release = Path("/proc/sys/kernel/osrelease").read_text()
    version = re.match(r"(\d+)\.(\d+)", release)
    if version is None or (int(version[1]), int(version[2])) < (6, 1):
        pytest.skip(f"Linux {release.strip()} does not gather memory when it is asked to; 6.1 does")
    done = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=False)
    if done.stderr.startswith("refused"):
        pytest.skip(f"this system gives no huge page to who asks for it ({done.stderr.strip()})")
    assert not done.returncode, done.stderr
    moved, rss, rss_after, huge, huge_after, again = map(int, done.stdout.split())
    assert moved >= 16 * MIB
    assert (huge_after - huge) * 1024 >= moved / 2  # the system may not find that many
    assert rss_after <= 1.1 * rss
    assert again < moved / 2


async def test_a_worker_goes_on_where_it_cannot(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def gather() -> int:
        raise RuntimeError("no thread")

    monkeypatch.setattr(huge_pages, "gather", gather)
    monkeypatch.setattr(worker, "_GATHERED_AFTER", (0.0,))
    with caplog.at_level("INFO"):
        await asyncio.wait_for(worker._gather_memory(), 10)
    assert "no thread" in caplog.text

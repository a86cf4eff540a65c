"""A process is halted when its last thread is."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker_policy.embedded.halt import halt

# Four threads, each busy within system calls.
BUSY = """
import sys, threading
def work():
    with open("/dev/zero", "rb", buffering=0) as zeros:
        room = bytearray(1 << 20)
        while zeros.readinto(room): pass
for _ in range(4): threading.Thread(target=work, daemon=True).start()
print("runs", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def busy() -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", BUSY]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def worked(pid: int) -> list[str]:
    """Processor time of each thread, in nanoseconds, and what else the scheduler counts of it."""
    return [each.read_text() for each in sorted(Path(f"/proc/{pid}/task").glob("*/schedstat"))]


def test_nothing_of_it_goes_on(busy: subprocess.Popen[str]) -> None:
    for _ in range(50):
        halt(busy.pid)
        if not (before := worked(busy.pid)):
            pytest.skip("this kernel counts no schedstat in /proc")
        assert len(before) == 5
        assert worked(busy.pid) == before
        busy.send_signal(signal.SIGCONT)


def test_one_that_has_ended_is_named(busy: subprocess.Popen[str]) -> None:
    busy.kill()
    with pytest.raises(ProcessLookupError) as ended:
        halt(busy.pid)
    assert ended.value.filename == str(busy.pid)
    busy.wait()
    with pytest.raises(ProcessLookupError):
        halt(busy.pid)

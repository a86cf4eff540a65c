"""A small disk of its own, to be filled up; and ballast to fill it with."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """A file system of ``megabytes`` at ``folder``; the test is skipped where none may be mounted."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("a small file system cannot be mounted here: that needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path, *, leave: int) -> Path:
    """Another program's file that leaves ``leave`` bytes free on ``disk``.

    Others may write meanwhile. What is not there any more is not given at all, so less is asked for then.
    """
    ballast = disk / "ballast"
    size, step = 0, max(shutil.disk_usage(disk).free - leave, 1)
    with ballast.open("wb") as file:
        while step:
            try:
                os.posix_fallocate(file.fileno(), size, step)
                size, step = size + step, max(shutil.disk_usage(disk).free - leave, 0)
            except OSError:  # full: that is what is wanted
                step //= 2
    return ballast

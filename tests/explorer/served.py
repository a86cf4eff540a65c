"""``mas explorer`` as a process, and asking it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TextIO
from urllib.parse import urlsplit

from mas_nats import TlsClientConfig
from tests.system import REPOSITORY, System


@dataclass(frozen=True)
class Answer:
    """What came back; header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Explorer:
    """A running one."""

    namespace: str
    address: str
    open: str
    token: str | None
    pid: int
    said: Callable[[], str]
    """What it has written beside its result."""

    @property
    def port(self) -> int:
        return urlsplit(self.address).port or 0

    def ask(
        self,
        path: str,
        *,
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        tls: ssl.SSLContext | None = None,
        patience: float = 60,
    ) -> Answer:
        """One request, on a connection of its own; ``path`` is sent as it stands."""
        connection: http.client.HTTPConnection = (
            http.client.HTTPConnection("127.0.0.1", self.port, timeout=patience)
            if tls is None
            else http.client.HTTPSConnection("127.0.0.1", self.port, timeout=patience, context=tls)
        )
        with contextlib.closing(connection):
            connection.request(method, path, headers=dict(headers or {}))
            answer = connection.getresponse()
            fields = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, fields, answer.read())

    def api(self, path: str) -> Any:
        """A document under ``/api``."""
        answer = self.ask(f"/api/{path}")
        assert answer.status == 200, answer.body
        return answer.json()


@contextlib.contextmanager
def exploring(system: System, namespace: str, *options: str) -> Iterator[Explorer]:
    """Run it on a free port until the block ends; it must end well."""
    where = ("--folder", str(system.layout.root), "--namespace", namespace, "--port", "0", "--json")
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "broker_policy.cli", "explorer", *where, *options],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
        )
        assert process.stdout is not None
        with process.stdout:
            line = process.stdout.readline()
            if not line:
                process.wait(30)
                raise AssertionError(f"mas explorer ended with {process.returncode}: {_whole(said)}")
            try:
                yield Explorer(**json.loads(line), pid=process.pid, said=lambda: _whole(said))
            finally:
                process.terminate()
                status = process.wait(30)
            assert "Traceback" not in (errors := _whole(said)), errors
            assert status == 0, errors


def showing(system: System, tls: TlsClientConfig | None) -> ssl.SSLContext:
    """A browser that trusts the system's CA, and shows this certificate."""
    made = ssl.create_default_context(cafile=system.layout.ca)
    made.check_hostname = False
    if tls is not None:
        made.load_cert_chain(*tls.paths[1:])
    return made


def with_certificates(system: System) -> tuple[str, ...]:
    """The options under which certificates of the system's CA are asked for."""
    layout = system.layout
    paths = ("--cert", layout.server_cert, "--key", layout.server_key, "--client-ca", layout.ca)
    return tuple(map(str, paths))


def _whole(file: TextIO) -> str:
    """What stands in a file that another process writes to."""
    return os.pread(file.fileno(), 1 << 20, 0).decode()

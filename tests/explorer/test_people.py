"""Who gets in by certificate, and for how long: what policy says counts, at every moment."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import os
import signal
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from broker_policy.explorer import people
from broker_policy.explorer.people import Asked, People
from broker_policy.identity.pki import CertificateAuthority, Holder, fingerprint
from mas_nats import TlsClientConfig
from mas_nats.manifest.wanted import Wanted, WantedAgent
from mas_nats.policy.document import Document
from mas_nats.policy.table import Table
from mas_nats.wire.identity import DEFAULT_TRUST_DOMAIN, Identity, Role
from tests.explorer.served import Explorer, exploring, showing, with_certificates
from tests.processes import children
from tests.system import System, mas, new_namespace

_SOON = 10.0
"""Seconds: the fewest that a test machine always keeps."""
_PAGE = "/api/checkpoints"


async def declared(system: System, *, inspectors: tuple[str, ...] = (), name: str = "") -> str:
    """A namespace with one agent, the operator olga, and these inspectors."""
    name = name or new_namespace()
    await system.apply(
        Wanted(name, agents={"one": WantedAgent()}, inspectors=inspectors, operators=("olga",))
    )
    return name


def soon(found: Callable[[], bool], patience: float = _SOON) -> None:
    deadline = time.monotonic() + patience
    while not found():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@contextlib.contextmanager
def watching(explorer: Explorer, tls: ssl.SSLContext) -> Iterator[Callable[[float], bool]]:
    """A stream of events that is open; whether it ends within so many seconds."""
    connection = http.client.HTTPSConnection("127.0.0.1", explorer.port, timeout=_SOON, context=tls)
    with contextlib.closing(connection):
        connection.request("GET", "/api/live")
        answer = connection.getresponse()
        assert answer.status == 200
        while answer.readline() != b"event: ready\n":
            pass

        def ends(within: float) -> bool:
            connection.sock.settimeout(within)
            deadline = time.monotonic() + within
            try:
                while time.monotonic() < deadline:
                    if not answer.read1():
                        return True
            except TimeoutError:
                return False
            except (OSError, http.client.HTTPException):
                return True
            return False

        yield ends


async def test_inspectors_and_operators_of_policy_and_nobody_else(system: System) -> None:
    namespace = await declared(system, inspectors=("carol",))
    elsewhere = CertificateAuthority.load(system.layout.authority).issue(
        Identity("elsewhere", namespace, Role.OPERATOR, "olga"), system.layout.root.parent / "elsewhere"
    )

    def showing_one(name: str, role: Role, of: str = namespace) -> ssl.SSLContext:
        return showing(system, system.tls(name, of, role=role))

    with exploring(system, namespace, *with_certificates(system)) as found:
        assert found.token is None
        for tls in (showing_one("carol", Role.INSPECTOR), showing_one("olga", Role.OPERATOR)):
            assert found.ask(_PAGE, tls=tls).status == 200
        for tls in (
            showing(system, None),
            showing_one("one", Role.AGENT),
            showing_one("carol", Role.INSPECTOR, "elsewhere"),
            showing(system, TlsClientConfig(elsewhere.ca, elsewhere.cert, elsewhere.key)),
        ):
            with pytest.raises((OSError, http.client.HTTPException)):
                found.ask(_PAGE, tls=tls)
        # Issued by the CA and in no manifest, or there as something else.
        for name, role in (("nobody", Role.INSPECTOR), ("nobody", Role.OPERATOR), ("carol", Role.OPERATOR)):
            answer = found.ask(_PAGE, tls=showing_one(name, role))
            assert answer.status == 403
            assert f"policy knows no {role} {name}" in answer.json()["error"]["text"]
            page = found.ask("/", tls=showing_one(name, role))
            assert (page.status, page.headers["x-frame-options"]) == (403, "DENY")


@pytest.mark.parametrize("where", ["its own namespace", "another"])
async def test_a_revoked_certificate_is_out_at_once_and_what_it_watched_ends(
    system: System, where: str
) -> None:
    namespace = await declared(system, inspectors=("carol",))
    certificate = system.tls("carol", namespace, role=Role.INSPECTOR)
    tls = showing(system, certificate)
    olga = showing(system, system.tls("olga", namespace, role=Role.OPERATOR))
    revoking = namespace if where == "its own namespace" else await declared(system)
    with exploring(system, namespace, *with_certificates(system)) as found:
        with watching(found, tls) as ends, watching(found, olga) as others_end:
            shown = fingerprint(x509.load_pem_x509_certificate(certificate.paths[1].read_bytes()))
            folder = ("--folder", str(system.layout.root))
            mas("certs", "revoke", "--fingerprint", shown, "--namespace", revoking, *folder)
            soon(lambda: found.ask(_PAGE, tls=tls).status == 403)
            assert "revoked" in found.ask(_PAGE, tls=tls).json()["error"]["text"]
            assert ends(_SOON)
            again = showing(system, system.tls("carol", namespace, role=Role.INSPECTOR))
            assert found.ask(_PAGE, tls=again).status == 200
            assert found.ask(_PAGE, tls=olga).status == 200
            assert not others_end(2)
        assert f"refused spiffe://mas/ns/{namespace}/inspector/carol" in found.said()


async def test_who_leaves_the_manifest_is_out_at_once(system: System) -> None:
    namespace = await declared(system, inspectors=("carol",))
    tls = showing(system, system.tls("carol", namespace, role=Role.INSPECTOR))
    with exploring(system, namespace, *with_certificates(system)) as found, watching(found, tls) as ends:
        await declared(system, name=namespace)
        soon(lambda: found.ask(_PAGE, tls=tls).status == 403)
        assert ends(_SOON)


async def test_while_policy_cannot_be_confirmed_nobody_is_let_in(tmp_path: Path) -> None:
    system = System.up(tmp_path / ".mas")
    try:
        namespace = await declared(system, inspectors=("carol",))
        tls = showing(system, system.tls("carol", namespace, role=Role.INSPECTOR))
        server = children(system.broker.pid)["nats-server"]
        with exploring(system, namespace, *with_certificates(system)) as found:
            with watching(found, tls) as ends:
                os.kill(server, signal.SIGSTOP)
                try:
                    soon(lambda: found.ask("/", tls=tls).status == 503)
                    assert b"policy cannot be confirmed" in found.ask("/", tls=tls).body
                    assert ends(_SOON)
                finally:
                    os.kill(server, signal.SIGCONT)
            soon(lambda: found.ask("/", tls=tls).status == 200, 60)
    finally:
        system.down()


class Policy:
    """What a follower of policy says."""

    def __init__(self, document: Document | None) -> None:
        self.document = document
        self.stale = False

    def revoked(self, shown: str) -> bool:
        return self.document is not None and shown in self.document.revoked

    def table(self, _: str) -> Table | None:
        return None if self.document is None else Table.compile(self.document, 1)


OLGA = Holder(
    Identity(DEFAULT_TRUST_DOMAIN, "shop", Role.OPERATOR, "olga"), "f" * 64, datetime.now(UTC) + timedelta(1)
)
SHOP = Document(namespace="shop", account="A", operators=("olga",))


def asked_of(policy: Policy) -> People:
    return People(policy, "shop")  # type: ignore[arg-type]


def test_a_certificate_that_expires_on_an_open_connection_and_a_policy_that_is_gone() -> None:
    olga = asked_of(Policy(SHOP))
    assert olga.refusal(OLGA) is None
    expired = olga.refusal(replace(OLGA, not_after=datetime.now(UTC)))
    assert expired is not None
    assert (expired.status, "expired" in expired.text) == (403, True)
    closed = asked_of(Policy(None)).refusal(OLGA)  # it was deleted, or cannot be read
    assert closed is not None
    assert closed.status == 403


async def test_an_answer_that_never_ends_is_ended_without_its_help(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that waits for a reader who reads nothing."""
    monkeypatch.setattr(people, "_LOOK_AGAIN", 0.01)
    policy = Policy(SHOP)
    happened: list[str] = []

    async def app(*_: Any) -> None:
        policy.stale = True
        try:
            await hanging.wait()
        finally:
            happened.append("ended")

    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def send(_: Any) -> None:
        happened.append("sent")

    hanging = asyncio.Event()
    asked = Asked(app, asked_of(policy), OLGA, lambda: happened.append("hung up"))
    async with asyncio.timeout(_SOON):
        await asked({"type": "http"}, receive, send)
    assert happened == ["ended", "hung up"]


async def test_what_goes_wrong_while_one_is_answered_is_not_hidden() -> None:
    async def app(*_: Any) -> None:
        raise ZeroDivisionError

    asked = Asked(app, asked_of(Policy(SHOP)), OLGA, lambda: None)
    with pytest.raises(ZeroDivisionError):
        await asked({"type": "http"}, app, app)

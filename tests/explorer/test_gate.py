"""Who gets in and who does not, and what a browser is told: attacked from outside, with controls."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker_policy.explorer import sources
from broker_policy.tenants.connect import connect_control_admin
from mas_nats.wire import subjects
from mas_nats.wire.subjects import Op
from tests.explorer.served import Explorer, exploring
from tests.system import System, mas


@pytest.fixture(scope="module")
def namespace(system: System) -> str:
    return asyncio.run(system.namespace(["one"], {}))


@pytest.fixture(scope="module")
def plain(system: System, namespace: str) -> Iterator[Explorer]:
    with exploring(system, namespace) as found:
        yield found


@pytest.fixture(scope="module")
def guarded(system: System, namespace: str) -> Iterator[Explorer]:
    with exploring(system, namespace, "--token") as found:
        yield found


def asset(explorer: Explorer, name: str) -> str:
    """The address of a file of the page, as the page has it; ``explorer`` asks for no token."""
    found = re.search(rb"/assets/[0-9a-f]+/", explorer.ask("/").body)
    assert found
    return f"{found[0].decode()}{name}"


@pytest.mark.parametrize("path", ["/", "/audit", "/api/overview", "/api/none", "main.js", "/none"])
def test_every_answer_has_the_headers(plain, path):
    found = plain.ask(path if path.startswith("/") else asset(plain, path)).headers
    policy = found["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert found["x-content-type-options"] == "nosniff"
    assert found["x-frame-options"] == "DENY"
    assert found["referrer-policy"] == "no-referrer"
    assert "server" not in found


def test_the_page_has_nothing_inline_and_nothing_from_elsewhere():
    assets = Path(__file__).parents[2] / "broker_policy" / "explorer" / "assets"
    for each in assets.iterdir():
        text = each.read_text()
        assert "innerHTML" not in text
        for word in ("http://", "https://", "//cdn"):
            assert text.replace("http://www.w3.org/2000/svg", "").count(word) == 0, each
    page = (assets / "index.html").read_text()
    assert "style=" not in page
    assert "<script>" not in page
    assert "onclick=" not in page


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
@pytest.mark.parametrize("path", ["/", "/api/verify", "/api/dead-letters"])
def test_it_only_shows(plain, method, path):
    assert plain.ask(path, method=method).status == 405


def test_head_is_answered(plain):
    answer = plain.ask("/api/decisions", method="HEAD")
    assert (answer.status, answer.body) == (200, b"")


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "localhost.evil.example", "10.0.0.1", ""]
)
def test_another_name_is_refused(plain, host):
    """A name of an attacker that points to 127.0.0.1 makes his page the same origin."""
    assert plain.ask("/api/overview", headers={"Host": host}).status == 421


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", "LOCALHOST:1234"])
def test_its_own_names_are_not(plain, host):
    assert plain.ask("/api/decisions", headers={"Host": host}).status == 200


def test_another_sites_page_gets_no_data(plain):
    for site in ("cross-site", "same-site"):
        headers = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "no-cors"}
        assert plain.ask("/api/verify", headers=headers).status == 403
        assert plain.ask("/api/verify", headers={**headers, "Sec-Fetch-Mode": "navigate"}).status == 403
    assert (
        plain.ask("/", headers={"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}).status == 200
    )
    assert plain.ask("/api/decisions", headers={"Sec-Fetch-Site": "same-origin"}).status == 200


def test_only_the_pages_files_are_kept_by_a_browser(plain):
    assert "immutable" in plain.ask(asset(plain, "main.js")).headers["cache-control"]
    for path in ("/", "/api/decisions", "/api/none", asset(plain, "none.js")):
        assert plain.ask(path).headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    "path",
    ["../site.py", "%2e%2e/site.py", "..%2fsite.py", "/etc/passwd", "", "../x/main.js", "index.html"],
)
def test_only_the_pages_files_are_served(plain, path):
    answer = plain.ask(asset(plain, path))
    assert answer.status == 404
    assert b"import" not in answer.body


def test_without_the_token_nothing_is_told(guarded):
    token = guarded.token
    attacks = [
        {},
        {"Authorization": "Bearer "},
        {"Authorization": f"Bearer {token[:-1]}"},
        {"Authorization": f"Bearer {token}x"},
        {"Authorization": f"Basic {token}"},
        {"Authorization": "Bearer \xff\xfe"},
        {"Cookie": "mas_explorer="},
        {"Cookie": f"mas_explorer={token}"},  # a cookie is worth another secret
        {"Cookie": 'mas_explorer="; ;=;;\x01'},
    ]
    for headers in attacks:
        for path in ("/", "/api/overview", "/api/live", "/assets/main.js", f"/?token={token}"):
            answer = guarded.ask(path, headers=headers)
            assert answer.status == 401, (path, headers)
            assert token.encode() not in answer.body
    for query in ("", "?token=", "?token=wrong", f"?token={token[:-1]}", f"?Token={token}", "?token=%ff"):
        assert guarded.ask(f"/enter{query}").status == 403


def test_with_the_token_it_is(guarded):
    bearer = {"Authorization": f"Bearer {guarded.token}"}
    assert guarded.ask("/api/decisions", headers=bearer).status == 200
    entered = guarded.ask(guarded.open.removeprefix(guarded.address))
    assert (entered.status, entered.headers["location"]) == (303, "/")
    cookie = entered.headers["set-cookie"]
    assert guarded.token not in cookie
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert guarded.ask("/api/decisions", headers={"Cookie": cookie.partition(";")[0]}).status == 200


def test_on_another_address_a_token_is_asked_for(system, namespace):
    with exploring(system, namespace, "--host", "0.0.0.0") as found:
        assert found.token
        assert found.ask("/api/decisions").status == 401
        bearer = {"Authorization": f"Bearer {found.token}"}
        assert found.ask("/api/decisions", headers=bearer).status == 200
        assert found.ask("/api/decisions", headers={**bearer, "Host": "10.1.2.3:80"}).status == 200
        assert found.ask("/api/decisions", headers={**bearer, "Host": "evil.example"}).status == 421


async def test_the_servers_take_nothing_from_its_connections(system, namespace):
    """Whoever finds a way to make the explorer publish finds the server's permissions next."""
    calls = subjects.call("one", Op.SEND)
    async with (
        sources.opened(system.layout.root, namespace) as opened,
        system.tenant(namespace) as tenant,
        contextlib.AsyncExitStack() as stack,
    ):
        endpoint = system.broker.connection(system.layout, "controller")
        control = await connect_control_admin(endpoint, system.material.controller)
        stack.push_async_callback(control.close)
        for reader, admin, subject in (
            (opened.tenant, tenant, "test.anything"),
            (opened.tenant, tenant, calls),
            (opened.control, control, "test.anything"),
        ):
            heard = await admin.subscribe(subject)
            await admin.flush()
            await reader.publish(subject, b"by the explorer")
            await reader.flush()
            await admin.publish(subject, b"the control")
            assert (await heard.next_msg(timeout=30)).data == b"the control"
            await heard.unsubscribe()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--cert", "a.pem"), "belong together"),
        (("--client-ca", "a.pem"), "needs both"),
        (("--cert", "none.pem", "--key", "none.key"), "cannot be used"),
        (("--host", "203.0.113.7"), "cannot be listened on"),
    ],
)
def test_wrong_usage_says_what_to_do(system, namespace, options, text):
    done = mas("explorer", "--folder", str(system.layout.root), "-n", namespace, *options, check=False)
    assert done.returncode == 1
    assert text in " ".join(done.stderr.split())


def test_a_namespace_that_is_not_there_is_said(system):
    done = mas("explorer", "--folder", str(system.layout.root), "-n", "nowhere", check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr

"""Every page in a real browser, on live data: no error in the console, usable by everybody, at any width."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from broker_policy.audit.store import Store
from mas_nats import Agent
from mas_nats.errors import Refused
from tests.explorer.checked import checked
from tests.explorer.conftest import options
from tests.explorer.entries import a_line, decided, many
from tests.explorer.served import Explorer, exploring
from tests.explorer.tampering import a_decision, edit
from tests.system import REPOSITORY, System

playwright = pytest.importorskip("playwright.async_api", reason="no playwright: pip install playwright")
axe = pytest.importorskip("axe_playwright_python.async_playwright", reason="no axe-playwright-python")

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next((found for name in _NAMES if (found := shutil.which(name))), None)
SHOTS = REPOSITORY / "build" / "explorer"
PATIENCE = 30_000
"""Milliseconds for whatever must appear."""
PAGES = {
    "overview": "/",
    "topology": "/topology",
    "live": "/live",
    "message": "/message/asked-1",
    "refused": "/message/refused-1",
    "dead": "/message/dead-1",
    "agents": "/agents",
    "dead-letters": "/dead-letters",
    "audit": "/audit",
}

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium in the PATH (Debian: apt-get install chromium)"
)


class Browser:
    """Chromium, and everything that its consoles said."""

    def __init__(self, chromium: Any) -> None:
        self._chromium = chromium
        self.complaints: list[str] = []

    async def page(self, *, width: int = 1280, scheme: str = "light") -> Any:
        context = await self._chromium.new_context(
            color_scheme=scheme, viewport={"width": width, "height": 900}, reduced_motion="reduce"
        )
        page = await context.new_page()
        page.set_default_timeout(PATIENCE)
        page.on("console", lambda said: self.complaints.append(f"{page.url}: {said.text}"))
        page.on("pageerror", lambda error: self.complaints.append(f"{page.url}: {error}"))
        return page


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    async with playwright.async_playwright() as started:
        chromium = await started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield Browser(chromium)
        await chromium.close()


async def opened(page: Any, explorer: Explorer, path: str) -> None:
    """Go there, and wait until the page says that it has shown its data."""
    await page.goto(explorer.address + path)
    await page.wait_for_selector("main[data-ready]")


async def shot(page: Any, name: str) -> Path:
    SHOTS.mkdir(parents=True, exist_ok=True)
    path = SHOTS / f"{name}.png"
    await page.screenshot(path=path, full_page=True)
    return path


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 360)])
async def test_every_page_shows_its_data(browser, explorer, scheme, width):
    """Nothing sticks out, axe finds nothing, and nothing is complained of."""
    expected = {
        "overview": "AUTHZ_DENIED",
        "topology": "asker",
        "live": "refused-1",
        "message": "handled",
        "refused": "AUTHZ_DENIED",
        "dead": "buried",
        "agents": "desk",
        "dead-letters": "RuntimeError",
        "audit": "valid",
    }
    page = await browser.page(width=width, scheme=scheme)
    for name, path in PAGES.items():
        await opened(page, explorer, path)
        await page.locator("main :is(td, li)").get_by_text(expected[name]).first.wait_for()
        await page.get_by_text("MAS explorer").first.wait_for()
        assert not await page.locator(".notice.bad").count(), name
        await shot(page, f"{name}-{scheme}-{width}")
        assert await page.evaluate("document.documentElement.scrollWidth") <= width, name
        found = await axe.Axe().run(page)
        told = [(each["id"], each["nodes"][0]["html"][:200]) for each in found.response["violations"]]
        assert told == [], name
    assert browser.complaints == []


async def test_axe_would_find_something(browser, explorer):
    """The control."""
    page = await browser.page()
    await opened(page, explorer, "/agents")
    await page.evaluate("document.querySelector('main').append(document.createElement('button'))")
    found = await axe.Axe().run(page)
    assert [each["id"] for each in found.response["violations"]] == ["button-name"]


async def test_it_works_with_the_keyboard(browser, explorer):
    page = await browser.page()
    await opened(page, explorer, "/")
    await page.keyboard.press("Tab")
    assert await page.evaluate("document.activeElement.textContent") == "Skip to the content"
    for _ in range(7):
        await page.keyboard.press("Tab")
        if await page.evaluate("document.activeElement.textContent") == "Audit":
            break
    await page.keyboard.press("Enter")
    await page.wait_for_url("**/audit")
    await page.wait_for_selector("main[data-ready]")
    button = page.get_by_role("button", name="Verify the audit")
    await button.focus()
    await page.keyboard.press("Enter")
    await page.get_by_text("The audit is intact").wait_for()
    assert browser.complaints == []


@pytest.mark.alone
async def test_a_refused_message_appears_within_two_seconds(browser, system: System, explorer, traffic):
    page = await browser.page()
    await opened(page, explorer, "/live?decision=refused")
    await page.get_by_text("live", exact=True).wait_for()
    asker = Agent("asker", **options(system, "asker", traffic.namespace), receive=False)
    async with asker:
        with pytest.raises(Refused):
            await asker.send("asker", "note", {}, id="seen-1")
        began = time.monotonic()
        await page.get_by_text("seen-1").wait_for()
        took = time.monotonic() - began
    assert took < 2
    assert browser.complaints == []


async def test_a_tampered_entry_is_seen(browser, system: System):
    namespace = await system.namespace(["asker", "desk"], {"asker": ["desk"]})
    async with Agent("asker", **options(system, "asker", namespace), receive=False) as asker:
        await asker.send("desk", "note", {})
    with exploring(system, namespace) as explorer:
        async with system.redis() as redis:
            index = await a_decision(redis, namespace)
            page = await browser.page()
            await opened(page, explorer, "/audit")
            await page.get_by_role("button", name="Verify the audit").click()
            await page.get_by_text("The audit is intact").wait_for()
            await edit(redis, namespace, index)
        await page.get_by_role("button", name="Verify the audit").click()
        await page.get_by_text("The audit is NOT intact").wait_for()
        assert await page.get_by_text("changed", exact=True).count()
        await shot(page, "tampered")
    assert browser.complaints == []


async def test_what_an_agent_chose_is_no_markup(browser, explorer, system, traffic):
    asker = Agent("asker", **options(system, "asker", traffic.namespace), receive=False)
    async with asker:
        await asker.send("desk", "<img/src=x/onerror=alert(1)>", {}, id="<b>bold</b>")
    page = await browser.page()
    await opened(page, explorer, "/live")
    await page.get_by_text("<img/src=x/onerror=alert(1)>").first.wait_for()
    assert await page.locator("main img, main b").count() == 0
    await page.get_by_role("link", name="<b>bold</b>").first.click()
    await page.wait_for_selector("main[data-ready]")
    await page.get_by_text("ALLOWED").first.wait_for()
    assert browser.complaints == []


async def test_tokens_and_checks_are_told_from_the_audit(browser, system):
    namespace = await system.namespace([], {})
    async with system.redis() as redis:
        await decided(
            Store(redis, namespace),
            a_line("exchange:tool_call:search", "token"),
            a_line("exchange:tool_call:delete", "token", refused="llm_selected"),
            a_line("exchange:tool_call:delete", "send", refused="default"),  # no such call
        )
    page = await browser.page(width=360)
    with exploring(system, namespace) as explorer:
        found = explorer.api("tokens")
        counts = [(each["act"], each["purpose"], each["rule"], each["count"]) for each in found["counts"]]
        assert counts == [("exchange", "tool_call", "", 1), ("exchange", "tool_call", "llm_selected", 1)]
        assert [each["tool"] for each in found["newest"]] == ["delete", "search"]
        await opened(page, explorer, "/tokens")
        await page.get_by_text("AUTHZ_DENIED (llm_selected)").wait_for()
        await shot(page, "tokens-light-360")
        assert await page.evaluate("document.documentElement.scrollWidth") <= 360
        assert (await axe.Axe().run(page)).response["violations"] == []
    assert browser.complaints == []


async def test_the_page_of_a_message_has_its_checks(browser, system):
    seen = await checked(system)
    page = await browser.page(width=360)
    with exploring(system, seen.namespace) as explorer:
        await opened(page, explorer, f"/message/{seen.prompt}")
        await page.get_by_text("token:used").wait_for()
        await shot(page, "checks-light-360")
        assert await page.evaluate("document.documentElement.scrollWidth") <= 360
        assert (await axe.Axe().run(page)).response["violations"] == []
        await opened(page, explorer, f"/message/{seen.blocked}")
        await page.get_by_text("then a sidecar sends nothing").wait_for()
        assert await page.get_by_text("no_such_tool").count()
    assert browser.complaints == []


async def test_a_search_that_was_not_finished_says_so_and_goes_on(browser, system):
    """Nothing is both allowed and refused: with no time to walk, that is found out step by step."""
    namespace = await system.namespace([], {})
    async with system.redis() as redis:
        await many(Store(redis, namespace))
    never = "/audit?decision=ALLOWED&violation=default"
    page = await browser.page(width=360, scheme="dark")
    with exploring(system, namespace) as explorer:
        await opened(page, explorer, f"{never}&within=0")
        await page.get_by_text("Not all of the audit was looked at").wait_for()
        assert not await page.get_by_text("No decision fits").count()
        await shot(page, "unfinished-dark-360")
        assert await page.evaluate("document.documentElement.scrollWidth") <= 360
        assert (await axe.Axe().run(page)).response["violations"] == []
        await page.get_by_role("button", name="Look further back").press("Enter")
        await page.get_by_text("No decision fits").wait_for()
        assert not await page.get_by_text("Not all of the audit was looked at").count()

        await opened(page, explorer, "/audit?violation=dlp:phone&target=agent-07&within=0&limit=200")
        wanted = {
            row["index"] for row in explorer.api("decisions?violation=dlp:phone&target=agent-07")["decisions"]
        }
        further = page.get_by_role("button", name="Look further back")
        while await further.count():  # each press finds more, and what was found stays
            await further.click()
            await page.wait_for_function(
                "!document.querySelector('#decisions button')?.textContent.includes('Stop')"
            )
        assert await page.locator("#decisions tbody tr").count() == len(wanted) > 0

        await opened(page, explorer, f"{never}&within=10000")  # the control
        await page.get_by_text("No decision fits").wait_for()
        assert not await page.get_by_text("Not all of the audit was looked at").count()
        assert browser.complaints == []

        await opened(page, explorer, f"{never}&within=0")
    await further.click()  # nobody answers any more: it is said, and no end of the audit is made up
    await page.get_by_text("Look whether mas explorer still runs").wait_for()
    assert await page.get_by_text("Not all of the audit was looked at").count()
    assert not await page.get_by_text("No decision fits").count()
    assert await further.is_enabled()


async def test_empty_pages_say_what_to_do(browser, system):
    namespace = await system.namespace([], {})
    with exploring(system, namespace) as explorer:
        page = await browser.page()
        for path, text in {
            "/": "Nothing was decided yet",
            "/topology": "There are no agents yet",
            "/live": "Nothing to show yet",
            "/agents": "There are no agents yet",
            "/dead-letters": "No dead letters",
            "/audit": "No decision fits",
            "/tokens": "No call about tokens",
        }.items():
            await opened(page, explorer, path)
            await page.get_by_text(text).wait_for()
        assert browser.complaints == []


async def test_an_explorer_that_is_gone_is_said(browser, system, traffic):
    page = await browser.page()
    with exploring(system, traffic.namespace) as explorer:
        await opened(page, explorer, "/agents")
    await page.get_by_text("Look whether mas explorer still runs").wait_for()
    await asyncio.sleep(0)
    assert all("ERR_" in said for said in browser.complaints)  # the browser's own word on the connection

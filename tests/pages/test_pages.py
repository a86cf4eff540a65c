"""Every command that the README and the pages under docs/ show is run as it stands there, page by page."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.pages import reference
from tests.pages.pages import ELSEWHERE, PAGES, Page
from tests.pages.session import PATH, run
from tests.pages.shown import Command, shown
from tests.system import REPOSITORY, System, mas


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A broker that the pages share which do not bring up their own; each page finds it as its ``.mas``."""
    running = System.up(tmp_path_factory.mktemp("pages") / ".mas")
    yield running
    running.down()


@pytest.fixture
def place(tmp_path: Path, request: pytest.FixtureRequest) -> Callable[[Page], Path]:
    """The folder in which a page is run."""

    def make(page: Page) -> Path:
        if page.brings_up:
            request.addfinalizer(lambda: _end(tmp_path))
        else:
            (tmp_path / ".mas").symlink_to(request.getfixturevalue("broker").layout.root)
        return tmp_path

    return make


def _end(folder: Path) -> None:
    for broker in folder.rglob(".mas"):
        mas("down", "--folder", str(broker), check=False)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.path)
def test_a_page_is_right(page: Page, place: Callable[[Page], Path]) -> None:
    steps = list(shown(REPOSITORY / page.path))
    if shutil.which("nats", path=PATH) is None:  # of another project: see test_nats_cli.py
        steps = [each for each in steps if not (isinstance(each, Command) and each.line.startswith("nats "))]
    run(place(page), steps, before=page.before, instead=page.instead, fails=page.fails)


def test_every_example_of_the_reference_is_run(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    request.addfinalizer(lambda: _end(tmp_path))
    examples = [each for each in shown(REPOSITORY / "docs/cli.md") if isinstance(each, Command)]
    steps = reference.in_order(examples)
    run(tmp_path, steps, before=reference.BEFORE, instead=reference.INSTEAD, fails=reference.FAILS)


def test_no_page_is_left_out() -> None:
    pages = {"README.md", *(str(path.relative_to(REPOSITORY)) for path in REPOSITORY.glob("docs/**/*.md"))}
    with_commands = {
        page for page in pages if any(isinstance(step, Command) for step in shown(REPOSITORY / page))
    }
    assert with_commands == {page.path for page in PAGES} | ELSEWHERE.keys()


def test_commands_are_in_fences_that_are_run() -> None:
    """A fence without a language, with commands in it, would be passed over."""
    for page in ("README.md", *REPOSITORY.glob("docs/**/*.md")):
        text = (REPOSITORY / page).read_text()
        assert not re.findall(r"^```(?:sh|bash|shell)?\n\$ ", text, re.MULTILINE), page


def test_a_command_that_fails_is_found(tmp_path: Path) -> None:
    """The control."""
    (tmp_path / "page.md").write_text("```console\n$ true\n$ false\n```\n")
    with pytest.raises(AssertionError, match="1 ended with 1"):
        run(tmp_path, shown(tmp_path / "page.md"))
    (tmp_path / "page.md").write_text("```console\n$ true\nerror: no\n```\n")
    with pytest.raises(AssertionError, match="0 ended with 0"):
        run(tmp_path, shown(tmp_path / "page.md"))

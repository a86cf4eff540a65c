"""Images are built once; each file brings up a project of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.compose.project import Project, missing

BringUp = Callable[..., Project]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/compose/" in item.nodeid:
            item.add_marker("containers")


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A container engine with our images built; where there is none, why the test is skipped."""
    if reason := missing():
        pytest.skip(reason)
    Project(tmp_path_factory.mktemp("build")).compose("build")


@pytest.fixture(scope="module")
def project_of(engine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BringUp]:
    """A project of these profiles, not up yet; whatever is left of it is taken down."""
    made: list[Project] = []

    def make(*profiles: str) -> Project:
        made.append(Project(tmp_path_factory.mktemp("project"), *profiles))
        return made[-1]

    yield make
    for project in made:
        project.down()

"""``real_broker``, as docs/testing.md shows it, in a test run of its own."""

from __future__ import annotations

from pathlib import Path

from tests import documented


def test_the_page_about_testing_works_with_the_real_broker(tmp_path: Path):
    (tmp_path / "mas.yaml").write_text("agents: [{no: agent}]\n")  # the user's own: nothing of the tests'
    assert "1 passed" in documented.run(tmp_path, "-k", "real")

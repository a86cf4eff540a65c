"""``docs/manifest.md``: its references are those of the models, and what it shows is read."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mas_nats.manifest import documents
from mas_nats.manifest.reference import current
from mas_nats.policy.table import Table
from tests.system import REPOSITORY

PAGE = REPOSITORY / "docs" / "manifest.md"
BLOCKS = re.findall(r"^```yaml\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
BILLING = """\
---
apiVersion: casa.io/v1alpha1
kind: MultiAgentSystem
metadata: {name: billing}
spec: {name: Billing, apps: [{name: desk, type: agent, baseUrl: "http://desk:80"}]}
"""


@pytest.mark.parametrize("name", ["manifest.md", "settings.md"])
def test_the_references_are_current(name: str) -> None:
    page = (REPOSITORY / "docs" / name).read_text()
    assert page == current(page), f"python -m mas_nats.manifest.reference docs/{name}"


def test_the_two_systems_it_shows_may_talk(tmp_path: Path) -> None:
    (text,) = [block for block in BLOCKS if "namespace: sales" in block]
    (tmp_path / "mas.yaml").write_text(text)
    manifest = documents.load(tmp_path / "mas.yaml")
    assert manifest.told == ()
    tables = [Table.compile(each.wanted.document(), 0) for each in manifest.namespaces]
    assert tables[0].lets("bot", "billing/desk")
    assert tables[1].accepts("sales/bot", "desk")


def test_the_system_and_the_policies_of_casa_that_it_shows_go_together(tmp_path: Path) -> None:
    system, policies = (block for block in BLOCKS if "casa.io" in block)
    (tmp_path / "casa.yaml").write_text(f"{system}---\n{policies}{BILLING}")
    manifest = documents.load(tmp_path / "casa.yaml")
    assert manifest.notices == ()
    tables = {each.namespace: Table.compile(each.wanted.document(), 0) for each in manifest.namespaces}
    assert tables["my-mas"].lets("my-agent", "billing/desk")
    assert tables["my-mas"].allows("my-agent", "my-tools")
    assert tables["my-mas"].allows("my-client", "my-tools")
    assert tables["billing"].accepts("my-mas/my-agent", "desk")

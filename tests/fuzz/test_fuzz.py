"""Nothing that can be said or declared crashes the service, holds it up, or passes without a decision.

A short run with every ``make test``; ``make fuzz SECONDS=600`` goes on for as long as it is told.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from mas_nats.errors import ConfigurationError
from mas_nats.manifest import documents
from mas_nats.policy.document import Document
from tests.fuzz.served import LONGEST, Served, served, timed
from tests.fuzz.strategies import calls, manifests, nasty_yaml, policies

FIXTURES = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]


@pytest.fixture(scope="module")
def here() -> Iterator[Served]:
    with served() as running:
        yield running


@pytest.mark.filterwarnings("ignore:Generating overly large repr")
@settings(max_examples=40, suppress_health_check=FIXTURES)
@given(policy=policies, said=st.lists(calls(), min_size=1, max_size=25))
def test_whatever_is_said_under_whatever_policy(here: Served, policy: Document, said: list[tuple]):
    assume(here.under(policy))
    for sender, op, body, fields in said:
        verdict = here.call(sender, op, body, fields)
        assert verdict.ok or (verdict.step and verdict.rule and verdict.reason), verdict
    assert here.undecided() == []


@settings(max_examples=200, suppress_health_check=FIXTURES)
@given(raw=manifests)
def test_whatever_a_manifest_says(tmp_path: Path, raw: bytes):
    path = tmp_path / "mas.yaml"
    path.write_bytes(raw)
    with timed() as took, contextlib.suppress(ConfigurationError):  # and nothing else
        documents.load(path)
    assert took[0] < LONGEST


@settings(max_examples=200, suppress_health_check=FIXTURES)
@given(text=st.text(st.characters(codec="utf-8"), max_size=200) | nasty_yaml)
def test_no_yaml_crashes_a_manifest(tmp_path: Path, text: str):
    path = tmp_path / "mas.yaml"
    path.write_text(text)
    with contextlib.suppress(ConfigurationError):  # and nothing else
        documents.load(path)

"""The benchmarks are run by hand; that they can begin is seen here."""

from __future__ import annotations

import importlib
import pkgutil

import pytest

import benchmarks


@pytest.mark.parametrize("name", [each.name for each in pkgutil.iter_modules(benchmarks.__path__)])
def test_each_can_be_imported(name: str):
    importlib.import_module(f"benchmarks.{name}")

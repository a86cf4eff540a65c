from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys

import pytest

import mas_nats
from mas_nats import errors


def test_exports_exactly_what_it_says():
    """Type checkers read the imports, programs ask for the names."""
    tree = ast.parse(inspect.getsource(mas_nats))
    checked, _ = [each for each in tree.body if isinstance(each, ast.If)]
    homes = {
        name.name: each.module
        for each in checked.body
        if isinstance(each, ast.ImportFrom)
        for name in each.names
    }
    assert sorted(homes) == mas_nats.__all__
    for name, home in homes.items():
        assert getattr(mas_nats, name) is getattr(importlib.import_module(home), name)
    modules = set(dir(mas_nats)) - set(mas_nats.__all__)
    assert modules == {"agent", "config", "errors", "message", "messenger", "stream", "wire"}
    code = f"import mas_nats; [getattr(mas_nats, name) for name in {sorted(modules)}]; mas_nats.wire.headers"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="nothing_like_this"):
        mas_nats.nothing_like_this  # noqa: B018


def test_who_needs_errors_does_not_wait_for_agents():
    code = "import sys, mas_nats.errors; print({'pydantic', 'nats'} & sys.modules.keys())"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "set()\n"


def test_every_error_is_exported_and_in_the_drawing():
    for name, value in vars(errors).items():
        if inspect.isclass(value) and issubclass(value, Exception) and value.__module__ == errors.__name__:
            assert name in mas_nats.__all__
            assert name in (errors.__doc__ or "")


def test_every_public_thing_is_documented():
    for name in mas_nats.__all__:
        assert inspect.getdoc(getattr(mas_nats, name)), name

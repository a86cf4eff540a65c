from __future__ import annotations

import inspect
import types

import mas_nats
from mas_nats import errors


def test_exports_exactly_what_it_says():
    public = {
        name
        for name, value in vars(mas_nats).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType) and name != "annotations"
    }
    assert public == set(mas_nats.__all__)
    assert list(mas_nats.__all__) == sorted(mas_nats.__all__)


def test_every_error_is_exported_and_in_the_drawing():
    for name, value in vars(errors).items():
        if inspect.isclass(value) and issubclass(value, Exception) and value.__module__ == errors.__name__:
            assert name in mas_nats.__all__
            assert name in (errors.__doc__ or "")


def test_every_public_thing_is_documented():
    for name in mas_nats.__all__:
        assert inspect.getdoc(getattr(mas_nats, name)), name

from __future__ import annotations

import re
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from mas_nats.scrub import CUT, MAX_TEXT, scrub


@pytest.mark.parametrize(
    ("text", "payload"),
    [
        ("no such patient 123-45-6789", {"note": "her SSN is 123-45-6789, call back"}),
        ("no such patient 123456789", {"note": "her SSN is 123-45-6789"}),
        ("no such patient 123-45-6789", {"ssn": 123456789}),
        ("bad key '123-45-6789'", {"123-45-6789": "x"}),
        ("card 4111 1111 1111 1111 refused", {"card": ["4111111111111111"]}),
        ("KeyError: 'hunter2x'", {"a": {"b": "password is hunter2x"}}),
        ('got "line\\nhunter22"', {"a": "line\nhunter22"}),
        ("PASSWORD HUNTER22", {"a": "my password hunter22"}),
    ],
)
def test_what_the_payload_holds_is_cut(text: str, payload: dict[str, Any]):
    left = scrub(ValueError(text), payload)
    assert CUT in left
    assert not re.search(r"\d{4}|6789|hunter2", left, re.IGNORECASE)


def test_what_the_payload_does_not_hold_stays():
    error = ConnectionError("connection to 10.0.0.7:5432 refused")
    assert scrub(error, {"question": "what is the weather", "n": 3}) == str(error)


def test_a_model_error_shows_places_and_kinds_only():
    class Ask(BaseModel):
        age: int

    with pytest.raises(ValidationError) as caught:
        Ask.model_validate({"age": "secret-value"})
    assert scrub(caught.value, {"age": "secret-value"}) == "age: int_parsing"


def test_an_error_that_cannot_be_shown():
    class Hostile(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    assert scrub(Hostile(), {"a": "b"}) == ""


@pytest.mark.parametrize("opened", ["[", '{"a":'])
def test_a_payload_may_be_as_deep_as_it_is_read(opened: str):
    closed = "]" if opened == "[" else "}"
    payload = orjson.loads('{"x":' + opened * 1000 + '"hunter22"' + closed * 1000 + "}")
    assert scrub(ValueError("got hunter22"), payload) == f"got {CUT}"


def test_length_is_bounded():
    assert len(scrub(ValueError("x" * 100_000), {})) == MAX_TEXT


@given(st.text(min_size=6, max_size=40), st.text(max_size=20), st.text(max_size=20))
def test_no_leaf_survives(leaf: str, before: str, after: str):
    leaf = " ".join(leaf.split())
    text = scrub(ValueError(f"{before}{leaf}{after}"), {"a": [{"b": leaf}]})
    if len(leaf) >= 6 and leaf not in f"{before} {after} {CUT}":
        assert leaf not in text.replace(CUT, "")


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists))
def test_any_payload_is_taken(value: Any):
    scrub(ValueError(repr(value)), {"a": value})
    orjson.dumps(scrub(ValueError(str(value)), {"a": value}))

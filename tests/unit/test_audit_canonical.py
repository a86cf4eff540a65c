"""The canonical form is RFC 8785, and any single edit of a chain is found."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import rfc8785
from hypothesis import given

from broker_policy.audit import chain

KEYS = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=6)
INTS = st.integers(-chain.MAX_INT, chain.MAX_INT)
VALUES = st.recursive(INTS | st.text(), lambda inner: st.lists(inner, max_size=4), max_leaves=8)


@given(st.dictionaries(KEYS, VALUES, max_size=20))
def test_canonical_form_is_that_of_rfc_8785(entry):
    assert chain.canonical(entry) == rfc8785.dumps(entry)


@given(st.text(st.characters(max_codepoint=0x1F) | st.sampled_from('"\\/\x7f\u2028\u2029\ufeff😀é')))
def test_escapes_are_those_of_rfc_8785(text):
    assert chain.canonical({"t": text}) == rfc8785.dumps({"t": text})


def test_an_integer_that_is_not_exact_is_refused():
    with pytest.raises(TypeError):
        chain.canonical({"n": chain.MAX_INT + 1})


def test_a_lone_surrogate_is_refused():
    with pytest.raises(TypeError):
        chain.canonical({"t": "\ud800"})


def test_chains_of_two_namespaces_differ_from_the_start():
    assert chain.genesis("a") != chain.genesis("b")


def test_known_hashes():
    """Golden: an export must verify with any later version."""
    body = chain.canonical({"k": "w", "i": 1, "é": "ü"})
    assert body == '{"i":1,"k":"w","é":"ü"}'.encode()
    assert chain.link(chain.genesis("default"), body).hex() == (
        "c8a394c451b8d5ffc816bee59cb3459e013a6a1ade1719a1ee6edbc60a277749"
    )

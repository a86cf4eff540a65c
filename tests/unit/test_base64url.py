"""Base64url without padding: what the standard library writes, and what RFC 4648 says of it."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mas_nats.wire.base64url import base64url


@given(st.binary(max_size=100))
def test_it_is_what_the_standard_library_writes_without_its_padding(raw):
    assert base64url(raw) == base64.urlsafe_b64encode(raw).decode().rstrip("=")


@pytest.mark.parametrize(
    ("raw", "text"), [(b"", ""), (b"f", "Zg"), (b"fo", "Zm8"), (b"foo", "Zm9v"), (b"\xfb\xef\xff", "--__")]
)
def test_known_values(raw, text):
    assert base64url(raw) == text

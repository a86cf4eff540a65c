"""nkeys against RFC 8032 and against the independent ``nkeys`` package (libsodium)."""

from __future__ import annotations

import nkeys as reference
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_policy.identity.nkeys import KeyPair, Kind, kind_of, verify

RFC_8032_TEST_1 = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
RFC_8032_TEST_1_PUBLIC = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
RFC_8032_TEST_1_SIGNATURE = bytes.fromhex(
    "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155"
    "5fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b"
)
GOLDEN = {
    Kind.OPERATOR: (
        "SOAJ2YNRTXX72WTAXKCEV5ES5QWMIRCJYVUXWMTJDFYDXLADDSXH6YFUVY",
        "ODLVVGABQKYQVN6VJP7NHSLEA45A5YLS6PNKMIZFV4BBU2HXA5IRVH7S",
    ),
    Kind.ACCOUNT: (
        "SAAJ2YNRTXX72WTAXKCEV5ES5QWMIRCJYVUXWMTJDFYDXLADDSXH6YHY3Q",
        "ADLVVGABQKYQVN6VJP7NHSLEA45A5YLS6PNKMIZFV4BBU2HXA5IRVRTU",
    ),
    Kind.USER: (
        "SUAJ2YNRTXX72WTAXKCEV5ES5QWMIRCJYVUXWMTJDFYDXLADDSXH6YALCA",
        "UDLVVGABQKYQVN6VJP7NHSLEA45A5YLS6PNKMIZFV4BBU2HXA5IRUVAL",
    ),
    Kind.NODE: (
        "SNAJ2YNRTXX72WTAXKCEV5ES5QWMIRCJYVUXWMTJDFYDXLADDSXH6YFXBM",
        "NDLVVGABQKYQVN6VJP7NHSLEA45A5YLS6PNKMIZFV4BBU2HXA5IRUM4A",
    ),
}


@pytest.mark.parametrize("kind", Kind)
def test_golden(kind):
    seed, public = GOLDEN[kind]
    key = KeyPair(kind, RFC_8032_TEST_1)
    assert (key.seed, key.public) == (seed, public)
    assert key.sign(b"") == RFC_8032_TEST_1_SIGNATURE
    assert KeyPair.from_seed(f"{seed}\n").public == public
    assert kind_of(public) is kind
    assert verify(public, b"", RFC_8032_TEST_1_SIGNATURE)
    assert not verify(public, b"x", RFC_8032_TEST_1_SIGNATURE)


@given(raw=st.binary(min_size=32, max_size=32), kind=st.sampled_from(Kind), data=st.binary(max_size=64))
def test_the_reference_agrees(raw, kind, data):
    key = KeyPair(kind, raw)
    other = reference.from_seed(bytearray(key.seed, "ascii"))
    assert other.public_key.decode() == key.public
    assert other.sign(data) == key.sign(data)
    assert reference.encode_seed(raw, kind).decode() == key.seed


@pytest.mark.parametrize(
    "seed",
    [
        "",
        "S",
        "not base32!",
        GOLDEN[Kind.USER][0][:-1] + "B",  # checksum
        GOLDEN[Kind.USER][0].lower(),
        GOLDEN[Kind.USER][1],  # a public key
    ],
)
def test_what_is_no_seed_is_refused_without_repeating_it(seed):
    with pytest.raises(ValueError, match="nkey") as refused:
        KeyPair.from_seed(seed)
    assert not seed or seed not in str(refused.value) or seed == "S"


def test_a_seed_is_no_public_key():
    with pytest.raises(ValueError, match="not a public nkey"):
        verify(GOLDEN[Kind.USER][0], b"", b"")


def test_its_repr_hides_the_seed():
    key = KeyPair.create(Kind.ACCOUNT)
    assert repr(key) == f"KeyPair({key.public})"


def test_keys_are_random():
    assert KeyPair.create(Kind.USER).seed != KeyPair.create(Kind.USER).seed

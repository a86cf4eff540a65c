"""Reply capabilities, instance names, salts and commitments: nobody makes one, nobody alters one."""

from __future__ import annotations

import base64
from dataclasses import replace

import orjson
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from broker_policy.sealing import Cursor, ReplyCapability, SealBroken, Sealer, commitment
from broker_policy.tenants.sealing_ring import SealingKey
from mas_nats.wire.headers import MAX_VALUE_BYTES

KEY = SealingKey("00000001", b"1" * 32)
OTHER = SealingKey("00000002", b"2" * 32)
SEALER = Sealer("w1", [KEY])
CAPABILITY = ReplyCapability("default", "alice", "ab" * 10, "cd" * 16, "bob", "m1", 1_700_000_000_000)


def test_any_worker_opens_what_one_has_sealed():
    token = SEALER.seal(CAPABILITY)
    assert Sealer("another", [KEY]).open(token) == CAPABILITY
    assert Sealer("w1", [OTHER, KEY]).open(token) == CAPABILITY, "the previous key is still accepted"


def test_a_capability_for_a_stream_says_so_and_others_are_as_they_were():
    streamed = replace(CAPABILITY, stream=True)
    assert SEALER.open(SEALER.seal(streamed)) == streamed
    assert SEALER.open(SEALER.seal(CAPABILITY)) == CAPABILITY


def test_a_cursor_holds_for_one_answer_and_for_nothing_else():
    cursor = Cursor(7, "ab" * 8, "mac", ("held", {"n": 1}))
    token = SEALER.seal_cursor(CAPABILITY, cursor)
    assert Sealer("another", [KEY]).open_cursor(CAPABILITY, token) == cursor
    for other in (replace(CAPABILITY, message_id="m2"), replace(CAPABILITY, requester="carol")):
        with pytest.raises(SealBroken):
            SEALER.open_cursor(other, token)
    with pytest.raises(SealBroken):
        SEALER.open(token)
    with pytest.raises(SealBroken):
        SEALER.open_cursor(CAPABILITY, SEALER.seal(CAPABILITY))


def test_a_retired_key_is_not_accepted():
    with pytest.raises(SealBroken):
        Sealer("w1", [OTHER]).open(SEALER.seal(CAPABILITY))


def test_no_two_tokens_are_the_same():
    """The nonce is a counter under the worker's own subkey."""
    tokens = [SEALER.seal(CAPABILITY) for _ in range(1000)]
    assert len(set(tokens)) == 1000
    assert Sealer("w2", [KEY]).seal(CAPABILITY) not in tokens


def test_the_longest_capability_fits_into_a_header():
    longest = ReplyCapability(
        "n" * 63, "r" * 63, "i" * 20, "c" * 32, "t" * 63, '"' * 128, 10**13, stream=True
    )
    token = Sealer("w" * 13, [KEY]).seal(longest)
    assert len(token) <= MAX_VALUE_BYTES
    assert SEALER.open(token) == longest


def test_every_altered_byte_is_noticed():
    raw = bytearray(base64.urlsafe_b64decode(SEALER.seal(CAPABILITY)))
    for place in range(len(raw)):
        altered = bytearray(raw)
        altered[place] ^= 1
        with pytest.raises(SealBroken):
            SEALER.open(base64.urlsafe_b64encode(altered).decode())
        with pytest.raises(SealBroken):
            SEALER.open(base64.urlsafe_b64encode(raw[:place]).decode())


@given(st.one_of(st.text(), st.binary().map(lambda raw: base64.urlsafe_b64encode(raw).decode())))
def test_nothing_made_up_is_accepted(token: str):
    with pytest.raises(SealBroken):
        SEALER.open(token)


@given(st.binary(max_size=300))
def test_nothing_made_up_behind_a_real_head_is_accepted(tail: bytes):
    head = bytes.fromhex(KEY.key_id)
    with pytest.raises(SealBroken):
        SEALER.open(base64.urlsafe_b64encode(head + tail).decode())


@pytest.mark.parametrize("content", [[], {}, 1, ["a"], ["a"] * 9, None])
def test_sealed_but_no_capability(content: object):
    """Only another version of this program could have made it."""
    raw = base64.urlsafe_b64decode(SEALER.seal(CAPABILITY))
    head = raw[: 4 + 1 + 2 + 12]
    sealed = AESGCM(KEY.reply_key("w1")).encrypt(head[-12:], orjson.dumps(content), head)
    with pytest.raises(SealBroken):
        SEALER.open(base64.urlsafe_b64encode(head + sealed).decode())


# -- instance names ----------------------------------------------------------------------------------------
def test_an_instance_belongs_to_one_agent_of_one_namespace():
    name = SEALER.new_instance("default", "alice")
    assert SEALER.owns_instance("default", "alice", name)
    assert Sealer("w2", [OTHER, KEY]).owns_instance("default", "alice", name)
    assert not SEALER.owns_instance("default", "bob", name)
    assert not SEALER.owns_instance("other", "alice", name)
    assert not Sealer("w1", [OTHER]).owns_instance("default", "alice", name)
    assert SEALER.new_instance("default", "alice") != name


@given(st.text())
def test_no_name_can_be_made_up(name: str):
    assert not SEALER.owns_instance("default", "alice", name)


# -- salts and commitments ---------------------------------------------------------------------------------
def test_a_repetition_has_the_same_salt_and_no_other_message_has():
    salt = SEALER.salt("alice", "m1")
    assert salt == Sealer("w2", [KEY]).salt("alice", "m1")
    others = {SEALER.salt(*of) for of in (("alice", "m2"), ("bob", "m1"), ("alicem", "1"))}
    assert salt not in others
    assert len(others) == 3
    assert salt != Sealer("w1", [OTHER]).salt("alice", "m1")


def test_a_commitment_is_to_everything_it_covers():
    salt = SEALER.salt("alice", "m1")
    made = commitment(salt, "bob", "work", b"{}")
    assert made == commitment(salt, "bob", "work", b"{}")
    assert len(made) == 43
    for other in (
        commitment(salt, "carol", "work", b"{}"),
        commitment(salt, "bob", "task", b"{}"),
        commitment(salt, "bob", "work", b"{ }"),
        commitment(salt, "bobw", "ork", b"{}"),
        commitment(b"0" * 16, "bob", "work", b"{}"),
    ):
        assert other != made


def test_a_capability_does_not_change():
    with pytest.raises(AttributeError):
        CAPABILITY.target = "mallory"  # type: ignore[misc]
    assert replace(CAPABILITY, target="mallory") != CAPABILITY

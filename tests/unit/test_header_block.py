"""The headers of a message as bytes: the same as nats-py writes, and nothing that would be another line."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from nats import errors
from nats.aio.client import Client

from mas_nats.resilient import ResilientClient
from mas_nats.wire import header_block as header_block_module
from mas_nats.wire.header_block import header_block, header_fields

FIELDS = {"Mas-Type": "note", "Nats-Msg-Id": "0123", "X": ""}


class _Written:
    """What a client would send."""

    def __init__(self, kind: type[Client]) -> None:
        client: Any = kind()
        client._flush_queue = None
        self.client = client

    def publish(self, fields: dict[str, str]) -> bytes:
        asyncio.run(self.client._send_publish("a.b", "", b"{}", 2, fields))
        return b"".join(self.client._pending)


@pytest.mark.parametrize("fields", [FIELDS, {}, {"A-b_c": "ä"}])
def test_it_is_what_nats_py_writes(fields):
    assert _Written(ResilientClient).publish(fields) == _Written(Client).publish(fields)


@pytest.mark.parametrize("name", ["", "a b", "a:b", "a\r\nb", "ä"])
def test_a_name_that_is_none_is_left_to_nats_py(name):
    assert header_block({**FIELDS, name: "x"}) is None
    if name:
        with pytest.raises(errors.BadHeaderError):
            _Written(ResilientClient).publish({name: "x"})


@given(st.dictionaries(st.sampled_from(["A", "B", "C"]), st.text()))
def test_no_value_makes_another_line(fields):
    block = header_block(fields)
    if any({"\r", "\n"} & set(value) for value in fields.values()):
        assert block is None
    else:
        assert block is not None
        assert block.count(b"\r\n") == len(fields) + 2
        assert all(f"\r\n{name}: {value}\r\n".encode() in block for name, value in fields.items())


def read_by(kind: type[Client], block: bytes) -> dict[str, str] | None:
    return asyncio.run(kind()._process_headers(block))


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["A", "Mas-Type", "a b", "", "\u00e4", " A"]),
            st.sampled_from([": ", ":", ":\t", ""]),
            st.sampled_from(["x", "", " x ", "a: b", "\u00e4", "\u00a0", "\r", "\n", "\x0b"]),
            st.sampled_from(["\r\n", "\n", "\r\n\r\n"]),
        ),
        min_size=1,
        max_size=3,
    ),
    st.sampled_from([b"NATS/1.0\r\n", b"NATS/1.0 404 No Messages\r\n"]),
    st.sampled_from([b"", b"\xff"]),
)
@example([("A", "", "x", "\r\n")], b"NATS/1.0\r\n", b"")
def test_it_reads_what_nats_py_reads(lines, first, odd):
    text = "".join(name + sign + value + end for name, sign, value, end in lines)
    block = first + text.encode() + odd + b"\r\n"
    assert read_by(ResilientClient, block) == read_by(Client, block)


def one_by_one(block: bytes) -> dict[str, str] | None:
    """What ``header_fields`` reads, as plainly as it can be said."""
    if not (block.startswith(b"NATS/1.0\r\n") and block.endswith(b"\r\n\r\n")):
        return None
    fields = {}
    for line in block[10:-4].decode().split("\r\n"):
        name, colon, value = line.partition(": ")
        if not colon or not re.fullmatch(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+", name) or value != value.strip():
            return None
        fields[name] = value
    return fields


WORDS = st.sampled_from(
    ["x", "y:", "", " ", "a: b", "a b", "\u00e4", "\u00a0x", "x\x1f", "\u2028", "\t", "%s", "%"]
)
NAMES = st.sampled_from(["A", "B", "Mas-Type", "%s", "%", "a:b", "a b", "", "\u00e4", "A:"])
SIGNS = st.sampled_from([": "] * 8 + [":", ":\t", " ", "", ":  ", "\r\n"])
ENDS = st.sampled_from(["\r\n"] * 8 + ["\n", "\r", " ", "\r\n\r\n", "\x0b"])


@settings(max_examples=1000)
@given(st.lists(st.tuples(NAMES, SIGNS, WORDS, ENDS), max_size=5))
@example([("A", ": ", "x", "\r\n"), ("A", ": ", "y", "\r\n")])
@example([("A", ": ", "x:", " "), ("B", ":\r\n", "y", "\r\n")])
@example([("A", "\r\n", "x", ": "), ("B", ": ", "y", "\r\n")])
@example([("%s", ": ", "%s", "\r\n")])
def test_it_takes_and_refuses_what_reading_line_by_line_does(lines):
    text = "".join(name + sign + value + end for name, sign, value, end in lines)
    block = b"NATS/1.0\r\n" + text.encode() + b"\r\n"
    for _ in range(2):  # the second time its names are known
        assert header_fields(block) == one_by_one(block)


@given(
    st.lists(
        st.sampled_from(["A: 1", "B: 2", "C: 3", "A:: 4", "%s: 5", "%d: 6", "a%: 7"]), min_size=1, max_size=4
    )
)
def test_names_that_were_read_before_are_not_taken_for_others(lines):
    block = "\r\n".join(["NATS/1.0", *lines, "", ""]).encode()
    assert header_fields(block) == one_by_one(block)


def test_no_more_is_remembered_than_it_says():
    name = "A" * header_block_module._LONGEST_AT_ONCE
    before = header_block_module._names.cache_info()
    assert header_fields(f"NATS/1.0\r\n{name}: x\r\n\r\n".encode()) == {name: "x"}
    assert header_block_module._names.cache_info() == before


def test_what_is_well_written_is_read_at_once():
    block = header_block(FIELDS)
    assert block is not None
    assert header_fields(block) == FIELDS == read_by(Client, block)

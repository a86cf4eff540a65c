"""Decisions as lines of a record: what is written, what is read again, and what is made printable."""

from __future__ import annotations

from itertools import product

import orjson
import pytest

from broker_policy.audit.record import DecisionLine, Record, RecordKind, Way
from broker_policy.commit.lines import line_of
from mas_nats.policy.call import Call

LINE = DecisionLine(
    "send",
    "1" * 32,
    "alice",
    "bob",
    "greeting",
    12,
    "ALLOWED",
    "permissions",
    Way.BATCH,
    7,
    "c" * 43,
    "f" * 64,
)
NAMES = {"op": "op", "message_id": "id", "sender": "from", "target": "to", "type": "type", "size": "size"}
NAMES |= {"decision": "decision", "rule": "rule", "way": "way", "time": "at", "commitment": "commit"}
NAMES |= {"fingerprint": "cert", "by": "by", "letter": "letter"}


def record_of(*lines: DecisionLine) -> Record:
    return Record("default", "w1i", 1, "", RecordKind.DECISIONS, 7, 3, decisions=lines)


@pytest.mark.parametrize(
    ("message_id", "kind", "commitment", "fingerprint", "by", "letter"),
    list(product(("1" * 32, ""), ("greeting", ""), ("c", ""), ("f", ""), ("", "ops"), ("", "4.1"))),
)
def test_what_is_empty_is_left_out_and_is_read_again(
    message_id: str, kind: str, commitment: str, fingerprint: str, by: str, letter: str
) -> None:
    line = LINE._replace(message_id=message_id, type=kind, commitment=commitment, fingerprint=fingerprint)
    line = line._replace(by=by, letter=letter)
    body = record_of(line, LINE).encode()
    said = {NAMES[name]: value for name, value in line._asdict().items() if value != ""}
    assert orjson.loads(body)["decisions"][0] == said
    assert list(orjson.loads(body)["decisions"][0]) == list(said)
    assert Record.decode(body) == record_of(line, LINE)


LONGEST = "x" * 128


@pytest.mark.parametrize(
    ("claimed", "kept"),
    [
        ((LONGEST, LONGEST, LONGEST), (LONGEST, LONGEST, LONGEST)),
        ((LONGEST + "x", "b", "t"), (LONGEST, "b", "t")),
        (("1", LONGEST + "x", "t"), ("1", LONGEST, "t")),
        (("1", "b", LONGEST + "x"), ("1", "b", LONGEST)),
        (("1\n", "b", "t"), ("1", "b", "t")),
        (("1", "b\x1b[2J", "t"), ("1", "b?[2J", "t")),
        (("1", "b", "ä"), ("1", "b", "?")),
        (("", "", ""), ("", "", "")),
        (("", "a ", "a"), ("", "a", "a")),
        (("a", " ", "a"), ("a", "", "a")),
    ],
)
def test_what_a_call_claims_is_cut_short_and_made_printable_each_by_itself(
    claimed: tuple[str, str, str], kept: tuple[str, str, str]
) -> None:
    message_id, target, kind = claimed
    call = Call("alice", "send", b"{}", "", message_id=message_id, target=target, type=kind)
    line = line_of(call, "ALLOWED", "permissions", Way.BATCH, "c", "f", 7)
    assert (line.message_id, line.target, line.type) == kept

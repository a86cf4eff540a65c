"""What the projector makes of records, against the same said step by step."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

import hypothesis.strategies as st
import orjson
import pytest
import rfc8785
from hypothesis import given

from broker_policy.audit import chain
from broker_policy.audit.draft import Draft, Head
from broker_policy.audit.entry import Malformed, require_well_formed
from broker_policy.audit.layout import SHARDS, Layout
from broker_policy.audit.log import Stored
from broker_policy.audit.numbering import WriterState, receive
from broker_policy.audit.projection import Known, Projection
from broker_policy.audit.record import DecisionLine, NewerRecord, Record, RecordKind, Way, digest
from mas_nats.wire import headers, subjects
from tests import audit_log
from tests.audit_log import KEY, NAMESPACE

FIELDS = {
    "op": "op",
    "message_id": "id",
    "sender": "from",
    "target": "to",
    "type": "type",
    "size": "size",
    "decision": "decision",
    "rule": "rule",
    "way": "way",
    "time": "at",
    "commitment": "commit",
    "fingerprint": "cert",
    "by": "by",
    "letter": "letter",
}
IDS = st.sampled_from(["alice", "bob", "ns/carol", "a.b", "ns/../x", ""])
TEXTS = st.text(st.characters(codec="utf-8"), max_size=8)
NUMBERS = st.integers(0, chain.MAX_INT)
VERDICTS = st.sampled_from(
    [
        ("ALLOWED", "permissions"),
        ("ALLOWED", "duplicate"),
        ("ALERT", "dlp:email"),
        ("DLP_REDACTED", "dlp:email,phone"),
        ("DLP_BLOCKED", "dlp:email,+2"),
        ("AUTHZ_DENIED", "default"),
        ("AUTHZ_DENIED", ""),
        ("\u00fc", '"'),
    ]
)
LINES = st.builds(
    lambda verdict, **fields: DecisionLine(decision=verdict[0], rule=verdict[1], **fields),
    verdict=VERDICTS,
    op=st.sampled_from(["send", "request", ""]),
    message_id=TEXTS,
    sender=IDS,
    target=IDS,
    type=TEXTS,
    size=NUMBERS,
    way=st.sampled_from(Way),
    time=NUMBERS,
    commitment=st.sampled_from(["", "A" * 43]),
    fingerprint=st.sampled_from(["", "ab" * 32, "no hexadecimal"]),
    by=st.sampled_from(["", "olga"]),
    letter=st.sampled_from(["", "d1"]),
)
JSON = st.none() | st.booleans() | st.integers(-2, 2) | st.floats(0, 2) | TEXTS | st.lists(TEXTS, max_size=1)


# -- reading -----------------------------------------------------------------------------------------------
def slowly_read(row: Any) -> DecisionLine:
    if set(row.keys()) - set(FIELDS.values()):
        raise NewerRecord
    way = row.get("way", "")
    if way not in [str(each) for each in Way]:
        raise NewerRecord
    values = {name: row.get(key, "") for name, key in FIELDS.items()}
    return DecisionLine(**{**values, "way": Way(way)})


def body_with(rows: list[Any]) -> bytes:
    raw = orjson.loads(Record(NAMESPACE, "w1i", 2, "", RecordKind.DECISIONS, 1, 3).encode())
    return orjson.dumps({**raw, "decisions": rows})


@st.composite
def rows(draw: st.DrawFn) -> Any:
    """A line as JSON: as it should be, or with something else in its place, too much, or missing."""
    row = {FIELDS[name]: value for name, value in draw(LINES)._asdict().items() if value != ""}
    for key in draw(st.lists(st.sampled_from([*FIELDS.values(), "new"]), max_size=2)):
        row[key] = draw(JSON)
    for key in draw(st.lists(st.sampled_from([*FIELDS.values()]), max_size=2)):
        row.pop(key, None)
    keys = draw(st.permutations(list(row)))
    return draw(st.just({key: row[key] for key in keys}) | st.just(row) | JSON)


@given(st.lists(rows(), max_size=3))
def test_lines_are_read_as_one_by_one(made):
    try:
        expected = tuple(map(slowly_read, made))
    except NewerRecord:
        with pytest.raises(NewerRecord):
            Record.decode(body_with(made))
    except AttributeError:  # no JSON object
        with pytest.raises(ValueError, match="not an audit record") as caught:
            Record.decode(body_with(made))
        assert not isinstance(caught.value, NewerRecord)
    else:
        read = Record.decode(body_with(made)).decisions
        assert read == expected
        assert [type(line.way) for line in read] == [Way] * len(read)


@pytest.mark.parametrize(
    "change", [{"new": 1}, {"way": ["batch"]}, {"way": {}}, {"way": "new"}, {"way": 1}, {"way": None}]
)
def test_what_only_a_newer_version_writes_in_a_line_is_not_read_around(change):
    good = {"op": "send", "way": "batch", "size": 1}
    assert Record.decode(body_with([good])).decisions[0].way is Way.BATCH
    with pytest.raises(NewerRecord):
        Record.decode(body_with([good, good | change]))
    with pytest.raises(NewerRecord):
        Record.decode(body_with([good, {"op": "send"}]))


@pytest.mark.parametrize("field", DecisionLine._fields)
@pytest.mark.parametrize("value", [-1, chain.MAX_INT + 1, True, 1.0, None, "batch", ["a"]])
def test_a_wrong_value_in_the_second_line_is_found(field, value):
    good = audit_log.line(Way.BATCH)
    bad = good._replace(**{field: value})
    record = Record(NAMESPACE, "w1i", 2, "", RecordKind.DECISIONS, 1, 3, (good, bad))
    if slowly_well_formed(bad):
        require_well_formed(record)
    else:
        with pytest.raises(Malformed):
            require_well_formed(record)


def slowly_well_formed(line: DecisionLine) -> bool:
    for name, value in line._asdict().items():
        if name in ("size", "time"):
            if type(value) is not int or not 0 <= value <= chain.MAX_INT:
                return False
        elif type(value) is not (Way if name == "way" else str):
            return False
    return True


@given(st.lists(LINES, min_size=1, max_size=3), st.data())
def test_a_line_of_other_types_is_found_wherever_it_is(made, data):
    for _ in range(data.draw(st.integers(0, 2))):
        place = data.draw(st.integers(0, len(made) - 1))
        field = data.draw(st.sampled_from(DecisionLine._fields))
        numbers = st.sampled_from([-1, 0, chain.MAX_INT, chain.MAX_INT + 1])
        made[place] = made[place]._replace(**{field: data.draw(JSON | numbers)})
    record = Record(NAMESPACE, "w1i", 2, "", RecordKind.DECISIONS, 1, 3, tuple(made))
    if all(map(slowly_well_formed, made)):
        require_well_formed(record)
    else:
        with pytest.raises(Malformed):
            require_well_formed(record)


# -- entries and indexes -----------------------------------------------------------------------------------
def slowly_entry(index: int, sequence: int, record: Record, position: int, message: int) -> dict[str, Any]:
    line = record.decisions[position]
    made = {
        "i": index,
        "k": "d",
        "s": sequence,
        "at": line.time,
        "w": record.writer,
        "n": record.number,
        "p": position,
        "id": line.message_id,
        "f": line.sender,
        "t": line.target,
        "o": line.op,
        "y": line.type,
        "z": line.size,
        "d": line.decision,
        "r": line.rule,
        "v": record.revision,
        "wy": line.way.value[0],
    }
    print_ = line.fingerprint
    if print_ == "ab" * 32:
        print_ = base64.urlsafe_b64encode(b"\xab" * 32).decode().rstrip("=")
    optional = {"c": line.commitment, "x": print_, "b": line.by, "l": line.letter, "q": message}
    return made | {key: value for key, value in optional.items() if value}


def slowly_named(line: DecisionLine) -> list[str]:
    names = [f"decision:{line.decision}"]
    names += [f"sender:{line.sender}"] if line.sender in ("alice", "bob", "ns/carol") else []
    names += [f"target:{line.target}"] if line.target in ("alice", "bob", "ns/carol") else []
    if line.rule.startswith("dlp:"):
        return names + [f"violation:dlp:{each}" for each in line.rule[4:].split(",")]
    return names if line.decision == "ALLOWED" else [*names, f"violation:{line.rule or line.decision}"]


def slowly_outcome(line: DecisionLine) -> str:
    if line.way is not Way.NONE:
        return "c" if line.way is Way.BATCH else " "
    if line.decision not in ("ALLOWED", "ALERT", "DLP_REDACTED"):
        return "r"
    return "u" if line.rule == "duplicate" else "a"


def slowly_projected(layout: Layout, base: int, read: list[tuple[int, Record]]) -> tuple[Any, ...]:
    """Bodies, hashes, and what lies in Redis afterwards."""
    bodies: list[bytes] = []
    hashes: list[bytes] = []
    outcomes = ""
    held: dict[str, Any] = {}
    for sequence, record in read:
        message = sequence
        for position, line in enumerate(record.decisions):
            index = base + len(bodies) + 1
            message += line.way is Way.BATCH
            agent = line.target.rpartition("/")[2]
            if line.way is Way.BATCH:
                held.setdefault(layout.open(agent), {})[str(index)] = str(message)
            made = slowly_entry(index, sequence, record, position, message if line.way is Way.BATCH else 0)
            bodies.append(rfc8785.dumps(made))
            before = hashes[-1] if hashes else bytes(32)
            hashes.append(hashlib.sha256(before + bodies[-1]).digest())
            outcomes += slowly_outcome(line)
            for name in slowly_named(line):
                held.setdefault(layout.by(name), []).append(str(index))
            hashed = hashlib.sha256(line.message_id.encode()).digest()
            shard = layout.shard(int.from_bytes(hashed[:2], "big") % SHARDS)
            held.setdefault(shard, {})[str(index)] = base64.b64encode(hashed[2:8]).decode()
    if outcomes:
        held[layout.outcomes(0)] = {base + 1: outcomes}
    return bodies, hashes, held


def applied(draft: Draft) -> dict[str, Any]:
    """What the commands of a draft leave in an empty Redis, as far as the slow version says it."""
    layout, held = draft.layout, dict[str, Any]()
    for shard, index, fragment in zip(draft.ids[::3], draft.ids[1::3], draft.ids[2::3], strict=True):
        held.setdefault(layout.shard(int(shard, 16)), {})[index] = fragment
    for name, key, *words in draft.commands(1):
        if name == "RPUSH":
            held.setdefault(key, []).extend(words)
        elif name == "SETRANGE":
            held.setdefault(key, {})[int(words[0])] = words[1]
        elif name == "ZADD":
            held.setdefault(key, {}).update(zip(words[1::2], words[::2], strict=True))
    return held


@given(st.lists(st.lists(LINES, min_size=1, max_size=6), min_size=1, max_size=3), st.integers(0, 1000))
def test_entries_hashes_and_indexes_are_those_of_the_slow_version(batches, base):
    layout, previous = Layout(NAMESPACE), "0" * 64
    writers = {"w1i": WriterState(1, previous, 0)}
    projection = Projection(Draft(layout, Head(base, bytes(32), 0)), writers, Known())
    read: list[tuple[int, Record]] = []
    for number, lines in enumerate(batches, 2):
        record = Record(NAMESPACE, "w1i", number, previous, RecordKind.DECISIONS, 1, 3, tuple(lines))
        body = record.encode()
        previous, sequence = digest(body), 100 * number
        fields = {headers.RECORD_MAC: KEY.mac(body), "Nats-Time-Stamp": "2026-01-01T00:00:00Z"}
        subject = subjects.audit_record("w1i", number)
        received = receive(Stored(sequence, subject, body, fields), NAMESPACE, KEY)
        projection.take(received)
        read.append((sequence, record))
    projection.finish(1)
    draft = projection.draft
    bodies, hashes, held = slowly_projected(layout, base, read)
    assert draft.bodies == bodies
    assert draft.hashes == hashes
    assert applied(draft) == held

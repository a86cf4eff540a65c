"""Every edit of a chain is found, and named for what it is; an untouched chain is intact."""

from __future__ import annotations

import copy
from collections.abc import Callable

import hypothesis.strategies as st
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings

from broker_policy.audit import chain, entry
from broker_policy.audit.checkpoint import Checkpoint, SignedCheckpoint
from broker_policy.audit.draft import Draft, Head
from broker_policy.audit.entry import Alarm, WorkerEvent
from broker_policy.audit.examination import Examination
from broker_policy.audit.findings import FindingKind, Report
from broker_policy.audit.key_history import CheckpointKeys
from broker_policy.audit.layout import Layout
from broker_policy.audit.record import Outcome, Record, RecordKind, Way
from broker_policy.audit.store import StoredEntry
from tests.audit_log import NAMESPACE, line

Chain = list[StoredEntry]
RECORD = Record(NAMESPACE, "w1i", 2, "", RecordKind.DECISIONS, 1, 3)


def make(length: int = 20) -> Chain:
    draft = Draft(Layout(NAMESPACE), Head(0, chain.genesis(NAMESPACE), 0))
    draft.add(entry.worker(1, 1, 1, WorkerEvent.OPEN, "w1i", 1))
    while draft.next_index < length:
        place = draft.next_index
        draft.add_decision(entry.decision(place, 2, RECORD, place, line(Way.BATCH), 3, ""))
    draft.add(entry.outcome(length, 2, 5, Outcome.HANDLED, range(2, length)))
    bodies, hashes = draft.bodies, [each.hex() for each in draft.hashes]
    return [
        StoredEntry(f"{place}-0", body, digest)
        for place, (body, digest) in enumerate(zip(bodies, hashes, strict=True), 1)
    ]


def examine(entries: Chain, *, numbered: bool = True, ends_at: StoredEntry | None = None) -> Report:
    exam = Examination(
        NAMESPACE, CheckpointKeys(Ed25519PrivateKey.generate().public_key()), numbered=numbered
    )
    for stored in entries:
        exam.add(stored)
    exam.flush()
    if ends_at is not None:
        exam.end_at(ends_at.index, ends_at.hash, exam.index)
    return exam.report


@pytest.mark.parametrize("as_signed", [True, False])
def test_the_last_entry_that_left_may_have_a_checkpoint_of_its_own(*, as_signed: bool):
    entries, key = make(), Ed25519PrivateKey.generate()
    exam = Examination(NAMESPACE, CheckpointKeys(key.public_key()))
    left = entries[16]
    exam.begin(17, bytes.fromhex(left.hash))
    exam.add(entries[17])
    digest = left.hash if as_signed else entries[15].hash
    exam.checkpoint(SignedCheckpoint.sign(Checkpoint(NAMESPACE, 17, digest, 2, 1), key))
    exam.flush()
    found = [finding.kind for finding in exam.report.findings]
    assert found == ([] if as_signed else [FindingKind.REWRITTEN])
    assert exam.report.signed_index == (17 if as_signed else 0)


def renumber(entries: Chain) -> Chain:
    return [StoredEntry(f"{place}-0", e.body, e.hash) for place, e in enumerate(entries, 1)]


def change(entries: Chain) -> Chain:
    entries[9] = StoredEntry("10-0", entries[9].body.replace(b"alice", b"mallo"), entries[9].hash)
    return entries


def change_and_rehash(entries: Chain) -> Chain:
    body = entries[9].body.replace(b"alice", b"mallo")
    digest = chain.link(bytes.fromhex(entries[8].hash), body).hex()
    entries[9] = StoredEntry("10-0", body, digest)
    return entries


def respace(entries: Chain) -> Chain:
    body = entries[9].body.replace(b",", b", ", 1)
    entries[9] = StoredEntry("10-0", body, entries[9].hash)
    return entries


def remove(entries: Chain) -> Chain:
    del entries[9]
    return entries


def remove_and_renumber(entries: Chain) -> Chain:
    del entries[9:12]
    return renumber(entries)


def insert_between(entries: Chain) -> Chain:
    entries.insert(10, StoredEntry("10-1", entries[9].body, entries[9].hash))
    return entries


def insert_and_renumber(entries: Chain) -> Chain:
    body = entries[9].body.replace(b"alice", b"mallo")
    entries.insert(9, StoredEntry("", body, chain.link(bytes.fromhex(entries[8].hash), body).hex()))
    return renumber(entries)


def swap(entries: Chain) -> Chain:
    entries[9], entries[10] = entries[10], entries[9]
    return renumber(entries)


def swap_far(entries: Chain) -> Chain:
    entries[4], entries[14] = entries[14], entries[4]
    return renumber(entries)


def cut(entries: Chain) -> Chain:
    return entries[:-3]


EDITS: list[tuple[Callable[[Chain], Chain], FindingKind]] = [
    (change, FindingKind.CHANGED),
    (change_and_rehash, FindingKind.CHANGED),
    (respace, FindingKind.CHANGED),
    (remove, FindingKind.REMOVED),
    (remove_and_renumber, FindingKind.REMOVED),
    (insert_between, FindingKind.INSERTED),
    (insert_and_renumber, FindingKind.INSERTED),
    (swap, FindingKind.SWAPPED),
    (swap_far, FindingKind.SWAPPED),
    (cut, FindingKind.CUT),
]


def test_untouched():
    entries = make()
    report = examine(entries, ends_at=entries[-1])
    assert report.intact
    assert (report.entries, report.decisions) == (20, 18)


@pytest.mark.parametrize(("edit", "kind"), EDITS, ids=lambda each: getattr(each, "__name__", str(each)))
def test_edit_is_found(edit, kind):
    entries = make()
    report = examine(edit(list(entries)), ends_at=entries[-1])
    assert kind in {finding.kind for finding in report.findings}
    assert len(report.findings) <= 3  # one edit does not flood the report


CHAIN = make(12)


@given(st.data())
@settings(max_examples=300)
def test_any_mutation_is_found(data):
    """Drop, repeat, swap or alter anything: never intact."""
    entries = copy.copy(CHAIN)
    place = data.draw(st.integers(0, len(entries) - 1))
    how = data.draw(st.sampled_from(["drop", "repeat", "swap", "byte", "hash"]))
    if how == "drop":
        del entries[place]
    elif how == "repeat":
        entries.insert(place, entries[place])
    elif how == "swap":
        other = data.draw(st.integers(0, len(entries) - 1).filter(lambda o: o != place))
        entries[place], entries[other] = entries[other], entries[place]
    elif how == "byte":
        body = bytearray(entries[place].body)
        at = data.draw(st.integers(0, len(body) - 1))
        body[at] ^= data.draw(st.integers(1, 255))
        entries[place] = StoredEntry(entries[place].identifier, bytes(body), entries[place].hash)
    else:
        digest = bytearray.fromhex(entries[place].hash)
        digest[data.draw(st.integers(0, 31))] ^= data.draw(st.integers(1, 255))
        entries[place] = StoredEntry(entries[place].identifier, entries[place].body, digest.hex())
    if data.draw(st.booleans()):
        entries = renumber(entries)
    assert not examine(entries, ends_at=CHAIN[-1]).intact
    assert not examine(entries, numbered=False, ends_at=CHAIN[-1]).intact


def test_an_alarm_in_the_chain_is_a_finding():
    draft = Draft(Layout(NAMESPACE), Head(0, chain.genesis(NAMESPACE), 0))
    draft.add(entry.alarm(1, 9, 1, Alarm.GAP, "w1i", 4, 6))
    report = examine([StoredEntry("1-0", draft.bodies[0], draft.hashes[0].hex())])
    [finding] = report.findings
    assert finding.kind is FindingKind.ALARM
    assert "records 4 to 6" in finding.text


def test_an_entry_is_small():
    bodies = [len(stored.body) for stored in make()]
    assert max(bodies) <= 350

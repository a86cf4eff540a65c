"""Under which id a message is stored once, and what a worker remembers of ids."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from broker_policy.dedup import RecentIds, dedup_id

IDS = st.text("abz019-_", min_size=1, max_size=20)


@given(IDS, IDS, st.text(min_size=1), IDS, IDS, st.text(min_size=1))
def test_ids_of_different_senders_never_meet(ns1: str, from1: str, id1: str, ns2: str, from2: str, id2: str):
    """No sender can take an id that another will use: names hold no NUL, which parts them."""
    same = (ns1, from1, id1) == (ns2, from2, id2)
    assert (dedup_id(ns1, from1, id1) == dedup_id(ns2, from2, id2)) is same


def test_an_id_is_short_and_plain():
    made = dedup_id("default", "alice", "x" * 128)
    assert len(made) == 32
    assert made.replace("-", "").replace("_", "").isalnum()
    assert made == dedup_id("default", "alice", "x" * 128)


def test_a_worker_remembers_a_bounded_number_and_forgets_the_oldest():
    recent = RecentIds(capacity=3)
    for name in "abcd":
        recent.add(name, f"content of {name}")
    assert recent.get("a") is None
    assert [recent.get(name) for name in "bcd"] == ["content of b", "content of c", "content of d"]


def test_added_again_takes_no_room():
    recent = RecentIds(capacity=2)
    for name in "abab":
        recent.add(name, name)
    recent.add("c", "c")
    assert recent.get("a") is None
    assert recent.get("b") == "b"

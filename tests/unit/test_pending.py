"""What a writer has not sent yet: taken from the front in frames, nothing lost, long texts cheaply."""

from __future__ import annotations

import time

from hypothesis import given
from hypothesis import strategies as st

from mas_nats.pending import Pending, size_of
from mas_nats.wire.frames import FRAME_BYTES, Chunk, joined, units

TEXT = st.text(max_size=20) | st.integers(0, 3).map(lambda n: "ü" * n * FRAME_BYTES)
OBJECT = st.integers(0, 2).map(lambda n: {"x": "y" * n * FRAME_BYTES})


def filled(chunks: list[Chunk]) -> Pending:
    pending = Pending()
    for chunk in chunks:
        pending.add(chunk, size_of(chunk))
    return pending


@given(st.lists(TEXT | OBJECT, max_size=12))
def test_frames_are_bounded_and_together_they_are_everything(chunks: list[Chunk]):
    pending = filled(chunks)
    taken: list[Chunk] = []
    while pending.size:
        head = pending.head(0)
        assert head
        assert sum(map(size_of, head)) <= FRAME_BYTES or (len(head) == 1 and isinstance(head[0], dict))
        pending.drop(units(head))
        taken += head
    assert joined(taken) == joined(chunks)
    assert pending.units == 0


@given(st.lists(TEXT | OBJECT, min_size=1, max_size=8), st.integers(1, 50))
def test_as_much_as_is_needed_to_compare(chunks: list[Chunk], wanted: int):
    pending = filled(chunks)
    assert units(pending.head(wanted)) == min(wanted, units(chunks))


def test_a_long_text_is_not_copied_for_each_frame():
    pending = filled(["x" * 20_000_000])
    started = time.process_time()
    while pending.size:
        pending.drop(units(pending.head(0)))
    assert time.process_time() - started < 5

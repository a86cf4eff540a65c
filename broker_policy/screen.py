"""What may leave of a streamed reply, and what waits until more is known.

A secret can be cut anywhere between two frames, so what has been said may not go out before what follows has
been seen. A screen therefore gets what was held back together with what is new, and divides it again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from broker_policy.passed import parted
from mas_nats.policy.call import Finding, Refusal
from mas_nats.wire.frames import Chunk, joined

MAX_HELD = 65_536
"""Bytes of JSON that may be held back of one stream: they travel with it, in its sealed cursor."""


@dataclass(frozen=True, slots=True)
class Screened:
    """``out`` may go, in this order; ``held`` comes before whatever is sent next. Or a refusal of it all."""

    out: tuple[Chunk, ...]
    held: tuple[Chunk, ...] = ()
    refusal: Refusal | None = None
    finding: Finding | None = None


class Screen(Protocol):
    """Judges a stream frame by frame. A pure function: any worker may judge any frame, or one a second time.

    What it has let out it will not see again, unless ``held`` remembers it (``broker_policy.passed``); so it
    holds back as much as its longest rule may need, and nothing where ``final`` says that nothing follows.
    """

    def __call__(self, held: Sequence[Chunk], new: Sequence[Chunk], *, final: bool) -> Screened:
        """Divide ``held`` and ``new``."""


class Aside(Protocol):
    """The same, waiting while it is searched elsewhere what takes long."""

    async def __call__(self, held: Sequence[Chunk], new: Sequence[Chunk], *, final: bool) -> Screened:
        """Divide ``held`` and ``new``."""


def at_once(screen: Screen) -> Aside:
    """A screen that never takes long."""

    async def aside(held: Sequence[Chunk], new: Sequence[Chunk], *, final: bool) -> Screened:
        return screen(held, new, final=final)

    return aside


def let_through(held: Sequence[Chunk], new: Sequence[Chunk], *, final: bool) -> Screened:  # noqa: ARG001
    """The screen without rules: a window of nothing."""
    return Screened(tuple(joined([*parted(held)[1], *new])))

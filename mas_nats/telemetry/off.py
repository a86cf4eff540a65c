"""What is said where nobody listens: nothing is made, kept or told."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType, TracebackType
from typing import Self

_NOTHING: Mapping[str, str] = MappingProxyType({})


class _Unwatched:
    """A block of which nothing is said; the same one for all."""

    headers = _NOTHING

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def accepted(self) -> None:
        """Nobody is told."""

    def answered(self, headers: Mapping[str, str]) -> None:
        """Nobody is told."""


UNWATCHED = _Unwatched()

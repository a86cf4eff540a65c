"""Numbers in the bodies of calls, as any agent may have made them up."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

Positive = Annotated[int, Field(ge=1, le=2**53 - 1, strict=True)]
"""A sequence, or a count: up to the largest number that every reader of JSON reads as it is."""

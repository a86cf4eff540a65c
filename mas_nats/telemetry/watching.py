"""What the SDK says of its work, whoever listens."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Protocol, Self

from mas_nats.message import AgentMessage


class Sending(Protocol):
    """One message on its way out; a block, left when it is through.

    ``headers`` carry the trace. Names that a program chose (an id, a type, a target) are not told to anybody
    before ``accepted``: data-loss prevention has looked at them then.
    """

    @property
    def headers(self) -> Mapping[str, str]:
        """What the message carries of its trace."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def accepted(self) -> None:
        """The policy service has let it pass."""

    def answered(self, headers: Mapping[str, str]) -> None:
        """Its reply is here."""


class Telemetry(Protocol):
    """Listens to one agent instance."""

    def sending(
        self,
        op: str,
        target: str,
        message_type: str,
        message_id: str,
        *,
        made_id: bool = False,
        answers: AgentMessage | None = None,
    ) -> Sending:
        """A message begins its way. ``made_id``: its id is random; ``answers``: it is a reply to this."""

    def processing(
        self, message: AgentMessage, headers: Mapping[str, str], received: float
    ) -> AbstractContextManager[None]:
        """A handler runs for a delivery that came at ``received`` (unix seconds)."""

    async def flush(self) -> None:
        """Let go of what was gathered, as far as that takes little time."""

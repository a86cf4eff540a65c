"""Calls as the pipeline judged them, on their way into a record and an inbox."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from broker_policy.audit.record import DecisionLine, Way
from mas_nats.policy import refusals
from mas_nats.policy.call import Call, Refusal


@dataclass(slots=True)
class Outgoing:
    """An accepted message as it will lie in the inbox, but for the name of its decision record."""

    subject: str
    body: bytes
    fields: dict[str, str]
    dedup: str
    commitment: str
    salt: bytes
    earlier: Callable[[], list[str]] = list  # its commitments under other sealing keys

    def repeats(self, known: str) -> bool:
        """Whether ``known`` commits to the same content, maybe from before a rotation of the sealing key."""
        return known == self.commitment or known in self.earlier()


@dataclass(slots=True)
class Judged:
    """A call and what the pipeline says of it."""

    call: Call
    line: DecisionLine
    revision: int
    refusal: Refusal | None = None
    outgoing: Outgoing | None = None

    @property
    def message(self) -> Outgoing:
        """The message to store, of an accepted call."""
        assert self.outgoing is not None  # noqa: S101 - only of what was accepted it is asked for
        return self.outgoing

    def refused(self, refusal: Refusal) -> Judged:
        """The same call, refused after all."""
        line = self.line._replace(decision=refusal.decision, rule=refusal.rule, way=Way.NONE, commitment="")
        return Judged(self.call, line, self.revision, refusal)

    def repetition(self, *, same: bool) -> Judged:
        """The same call under an id that is stored already: with the ``same`` content it is a repetition."""
        if same:
            return Judged(self.call, self.line._replace(rule="duplicate", way=Way.NONE), self.revision)
        return self.refused(refusals.id_reused())


def revision(judged: Sequence[Judged]) -> int:
    """The newest policy that one of them was judged by."""
    return max(each.revision for each in judged)


Judge = Callable[[Call], Judged]

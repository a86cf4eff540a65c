"""What a worker has been asked in one namespace, and how it went: counts since it began to serve it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mas_nats.policy.call import Call
from mas_nats.wire.subjects import Op
from mas_nats.wire.verdict import Verdict

MOST_AGENTS = 10_000
"""Agents whose counts are told, those with the most calls: an answer has a limit of 2 MB."""
_SENDING = frozenset({Op.SEND, Op.REQUEST, Op.DELAY})


@dataclass(slots=True)
class OpCount:
    """Of one operation. ``took`` is in nanoseconds, from the arrival of a call to its answer."""

    asked: int = 0
    refused: int = 0
    took: int = 0
    last: str = ""  # the last refusal's decision


@dataclass(slots=True)
class AgentCount:
    """Of one agent: calls that it made, messages that were accepted of it, calls that were refused."""

    calls: int = 0
    sent: int = 0
    refused: int = 0


class Tally:
    """Counts the calls of one namespace."""

    def __init__(self) -> None:
        self.ops: dict[str, OpCount] = {op: OpCount() for op in Op}
        self._agents: dict[str, AgentCount] = defaultdict(AgentCount)

    def asked(self, call: Call) -> None:
        """A call has arrived."""
        self.ops[call.op].asked += 1
        self._agents[call.sender].calls += 1

    def answered(self, calls: Sequence[Call], verdicts: Sequence[Verdict], now: int) -> None:
        """They are answered ``now``, in unix milliseconds."""
        for call, verdict in zip(calls, verdicts, strict=True):
            if call.sender and (count := self.ops.get(call.op)) is not None:  # else an operator's
                count.took += max(now - call.received, 0) * 1_000_000
                if not verdict.ok:
                    count.refused += 1
                    count.last = str(verdict.decision)
                    self._agents[call.sender].refused += 1
                elif call.op in _SENDING:
                    self._agents[call.sender].sent += 1

    @property
    def untold(self) -> int:
        """How many agents ``agents`` leaves out."""
        return max(len(self._agents) - MOST_AGENTS, 0)

    def agents(self) -> dict[str, dict[str, Any]]:
        """The counts of the agents with the most calls."""
        most = sorted(self._agents.items(), key=lambda each: each[1].calls, reverse=True)[:MOST_AGENTS]
        return {
            name: {"calls": each.calls, "sent": each.sent, "refused": each.refused} for name, each in most
        }

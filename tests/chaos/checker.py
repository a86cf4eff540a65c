"""What must hold of a history, of the dead letters and of the audit together (after Jepsen's queue checker).

    lost        accepted, but neither handled, nor dead-lettered, nor audited as expired; or an update of a
                state, once durable, of which the state knows nothing any more
    unaudited   handled, dead-lettered or refused without a decision in the audit; a handled message must be
                there under the very decision that its delivery named; or an update of a direct state that the
                audit neither has nor names as part of a gap
    doubled     an update of a direct state that the audit has twice
    unsettled   decisions without a final outcome
    phantom     handled, though never attempted, or refused for good, or with another message's content; or a
                state that counts an update which nobody tried to make
    misplaced   replies that answer another request, or reached another process than the one that asked
    contradicted the audit denies that it was delivered, or dead, and it was; or says so, and it was not
    undecided   the sender never learned whether it was accepted

Each of these is a fault. Reported beside them: duplicates (handled more than once, which at-least-once
allows), updates of states, gaps (updates of a direct state that no worker saw, named in the audit),
restored (stored twice: allowed after a restart of nats-server, see ADR 6), expired requests,
unanswered requests (allowed), and unknown: decisions whose outcome the audit honestly does not know.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from broker_policy.audit.entry import first_outcome
from broker_policy.audit.state_marks import DIRECT_STATE, STATE_GAP
from tests.chaos.crew import DIRECT
from tests.chaos.history import History

OPEN = frozenset(" cv")
"""Outcomes that are not final: unknown yet, in the inbox, to be tried again."""
DELIVERED = frozenset("hdvxc ?")
"""Outcomes that do not deny that a message came to its handler."""
DEAD = frozenset("dvc ?")
"""Outcomes that do not deny that it is dead."""
FAULTS = ("lost", "unaudited", "unsettled", "phantom", "misplaced", "contradicted", "undecided", "doubled")
States = Mapping[str, Mapping[str, int]]
"""Of each agent that keeps a state, how many updates of each process it counts."""


@dataclass(frozen=True, slots=True)
class Decision:
    """A decision in the audit with its outcome."""

    name: str  # <writer>.<record>.<position>
    message_id: str
    op: str
    decision: str
    outcome: str  # a letter of broker_policy.audit.record.Outcome; " ": none
    time: float  # unix seconds
    rule: str = ""


@dataclass(frozen=True, slots=True)
class Found:
    """What was found, as message ids; of ``updates`` ids of those; of ``unsettled``, ``unknown`` and ``gaps``
    names of decisions.
    """

    accepted: frozenset[str]
    handled: frozenset[str]
    dead: frozenset[str]
    lost: frozenset[str] = frozenset()
    unaudited: frozenset[str] = frozenset()
    unsettled: frozenset[str] = frozenset()
    phantom: frozenset[str] = frozenset()
    misplaced: frozenset[str] = frozenset()
    contradicted: frozenset[str] = frozenset()
    undecided: frozenset[str] = frozenset()
    doubled: frozenset[str] = frozenset()
    updates: frozenset[str] = frozenset()
    gaps: frozenset[str] = frozenset()
    duplicates: frozenset[str] = frozenset()
    restored: frozenset[str] = frozenset()
    expired: frozenset[str] = frozenset()
    unanswered: frozenset[str] = frozenset()
    unknown: frozenset[str] = frozenset()

    @property
    def faults(self) -> dict[str, frozenset[str]]:
        """What must not be, by kind; empty when all is well."""
        return {kind: ids for kind in FAULTS if (ids := getattr(self, kind))}


@dataclass(slots=True)
class Audit:
    """The decisions of an exported audit, from the entries alone: what the chain protects."""

    decisions: list[Decision] = field(default_factory=list)
    by_message: dict[str, list[Decision]] = field(default_factory=dict)
    by_name: dict[str, Decision] = field(default_factory=dict)

    def add(self, decision: Decision) -> None:
        """Add one."""
        self.decisions.append(decision)
        self.by_message.setdefault(decision.message_id, []).append(decision)
        self.by_name[decision.name] = decision

    @classmethod
    def of(cls, decisions: Iterable[Decision]) -> Audit:
        """An audit with these decisions."""
        audit = cls()
        for decision in decisions:
            audit.add(decision)
        return audit

    @classmethod
    def read(cls, export: Path) -> Audit:
        """Read an export (``mas audit export``)."""
        decided: dict[int, dict[str, object]] = {}
        outcomes: dict[int, str] = {}
        with export.open("rb") as file:
            for raw in file:
                entry = orjson.loads(raw).get("e")
                if entry is None:
                    continue
                if entry["k"] == "d":
                    decided[entry["i"]] = entry
                    outcomes[entry["i"]] = first_outcome(entry)
                elif entry["k"] == "o":
                    for first, last in entry["x"]:
                        outcomes.update(dict.fromkeys(range(first, last + 1), entry["o"]))
        return cls.of(
            Decision(
                name=f"{entry['w']}.{entry['n']}.{entry['p']}",
                message_id=str(entry["id"]),
                op=str(entry["o"]),
                decision=str(entry["d"]),
                outcome=outcomes[index],
                time=float(str(entry["at"])) / 1000,
                rule=str(entry["r"]),
            )
            for index, entry in decided.items()
        )


def check(
    history: History, dead: Collection[str], audit: Audit, states: States, revisions: Iterable[int] = ()
) -> Found:
    """Compare what programs saw with what the system says.

    ``dead``: the ids of the dead letters. ``revisions``: what is kept of the direct state, also of updates
    of which nobody was told that they are durable.
    """
    direct = _direct_states(audit)
    accepted, handled = frozenset(history.accepted), frozenset(history.handled)
    buried = frozenset(dead)
    expired = _expired(history, audit)
    runs = history.handled
    return Found(
        accepted=accepted,
        handled=handled,
        dead=buried,
        lost=(accepted - handled - buried - expired) | frozenset(_forgotten(history, states)),
        unaudited=frozenset(
            {one for one in handled if not _audited(history, audit, one)}
            | {one for one in buried | frozenset(history.refused) if one not in audit.by_message}
            | {
                one
                for one, all_of in history.kept.items()
                if any(each.agent == DIRECT and not direct.has(each.revision) for each in all_of)
            }
            | {f"{DIRECT}@{revision}" for revision in revisions if not direct.has(revision)}
        ),
        unsettled=frozenset(each.name for each in audit.decisions if each.outcome in OPEN),
        phantom=frozenset(
            {one for one in handled if one not in history.sent or one in history.refused}
            | {one for one, all_of in runs.items() if any(run.of != one for run in all_of)}
            | {
                f"{by}-{count}"
                for counts in states.values()
                for by, count in counts.items()
                if count > history.keeping.get(by, 0)
            }
        ),
        misplaced=frozenset(
            one
            for one, replies in history.replies.items()
            if any(reply.of != one or reply.to != reply.by for reply in replies)
            or (one in history.sent and any(reply.by != history.sent[one].by for reply in replies))
        ),
        contradicted=frozenset(_contradicted(history, buried, audit)),
        undecided=frozenset(history.undecided()),
        doubled=frozenset(f"{DIRECT}@{revision}" for revision, times in direct.seen.items() if times > 1),
        updates=frozenset(history.kept),
        gaps=frozenset(each.name for each in audit.decisions if each.rule == STATE_GAP),
        duplicates=frozenset(one for one, all_of in runs.items() if len(all_of) > 1),
        restored=frozenset(one for one, all_of in runs.items() if len({run.decision for run in all_of}) > 1),
        expired=expired,
        unanswered=frozenset(history.unanswered),
        unknown=frozenset(each.name for each in audit.decisions if each.outcome == "?"),
    )


def _audited(history: History, audit: Audit, message_id: str) -> bool:
    """Whether each delivery of the message names a decision that the audit has of it."""
    return all(
        (decision := audit.by_name.get(run.decision)) is not None and decision.message_id == message_id
        for run in history.handled[message_id]
    )


def _expired(history: History, audit: Audit) -> frozenset[str]:
    """Requests that were too late to be handled: only one with a deadline, whose requester was told so.

    Or was answered: a handler that was not told that its reply had been taken fails, and is too late then.
    The audit says so, or that it cannot know: a worker died before it heard where its message was stored.
    """
    return frozenset(
        one
        for one in history.unanswered.keys() | history.replies.keys()
        if one in history.sent
        and history.sent[one].until
        and any(each.outcome in "x?" for each in audit.by_message.get(one, ()))
    )


def _contradicted(history: History, buried: frozenset[str], audit: Audit) -> Iterable[str]:
    for message_id, runs in history.handled.items():
        for run in runs:
            decision = audit.by_name.get(run.decision)
            if decision is not None and decision.outcome not in DELIVERED:
                yield message_id
    for message_id, decisions in audit.by_message.items():
        outcomes = {each.outcome for each in decisions}
        if "d" in outcomes and message_id not in buried:
            yield message_id
        if message_id in buried and not outcomes & DEAD:
            yield message_id
        if "h" in outcomes and message_id in history.sent and message_id not in history.handled:
            yield message_id


@dataclass(frozen=True, slots=True)
class _Direct:
    """What the audit has of the direct state, by revision."""

    seen: Counter[int]
    gaps: list[tuple[int, int]]  # between the two nobody saw anything

    def has(self, revision: int) -> bool:
        """Whether it is there, or part of a gap."""
        return bool(self.seen[revision]) or any(before < revision < after for before, after in self.gaps)


def _direct_states(audit: Audit) -> _Direct:
    seen = Counter(int(each.message_id) for each in audit.decisions if each.rule == DIRECT_STATE)
    gaps = [each.message_id.partition("-") for each in audit.decisions if each.rule == STATE_GAP]
    return _Direct(seen, [(int(before), int(after)) for before, _, after in gaps])


def _forgotten(history: History, states: States) -> Iterable[str]:
    """Updates that were made again, since the state did not count them, or that it does not at the end."""
    for one, all_of in history.kept.items():
        last = all_of[-1]
        if len(all_of) > 1 or last.number > states.get(last.agent, {}).get(last.by, 0):
            yield one

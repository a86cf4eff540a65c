"""The checker of ``make chaos`` must be able to fail: one synthetic history for each kind of fault."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import orjson
import pytest

from broker_policy.audit.state_marks import DIRECT_STATE, STATE_GAP
from tests.chaos.checker import FAULTS, Audit, Decision, Found, check
from tests.chaos.crew import DIRECT, MEDIATED
from tests.chaos.history import History, Log


def decision(message_id: str, name: str = "", **changes: object) -> Decision:
    made = {
        "name": name or f"w1.{message_id}.0",
        "message_id": message_id,
        "op": "send",
        "decision": "ALLOWED",
        "outcome": "h",
        "time": 1.0,
    }
    return Decision(**(made | changes))  # type: ignore[arg-type]


class Story:
    """A history in which all went well, with an audit of it; a test spoils one of them."""

    def __init__(self) -> None:
        self.history = History()
        self.decisions: list[Decision] = []
        self.dead: set[str] = set()
        self.revisions: list[int] = []
        self.states: dict[str, dict[str, int]] = {DIRECT: {}, MEDIATED: {}}
        for number in range(5):
            self.send(f"m{number}")
            self.handle(f"m{number}")
        self.send("asked", y="ask", until=10.0)
        self.handle("asked")
        self.say("replied", "asked", by="s1", of="asked", **{"for": "s1"})
        self.send("bad", outcome="d")
        self.dead.add("bad")
        self.say("attempted", "no", to="vault", y="denied")
        self.say("refused", "no", why="AUTHZ_DENIED")
        self.decisions.append(decision("no", decision="AUTHZ_DENIED", outcome="r"))
        for number in (1, 2, 3):
            self.keep("k1", DIRECT, number, revision=10 * number)
            self.hear(10 * number)
            self.keep("k3", MEDIATED, number, revision=10 * number + 1)

    def say(self, event: str, message_id: str, *, by: str = "s1", **more: object) -> None:
        self.history.take({"e": event, "id": message_id, "t": 1.0, **more}, by)

    def send(self, message_id: str, *, y: str = "note", until: float = 0.0, outcome: str = "h") -> None:
        self.say("attempted", message_id, to="desk", y=y, until=until)
        self.say("accepted", message_id)
        self.decisions.append(decision(message_id, outcome=outcome))

    def handle(self, message_id: str, *, of: str = "", a: str = "") -> None:
        name = a or f"w1.{message_id}.0"
        self.say("handled", message_id, by="h1", of=of or message_id, at=1, a=name)

    def keep(self, by: str, agent: str, number: int, revision: int) -> None:
        self.say("keeping", f"{by}-{number}", by=by, number=number)
        self.say("kept", f"{by}-{number}", by=by, agent=agent, number=number, revision=revision)
        self.states[agent][by] = number

    def hear(self, revision: int) -> None:
        name = f"wd.{len(self.decisions)}.0"
        self.decisions.append(decision(str(revision), name, op="state", rule=DIRECT_STATE))

    def without(self, message_id: str) -> None:
        self.decisions = [each for each in self.decisions if each.message_id != message_id]

    def check(self) -> Found:
        return check(self.history, self.dead, Audit.of(self.decisions), self.states, self.revisions)


def test_a_good_history_has_no_faults() -> None:
    found = Story().check()
    assert found.faults == {}
    assert len(found.accepted) == 7
    assert len(found.handled) == 6
    assert found.dead == {"bad"}
    assert len(found.updates) == 6
    assert not found.duplicates


def lost(story: Story) -> None:
    story.send("victim", outcome="?")


def told_that_there_is_no_reply(story: Story) -> None:
    """A message is not a request: nobody waits for it, and no deadline excuses anything."""
    story.send("victim", outcome="?")
    story.say("unanswered", "victim", why="RequestTimeout")


def expired_without_a_deadline(story: Story) -> None:
    story.send("victim", outcome="x")


def unaudited(story: Story) -> None:
    story.send("victim")
    story.handle("victim")
    story.without("victim")


def handled_under_another_decision(story: Story) -> None:
    story.send("victim")
    story.handle("victim", a="w1.m0.0")


def handled_under_a_decision_that_is_not_there(story: Story) -> None:
    story.send("victim")
    story.handle("victim", a="w9.1.0")


def refused_and_not_audited(story: Story) -> None:
    story.say("attempted", "victim", to="vault", y="denied")
    story.say("refused", "victim", why="AUTHZ_DENIED")


def dead_and_called_handled(story: Story) -> None:
    story.send("victim", outcome="h")
    story.dead.add("victim")


def dead_and_not_audited(story: Story) -> None:
    story.send("victim")
    story.dead.add("victim")
    story.without("victim")


def never_attempted(story: Story) -> None:
    story.decisions.append(decision("victim"))
    story.handle("victim")


def refused_and_handled(story: Story) -> None:
    story.say("attempted", "victim", to="desk", y="note")
    story.say("refused", "victim", why="AUTHZ_DENIED")
    story.decisions.append(decision("victim"))
    story.handle("victim")


def with_the_body_of_another(story: Story) -> None:
    story.send("victim")
    story.handle("victim", of="m1")


def reply_of_another_request(story: Story) -> None:
    story.send("victim", y="ask", until=10.0)
    story.handle("victim")
    story.say("replied", "victim", by="s1", of="asked", **{"for": "s1"})


def reply_at_another_instance(story: Story) -> None:
    story.send("victim", y="ask", until=10.0)
    story.handle("victim")
    story.say("replied", "victim", by="s2", of="victim", **{"for": "s1"})


def not_committed_and_handled(story: Story) -> None:
    story.send("victim", outcome="n")
    story.handle("victim")


def said_dead_and_nowhere(story: Story) -> None:
    story.send("victim", outcome="d")
    story.handle("victim")


def never_decided(story: Story) -> None:
    story.say("attempted", "victim", to="desk", y="note")


@pytest.mark.parametrize(
    ("spoil", "kind"),
    [
        (lost, "lost"),
        (told_that_there_is_no_reply, "lost"),
        (expired_without_a_deadline, "lost"),
        (unaudited, "unaudited"),
        (handled_under_another_decision, "unaudited"),
        (handled_under_a_decision_that_is_not_there, "unaudited"),
        (refused_and_not_audited, "unaudited"),
        (dead_and_not_audited, "unaudited"),
        (never_attempted, "phantom"),
        (refused_and_handled, "phantom"),
        (with_the_body_of_another, "phantom"),
        (reply_of_another_request, "misplaced"),
        (reply_at_another_instance, "misplaced"),
        (not_committed_and_handled, "contradicted"),
        (said_dead_and_nowhere, "contradicted"),
        (dead_and_called_handled, "contradicted"),
        (never_decided, "undecided"),
    ],
)
def test_each_fault_is_named(spoil: Callable[[Story], None], kind: str) -> None:
    story = Story()
    spoil(story)
    assert story.check().faults == {kind: {"victim"}}
    assert kind in FAULTS


def test_an_update_that_the_state_forgot_is_lost() -> None:
    story = Story()
    story.states[MEDIATED]["k3"] = 2
    assert story.check().faults == {"lost": {"k3-3"}}
    del story.states[MEDIATED]
    assert story.check().faults == {"lost": {"k3-1", "k3-2", "k3-3"}}


def test_an_update_that_was_made_again_was_lost_meanwhile() -> None:
    story = Story()
    story.keep("k3", MEDIATED, 3, revision=40)
    story.keep("k3", MEDIATED, 4, revision=41)
    assert story.check().faults == {"lost": {"k3-3"}}


def test_an_update_that_nobody_tried_to_make() -> None:
    story = Story()
    story.states[DIRECT] |= {"k1": 4, "k2": 1}
    assert story.check().faults == {"phantom": {"k1-4", "k2-1"}}


def test_an_update_that_may_have_been_made_may_count() -> None:
    story = Story()
    story.say("keeping", "k1-4", by="k1", number=4)
    story.states[DIRECT]["k1"] = 4
    assert story.check().faults == {}


def test_an_update_of_a_direct_state_is_audited_or_named_as_part_of_a_gap() -> None:
    story = Story()
    story.without("20")
    assert story.check().faults == {"unaudited": {"k1-2"}}
    gap = decision("10-20", "wd.gap.0", op="state", decision="ALERT", rule=STATE_GAP)
    story.decisions.append(gap)
    assert story.check().faults == {"unaudited": {"k1-2"}}, "it is not between the two"
    story.decisions[-1] = replace(gap, message_id="10-30")
    found = story.check()
    assert (found.faults, found.gaps) == ({}, {"wd.gap.0"})


def test_an_update_that_is_audited_twice() -> None:
    story = Story()
    story.hear(20)
    assert story.check().faults == {"doubled": {"ledger@20"}}


def test_an_update_of_which_nobody_was_told_is_audited_too() -> None:
    story = Story()
    story.revisions = [10, 20, 30, 40]
    assert story.check().faults == {"unaudited": {"ledger@40"}}
    story.hear(40)
    assert story.check().faults == {}


@pytest.mark.parametrize("outcome", [" ", "c", "v"])
def test_a_decision_without_a_final_outcome_is_unsettled(outcome: str) -> None:
    story = Story()
    story.send("late", outcome=outcome)
    story.handle("late")
    assert story.check().faults == {"unsettled": {"w1.late.0"}}


def test_a_request_that_expired_is_not_lost() -> None:
    story = Story()
    for message_id, outcome in (("late", "x"), ("later", "?")):
        story.send(message_id, y="ask", until=10.0, outcome=outcome)
        story.say("unanswered", message_id, why="RequestTimeout")
    found = story.check()
    assert found.faults == {}
    assert found.expired == found.unanswered == {"late", "later"}


def test_a_request_that_was_answered_and_expired_with_its_redelivery_is_not_lost() -> None:
    story = Story()
    for message_id, outcome in (("answered", "x"), ("gone", "h")):
        story.send(message_id, y="ask", until=10.0, outcome=outcome)
        story.say("replied", message_id, by="s1", of=message_id, **{"for": "s1"})
    found = story.check()
    assert found.expired == {"answered"}
    assert found.lost == {"gone"}, "the control: the audit does not say that it expired"


def test_a_message_that_the_audit_calls_handled_and_no_handler_saw() -> None:
    """The audit's word is not enough."""
    story = Story()
    story.send("victim", outcome="h")
    assert story.check().faults == {"lost": {"victim"}, "contradicted": {"victim"}}


def test_duplicates_are_counted_and_no_fault() -> None:
    story = Story()
    story.handle("m0")
    story.decisions.append(decision("m1", "w2.1.0"))
    story.handle("m1", a="w2.1.0")
    found = story.check()
    assert found.faults == {}
    assert found.duplicates == {"m0", "m1"}
    assert found.restored == {"m1"}


def test_the_log_of_a_killed_process_is_read_up_to_its_last_whole_line(tmp_path: Path) -> None:
    path = tmp_path / "s1.jsonl"
    log = Log(path)
    log.write("attempted", "a", to="desk", y="note")
    log.write("accepted", "a")
    history = History()
    with path.open("ab") as file:
        file.write(b'{"e":"accepted","id":"b"')
    history.read(tmp_path)
    assert history.accepted.keys() == {"a"}
    with path.open("ab") as file:
        file.write(b',"t":2.0}\n')
    history.read(tmp_path)
    assert history.accepted.keys() == {"a", "b"}


def test_an_export_is_read_with_the_outcomes_that_the_chain_gives(tmp_path: Path) -> None:
    base = {"k": "d", "w": "w1", "n": 7, "f": "s", "t": "d", "o": "send", "r": "permissions", "at": 2000}
    entries = [
        base | {"i": 1, "p": 0, "id": "a", "d": "ALLOWED", "wy": "b"},
        base | {"i": 2, "p": 1, "id": "b", "d": "ALLOWED", "wy": "l"},
        base | {"i": 3, "p": 2, "id": "c", "d": "AUTHZ_DENIED", "wy": "n"},
        {"k": "o", "i": 4, "o": "h", "x": [[1, 1]]},
    ]
    path = tmp_path / "audit.jsonl"
    lines: list[object] = [{"audit": "mas"}, *({"e": entry, "h": ""} for entry in entries), {"end": {}}]
    path.write_bytes(b"\n".join(map(orjson.dumps, lines)))
    audit = Audit.read(path)
    assert {each.name: each.outcome for each in audit.decisions} == {
        "w1.7.0": "h",
        "w1.7.1": " ",
        "w1.7.2": "r",
    }
    assert audit.by_message["a"][0].time == 2.0

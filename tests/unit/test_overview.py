"""Rates between two looks, also where a worker or an agent has come or gone meanwhile."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import orjson

from broker_policy import overview
from broker_policy.calls.tally import MOST_AGENTS, AgentCount, Tally
from broker_policy.micro import MicroService
from broker_policy.overview import Look, rows
from mas_nats.policy.call import Call
from mas_nats.wire.subjects import AdminOp, Op
from mas_nats.wire.verdict import Decision, Verdict


def inbox(delivered, *, created="then", pending=0, flying=0, redelivered=0):
    return {
        "created": created,
        "delivered": {"consumer_seq": delivered},
        "num_pending": pending,
        "num_ack_pending": flying,
        "num_redelivered": redelivered,
    }


def look(at, inboxes=None, letters=None, instances=None, **tallies):
    return Look(at, inboxes or {}, letters or {}, Counter(instances or {}), tallies)


def test_rates_are_of_a_second_and_of_all_workers():
    before = look(10, {"a": inbox(100)}, w1={"a": AgentCount(5, 4, 1)}, w2={"a": AgentCount(1, 1, 0)})
    now = look(
        12,
        {"a": inbox(110, pending=7, flying=3, redelivered=2)},
        {"a": 4},
        {"a": 2},
        w1={"a": AgentCount(15, 10, 5)},
        w2={"a": AgentCount(3, 3, 0)},
    )
    (row,) = rows(before, now)
    assert (row.rate_in, row.rate_out, row.rate_refused) == (5.0, 4.0, 2.0)
    assert (row.in_flight, row.redelivered, row.pending, row.dead_letters) == (3, 2, 7, 4)
    assert (row.instances, row.refused) == (2, 5)


def test_a_worker_that_came_or_went_makes_no_rate():
    before = look(0, w1={"a": AgentCount(100, 100, 100)})
    (row,) = rows(before, look(1, w2={"a": AgentCount(9, 9, 9)}))
    assert (row.rate_out, row.rate_refused, row.refused) == (None, None, 9)
    (row,) = rows(before, look(1, w1={"a": AgentCount(101, 101, 100)}, w2={"a": AgentCount(9, 9, 9)}))
    assert (row.rate_out, row.rate_refused) == (1.0, 0.0)


def test_an_agent_that_a_worker_did_not_tell_of_makes_no_rate():
    """A worker tells of those with the most calls: one that comes among them did not send all at once."""
    told = {"b": AgentCount(9, 9, 9), "a": AgentCount(5_000, 5_000, 0)}
    before, now = look(0, w1={"b": told["b"]}), look(1, w1=told)
    (row,) = (each for each in rows(replace(before, partial=frozenset({"w1"})), now) if each.agent == "a")
    assert (row.rate_out, row.rate_refused) == (None, None)
    gone = replace(look(2, {"a": inbox(0)}, w1={"b": told["b"]}), partial=frozenset({"w1"}))
    (row,) = (each for each in rows(now, gone) if each.agent == "a")
    assert (row.rate_out, row.rate_refused) == (None, None)
    (row,) = (each for each in rows(before, now) if each.agent == "a")  # the control: it told of all
    assert row.rate_out == 5_000


def test_a_worker_says_how_many_agents_it_leaves_out():
    tally = Tally()
    for number in range(MOST_AGENTS + 7):
        for _ in range(1 + (number < MOST_AGENTS)):
            tally.asked(Call(f"agent-{number:058}", Op.SEND, b"", ""))
    stats = MicroService(None, "default", "w1", tally).stats()
    assert len(orjson.dumps(stats)) < 2_000_000
    told, partial = overview._of_agents(stats)
    assert (len(told), partial, tally.untold) == (MOST_AGENTS, True, 7)
    assert {count.calls for count in told.values()} == {2}


def test_a_consumer_that_was_made_again_makes_no_rate():
    (row,) = rows(look(0, {"a": inbox(100)}), look(1, {"a": inbox(3, created="now")}))
    assert row.rate_in is None


def test_the_busiest_come_first_then_by_name():
    before = look(0, {name: inbox(0) for name in "abc"})
    now = look(1, {"a": inbox(0), "b": inbox(0), "c": inbox(9)}, {"z": 1})
    assert [row.agent for row in rows(before, now)] == ["c", "a", "b", "z"]


def test_a_tally_counts_agents_and_not_operators():
    tally = Tally()
    call = Call("a", Op.SEND, b"", "_R_.x", received=1000)
    tally.asked(call)
    operator = Call("", AdminOp.WITHDRAW, b"", "_R_.x")
    allowed = Verdict(Decision.ALLOWED, ok=True)
    tally.answered([call, operator], [allowed, allowed], 1002)
    tally.asked(call)
    tally.answered([call], [Verdict(Decision.AUTHZ_DENIED, ok=False)], 999)  # a clock that was set back
    count = tally.ops[Op.SEND]
    assert (count.asked, count.refused, count.took, count.last) == (2, 1, 2_000_000, "AUTHZ_DENIED")
    assert tally.agents() == {"a": {"calls": 2, "sent": 1, "refused": 1}}

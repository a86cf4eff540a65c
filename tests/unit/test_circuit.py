"""The circuit by itself, and kept in Redis by several workers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_policy.admission import circuit as circuits
from broker_policy.admission.circuit import Circuit, State
from broker_policy.admission.circuits import SharedCircuits
from broker_policy.admission.counters import Away, Counters
from broker_policy.embedded.redis_server import RedisServer
from mas_nats.policy.governance import CircuitBreaker
from tests.conftest import StartRedis

NOW = 1_800_000_000_000
SETTINGS = CircuitBreaker(failure_threshold=3, success_threshold=2, timeout_seconds=60, window_seconds=300)
OPENED = Circuit(until=NOW + 60_000)
DUE = NOW + 60_000


def failing(circuit: Circuit, now: int, *ids: str, settings: CircuitBreaker = SETTINGS) -> Circuit:
    for each in ids:
        circuit = circuits.failed(circuit, settings, now, each)
    return circuit


def probed(circuit: Circuit, now: int, *ids: str) -> tuple[Circuit, set[str]]:
    circuit, let = circuits.probe(circuit, SETTINGS, now, ids)
    return circuit, set(let)


# -- closed -----------------------------------------------------------------------------------------------
def test_opens_at_the_threshold():
    assert failing(Circuit(), NOW, "a", "b").state(NOW) is State.CLOSED
    opened = failing(Circuit(), NOW, "a", "b", "c")
    assert opened.state(NOW) is State.OPEN
    assert opened == OPENED


def test_one_message_that_fails_often_counts_once():
    assert failing(Circuit(), NOW, *["a"] * 50).state(NOW) is State.CLOSED


def test_what_is_older_than_the_window_does_not_count():
    old = failing(Circuit(), NOW, "a", "b")
    assert failing(old, NOW + 300_000, "c").state(NOW + 300_000) is State.CLOSED
    assert failing(old, NOW + 299_999, "c").state(NOW + 299_999) is State.OPEN


def test_all_pass_while_it_is_closed():
    assert probed(failing(Circuit(), NOW, "a"), NOW, "x", "y", "z")[1] == {"x", "y", "z"}


# -- open ---------------------------------------------------------------------------------------------------
def test_nothing_passes_and_more_failures_do_not_prolong_it():
    assert probed(OPENED, DUE - 1, "x") == (OPENED, set())
    assert failing(OPENED, DUE - 1, "d", "e", "f") == OPENED


# -- half open --------------------------------------------------------------------------------
def test_some_probes_at_a_time():
    circuit, let = probed(OPENED, DUE, "x", "y", "z")
    assert let == {"x", "y"}
    assert circuit.state(DUE) is State.HALF_OPEN
    assert probed(circuit, DUE, "z")[1] == set()
    assert probed(circuit, DUE, "x")[1] == {"x"}, "the same message once more"
    circuit = circuits.handled(circuit, SETTINGS, "x")
    assert probed(circuit, DUE, "z")[1] == {"z"}


def test_handled_probes_close_it():
    circuit, _ = probed(OPENED, DUE, "x", "y")
    once = circuits.handled(circuit, SETTINGS, "x")
    assert once.state(DUE) is State.HALF_OPEN
    assert circuits.handled(once, SETTINGS, "x") == once, "counted once"
    assert circuits.handled(once, SETTINGS, "stranger") == once, "an older message says nothing of now"
    assert circuits.handled(once, SETTINGS, "y") == Circuit()


def test_a_probe_that_fails_opens_it_again():
    circuit, _ = probed(OPENED, DUE, "x", "y")
    again = failing(circuits.handled(circuit, SETTINGS, "x"), DUE + 5, "y")
    assert again == Circuit(until=DUE + 5 + 60_000)
    assert circuits.handled(again, SETTINGS, "x") == again


def test_a_message_from_before_that_fails_again_does_not_by_itself():
    circuit, _ = probed(OPENED, DUE, "x")
    circuit = failing(circuit, DUE, "a")
    assert circuit.state(DUE) is State.HALF_OPEN
    assert failing(circuit, DUE, "b", "c").state(DUE) is State.OPEN


def test_a_probe_of_which_nothing_is_heard_makes_room_and_counts_later():
    circuit, _ = probed(OPENED, DUE, "x", "y")
    circuit, let = probed(circuit, DUE + 60_000, "z")
    assert let == {"z"}
    assert circuits.handled(circuits.handled(circuit, SETTINGS, "x"), SETTINGS, "y") == Circuit()


def test_what_does_not_fit_frees_its_place_and_says_nothing():
    circuit, _ = probed(OPENED, DUE, "x", "y")
    circuit = circuits.inconclusive(circuit, "x")
    assert (circuit.handled, circuit.state(DUE)) == (0, State.HALF_OPEN)
    assert probed(circuit, DUE, "z")[1] == {"z"}


def test_nobody_tried_it_for_a_window():
    assert circuits.current(OPENED, SETTINGS, DUE + 299_999).state(DUE + 299_999) is State.HALF_OPEN
    assert circuits.current(OPENED, SETTINGS, DUE + 300_000) == Circuit()


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["fail", "probe", "handled", "gone"]),
        st.sampled_from("abcdefgh"),
        st.sampled_from([0, 1, 30_000, 60_000, 300_000]),
    ),
    max_size=40,
)


@given(EVENTS)
def test_whatever_happens_it_stays_small_and_lets_few_through(events: list[tuple[str, str, int]]):
    circuit, now = Circuit(), NOW
    for what, name, pause in events:
        now += pause
        before = circuits.current(circuit, SETTINGS, now).state(now)
        if what == "fail":
            circuit = failing(circuit, now, name)
        elif what == "probe":
            fresh = sum(each.at > now - 60_000 for each in circuit.probes)
            circuit, let = probed(circuit, now, name, name + "2", name + "3")
            assert before is not State.OPEN or not let
            if before is State.HALF_OPEN:
                assert len(let - {each.id for each in circuit.probes if each.at < now}) <= 2
                assert sum(each.at > now - 60_000 for each in circuit.probes) <= max(2, fresh)
        elif what == "handled":
            circuit = circuits.handled(circuit, SETTINGS, name)
        else:
            circuit = circuits.inconclusive(circuit, name)
        assert len(circuit.failures) < SETTINGS.failure_threshold
        assert len(circuit.probes) <= 8
        assert Circuit.decode(circuit.encode()) == circuit


@given(EVENTS)
def test_whatever_happened_it_is_not_half_open_for_ever(events: list[tuple[str, str, int]]):
    """Nothing more is heard of any probe, nor of anything else: after two timeouts somebody passes."""
    circuit, now = Circuit(), NOW
    for what, name, pause in events:
        now += pause
        match what:
            case "fail":
                circuit = failing(circuit, now, name)
            case "probe":
                circuit, _ = probed(circuit, now, name)
            case "handled":
                circuit = circuits.handled(circuit, SETTINGS, name)
            case "gone":
                circuit = circuits.inconclusive(circuit, name)
    assert probed(circuit, now + 2 * 60_000, "new")[1] == {"new"}


@pytest.mark.parametrize("raw", [b"[]", b"{}", b"1", b"[1,2,3,4]", b"nonsense", b"[0,[[1]],[],0]"])
def test_what_is_no_circuit_is_not_read_as_one(raw: bytes):
    with pytest.raises(ValueError, match=r"."):
        Circuit.decode(raw)


# -- in Redis --------------------------------------------------------------------------------
class Time:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> int:
        return self.now


@pytest.fixture
async def workers(redis_server: RedisServer) -> AsyncIterator[list[SharedCircuits]]:
    """Four of them, on one clock."""
    found = [Counters.at(redis_server.url, patience=30) for _ in range(4)]
    time = Time()
    yield [SharedCircuits(each, "ns", time) for each in found]
    for each in found:
        await each.close()


def fail(name: str) -> Any:
    return lambda circuit, now: circuits.failed(circuit, SETTINGS, now, name)


async def test_no_failure_is_lost_between_workers(workers: list[SharedCircuits]):
    many = CircuitBreaker(failure_threshold=41)

    def one(name: str) -> Any:
        return lambda circuit, now: circuits.failed(circuit, many, now, name)

    everybody = [(worker, f"{n}.{k}") for n, worker in enumerate(workers) for k in range(10)]
    await asyncio.gather(*(worker.change("bob", many, one(name)) for worker, name in everybody))
    assert (await workers[0].unsettled(many))[0] == {}
    assert (await workers[0].change("bob", many, one("last"))).after.state(NOW) is State.OPEN
    assert set((await workers[3].unsettled(many))[0]) == {"bob"}


async def test_probes_are_shared_out_once(workers: list[SharedCircuits]):
    for name in "abc":
        await workers[0].change("bob", SETTINGS, fail(name))
    for worker in workers:
        worker._now = lambda: DUE
    let: list[str] = []

    async def ask(worker: SharedCircuits, ids: list[str]) -> None:
        passing: frozenset[str] = frozenset()

        def change(circuit: Circuit, now: int) -> Circuit:
            nonlocal passing
            changed, passing = circuits.probe(circuit, SETTINGS, now, ids)
            return changed

        await worker.change("bob", SETTINGS, change)
        let.extend(passing)

    await asyncio.gather(*(ask(each, [f"{n}.{k}" for k in range(9)]) for n, each in enumerate(workers)))
    assert len(let) == SETTINGS.success_threshold


async def test_keys_end_and_closed_circuits_have_none(workers: list[SharedCircuits], redis: Any):
    for agent in ("bob", "carol"):
        for name in "abc":
            await workers[0].change(agent, SETTINGS, fail(name))
    await workers[0].change("dave", SETTINGS, fail("a"))
    keys = {key: await redis.pttl(key) async for key in redis.scan_iter("mas:breaker:*")}
    assert sorted(keys) == [
        b"mas:breaker:ns:of:bob",
        b"mas:breaker:ns:of:carol",
        b"mas:breaker:ns:of:dave",
        b"mas:breaker:ns:open",
    ]
    assert all(0 < left <= 420_000 for left in keys.values())
    for agent in ("bob", "carol", "dave"):
        await workers[1].change(agent, SETTINGS, lambda _circuit, _now: Circuit())
    assert [key async for key in redis.scan_iter("mas:breaker:*")] == []


async def test_what_somebody_else_wrote_there_is_a_closed_circuit(workers: list[SharedCircuits], redis: Any):
    await redis.set("mas:breaker:ns:of:bob", b"nonsense")
    changed = await workers[0].change("bob", SETTINGS, fail("a"))
    assert changed.after.failures == (circuits.Failure("a", NOW),)


async def test_without_redis_it_says_so(start_redis: StartRedis):
    server = await start_redis()
    counters = Counters.at(server.url)
    shared = SharedCircuits(counters, "ns")
    await shared.change("bob", SETTINGS, fail("a"))
    server.kill()
    with pytest.raises(Away):
        await shared.change("bob", SETTINGS, fail("b"))
    with pytest.raises(Away):
        await shared.unsettled(SETTINGS)
    await counters.close()

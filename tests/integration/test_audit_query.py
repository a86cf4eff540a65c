"""Questions find exactly what a reading of every entry finds, and read little more than they answer with."""

from __future__ import annotations

import itertools
import random
from collections.abc import AsyncIterator, Iterable, Iterator

import pytest
from redis.asyncio import Redis

from broker_policy.audit import entry
from broker_policy.audit.candidates import Span
from broker_policy.audit.compliance import compliance
from broker_policy.audit.entry import Entry
from broker_policy.audit.query import Question, ask, search
from broker_policy.audit.record import DecisionLine, Outcome, Record, RecordKind
from broker_policy.audit.state_marks import DIRECT_STATE
from broker_policy.audit.store import Store, StoredEntry
from broker_policy.audit.tail import Tail
from broker_policy.audit.time_span import DISORDER, span_of
from broker_policy.embedded.redis_server import RedisServer
from tests.audit_fill import AGENTS, START, STEP, fill
from tests.audit_log import line


@pytest.fixture
async def store(redis_server: RedisServer) -> AsyncIterator[Store]:
    redis = Redis.from_url(redis_server.url, socket_timeout=30)
    yield Store(redis, "default")
    await redis.aclose()


async def decisions(store: Store) -> list[tuple[int, Entry, str]]:
    """Everything there is, read the slow way."""
    found = [(stored.index, stored.entry()) async for stored in store.entries()]
    letters = await store.outcomes_at([index for index, _ in found])
    return [
        (index, entry, letter)
        for (index, entry), letter in zip(found, letters, strict=True)
        if entry["k"] == "d"
    ]


def violates(entry: Entry, rule: str | None) -> bool:
    if rule is None or entry["d"] == "ALLOWED":
        return rule is None
    return entry["r"] == rule or (entry["r"].startswith("dlp:") and rule[4:] in entry["r"][4:].split(","))


def slowly(all_of_them: list[tuple[int, Entry, str]], question: Question) -> list[int]:
    """What answers ``question``, by looking at each."""
    return [
        index
        for index, entry, letter in all_of_them
        if (question.sender in (None, entry["f"]))
        and (question.target in (None, entry["t"]))
        and (question.decision in (None, entry["d"]))
        and violates(entry, question.violation)
        and (question.outcome in (None, letter))
        and (question.since is None or entry["at"] >= question.since)
        and (question.until is None or entry["at"] <= question.until)
    ]


async def test_any_combination_in_either_order_and_in_pages(store: Store) -> None:
    count = 3000
    await fill(store, count)
    all_of_them = await decisions(store)
    chosen = random.Random(7)
    answered = 0
    for _ in range(60):
        since = START + chosen.randint(-100, STEP * count)
        maybe = {
            "sender": chosen.choice(AGENTS),
            "target": chosen.choice(AGENTS),
            "decision": chosen.choice(["ALLOWED", "AUTHZ_DENIED", "RATE_LIMITED"]),
            "violation": chosen.choice(["default", "dlp:email,phone", "dlp:phone"]),
            "outcome": chosen.choice([Outcome.HANDLED, Outcome.DEAD, Outcome.REFUSED, " "]),
            "since": since,
            "until": since + chosen.randint(0, STEP * count),
        }
        question = Question(
            **{name: maybe[name] for name in chosen.sample(sorted(maybe), chosen.randint(0, 3))}
        )
        expected = slowly(all_of_them, question)
        answered += bool(expected)
        for oldest in (True, False):
            size = chosen.randint(1, 300)
            found: list[int] = []
            cursor = None
            for _ in range(3):
                page = await ask(store, question, limit=size, cursor=cursor, oldest_first=oldest)
                found += [answer.index for answer in page]
                if len(page) < size:
                    break
                cursor = found[-1]
            assert found == (expected if oldest else expected[::-1])[: 3 * size], question
    assert answered > 30


async def test_a_search_whose_time_is_over_says_how_far_it_came_and_goes_on(store: Store) -> None:
    count = 3000
    await fill(store, count)
    all_of_them = await decisions(store)
    never = Question(decision="ALLOWED", violation="default")
    stops = []
    for question in (
        never,
        Question(),
        Question(sender=AGENTS[0], target=AGENTS[1]),
        Question(sender=AGENTS[0], outcome=Outcome.HANDLED),
        Question(outcome=Outcome.DEAD, since=START, until=START + STEP * count // 2),
    ):
        expected = slowly(all_of_them, question)[::-1]
        found: list[int] = []
        cursor = None
        while True:
            page = await search(store, question, limit=30, within=0, cursor=cursor)
            found += [answer.index for answer in page.answers]
            if page.looked_to is not None:
                assert found == [index for index in expected if index >= page.looked_to], question
                stops.append(question)
            if page.following is None:
                break
            assert cursor is None or page.following < cursor
            cursor = page.following
        assert found == expected, question
    assert stops.count(never) > 3
    whole = await search(store, never, limit=30, within=60)  # the control: nothing stops it
    assert (whole.answers, whole.following, whole.looked_to) == ([], None, None)


async def test_the_time_of_a_search_is_looked_at_between_its_steps(store: Store) -> None:
    await fill(store, 3000)
    question = Question(decision="ALLOWED", violation="default")

    async def reached(seconds: int) -> int:
        ticks = itertools.count()
        found = await search(store, question, limit=30, within=seconds, clock=lambda: float(next(ticks)))
        return found.looked_to or 0

    assert await reached(1) > await reached(2) > await reached(3) > await reached(100) == 0


async def test_the_whole_in_pages(store: Store) -> None:
    await fill(store, 700)
    found: list[int] = []
    while page := await ask(store, Question(sender=AGENTS[3]), limit=5, cursor=found[-1] if found else None):
        found += [answer.index for answer in page]
    assert found == slowly(await decisions(store), Question(sender=AGENTS[3]))[::-1]
    assert len(found) > 10


async def test_a_namespace_answers_for_itself_alone(store: Store) -> None:
    other = Store(store.redis, "other")
    await fill(store, 100)
    await fill(other, 100, seed=2)
    ids = {answer.entry["id"] for answer in await ask(store, Question(), limit=1000)}
    others = {answer.entry["id"] for answer in await ask(other, Question(), limit=1000)}
    assert (len(ids), len(others), ids & others) == (100, 100, set())
    assert await ask(other, Question(message_id=min(ids))) == []


async def test_times_out_of_order_are_found(store: Store) -> None:
    """``fill`` shuffles times by up to 0.4 s; the edge of a range falls between such."""
    await fill(store, 3000)
    all_of_them = await decisions(store)
    times = [entry["at"] for _, entry, _ in all_of_them]
    assert any(later < earlier for earlier, later in itertools.pairwise(times))  # the control
    for time in random.Random(3).sample(times, 12):
        for question in (Question(since=time), Question(until=time), Question(since=time, until=time)):
            found = await ask(store, question, limit=5000, oldest_first=True)
            assert [answer.index for answer in found] == slowly(all_of_them, question)


async def put(store: Store, lines: Iterable[DecisionLine]) -> None:
    """Append decisions as the projector does, a few hundred at once."""
    tail = Tail(store, lambda: START / 1000)
    await tail.refresh()
    made = iter(lines)
    while portion := list(itertools.islice(made, 500)):
        draft = tail.draft()
        record = Record("default", "w1i", 1 + draft.next_index, "", RecordKind.DECISIONS, 1, 3)
        for position, each in enumerate(portion):
            draft.add_decision(entry.decision(draft.next_index, 1, record, position, each, 0, ""))
        draft.sequence += 1
        await tail.append(draft)


def changes(times: Iterable[int]) -> Iterator[DecisionLine]:
    """Changes of a direct state, made at ``times``."""
    for revision, at in enumerate(times, 1):
        who = {"sender": "carol", "target": "carol", "message_id": str(revision)}
        yield line(time=at, op="state", rule=DIRECT_STATE, decision="ALLOWED", **who)


HOUR = 3_600_000


@pytest.mark.parametrize("recorded", [500, 3000], ids=["read", "bisected"])
async def test_changes_recorded_late_hide_nothing_else(store: Store, recorded: int) -> None:
    """Two hours without a worker, in which an agent changed its state: that is recorded amid messages."""
    again = START + 2 * HOUR
    await put(store, (line(time=START + STEP * number) for number in range(1000)))
    await put(store, (line(time=again + STEP * number) for number in range(100)))
    await put(store, changes(START + 2 * HOUR * number // recorded for number in range(recorded)))
    await put(store, (line(time=again + 1000 + STEP * number) for number in range(1000)))
    all_of_them = await decisions(store)
    for question in (
        Question(sender="alice", since=again),
        Question(since=again, until=again + 500, sender="alice"),
        Question(sender="alice", until=again + 1500),
        Question(decision="AUTHZ_DENIED", since=START + HOUR),
        Question(since=again + 500),
    ):
        expected = slowly(all_of_them, question)
        assert len(expected) > 40
        found = await ask(store, question, limit=5000, oldest_first=True)
        assert [answer.index for answer in found] == expected, question
        if question.sender is not None and question.until is None:
            assert len(found) == 1100
    whole = Span(1, len(all_of_them))
    assert (await span_of(store, whole, again, None)).first <= 1001
    report = await compliance(store, again, again + HOUR)
    assert report.decisions["AUTHZ_DENIED"] == 1100


async def test_changes_recorded_late_are_found_where_they_stand_close_to_their_time(store: Store) -> None:
    """A gap between messages that is read: of several agents, each in its own order, none is missed."""
    again = START + HOUR
    await put(store, [line(time=START)])
    await put(store, [*changes(range(START, again, 10_000)), *changes(range(START, again, 10_000))])
    await put(store, [line(time=again)])
    all_of_them = await decisions(store)
    for since in range(START, again, HOUR // 7):
        question = Question(since=since, until=since + HOUR // 7, sender="carol")
        found = await ask(store, question, limit=5000, oldest_first=True)
        assert [answer.index for answer in found] == slowly(all_of_them, question)


async def test_a_namespace_with_little_but_direct_state_is_not_read_from_end_to_end(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 30_000
    step = 1000
    await put(store, [line(time=START)])
    await put(store, changes(START + step * number for number in range(count)))
    middle = START + step * count // 2
    question = Question(since=middle, until=middle + 60 * step)
    read = 0
    between = Store.between

    async def counted(store: Store, low: str, high: str, most: int) -> list[StoredEntry]:
        nonlocal read
        page = await between(store, low, high, most)
        read += len(page)
        return page

    monkeypatch.setattr(Store, "between", counted)
    found = await ask(store, question, limit=1000, oldest_first=True)
    assert [answer.entry["at"] for answer in found] == list(range(middle, middle + 61 * step, step))
    assert read < 2000
    for span in (  # what `mas audit seal --before` asks
        await span_of(store, Span(1, count + 1), middle, None),
        await span_of(store, Span(1, count + 1), START + step * count * 2, None),
    ):
        assert span.first > count // 2 - 100
    assert span.first == count + 2


async def test_names_that_are_no_ids_are_asked_for_as_any_other(store: Store) -> None:
    """Such a target is refused, and no index lists it: an agent could make up any number of them."""
    await fill(store, 500)
    tried = line(target="Admin", message_id="tried")
    await put(store, [tried, line(target="other/Admin"), line(sender="A b")])
    await fill(store, 500, seed=2, first=500)
    all_of_them = await decisions(store)
    denied = {"decision": "AUTHZ_DENIED"}
    for question in (
        Question(target="Admin"),
        Question(target="Admin", message_id="tried"),
        Question(target="Admin", sender="alice", **denied),
        Question(target="Admin", outcome=Outcome.REFUSED),
        Question(target="other/Admin", violation="default"),
        Question(sender="A b"),
        Question(sender="A b", target="bob"),
    ):
        [expected] = slowly(all_of_them, question)
        for oldest in (True, False):
            assert [each.index for each in await ask(store, question, oldest_first=oldest)] == [expected]
        looked, cursor = [], None
        while True:  # as a page of the explorer does, which walks for some time only
            page = await search(store, question, limit=30, within=0, cursor=cursor)
            looked += [answer.index for answer in page.answers]
            if (cursor := page.following) is None:
                break
        assert looked == [expected]
    assert await ask(store, Question(target="Nobody")) == []
    stopped = await search(store, Question(target="Nobody"), limit=30, within=0)
    assert stopped.looked_to is not None
    names = [key async for key in store.redis.scan_iter(match=store.layout.by("*"), count=1000)]
    assert not [name for name in names if b"Admin" in name or b"A b" in name]


async def touched(store: Store, question: Question, limit: int) -> tuple[int, int]:
    """How many answers a question has, and how many entries were read for them."""
    await store.redis.config_resetstat()
    found = await ask(store, question, limit=limit)
    statistics = await store.redis.info("commandstats")
    return len(found), statistics.get("cmdstat_xrange", {"calls": 0})["calls"]


async def test_what_is_read_does_not_grow_with_the_audit(store: Store) -> None:
    middle = START + STEP * 1000
    around = DISORDER // STEP
    questions = [
        Question(),
        Question(sender=AGENTS[0]),
        Question(sender=AGENTS[0], target=AGENTS[1]),
        Question(sender=AGENTS[0], decision="AUTHZ_DENIED", outcome=Outcome.REFUSED),
        Question(outcome=Outcome.DEAD),
        Question(decision="ALLOWED", violation="default"),
        Question(since=middle, until=middle + 100),
        Question(sender=AGENTS[0], until=middle),
    ]
    await fill(store, 5_000)
    small = [await touched(store, question, 10) for question in questions]
    await fill(store, 45_000, seed=2, first=5_000)
    large = [await touched(store, question, 10) for question in questions]
    for question, (found, _), (more, reads) in zip(questions, small, large, strict=True):
        assert more >= min(found, 10), question
        # Bisection reads some twenty entries an end, and what lies within DISORDER of the range is read too.
        assert reads <= 60 + (2 * around if question.until is not None else 0), question
    assert large[5] == (0, 0)  # allowed and refused: the indexes alone say that nothing is both


async def test_an_index_is_not_believed(store: Store) -> None:
    """Who adds to an index what the chain does not say finds nothing by it."""
    await fill(store, 50)
    [mine] = await ask(store, Question(), limit=1)
    await store.redis.rpush(store.layout.by("sender:mallory"), mine.index, "nonsense")
    assert await ask(store, Question(sender="mallory")) == []

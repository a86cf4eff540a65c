"""Frames of a streamed reply, whoever sends them: in order, once, and never a secret cut in two."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
import pytest
from hypothesis import find, given
from hypothesis import strategies as st

from broker_policy.audit.record import Outcome
from broker_policy.calls.frames import FrameCalls
from broker_policy.jetstream import Ack, StoredMessage
from broker_policy.screen import MAX_HELD, Screen, Screened, let_through
from broker_policy.sealing import ReplyCapability, Sealer
from broker_policy.tenants.sealing_ring import SealingKey
from mas_nats.policy.call import Call, Refusal
from mas_nats.wire import headers
from mas_nats.wire.frames import Chunk, joined, split, units
from mas_nats.wire.verdict import Decision, Verdict
from tests.screens import REDACTED, SECRET, WindowScreen

KEY = SealingKey("00000001", b"1" * 32)
CAPABILITY = ReplyCapability("default", "alice", "ab" * 10, "cd" * 16, "bob", "m1", 2**42, stream=True)


class Store:
    """The reply stream: the first frame of a number counts."""

    def __init__(self) -> None:
        self.frames: dict[int, StoredMessage] = {}

    def capability(self, call: Call) -> ReplyCapability:
        return CAPABILITY

    async def publish(self, _: Any, body: bytes, fields: dict[str, str], number: int = 0) -> Ack:
        duplicate = number in self.frames
        if not duplicate:
            self.frames[number] = StoredMessage(f"x.{number}", number + 1, body, fields)
        return Ack(number + 1, duplicate)

    async def stored(self, _: Any, number: int) -> StoredMessage | None:
        return self.frames.get(number)

    async def give_up(self, _: Any, decision: Decision, reason: str) -> None:
        await self.publish(_, b"{}", {headers.FAILURE: decision}, len(self.frames))

    def chunks(self) -> list[Chunk]:
        assert sorted(self.frames) == list(range(len(self.frames)))
        said = [orjson.loads(self.frames[number].data).get("chunks", []) for number in sorted(self.frames)]
        return joined([chunk for frame in said for chunk in frame])

    @property
    def ended(self) -> bool:
        last = self.frames[max(self.frames)].headers
        return headers.END in last or headers.FAILURE in last


class Worker:
    """Any worker: what it decides with, and its lane, which is always quick."""

    def __init__(self, name: str, store: Store, screen: Screen) -> None:
        self.sealer = Sealer(name, [KEY])
        self.verdict: Verdict | None = None
        self.performing: Callable[[str], Awaitable[tuple[Verdict, Outcome]]] | None = None
        self._calls = FrameCalls(store, self, self, screen)  # type: ignore[arg-type]

    def table(self, call: Call) -> object:
        return object()

    def refusal(self, call: Call, table: object) -> Refusal | None:
        return None

    def clean(self, text: str) -> str:
        return text

    def room(self) -> int:
        return 1_000_000

    def envelope(self, call: Call, salt: bytes) -> dict[str, str]:
        return {headers.MESSAGE_ID: call.message_id}

    def allowed(self, *_: object) -> None:
        return None

    def refuse(self, call: Call, refusal: Refusal) -> None:
        self.verdict = refusal.verdict("")

    def perform(self, call: Call, line: object, perform: Any) -> None:
        self.performing = perform

    async def take(self, **body: Any) -> Verdict:
        return await self.take_raw(orjson.dumps(body))

    async def take_raw(self, body: bytes) -> Verdict:
        self.verdict = self.performing = None
        self._calls.take(Call("bob", "frame", body, ""))
        if self.performing is not None:
            self.verdict, _ = await self.performing("a.1.0")
        assert self.verdict is not None
        return self.verdict


async def produce(workers: list[Worker], frames: list[list[Chunk]], *, twice: bool = False) -> Verdict:
    """Send ``frames`` as the SDK does, each to the next worker; ``twice``: each answer is lost once."""
    turn = itertools.cycle(workers)
    cursor, pending, short = "", list[Chunk](), 0
    todo = list(frames)
    while True:
        while todo and units(pending) < max(short, 1):
            pending = joined([*pending, *todo.pop(0)])
        final = not todo
        body = {"cursor": cursor, "chunks": pending, "final": final}
        if twice:
            await next(turn).take(**body)
        verdict = await next(turn).take(**body)
        if not verdict.ok or "ended" in verdict.result:
            return verdict
        if short := verdict.result.get("short", 0):
            continue
        cursor = verdict.result["cursor"]
        _, pending = split(pending, verdict.result.get("taken", units(pending)))


def stage(screen: Screen) -> tuple[Store, list[Worker]]:
    store = Store()
    return store, [Worker(name, store, screen) for name in ("w1", "w2", "w3")]


def cut(text: str, places: list[int]) -> list[list[Chunk]]:
    """``text`` cut into frames."""
    edges = sorted({place % (len(text) + 1) for place in places} | {0, len(text)})
    return [[text[a:b]] for a, b in itertools.pairwise(edges)] or [[]]


SOME_TEXT = st.text(alphabet="0123-x", max_size=40)
PLACES = st.lists(st.integers(0, 100), max_size=8)
TEXT = st.builds("{}{}{}".format, SOME_TEXT, st.just("1234-5678"), SOME_TEXT)


@given(TEXT, PLACES, st.booleans())
def test_a_secret_cut_anywhere_never_goes_out(text: str, places: list[int], twice: bool):
    store, workers = stage(WindowScreen())
    verdict = asyncio.run(produce(workers, cut(text, places), twice=twice))
    assert verdict.result["ended"] == "done"
    said = "".join(str(chunk) for chunk in store.chunks())
    assert said == SECRET.sub(REDACTED, text), "as if it had been said at once"
    assert SECRET.search(said) is None


@given(TEXT, PLACES, st.integers(0, 20))
def test_also_around_an_object(text: str, places: list[int], where: int):
    store, workers = stage(WindowScreen())
    frames = cut(text, places)
    frames.insert(where % (len(frames) + 1), [{"n": 1}])
    asyncio.run(produce(workers, frames))
    said = store.chunks()
    assert SECRET.search("".join(chunk for chunk in said if isinstance(chunk, str))) is None
    assert [chunk for chunk in said if not isinstance(chunk, str)] == [{"n": 1}]


def test_the_control_without_a_window_it_leaks():
    def leaks(places: list[int]) -> bool:
        store, workers = stage(WindowScreen(window=0))
        asyncio.run(produce(workers, cut("say 1234-5678 to nobody", places)))
        return "1234-5678" in "".join(str(chunk) for chunk in store.chunks())

    assert leaks(find(PLACES, leaks))
    assert not leaks([]), "in one frame even this screen sees it"


@given(TEXT, PLACES, PLACES, st.integers(0, 8))
def test_a_second_attempt_that_says_the_same_continues(
    text: str, first: list[int], second: list[int], frames: int
):
    """It is cut at other places, and the first one was killed after some frames."""
    store, workers = stage(WindowScreen())
    begun = cut(text, first)[:frames]
    if begun:
        asyncio.run(produce(workers, [*begun, ["lost with its process"]]))
        for number in [number for number in store.frames if number >= len(begun)]:
            del store.frames[number]
    verdict = asyncio.run(produce(workers, cut(text, second)))
    assert verdict.result["ended"] == "done"
    assert "".join(str(chunk) for chunk in store.chunks()) == SECRET.sub(REDACTED, text)


@given(st.text("ab", min_size=1, max_size=12), st.text("ab", max_size=12), PLACES, PLACES)
def test_a_second_attempt_never_splices(one: str, other: str, first: list[int], second: list[int]):
    """What was said is how the first one began, and its end is its own or a failure."""
    store, workers = stage(let_through)
    frames = cut(one, first)
    asyncio.run(produce(workers, [*frames, ["!"]]))
    for number in [number for number in store.frames if number >= len(frames)]:
        del store.frames[number]
    verdict = asyncio.run(produce(workers, cut(other, second)))
    said = "".join(str(chunk) for chunk in store.chunks())
    if verdict.ok:
        assert said == other
        assert other.startswith(one)
    else:
        assert verdict.decision is Decision.ID_REUSED
        assert said == one
        assert headers.FAILURE in store.frames[max(store.frames)].headers
    assert store.ended


async def test_a_frame_sent_again_with_other_content_is_refused():
    store, workers = stage(let_through)
    first = await workers[0].take(chunks=["a"])
    assert (await workers[1].take(cursor=first.result["cursor"], chunks=["b"])).ok
    again = await workers[2].take(cursor=first.result["cursor"], chunks=["c"])
    assert (again.ok, again.decision) == (False, Decision.ID_REUSED)
    assert store.chunks() == ["ab"]


async def test_what_was_held_back_counts_when_a_frame_is_sent_again():
    """The same words under another cursor: a worker would screen them after other ones."""
    _, workers = stage(WindowScreen())
    first = await workers[0].take(chunks=["1234-56"])
    second = await workers[0].take(cursor=first.result["cursor"], chunks=["78"])
    again = await workers[1].take(cursor=first.result["cursor"], chunks=["78"])
    assert again.duplicate
    opened = [workers[2].sealer.open_cursor(CAPABILITY, each.result["cursor"]) for each in (second, again)]
    assert opened[0] == opened[1]


@pytest.mark.parametrize("token", ["x", "AAAA" * 40, "é"])
async def test_a_cursor_that_nobody_sealed_is_refused(token: str):
    store, workers = stage(let_through)
    verdict = await workers[0].take(cursor=token, chunks=["a"])
    assert (verdict.ok, verdict.rule) == (False, "cursor")
    assert not store.frames


async def test_a_cursor_is_worth_nothing_for_another_answer():
    sealer = Sealer("w1", [KEY])
    _, workers = stage(let_through)
    elsewhere = ReplyCapability("default", "alice", "ab" * 10, "ef" * 16, "bob", "m2", 2**42, stream=True)
    first = await workers[0].take(chunks=["a"])
    cursor = sealer.open_cursor(CAPABILITY, first.result["cursor"])
    verdict = await workers[0].take(cursor=sealer.seal_cursor(elsewhere, cursor), chunks=["b"])
    assert verdict.rule == "cursor"
    verdict = await workers[0].take(cursor=sealer.seal(CAPABILITY), chunks=["b"])
    assert verdict.rule == "cursor", "a capability is no cursor"


@pytest.mark.parametrize(
    "body",
    [{"chunks": [1]}, {"chunks": "text"}, {"chunks": [None]}, {"cursor": 7}, {"chunks": {"a": 1}}],
)
async def test_a_malformed_frame_is_refused(body: dict[str, Any]):
    store, workers = stage(let_through)
    assert (await workers[0].take(**body)).decision is Decision.INVALID
    assert not store.frames


async def test_what_a_screen_refuses_goes_nowhere():
    def blocks(held: Any, new: Any, *, final: bool) -> Screened:
        return Screened((), refusal=Refusal(Decision.DLP_BLOCKED, "dlp", "card", "a card number"))

    store, workers = stage(blocks)
    assert (await workers[0].take(chunks=["4111"])).decision is Decision.DLP_BLOCKED
    assert not store.frames


async def test_a_screen_cannot_hold_back_without_end():
    store, workers = stage(WindowScreen(window=10**9))
    verdict = await workers[0].take(chunks=["x" * MAX_HELD])
    assert verdict.decision is Decision.TOO_LARGE
    assert not store.frames


async def test_what_was_held_back_is_not_said_when_the_handler_fails():
    store, workers = stage(WindowScreen())
    first = await workers[0].take(chunks=["1234-56"])
    assert (await workers[0].take(cursor=first.result["cursor"], chunks=[], failed="ValueError")).ok
    assert store.chunks() == []
    assert headers.FAILURE in store.frames[1].headers


@given(st.lists(st.one_of(st.text(max_size=5), st.just({"a": 1})), max_size=8), st.integers(0, 50))
def test_split_and_joined_lose_nothing(chunks: list[Chunk], count: int):
    first, rest = split(chunks, count)
    assert joined([*first, *rest]) == joined(chunks)
    assert units(first) == min(count, units(chunks))


def test_many_small_texts_are_joined_in_no_time():
    """A frame of a megabyte must not keep its worker from everybody else for seconds."""
    begun = time.perf_counter()
    assert joined(["\N{GRINNING FACE}b"] * 120_000) == ["\N{GRINNING FACE}b" * 120_000]
    assert time.perf_counter() - begun < 1


@pytest.mark.parametrize("failed", ["", "Boom"])
async def test_objects_too_deep_to_be_written_are_refused(failed: str):
    store, (worker, *_) = stage(let_through)
    deep = b'{"a":' * 300 + b"1" + b"}" * 300
    raw = b'{"chunks": [%b], "failed": "%b"}' % (deep, failed.encode())
    assert (await worker.take_raw(raw)).decision is Decision.INVALID
    assert not store.frames

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Generic, TypeVar

import orjson
import pytest
from pydantic import AliasChoices, AliasPath, BaseModel, ConfigDict, Field, model_validator
from sdk_worker import ScriptedWorker, endpoint

from broker_policy.embedded.nats_server import NatsServer
from broker_policy.identity.pki import CertificateAuthority
from mas_nats import (
    Agent,
    ConfigurationError,
    OutcomeUnknown,
    StateConflict,
    StateCorrupt,
    StateInvalid,
    Unavailable,
)
from mas_nats.patience import Patience
from mas_nats.state import StateShape
from mas_nats.wire.subjects import Op
from mas_nats.wire.verdict import accepted


class Inner(BaseModel):
    tags: tuple[str, ...] = ()


class Desk(BaseModel):
    answered: int = 0
    since: datetime | None = None
    inner: Inner = Field(default_factory=Inner)
    nick: str = Field("x", alias="nickName")


class DeskAgent(Agent[Desk]):
    pass


Make = Callable[..., Agent[Any]]


@pytest.fixture
async def worker(
    ca: CertificateAuthority, nats_server: NatsServer, tmp_path: Path
) -> AsyncIterator[ScriptedWorker]:
    worker = await ScriptedWorker(endpoint(ca, tmp_path / "w", nats_server, "w"), ["a"]).start()
    yield worker
    await worker.stop()


@pytest.fixture
async def make(
    ca: CertificateAuthority, nats_server: NatsServer, worker: ScriptedWorker, tmp_path: Path
) -> AsyncIterator[Make]:
    made: list[Agent[Any]] = []

    def make_one(cls: type[Agent[Any]] = DeskAgent, **options: Any) -> Agent[Any]:
        where = endpoint(ca, tmp_path / str(len(made)), nats_server, "a")
        made.append(cls("a", server_addr=where.url, tls=where.tls, **options))
        return made[-1]

    yield make_one
    await asyncio.gather(*(agent.stop() for agent in made))


async def test_starts_with_the_defaults_of_the_declared_model(make: Make):
    async with make() as agent:
        assert agent.state == Desk()


async def test_restored_on_restart(make: Make):
    now = datetime(2026, 1, 2, tzinfo=UTC)
    async with make() as agent:
        await agent.update_state({"answered": 3, "since": now, "nick": "y", "inner": {"tags": ["a"]}})
    async with make() as agent:
        assert agent.state == Desk(answered=3, since=now, nickName="y", inner=Inner(tags=("a",)))


async def test_without_a_model_it_is_a_dict(make: Make):
    async with make(Agent) as agent:
        await agent.update_state({"a": 1})
        await agent.update_state({"b": [2]})
    async with make(Agent) as agent:
        assert agent.state == {"a": 1, "b": [2]}


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"answered": "3"}, "answered: int_type"),
        ({"answered": 3.5}, "answered: int_type"),
        ({"answered": True}, "answered: int_type"),
        ({"answered": 2**70}, "more than 64 bits"),  # JSON has no such numbers for everybody
        ({"answerd": 3}, "no field 'answerd'; it has answered"),
        ({"answered": object()}, "no JSON form"),
        ({"inner": {"tags": [1]}}, r"inner\.tags\.0: string_type"),
        ({"nick": "x" * 2_000_000}, "the limit is"),
    ],
)
async def test_what_does_not_fit_is_not_written(
    make: Make, worker: ScriptedWorker, changes: dict[str, object], text: str
):
    async with make() as agent:
        with pytest.raises(StateInvalid, match=text):
            await agent.update_state(changes)
        assert agent.state == Desk()
    assert all(body["op"] == "get" for _, op, _, body in worker.calls if op == Op.STATE)


@pytest.mark.parametrize("number", [2**64, -(2**63) - 1, 10**30 + 1, 10**4000])
def test_an_integer_that_would_be_read_as_a_float_is_refused(number: int):
    shape = StateShape[dict[str, object]](None)
    for changes in ({"wei": number}, {"deep": [{"wei": number}]}):
        with pytest.raises(StateInvalid, match="more than 64 bits"):
            shape.merge({}, changes)


def renamed(**alias: Any) -> type[BaseModel]:
    class Renamed(BaseModel):
        n: int = Field(0, **alias)

    return Renamed


class Holder(BaseModel):
    last: list[renamed(validation_alias="nX") | None] = []


@pytest.mark.parametrize(
    "model", [renamed(validation_alias="nX"), renamed(serialization_alias="nX"), Holder], ids=str
)
def test_a_model_that_does_not_read_what_it_writes_is_refused(model: type[BaseModel]):
    with pytest.raises(
        ConfigurationError, match=r"Renamed\.n of state model .* is written as 'nX?', which is"
    ):
        Agent("a", state_model=model)


@pytest.mark.parametrize(
    "model",
    [
        renamed(alias="nX"),
        renamed(validation_alias=AliasChoices("nX", "n")),
        renamed(validation_alias=AliasChoices("old", AliasPath("nX")), serialization_alias="nX"),
    ],
)
def test_a_model_with_aliases_that_it_reads_keeps_what_is_written(model: type[BaseModel]):
    shape = StateShape(model)
    first = shape.merge(shape.initial().value, {"n": 5})
    assert shape.stored(orjson.loads(first.encoded)).state.n == 5  # type: ignore[attr-defined]
    assert shape.merge(first.value, {"n": 6}).state.n == 6  # type: ignore[attr-defined]


class Endless(BaseModel):
    x: float = float("inf")


class NoNumber(BaseModel):
    x: int = None  # type: ignore[assignment]


@pytest.mark.parametrize("model", [Endless, NoNumber])
def test_defaults_that_are_not_read_back_are_refused(model: type[BaseModel]):
    with pytest.raises(ConfigurationError, match=rf"the defaults of state model {model.__name__} .*\(x: "):
        Agent("a", state_model=model)


@pytest.mark.parametrize("how", ["utf8", "base64", "hex"])
def test_bytes_are_kept_as_the_model_says(how: str):
    class Blob(BaseModel):
        model_config = ConfigDict(ser_json_bytes=how, val_json_bytes=how)  # type: ignore[typeddict-item]
        content: bytes = b""

    shape = StateShape(Blob)
    merged = shape.merge(shape.initial().value, {"content": b"aGVsbG8="})
    assert merged.state.content == b"aGVsbG8="
    assert shape.stored(orjson.loads(merged.encoded)).state.content == b"aGVsbG8="


Body = TypeVar("Body", bound=BaseModel)
Kept = TypeVar("Kept")


class Order(BaseModel):
    item: str


class Taking(Generic[Body]):
    pass


class Generically(Agent[Desk], Generic[Body]):
    pass


class Keeping(Agent[Kept], Taking[Order], Generic[Body, Kept]):
    pass


def test_the_state_is_what_stands_for_it_in_agent_whatever_else_is_generic():
    class OfOrders(Generically[Order]):
        pass

    class Mixed(Agent[Desk], Taking[Order]):
        pass

    class Given(Keeping[Order, Desk]):
        pass

    class Later(Given):
        pass

    for cls in (OfOrders, Mixed, Given, Later):
        assert isinstance(cls("a")._shape.initial().state, Desk)
    assert Keeping("a")._shape.initial().state == {}


@pytest.mark.parametrize("model", [Desk(), "Desk", list[int]], ids=repr)
def test_what_is_no_class_is_no_state_model(model: Any):
    with pytest.raises(ConfigurationError, match="must be a pydantic model or dict, not an object of class"):
        Agent("a", state_model=model)


@pytest.mark.parametrize("model", [None, dict, dict[str, object], dict[str, int]])
def test_a_dict_is_one(model: Any):
    assert Agent("a", state_model=model)._shape.initial().state == {}


def test_a_dataclass_as_state_is_refused_where_the_agent_is_made():
    @dataclass
    class Plain:
        n: int = 0

    class Bad(Agent[Plain]):
        pass

    with pytest.raises(ConfigurationError, match="must be a pydantic model or dict, not Plain"):
        Bad("a")


def test_a_model_that_makes_such_an_integer_is_refused():
    class Counter(BaseModel):
        n: int = 0
        shown: Any = None

        @model_validator(mode="after")
        def show(self) -> Counter:
            self.shown = self.n * 10**20
            return self

    shape = StateShape(Counter)
    with pytest.raises(StateInvalid, match="more than 64 bits"):
        shape.merge(shape.initial().value, {"n": 3})


def test_every_other_number_is_kept():
    numbers = [2**64 - 1, -(2**63), 1e30, 0.1234567890123456789, str(10**30)]
    shape = StateShape[dict[str, object]](None)
    assert shape.merge({}, {"numbers": numbers}).state == {"numbers": numbers}


async def test_many_handlers_of_one_instance_count_right(make: Make, worker: ScriptedWorker):
    async def handler(agent: Agent[Any]) -> None:
        await asyncio.sleep(0)
        await agent.update_state({"answered": agent.state.answered + 1})

    async with make() as agent:
        await asyncio.gather(*(handler(agent) for _ in range(100)))
        assert agent.state.answered == 100
    async with make() as agent:
        assert agent.state.answered == 100
    assert worker.count(Op.STATE) < 50  # written together


async def test_a_lost_race_raises_and_shows_the_newest(make: Make):
    async with make() as one, make() as two:
        await one.update_state({"answered": 1})
        with pytest.raises(StateConflict):
            await two.update_state({"nick": "two"})
        assert two.state.answered == 1
        await two.update_state({"nick": "two"})
        assert (await one.refresh_state()) == Desk(answered=1, nickName="two")


async def test_updates_made_on_top_of_a_lost_one_are_lost_with_it(make: Make):
    async with make() as one, make() as two:
        await one.update_state({"answered": 10})
        results = await asyncio.gather(
            *(two.update_state({"answered": two.state.answered + 1}) for _ in range(5)),
            return_exceptions=True,
        )
        assert all(isinstance(result, StateConflict) for result in results), results
        assert two.state.answered == 10


async def test_every_instance_retrying_loses_nothing(make: Make):
    async def count(agent: Agent[Any]) -> None:
        for _ in range(10):
            while True:
                try:
                    await agent.update_state({"answered": agent.state.answered + 1})
                    break
                except StateConflict:
                    continue

    async with make() as one, make() as two, make() as three:
        await asyncio.gather(count(one), count(two), count(three))
        assert (await one.refresh_state()).answered == 30


async def test_own_write_whose_answer_was_lost(make: Make, worker: ScriptedWorker, monkeypatch: Any):
    monkeypatch.setattr("mas_nats.calls.Patience", lambda: Patience(0.2))
    async with make() as agent:
        worker.mute[Op.STATE] = 1
        await agent.update_state({"answered": 1})
        assert agent.state.answered == 1


async def test_outcome_unknown_shows_what_is_stored(make: Make, worker: ScriptedWorker, monkeypatch: Any):
    monkeypatch.setattr("mas_nats.calls.Patience", lambda: Patience(0.1))
    async with make() as agent:
        worker.mute[Op.STATE] = 1
        with pytest.raises(OutcomeUnknown):
            await agent.update_state({"answered": 1}, timeout=0.1)
        assert agent.state.answered == 1


async def test_unavailable_goes_back(make: Make, worker: ScriptedWorker):
    async with make() as agent:
        await worker.leave()
        with pytest.raises(Unavailable):
            await agent.update_state({"answered": 1})
        assert agent.state.answered == 0
        await worker.listen()
        await agent.update_state({"nick": "z"})
        assert agent.state == Desk(nickName="z")


async def test_what_a_program_did_to_the_state_it_was_shown_is_lost_with_the_update(
    make: Make, worker: ScriptedWorker
):
    async with make() as agent:
        await worker.leave()
        agent.state.answered += 1
        with pytest.raises(Unavailable):
            await agent.update_state({"answered": agent.state.answered})
        assert agent.state.answered == 0
        await worker.listen()
        await agent.update_state({"answered": agent.state.answered + 1})
    async with make() as agent:
        assert agent.state.answered == 1


async def test_what_an_update_was_given_is_not_kept(make: Make):
    """Nor does it change what is stored when a program changes what it is shown."""
    tags = ["a"]
    async with make(Agent) as agent:
        await agent.update_state({"tags": tags})
        tags.append("b")
        agent.state["tags"].append("c")
        await agent.update_state({"n": 1})
        assert agent.state == {"tags": ["a"], "n": 1}


async def test_refresh_never_goes_behind_an_own_write(make: Make, worker: ScriptedWorker):
    async with make() as agent:
        await agent.update_state({"answered": 1})
        worker.say[Op.STATE] = lambda: accepted(revision=0, value=None)
        assert (await agent.refresh_state()).answered == 1
        worker.say.clear()


@pytest.mark.parametrize("again", ["update", "reset"])
async def test_what_the_broker_lost_does_not_keep_the_state_from_being_written(
    make: Make, worker: ScriptedWorker, again: str, caplog: pytest.LogCaptureFixture
):
    """It was restored from a backup, or lost its last writes in a power cut, while the agent ran."""
    async with make() as agent:
        await agent.update_state({"answered": 1})
        kept = await worker.js.get_last_msg("KV_state", "$KV.state.a")
        await agent.update_state({"answered": 2})
        await agent.update_state({"answered": 3})
        config = (await worker.js.stream_info("KV_state")).config
        await worker.js.delete_stream("KV_state")
        await worker.js.add_stream(config)
        await worker.js.publish("$KV.state.a", kept.data)
        if again == "reset":
            assert await agent.reset_state() == Desk()
        else:
            with pytest.raises(StateConflict):
                await agent.update_state({"answered": 4})
            assert agent.state.answered == 1
            assert "restored from a backup" in caplog.text
        await agent.update_state({"nick": "b"})
        stored = await worker.js.get_last_msg("KV_state", "$KV.state.a")
        assert orjson.loads(stored.data)["nickName"] == "b"


async def test_a_copy_that_is_behind_after_a_conflict_is_waited_for(make: Make, worker: ScriptedWorker):
    async with make() as one, make() as two:
        await two.update_state({"answered": 1})
        await one.refresh_state()
        await two.update_state({"answered": 2})
        looks = iter([False, False])
        state, answer = worker._state, accepted(revision=0, value=None)

        async def behind(sender: str, fields: dict[str, str], body: Any, raw: bytes) -> Any:
            lags = body["op"] == "get" and next(looks, None) is not None
            return answer if lags else await state(sender, fields, body, raw)

        worker._state = behind  # type: ignore[method-assign]
        with pytest.raises(StateConflict):
            await one.update_state({"nick": "one"})
        assert one.state.answered == 2


async def test_corrupt_state_is_loud_and_left_alone(make: Make, worker: ScriptedWorker):
    await worker.js.publish("$KV.state.a", orjson.dumps({"answered": "many"}))
    agent = make()
    with pytest.raises(StateCorrupt, match=r"answered: int_type.*left as it is"):
        await agent.start()
    with pytest.raises(Unavailable):
        _ = agent.state
    stored = await worker.js.get_last_msg("KV_state", "$KV.state.a")
    assert orjson.loads(stored.data) == {"answered": "many"}
    await agent.reset_state()
    async with agent:
        assert agent.state == Desk()
        await agent.update_state({"answered": 1})


async def test_corrupted_while_running(make: Make, worker: ScriptedWorker):
    async with make() as agent:
        await agent.update_state({"answered": 2})
        await worker.js.publish("$KV.state.a", orjson.dumps({"answered": "many"}))
        with pytest.raises(StateCorrupt):
            await agent.refresh_state()
        with pytest.raises(StateConflict):
            await agent.update_state({"answered": 3})
        assert await agent.reset_state() == Desk()
        await agent.update_state({"answered": 3})


async def test_reset(make: Make):
    async with make() as agent:
        await agent.update_state({"answered": 2})
        assert await agent.reset_state() == Desk()
        await agent.update_state({"answered": 1})
    async with make() as agent:
        assert agent.state.answered == 1


def test_model_without_defaults_is_refused_at_once():
    class Bad(BaseModel):
        answered: int

    with pytest.raises(ConfigurationError, match=r"needs a default.*answered"):
        StateShape(Bad)


def test_other_classes_are_refused():
    with pytest.raises(ConfigurationError, match="pydantic model or dict"):
        StateShape(int)

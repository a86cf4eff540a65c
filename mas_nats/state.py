"""An agent's durable state: typed, compare-and-set, shared by all instances of the agent.

An update is visible in ``state`` at once and returns when it is durable. Updates of one instance are written
in order, those that come while a write is under way together in the next; so the everyday
``update_state({"n": self.state.n + 1})`` counts right from many handlers at once. What another instance wrote
in between is never overwritten: the update raises ``StateConflict``, and ``state`` shows the newest.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any, Generic, Literal, NamedTuple, cast, get_origin

import orjson
from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticSerializationError, to_json
from typing_extensions import TypeVar

from mas_nats.errors import (
    ConfigurationError,
    MasError,
    OutcomeUnknown,
    StateConflict,
    StateCorrupt,
    StateInvalid,
)
from mas_nats.handlers import describe
from mas_nats.model_names import not_read
from mas_nats.payload import too_large_integer
from mas_nats.session import Session
from mas_nats.state_access import CorruptAt, StateAccess, Stored

logger = logging.getLogger("mas_nats")

_SURE = 2.0
"""Seconds after which a state that is older than what this instance wrote is believed to be all there is."""
_PAUSE = 0.1

S = TypeVar("S", default=dict[str, object])


class Shaped(NamedTuple, Generic[S]):
    """One state: as a program sees it, and as it is stored."""

    value: dict[str, Any]
    encoded: bytes
    state: S


class StateShape(Generic[S]):
    """Between the state as a program sees it and the JSON object that is stored."""

    def __init__(self, model: type[S] | None) -> None:
        self._model: type[BaseModel] | None = None
        self._stored_as: dict[str, str] = {}  # the name of each field in what is stored
        self._any_name = True
        self._bytes_as: Literal["utf8", "base64", "hex"] = "utf8"
        self._name = "the state"
        if get_origin(model) is dict:
            model = None  # dict[str, object], as in Agent[dict[str, object]]
        if model is not None and model is not dict:
            if not isinstance(model, type):
                what = f"an object of class {type(model).__name__}"
                raise ConfigurationError(f"state_model must be a pydantic model or dict, not {what}")
            if not issubclass(model, BaseModel):
                raise ConfigurationError(
                    f"state_model must be a pydantic model or dict, not {model.__name__}"
                )
            self._model = model
            try:
                model()
            except ValidationError as error:
                raise ConfigurationError(
                    f"every field of state model {model.__name__} needs a default ({describe(error)})"
                ) from None
            self._name, fields = model.__name__, model.model_fields
            self._stored_as = {name: field.serialization_alias or name for name, field in fields.items()}
            self._any_name = model.model_config.get("extra") == "allow"
            self._bytes_as = model.model_config.get("val_json_bytes", "utf8")
            self._require_that_it_is_read_back(model)

    def _require_that_it_is_read_back(self, model: type[BaseModel]) -> None:
        for each, name, written in not_read(model):
            raise ConfigurationError(
                f"{each.__name__}.{name} of state model {self._name} is written as {written!r}, "
                "which is not read: use alias=, or name that among its validation aliases"
            )
        try:
            self.initial()
        except ValueError as error:
            reason = describe(error) if isinstance(error, ValidationError) else "they have no JSON form"
            raise ConfigurationError(
                f"the defaults of state model {self._name} are not read back from JSON ({reason})"
            ) from None

    def initial(self) -> Shaped[S]:
        """What an agent starts with."""
        return self.stored(orjson.loads(self._dump(self._model())) if self._model else {})

    def stored(self, value: dict[str, Any]) -> Shaped[S]:
        """A stored value.

        Raises:
            ValidationError: it does not fit the model.

        """
        encoded = orjson.dumps(value)
        return Shaped(value, encoded, self._read(encoded))

    def merge(self, value: dict[str, Any], changes: Mapping[str, object]) -> Shaped[S]:
        """``value`` with ``changes`` applied.

        Raises:
            StateInvalid: a change names an unknown field, has the wrong type, or has no JSON form.

        """
        names = self._stored_as
        if not self._any_name and not changes.keys() <= names.keys():
            raise StateInvalid(self._unknown(changes))
        try:
            encoded = to_json(dict(changes), by_alias=True, bytes_mode=self._bytes_as, inf_nan_mode="null")
        except PydanticSerializationError as error:
            raise StateInvalid(f"the update has no JSON form: {error}") from None
        plain = orjson.loads(_exact(encoded))
        merged = value | {names.get(name, name): part for name, part in plain.items()}
        try:
            shaped = self.stored(merged)
            if not isinstance(shaped.state, BaseModel):
                return shaped
            dumped = self._dump(shaped.state)  # what the model leaves out, or writes differently, is not kept
            return shaped if dumped == shaped.encoded else self.stored(orjson.loads(_exact(dumped)))
        except ValidationError as error:
            raise StateInvalid(f"the update does not fit the state model: {describe(error)}") from None

    def again(self, shaped: Shaped[S]) -> Shaped[S]:
        """The same, as if no program had seen it: one may have changed what it was shown."""
        return shaped._replace(state=self._read(shaped.encoded))

    @staticmethod
    def _dump(state: BaseModel) -> bytes:
        return state.model_dump_json(by_alias=True, round_trip=True).encode()

    def _read(self, encoded: bytes) -> S:
        # Strict: nothing is converted that JSON can tell apart.
        if self._model is None:
            return cast("S", orjson.loads(encoded))
        return cast("S", self._model.model_validate_json(encoded, strict=True))

    def _unknown(self, changes: Mapping[str, object]) -> str:
        unknown = ", ".join(repr(name) for name in changes if name not in self._stored_as)
        return f"{self._name} has no field {unknown}; it has {', '.join(self._stored_as) or 'none'}"


def _exact(encoded: bytes) -> bytes:
    """The same, unless it would not be read as it is written.

    Raises:
        StateInvalid: it has an integer of more than 64 bits.

    """
    if too_large_integer(encoded):
        raise StateInvalid("the update has an integer of more than 64 bits: keep it as a string")
    return encoded


class StateStore(Generic[S]):
    """The state of one agent, as this instance knows it."""

    def __init__(self, access: StateAccess, session: Session, shape: StateShape[S]) -> None:
        self._access = access
        self._session = session
        self._shape = shape
        self._revision = 0
        self._stored = shape.initial()
        self._current = self._stored
        self._writing = asyncio.Lock()
        self._under_way: dict[asyncio.Task[None], asyncio.Future[None]] = {}  # and who waits for each
        self._newest = 0  # number of the newest update
        self._written = 0  # number of the newest update that is durable
        self._lost: MasError | None = None  # why updates up to _lost_until were not written
        self._lost_until = 0

    @property
    def state(self) -> S:
        """The state: read it, change it with ``update``."""
        return self._current.state

    async def update(self, changes: Mapping[str, object], *, timeout: float) -> S:
        """Apply ``changes`` and return when they are durable."""
        merged = self._shape.merge(self._current.value, changes)
        if (size := len(merged.encoded)) > self._session.terms.max_state:
            raise StateInvalid(
                f"the state would have {size} bytes, the limit is {self._session.terms.max_state}"
            )
        self._newest += 1
        self._current = merged
        # Whoever made it may be cancelled; others are made on top of it, so it is not left half way.
        loop = asyncio.get_running_loop()
        durable = loop.create_future()
        writing = loop.create_task(self._tell(durable, self._newest, timeout))
        self._under_way[writing] = durable
        writing.add_done_callback(self._ended)
        await durable
        return self._current.state

    async def _tell(self, durable: asyncio.Future[None], number: int, timeout: float) -> None:
        """Make update ``number`` durable, and tell whoever waits: a turn of the loop before this ends."""
        try:
            await self._make_durable(number, timeout)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is for whoever waits
            if not durable.done():
                durable.set_exception(error)
        else:
            if not durable.done():
                durable.set_result(None)

    def _ended(self, writing: asyncio.Task[None]) -> None:
        self._under_way.pop(writing).cancel()  # where it was given up before it could tell

    async def _make_durable(self, number: int, timeout: float) -> None:
        async with self._writing:
            if number <= self._lost_until:
                raise StateConflict(
                    "an update that this one was made on top of was not written; decide again"
                ) from self._lost
            if number > self._written:
                await self._write(timeout)

    async def refresh(self, *, timeout: float) -> S:
        """Read what is stored, unless this instance has written something newer."""
        async with self._writing:
            await self._refresh(timeout)
        return self._current.state

    async def settle(self, timeout: float) -> None:
        """Wait for what was begun, ``timeout`` seconds at most; what is not written then is given up."""
        if self._under_way:
            _, late = await asyncio.wait(tuple(self._under_way), timeout=timeout)
            for writing in late:
                writing.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def reset(self, *, timeout: float) -> S:
        """Delete what is stored, whether it fits the model or not."""
        async with self._writing:
            try:
                stored = await self._access.get(timeout)
                revision, empty = stored.revision, stored.value is None
            except CorruptAt as corrupt:
                revision, empty = corrupt.revision, False
            if revision < self._revision:  # a replica that lags behind what this instance wrote
                try:
                    revision = await self._access.delete(self._revision, timeout)
                except StateConflict:  # or what it wrote is lost: then the older one is the last
                    revision = await self._access.delete(revision, timeout)
            elif not empty:
                revision = await self._access.delete(revision, timeout)
            self._take(revision, None)
        return self._current.state

    async def _write(self, timeout: float) -> None:
        """Write everything up to the newest update, as one put."""
        number, current = self._newest, self._current
        try:
            self._revision = await self._access.put(self._revision, current.encoded, timeout)
        except MasError as error:
            await self._give_up(error)
            raise
        self._stored, self._written = current, number

    async def _give_up(self, error: MasError) -> None:
        """Go back to what is stored; every update on top of the lost one is lost with it."""
        self._lost, self._lost_until = error, self._newest
        self._current = self._stored = self._shape.again(self._stored)
        if isinstance(error, StateConflict | OutcomeUnknown):
            try:
                await self._refresh(5.0, conflict=isinstance(error, StateConflict))
            except MasError:  # the next update conflicts again, and refreshes again
                return

    async def _refresh(self, timeout: float, *, conflict: bool = False) -> None:
        """Take what is stored. ``conflict``: it is not what this instance wrote last."""
        stored = await self._access.get(timeout)
        if conflict and stored.revision < self._revision:
            stored = await self._sure(stored, timeout)
        elif stored.revision < self._revision:
            return  # a replica that lags behind what this instance wrote
        revision, value = stored.revision, stored.value
        shaped = None
        if value is not None:
            try:
                shaped = self._shape.stored(value)
            except ValidationError as error:
                raise StateCorrupt(
                    f"revision {revision} of the stored state does not fit the model: {describe(error)}. "
                    "It was left as it is; reset_state() deletes it"
                ) from None
        if revision != self._revision or self._newest <= max(self._written, self._lost_until):
            self._take(revision, shaped)

    async def _sure(self, stored: Stored, timeout: float) -> Stored:
        """What is stored, where it seems older than what this instance wrote: no replica lags for long."""
        loop = asyncio.get_running_loop()
        end = loop.time() + _SURE
        while stored.revision < self._revision and loop.time() < end:
            await asyncio.sleep(_PAUSE)
            stored = await self._access.get(timeout)
        if stored.revision < self._revision:
            logger.warning(
                "the stored state is revision %d, older than revision %d that this instance knew: the broker "
                "lost what came after it, or was restored from a backup. Going on with what is stored",
                stored.revision,
                self._revision,
            )
        return stored

    def _take(self, revision: int, stored: Shaped[S] | None) -> None:
        if self._newest > max(self._written, self._lost_until):
            self._lost, self._lost_until = None, self._newest  # made on top of what is now gone
        self._revision = revision
        self._current = self._stored = stored or self._shape.initial()

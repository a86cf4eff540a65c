"""The explorer's connection to Redis reads the audits, and Redis lets it do nothing else."""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from redis.exceptions import ResponseError

from broker_policy.audit.store import Store
from broker_policy.embedded.redis_config import READER, READER_MAY
from broker_policy.explorer.sources import WRITABLE, opened
from tests.explorer.entries import a_line, decided
from tests.explorer.served import Explorer, exploring
from tests.system import REPOSITORY, System

Attack = Callable[[Any, Store], Awaitable[Any]]
REFUSED = re.compile("no permissions|can't run this command", re.IGNORECASE)
_WRITES = "redis.call('HSET', KEYS[1], 'i', '0')"
ATTACKS: dict[str, Attack] = {
    "the head of the chain is set": lambda redis, store: redis.hset(store.layout.head, "i", "0"),
    "an entry is added": lambda redis, store: redis.xadd(store.layout.chain, {"e": "{}", "h": ""}),
    "an entry is removed": lambda redis, store: redis.xdel(store.layout.chain, "1-0"),
    "the chain is trimmed": lambda redis, store: redis.xtrim(store.layout.chain, maxlen=0),
    "an index gets a place": lambda redis, store: redis.rpush(store.layout.by("sender:assistant"), 1),
    "an outcome is written": lambda redis, store: redis.setrange(store.layout.outcomes(0), 1, "h"),
    "all of it is removed": lambda redis, store: redis.delete(store.layout.chain),
    "it is given another name": lambda redis, store: redis.rename(store.layout.chain, "mas:audit:away"),
    "it shall be gone tomorrow": lambda redis, store: redis.expire(store.layout.chain, 86_400),
    "a script writes": lambda redis, store: redis.register_script(_WRITES)(keys=[store.layout.head]),
}
"""What changes the audit, for whoever may do it."""
FORBIDDEN: dict[str, Attack] = {
    "the key of a counter is read": lambda redis, _: redis.get("mas:rate:default:x"),
    "the names of all keys are read": lambda redis, _: redis.keys("*"),
    "everything is emptied": lambda redis, _: redis.flushall(),
    "the configuration is read": lambda redis, _: redis.config_get("requirepass"),
    "the configuration is changed": lambda redis, _: redis.config_set("appendonly", "no"),
    "the user gives itself more": lambda redis, _: redis.execute_command("ACL", "SETUSER", READER, "+@all"),
    "others are told something": lambda redis, _: redis.publish("news", "x"),
    "a script is run that is not kept": lambda redis, _: redis.eval("return 1", 0),
    "the scripts of others are thrown away": lambda redis, _: redis.script_flush(),
    "the server is ended": lambda redis, _: redis.execute_command("SHUTDOWN", "NOSAVE"),
}


async def audit(system: System) -> str:
    """A namespace with a decision in its audit."""
    namespace = await system.namespace([], {})
    async with system.redis() as redis:
        await decided(Store(redis, namespace), a_line("note", "send"))
    return namespace


async def state(store: Store) -> list[Any]:
    """What the attacks would change."""
    layout = store.layout
    keys = (layout.head, layout.chain, layout.by("sender:assistant"), layout.outcomes(0))
    return [(await store.redis.dump(key), await store.redis.ttl(key)) for key in keys]


async def test_redis_refuses_whatever_is_no_reading(system: System):
    namespace = await audit(system)
    async with system.redis() as redis, opened(system.layout.root, namespace) as sources:
        assert not sources.may_write
        for _ in range(5):  # workers, too, write while they begin to serve it
            before = await state(Store(redis, namespace))
            for name, attack in (ATTACKS | FORBIDDEN).items():
                with pytest.raises(ResponseError) as refused:
                    await attack(sources.store.redis, sources.store)
                assert REFUSED.search(str(refused.value)), name
            after = await state(Store(redis, namespace))
            if after == before:
                break
        assert after == before
        assert (await sources.store.head()).index  # reading still goes


@pytest.mark.parametrize("attack", [pytest.param(attack, id=name) for name, attack in ATTACKS.items()])
async def test_the_connection_of_the_workers_could_do_it(system: System, attack: Attack):
    """The control: the attacks are such that they work where Redis lets them."""
    namespace = await audit(system)
    async with system.redis() as redis:
        store = Store(redis, namespace)
        before = await state(store)
        await attack(redis, store)
        assert await state(store) != before
        await redis.delete("mas:audit:away")


@contextlib.asynccontextmanager
async def user(system: System, *rules: str) -> AsyncIterator[None]:
    """While it lasts the reader is changed by ``rules``; all else in Redis goes on."""
    async with system.redis() as redis:
        raw: Any = redis
        await raw.execute_command("ACL", "SETUSER", READER, *rules)
        try:
            yield
        finally:
            await raw.execute_command("ACL", "SETUSER", READER, "on", *READER_MAY)


def notices(explorer: Explorer) -> list[str]:
    return [each["text"] for each in explorer.api("overview")["notices"]]


async def test_a_redis_without_that_user_is_read_all_the_same_and_it_is_said(system: System):
    namespace = await audit(system)
    async with user(system, "off"):
        with exploring(system, namespace) as explorer:
            assert notices(explorer) == [WRITABLE]
            assert WRITABLE in " ".join(explorer.said().split())
            assert explorer.api("decisions")["decisions"]
    with exploring(system, namespace) as explorer:  # the control
        assert notices(explorer) == []
        assert WRITABLE not in " ".join(explorer.said().split())
        assert explorer.api("decisions")["decisions"]


async def test_a_user_of_that_name_that_may_write_is_said(system: System):
    namespace = await audit(system)
    async with user(system, "+del"):
        with exploring(system, namespace) as explorer:
            assert notices(explorer) == [WRITABLE]


def test_what_to_type_for_a_redis_of_ones_own_is_what_the_embedded_one_has():
    page = (REPOSITORY / "docs" / "explorer.md").read_text()
    assert f"ACL SETUSER {READER} on >PASSWORD {' '.join(READER_MAY)}" in page

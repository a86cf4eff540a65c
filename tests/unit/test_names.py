"""One name, where a list of names is meant, is refused: it would be a list of letters."""

from __future__ import annotations

from typing import Any

import pytest

from broker_policy.server import Authorization
from mas_nats import ConfigurationError
from mas_nats.names import names
from mas_nats.testing import MemoryBroker


def test_a_list_of_names_may_be_of_any_kind():
    for given in (["a", "b"], ("a", "b"), {"a": 1, "b": 2}, iter("ab")):
        assert names("targets", given) == ("a", "b")


@pytest.mark.parametrize("given", ["desk", ["desk", 1], b"desk"])
def test_anything_else_is_none(given: Any):
    with pytest.raises(TypeError, match="targets must be a list of names"):
        names("targets", given)


@pytest.mark.parametrize("which", ["allowed_targets", "blocked_targets"])
async def test_whom_an_agent_may_reach_is_a_list(which: Any):
    store: Any = None
    with pytest.raises(TypeError, match=f"{which} must be a list of names, not 'desk'"):
        await Authorization(store, "default").set_permissions("router", **{which: "desk"})


async def test_a_role_is_of_lists():
    store: Any = None
    authz = Authorization(store, "default")
    with pytest.raises(TypeError, match="agents must be a list of names"):
        await authz.set_role("clerk", ["send:desk"], "router")
    with pytest.raises(ConfigurationError, match=r"^role clerk is wrong: .*no action 'read'[^\n]*$"):
        await authz.set_role("clerk", ["read:desk"], ["router"])


async def test_so_it_is_in_memory():
    for wrong in ({"allow": {"a": "b"}}, {"block": {"a": "b"}}):
        with pytest.raises(TypeError, match="list of names"):
            MemoryBroker(["a", "b"], **wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="capabilities must be"):
        MemoryBroker({"a": "qa"})
    async with MemoryBroker(["a", "b"]) as broker:
        with pytest.raises(TypeError, match="blocked must be"):
            broker.set_permissions("a", blocked="b")

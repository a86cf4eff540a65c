"""Messages between namespaces: both sides decide, both audits say so, and neither can be talked round."""

from __future__ import annotations

from typing import Any

import pytest

from mas_nats import PermissionDenied
from tests.across import two
from tests.system import System


async def test_send_and_request_and_reply(system: System) -> None:
    async with two(system) as both:
        router, desk = await both.pair()
        sent = await router.send(both.desk, "note", {"n": 1})
        answer = await router.request(both.desk, "ask", {"n": 2}, timeout=10)
        assert answer.data == {"heard": {"n": 2}}
        assert answer.sender == both.desk
        assert [message.sender for message in desk.got] == [both.router, both.router]
        assert [message.target for message in desk.got] == ["desk", "desk"]
        asked = desk.got[1].message_id
        for message_id, op in ((sent, "send"), (asked, "request")):
            [left] = await both.decisions(both.sales, message_id)
            [came] = await both.decisions(both.billing, message_id)
            assert (left["f"], left["t"], left["o"], left["d"]) == ("router", both.desk, op, "ALLOWED")
            assert (came["f"], came["t"], came["o"], came["d"]) == (both.router, "desk", op, "ALLOWED")
            assert (left["outcome"], came["outcome"]) == ("a", "h")
            assert left["x"] == came["x"], "the certificate"
        reply = answer.message_id
        [left] = await both.decisions(both.billing, reply)
        [came] = await both.decisions(both.sales, reply)
        assert (left["f"], left["t"], left["outcome"]) == ("desk", both.router, "a")
        assert (came["f"], came["t"], came["outcome"]) == (both.desk, "router", "a")
        both.verify()


@pytest.mark.parametrize(
    "rules",
    [
        {"out": {}},
        {"out": {"router": ["*"]}},
        {"out": {"router": ["desk"]}},
        {"block_out": {"router": ["B/desk"]}},
        {"block_out": {"router": ["B/*"]}},
        {"block_out": {"router": ["*"]}},
    ],
    ids=["nothing", "everybody at home", "namesake", "blocked", "namespace blocked", "all blocked"],
)
async def test_what_the_sender_s_side_refuses_never_shows_on_the_other(system: System, rules: Any) -> None:
    async with two(system, **rules) as both:
        router, desk = await both.pair()
        with pytest.raises(PermissionDenied) as refused:
            await router.send(both.desk, "note", {"n": 1})
        [left] = await both.decisions(both.sales, refused.value.message_id)
        assert (left["d"], left["outcome"]) == ("AUTHZ_DENIED", "r")
        assert await both.unheard_of(desk, both.billing, refused.value.message_id)
        assert not desk.got
        both.verify()


@pytest.mark.parametrize(
    "rules",
    [
        {"accepts": {}},
        {"accepts": {"router": ["desk"]}},
        {"accepts": {"S/desk": ["desk"]}},
        {"accepts": {"S/router": ["router"]}},
        {"block_in": {"S/router": ["desk"]}},
        {"block_in": {"S/*": ["*"]}},
    ],
    ids=["nothing", "its own router", "another sender", "another target", "blocked", "namespace blocked"],
)
async def test_what_the_other_side_refuses_is_in_both(system: System, rules: Any) -> None:
    async with two(system, **rules) as both:
        router, desk = await both.pair()
        with pytest.raises(PermissionDenied) as refused:
            await router.send(both.desk, "note", {"n": 1})
        assert refused.value.verdict.rule == "not_accepted"
        [left] = await both.decisions(both.sales, refused.value.message_id)
        [came] = await both.decisions(both.billing, refused.value.message_id)
        assert (left["d"], left["r"], left["outcome"]) == ("AUTHZ_DENIED", "not_accepted", "r")
        assert (came["d"], came["f"], came["outcome"]) == ("AUTHZ_DENIED", both.router, "r")
        assert not desk.got
        both.verify()

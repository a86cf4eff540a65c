"""Who is from where: nobody can say it is from another namespace, or answer what it was not asked there."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest

from mas_nats import Agent, AgentMessage, ForeignReply
from mas_nats.wire import headers
from mas_nats.wire.subjects import Op
from mas_nats.wire.verdict import Decision, Verdict
from tests.across import Desk, two
from tests.system import System


async def call(agent: Any, op: str, body: object = None, **fields: str) -> Verdict:
    """A call with whatever headers, on the connection of a real agent."""
    named = {name.replace("_", "-"): value for name, value in fields.items()}
    verdict: Verdict = await agent._alive().calls.call(op, orjson.dumps(body or {}), named, timeout=5)
    return verdict


# -- the sender ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("header", ["Mas-Sender", "Mas-Origin", "Mas-Namespace", "Mas-Message-Id"])
async def test_a_header_does_not_say_who_sends(system: System, header: str) -> None:
    async with two(system, accepts={"S/router": ["desk"], "router": ["desk"]}) as both:
        router, desk = await both.pair()
        namesake = await both.start(both.billing, "router")
        sent = {"Mas_Target": both.desk, "Mas_Type": "note", header.replace("-", "_"): f"{both.billing}/ceo"}
        assert (await call(router, Op.SEND, Nats_Msg_Id="m1", **sent)).ok
        forged = {"Mas_Target": "desk", "Mas_Type": "note", header.replace("-", "_"): both.router}
        assert (await call(namesake, Op.SEND, Nats_Msg_Id="m2", **forged)).ok
        async with asyncio.timeout(10):
            while len(desk.got) < 2:
                await asyncio.sleep(0.02)
        assert {message.message_id: message.sender for message in desk.got} == {
            "m1": both.router,
            "m2": "router",
        }


# -- the reply ----------------------------------------------------------------------------------------------
class Keeping(Desk):
    """Keeps requests and answers none."""

    async def on_message(self, message: AgentMessage) -> None:
        self.got.append(message)
        self.arrived.set()


async def test_nobody_else_can_answer_a_request_from_elsewhere(system: System) -> None:
    everybody = {"router": ["desk", "B/desk", "B/router"], "desk": ["router"]}
    accepts = {"S/router": ["desk", "router"], "desk": ["router"], "router": ["desk"]}
    third = await system.namespace(["desk", "router"], {"router": ["desk"]})
    async with two(system, out=everybody, accepts=accepts) as both:
        router = await both.start(both.sales, "router")
        asked = await both.start(both.billing, "desk", Keeping)
        others: list[Agent[Any]] = [
            await both.start(both.billing, "router", Keeping),
            await both.start(both.sales, "desk", Keeping),
            await both.start(third, "desk", Keeping),
            await both.start(third, "router", Keeping),
        ]
        asking = asyncio.create_task(router.request(both.desk, "ask", {"n": 1}, timeout=20))
        async with asyncio.timeout(10):
            await asked.arrived.wait()
        message = asked.got[0]
        for other in (*others, router):
            with pytest.raises(ForeignReply):
                await other.send_reply_envelope(message, "answer", {"forged": True})
        for token in _altered(message.reply_token):
            verdict = await call(asked, Op.REPLY, Nats_Msg_Id="r1", Mas_Type="answer", Mas_Reply_Token=token)
            assert verdict.decision is Decision.REPLY_FOREIGN
        assert not asking.done()
        assert (await message.reply("answer", {"mine": True})).delivered  # the control
        assert (await message.reply("answer", {"again": True})).duplicate
        assert (await asking).data == {"mine": True}


async def test_a_token_of_one_namespace_is_worth_nothing_in_another(system: System) -> None:
    """The namesake elsewhere of an agent that was asked at home."""
    async with two(system, out={"router": ["desk"]}) as both:
        router = await both.start(both.sales, "router")
        asked = await both.start(both.sales, "desk", Keeping)
        namesake = await both.start(both.billing, "desk", Keeping)
        asking = asyncio.create_task(router.request("desk", "ask", {}, timeout=20))
        async with asyncio.timeout(10):
            await asked.arrived.wait()
        with pytest.raises(ForeignReply):
            await namesake.send_reply_envelope(asked.got[0], "answer", {"forged": True})
        assert (await asked.got[0].reply("answer", {"mine": True})).delivered
        assert (await asking).data == {"mine": True}


def _altered(token: str) -> list[str]:
    middle = len(token) // 2
    flipped = "A" if token[middle] != "A" else "B"
    return [token[:middle] + flipped + token[middle + 1 :], token[:-8], token + "AAAA", "", "/", "a/b"]


async def test_a_frame_cannot_go_where_only_a_reply_may(system: System) -> None:
    async with two(system) as both:
        router = await both.start(both.sales, "router")
        asked = await both.start(both.billing, "desk", Keeping)
        stream = router.stream(both.desk, "ask", {}, timeout=20)
        reading = asyncio.create_task(anext(aiter(stream)))
        async with asyncio.timeout(10):
            await asked.arrived.wait()
        token = asked.got[0].reply_token
        verdict = await call(
            asked,
            Op.FRAME,
            {"chunks": ["x"], "final": True},
            Nats_Msg_Id="f1",
            Mas_Type="answer",
            Mas_Reply_Token=token,
        )
        assert (verdict.decision, verdict.rule) == (Decision.INVALID, "no_stream")
        await asked.got[0].reply("answer", {"whole": True})
        assert await reading == {"whole": True}


# -- the target ---------------------------------------------------------------------------------------------
TRICKS = (
    "{b}/desk/x", "{b}//desk", "/desk", "{b}/", "{b}/*", "*/desk", "{b}/>", ">", "{b}/de*", "{b}.desk",
    "{b}/desk.x", "mas.inbox.desk", "{b}/ desk", "{b} /desk", "{b}\\desk", "{b}%2Fdesk", "{b}\uff0fdesk",
    "{b}\u2215desk", "{b}/d\u0435sk", "{b}/DESK", "../{b}/desk", "./desk", "{b}/../{b}/desk", "{b}/\0desk",
    "{s}/../{b}/desk", "$KV.state.desk", "{b}/$KV.state.desk", "{b}/desk\u200b",
    "spiffe://mas/ns/{b}/agent/desk",
)  # fmt: skip


async def test_tricks_with_names_reach_nobody(system: System) -> None:
    out = {"router": ["B/desk", "B/*", "*"]}
    async with two(system, out=out, accepts={"S/router": ["*"], "S/*": ["*"]}) as both:
        router, desk = await both.pair()
        at_home = await both.start(both.sales, "desk")
        before = await last_sequence(both, both.billing)
        for number, trick in enumerate(TRICKS):
            target = trick.format(b=both.billing, s=both.sales)
            for op in (Op.SEND, Op.DELAY, Op.FLOW, Op.CANCEL):
                fields = {headers.MSG_ID: f"{op}{number}", headers.TARGET: target, headers.TYPE: "note"}
                fields |= {headers.DELAY: "1"}
                try:
                    verdict = await router._alive().calls.call(op, b"{}", fields, timeout=5)
                except (ValueError, UnicodeError):
                    continue  # no header can hold it
                assert not verdict.ok, target
                assert verdict.decision in (Decision.INVALID, Decision.AUTHZ_DENIED), (target, verdict)
        assert await last_sequence(both, both.billing) == before, "something got into the other's log"
        assert not desk.got
        assert not at_home.got
        await router.send(both.desk, "note", {})  # the control
        assert await last_sequence(both, both.billing) > before


async def test_only_messages_name_agents_elsewhere(system: System) -> None:
    async with two(system, out={"router": ["B/desk", "B/*"]}) as both:
        router, _ = await both.pair()
        before = await last_sequence(both, both.billing)
        for op in (Op.FLOW, Op.CANCEL):
            fields = {"Nats_Msg_Id": f"x{op}", "Mas_Target": both.desk, "Mas_Type": "note"}
            verdict = await call(router, op, {"read": 1}, **fields)
            assert (verdict.decision, verdict.rule) == (Decision.AUTHZ_DENIED, "cross_namespace")
        assert await last_sequence(both, both.billing) == before


async def last_sequence(both: Any, namespace: str) -> int:
    """Of the log, once nobody writes marks any more."""
    async with both.system.tenant(namespace) as nc:
        js, seen = nc.jetstream(), -1
        while True:
            last = (await js.stream_info("INBOX")).state.last_seq
            if last == seen:
                return int(last)
            seen = last
            await asyncio.sleep(1.2)

"""Programs as users write them. ``test_sdk_types`` runs mypy in strict mode over this file."""

from __future__ import annotations

from typing import assert_type

from pydantic import BaseModel

from mas_nats import Agent, AgentInfo, AgentMessage, Chunk, ReplyResult, TlsClientConfig


class Ask(BaseModel):
    question: str


class DeskState(BaseModel):
    answered: int = 0


class HelpDesk(Agent[DeskState]):
    @Agent.on("ask", model=Ask)
    async def handle_ask(self, message: AgentMessage, payload: Ask) -> None:
        assert_type(self.state, DeskState)
        assert_type(payload.question, str)
        await self.update_state({"answered": self.state.answered + 1})
        assert_type(await self.send_reply_envelope(message, "answer", {"text": "x"}), ReplyResult)

    @Agent.on("tell", model=Ask)
    async def tell(self, message: AgentMessage, payload: Ask) -> None:
        async with message.reply_stream() as out:
            await out.write(payload.question)
            await out.write({"n": 1})
            await out.write(payload)

    @Agent.on("note")
    async def note(self, message: AgentMessage) -> None:
        await message.reply("noted", Ask(question=message.message_id))


class MyAgent(Agent[dict[str, object]]):
    def __init__(self, agent_id: str, **kwargs: object) -> None:
        super().__init__(agent_id, **kwargs)

    async def on_start(self) -> None:
        assert_type(self.state, dict[str, object])

    async def on_message(self, message: AgentMessage) -> None:
        await message.reply("echo", message.data)


async def seed() -> None:
    tls = TlsClientConfig(root_ca_path="ca.pem", client_cert_path="desk.pem", client_key_path="desk.key")
    desk = HelpDesk("helpdesk", capabilities=["qa"], state_model=DeskState, tls=tls)
    await desk.start()
    assert_type(desk.state, DeskState)

    router = Agent("router", tls=tls)
    await router.start()
    assert_type(router.state, dict[str, object])
    matches = await router.discover(capabilities=["qa"])
    assert_type(matches, list[AgentInfo])
    reply = await router.request("helpdesk", "ask", {"question": "..."}, timeout=10)
    assert_type(reply, AgentMessage)
    print(reply.data["text"])

    async for chunk in router.stream("helpdesk", "tell", Ask(question="?")):
        assert_type(chunk, Chunk)
        print(chunk if isinstance(chunk, str) else chunk["n"])
    async with router.stream("helpdesk", "tell", {"question": "?"}, timeout=5) as chunks:
        assert_type(await anext(chunks), Chunk)

    typed = Agent("typed", state_model=DeskState)
    assert_type(typed.state, DeskState)
    async with MyAgent("mine", metadata={"a": 1}) as mine:
        assert_type(mine, MyAgent)
        assert_type(await mine.send("router", "hello", Ask(question="?")), str)


class Wrong(Agent[DeskState]):
    @Agent.on("ask", model=Ask)  # type: ignore[arg-type]  # the payload is an Ask
    async def handle_ask(self, message: AgentMessage, payload: DeskState) -> None: ...

    async def wrong(self) -> None:
        self.stream("b", "t", "text")  # type: ignore[arg-type]  # not a JSON object
        await self.send("b", "t", "text")  # type: ignore[arg-type]  # not a JSON object
        self.state.answerd  # type: ignore[attr-defined]  # noqa: B018

"""An agent asks its language model through its sidecar: searched, audited, and tied to what made it ask."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

import httpx
import orjson
import pytest

from mas_nats.policy import document as policy
from mas_nats.policy.governance import Governance, RateLimits
from mas_nats.sidecar import Sidecar
from mas_nats.wire import subjects
from tests.sidecar.applications import serving
from tests.sidecar.conftest import Town
from tests.sidecar.model import Model, body_of
from tests.system import mas_json

KEY = "sk-of-the-application-0001"
CHAT = "http://llm.test/v1/chat/completions"
LLM = "llm:llm.test"


class Told:
    """Who asks what the model selected."""

    def __init__(self) -> None:
        self.selected_: list[tuple[str, list[str]]] = []
        self.asked: list[str] = []

    async def may_ask(self, cause: str) -> None:
        self.asked.append(cause)

    async def selected(self, cause: str, tools: Sequence[str]) -> None:
        self.selected_.append((cause, list(tools)))


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
async def model(empty_town: Town, told: Told) -> AsyncIterator[Model]:
    """The client's and the agent's sidecar run, and a language model that the agent may ask."""
    model = Model()
    async with contextlib.AsyncExitStack() as stack:
        port = await stack.enter_async_context(serving(model.app()))
        reached = {"llm_host": "llm.test", "llm_base_url": f"http://127.0.0.1:{port}"}
        await empty_town.start(stack, "shop", **reached)
        tls = empty_town.system.tls("echo", empty_town.namespace)
        address = empty_town.system.broker.url
        agent = Sidecar(empty_town.settings("echo", **reached), server_addr=address, tls=tls, selections=told)
        empty_town.sidecars["echo"] = await stack.enter_async_context(agent)
        yield model


def thinks(town: Town, said: Any = None, url: str = CHAT, **headers: str) -> None:
    """The agent asks its model what to say."""

    async def think(text: str) -> str:
        body = said or {"messages": [{"role": "user", "content": text}]}
        fields = {"authorization": f"Bearer {KEY}", **headers}
        async with httpx.AsyncClient(proxy=town.proxy("echo"), timeout=30) as http:
            answer = await http.post(url, json=body, headers=fields)
        return f"{answer.status_code} {answer.text}"

    town.echo.think = think


async def ask(town: Town, text: str) -> str:
    """What the agent says to the client."""
    message = {"role": "user", "messageId": text, "parts": [{"kind": "text", "text": text}]}
    body = {"jsonrpc": "2.0", "id": 1, "method": "message/send", "params": {"message": message}}
    async with httpx.AsyncClient(proxy=town.proxy("shop"), timeout=30) as http:
        answer = (await http.post("http://echo.test/", json=body)).json()
    return str(answer["result"]["parts"][0]["text"])


async def decisions(town: Town, *words: str) -> list[dict[str, Any]]:
    """What the audit has of it, once it has something, and what became of it."""
    place = ("--namespace", town.namespace, "--folder", str(town.system.layout.root))
    async with asyncio.timeout(30):
        while True:
            found: Any = await asyncio.to_thread(mas_json, "audit", "query", *words, *place)
            if found["decisions"] and all(each["outcome"] != "unsettled" for each in found["decisions"]):
                return list(found["decisions"])


async def test_an_agent_asks_its_model_because_of_a_request(empty_town: Town, model: Model, told: Told):
    thinks(empty_town)
    model.calls = ["balance"]
    said = await ask(empty_town, "how much is there?")
    assert said.startswith("200 ")
    assert orjson.loads(said[4:])["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "balance"
    assert body_of(model.asked[0])["messages"][0]["content"] == "how much is there?"
    assert model.asked[0].headers["authorization"] == f"Bearer {KEY}"
    asked = await decisions(empty_town, "--sender", "echo")
    both = [each for each in asked if each["target"] == LLM]
    assert {(each["op"], each["type"], each["rule"]) for each in both} == {
        ("prompt", "llm:chat/completions", "llm"),
        ("prompt", "llm_answer:chat/completions", "llm_answer"),
    }
    assert [(each["decision"], each["outcome"]) for each in both] == [("ALLOWED", "applied")] * 2
    assert len({each["message_id"] for each in both}) == 1
    sent = await decisions(empty_town, "--sender", "shop", "--target", "echo")
    [request] = [each for each in sent if each["op"] == "request"]
    assert told.asked == [request["message_id"]]
    assert told.selected_ == [(request["message_id"], ["balance"])]


async def test_a_prompt_is_searched(empty_town: Town, model: Model):
    thinks(empty_town, {"messages": [{"role": "tool", "content": "the number is 219-09-9999"}]})
    assert (await ask(empty_town, "go on")).startswith("200 ")
    assert body_of(model.asked[0])["messages"][0]["content"] == "the number is [REDACTED:ssn]"
    thinks(empty_town, {"messages": [{"role": "tool", "content": "AKIAIOSFODNN7EXAMPLE"}]})
    refused = await ask(empty_town, "and on")
    assert refused.startswith("403 ")
    assert "AKIA" not in refused
    assert len(model.asked) == 1
    message_id = orjson.loads(refused[4:])["message_id"]
    [decision] = await decisions(empty_town, "--message-id", message_id)
    assert decision["decision"] == "DLP_BLOCKED"


@pytest.mark.parametrize(
    ("name", "rule", "decision"),
    [
        ("AKIAIOSFODNN7EXAMPLE", "policy.", "DLP_BLOCKED"),
        ("the number is 219-09-9999", "llm_header", "DLP_REDACTED"),
    ],
)
async def test_its_headers_are_searched_too(
    empty_town: Town, model: Model, name: str, rule: str, decision: str
):
    """What would be redacted does not leave either: half an id is another one."""
    thinks(empty_town, **{"idempotency-key": name})
    refused = await ask(empty_town, "go on")
    assert refused.startswith("403 ")
    document = orjson.loads(refused[4:])
    assert document["rule"].startswith(rule)
    assert name not in refused
    [found] = await decisions(empty_town, "--message-id", document["message_id"])
    assert found["decision"] == decision
    assert model.asked == []
    names = {
        "idempotency-key": f"stainless-node-retry-{uuid.uuid4()}",
        "openai-project": "proj_5uVkcn3YdxHqUW",
    }
    thinks(empty_town, **names, **{"openai-organization": "org-Tx9CDbpS8GzEPqTnkV2mBYwA"})
    assert (await ask(empty_town, "and on")).startswith("200 ")
    assert model.asked[0].headers.items() >= names.items()


async def test_the_key_is_in_no_message_record_or_log(
    empty_town: Town, model: Model, caplog: pytest.LogCaptureFixture
):
    caplog.set_level("DEBUG")
    thinks(empty_town)
    await ask(empty_town, "hello")
    assert model.asked[0].headers["authorization"] == f"Bearer {KEY}"
    await decisions(empty_town, "--sender", "echo")
    async with empty_town.system.tenant(empty_town.namespace) as nc:
        js = nc.jetstream()
        for stream in (subjects.INBOX_STREAM, subjects.REPLIES_STREAM):
            state = (await js.stream_info(stream)).state
            kept = 0
            for sequence in range(state.first_seq, state.last_seq + 1):
                with contextlib.suppress(Exception):
                    message = await js.get_msg(stream, sequence)
                    kept += 1
                    assert KEY.encode() not in (message.data or b"")
                    assert KEY not in str(message.headers)
            assert kept or stream != subjects.INBOX_STREAM
    assert KEY not in caplog.text


async def test_a_stream_of_the_model_comes_event_by_event(empty_town: Town, model: Model, told: Told):
    model.calls, model.paced = ["pay"], asyncio.Event()
    body = {"stream": True, "messages": []}

    async def think(text: str) -> str:
        assert model.paced is not None
        parts = []
        async with (
            httpx.AsyncClient(proxy=empty_town.proxy("echo"), timeout=30) as http,
            http.stream("POST", CHAT, json=body) as answer,
        ):
            async for line in answer.aiter_lines():
                if line:
                    parts.append(line)
                    model.paced.set()  # goes on only when the application has the first event
        return parts[-1] + str(len(parts))

    empty_town.echo.think = think
    async with asyncio.timeout(60):
        assert await ask(empty_town, "go") == "data: [DONE]5"
    assert [tools for _, tools in told.selected_] == [["pay"]]


async def test_only_agents_ask_and_only_for_a_known_request(empty_town: Town, model: Model, told: Told):
    async with httpx.AsyncClient(proxy=empty_town.proxy("shop"), timeout=30) as http:
        answer = await http.post(CHAT, json={"messages": []})
    assert (answer.status_code, answer.json()["rule"]) == (403, "llm")
    both = asyncio.Barrier(2)
    outcome: list[str] = []

    async def think(text: str) -> str:
        await both.wait()
        async with httpx.AsyncClient(proxy=empty_town.proxy("echo"), timeout=30) as http:
            outcome.append((await http.post(CHAT, json={"messages": []})).json()["rule"])
        await both.wait()
        return text

    empty_town.echo.think = think
    await asyncio.gather(ask(empty_town, "a"), ask(empty_town, "b"))
    assert outcome == ["correlation"] * 2
    assert model.asked == []
    assert told.asked == []


async def test_an_agent_that_works_on_nothing_may_ask_and_selects_nothing(
    empty_town: Town, model: Model, told: Told
):
    model.calls = ["balance"]
    async with httpx.AsyncClient(proxy=empty_town.proxy("echo"), timeout=30) as http:
        assert (await http.post(CHAT, json={"messages": []})).status_code == 200
    assert told.selected_ == told.asked == []


async def test_prompts_count_as_messages(empty_town: Town, model: Model):
    """A limit of the agent holds for what it asks its model."""
    await empty_town.govern(Governance(rate_limit=RateLimits(per_hour=2)))
    async with httpx.AsyncClient(proxy=empty_town.proxy("echo"), timeout=30) as http:
        answers = [await http.post(CHAT, json={"messages": []}) for _ in range(3)]
    assert [each.status_code for each in answers] == [200, 200, 429]
    assert int(answers[-1].headers["retry-after"]) > 0
    assert len(model.asked) == 2


def test_policy_knows_who_is_no_agent():
    """By the type in the manifest, whatever a sidecar says of itself."""
    from mas_nats.policy.call import Call  # noqa: PLC0415
    from mas_nats.policy.prompt import prompt  # noqa: PLC0415
    from mas_nats.policy.table import Table  # noqa: PLC0415

    kinds = {"desk": "agent", "shop": "client", "bank": "mcp_server", "own": "anything"}
    agents = {name: policy.AgentPolicy(account="A", metadata={"type": kind}) for name, kind in kinds.items()}
    table = Table.compile(policy.Document(namespace="n", account="", agents=agents), 1)
    allowed = []
    for name in kinds:
        call = Call(name, "prompt", b"{}", "", message_id="m", target="llm:llm.test", type="llm:chat")
        if prompt(call, table, 1000) is None:
            allowed.append(name)
    assert allowed == ["desk", "own"]

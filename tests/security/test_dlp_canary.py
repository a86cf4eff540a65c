"""Seeded secrets, said in every way there is, and looked for wherever anything is written down.

The control is the same system with data-loss prevention off: there they are found, so the search can find.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from broker_policy.dead_letters.letters import Wanted, letters
from broker_policy.jetstream import direct_get_page
from mas_nats import Agent, AgentMessage, MasError, Reject
from mas_nats.policy.document import Limits
from mas_nats.policy.governance import Dlp, Governance
from mas_nats.reply_stream import FramedReply
from tests.system import System, mas, new_namespace, wanted

LIMITS = Limits(ack_wait=5, retry_delay=0.1, retry_delay_max=0.1, max_deliver=2)
REDACTED = "ssn"
BLOCKED = "api_key"


@dataclass
class Seeds:
    """One secret for each way, so that what leaked tells where."""

    kind: str
    made: dict[str, str] = field(default_factory=dict)

    def __call__(self, way: str) -> str:
        if way not in self.made:
            tail = secrets.token_hex(12)
            digits = f"{secrets.randbelow(9000) + 1000}"
            ssn = f"{secrets.randbelow(600) + 1:03d}-{secrets.randbelow(98) + 1:02d}-{digits}"
            self.made[way] = f"ghp_FAKE{tail}" if self.kind == BLOCKED else f"SSN {ssn.replace('666', '665')}"
        return self.made[way]

    def needles(self) -> dict[str, bytes]:
        """What to look for: no other byte in the system is likely to be the same."""
        return {way: secret.removeprefix("SSN ").encode() for way, secret in self.made.items()}


class Reading(BaseModel):
    number: int


class Note(BaseModel):
    text: str = ""


class Talker(Agent[Note]):
    """Says secrets when it answers."""

    def __init__(self, agent_id: str, seed: Callable[[str], str], **options: Any) -> None:
        super().__init__(agent_id, **options)
        self.seed = seed
        self.heard: list[str] = []
        self.later = asyncio.Event()

    async def on_message(self, message: AgentMessage) -> None:
        self.heard.append(json.dumps(message.data))
        if message.message_type == "later":
            self.later.set()

    @Agent.on("ask")
    async def answer(self, message: AgentMessage) -> None:
        await message.reply("answer", {"text": f"it is {self.seed('reply')}."})

    @Agent.on("stream")
    async def stream(self, message: AgentMessage) -> None:
        secret = self.seed("frame")
        async with message.reply_stream() as out:
            for part in ("it is ", secret[:7], secret[7:11], secret[11:], ", you know"):
                await out.write(part)
                await gone(out)  # so that each goes as a frame of its own

    @Agent.on("fail")
    async def fail(self, message: AgentMessage) -> None:
        raise ValueError(f"could not use {self.seed('error')} today")

    @Agent.on("unfit")
    async def unfit(self, message: AgentMessage) -> None:
        try:
            Reading.model_validate({"number": f"it is {self.seed('model')}."})  # its text holds its input
        except ValidationError as error:
            raise ValueError(f"no reading: {error}") from error

    @Agent.on("reject")
    async def reject(self, message: AgentMessage) -> None:
        raise Reject(f"not with {'words ' * 20}{self.seed('long')}")


async def gone(out: FramedReply) -> None:
    """Until what was written went as a frame, or will never."""
    while out._pending.size and out._error is None and not (out._done or out._halted):
        out._moved.clear()
        await out._moved.wait()


async def say_everything(system: System, namespace: str, seed: Seeds) -> tuple[list[str], list[str]]:
    """Every way; the texts of all errors, and what arrived."""
    errors: list[str] = []

    def options(agent: str) -> dict[str, Any]:
        return {"server_addr": system.broker.url, "tls": system.tls(agent, namespace)}

    async def attempt(what: Any) -> Any:
        try:
            return await what or True
        except MasError as error:
            errors.append(f"{error!r} {error}")
            return None

    talker = Talker("talker", seed, state_model=Note, **options("talker"))
    async with talker, Agent("asker", **options("asker")) as asker:
        await attempt(asker.send("talker", "note", {"text": f"it is {seed('send')}."}))
        await attempt(asker.send("talker", "note", {"n": {seed("key"): [seed("deep")]}}))
        await attempt(asker.send("talker", "note", {"json": json.dumps({"v": f"a\n{seed('nested')}"})}))
        await attempt(asker.request("talker", "ask", {"text": f"it is {seed('request')}."}, timeout=10))
        await attempt(asker.request("talker", "ask", {}, timeout=10))
        later = asker.send("talker", "later", {"text": f"it is {seed('delayed')}."}, delay=0.5)
        refused = await attempt(later) is None
        await attempt(asker.send("talker", f"t:{seed('type')}".replace(" ", ":"), {}))
        await attempt(asker.send("talker", "note", {}, id=f"i:{seed('id')}".replace(" ", ":")))
        for failing in ("fail", "unfit", "reject"):
            await attempt(asker.send("talker", failing, {}))
        await attempt(talker.update_state({"text": f"it is {seed('state')}."}))

        async def read() -> None:
            said = ""
            try:
                async with asker.stream("talker", "stream", {}, timeout=10) as chunks:
                    async for chunk in chunks:
                        said += str(chunk)
            finally:
                talker.heard.append(said)

        await attempt(read())
        async with asyncio.timeout(30), system.tenant(namespace) as nc:
            while len([each async for each in letters(nc, Wanted())]) < 3:
                await asyncio.sleep(0.1)
            if not refused:
                await talker.later.wait()
    metadata = {"note": f"it is {seed('metadata')}."}

    async def announce() -> None:
        talking = Agent("talker", metadata=metadata, **options("talker"))
        async with Agent("asker", **options("asker")) as asker, talking:
            async with asyncio.timeout(5):
                while not (found := await asker.discover()):
                    await asyncio.sleep(0.05)
            talker.heard.append(repr(found))

    await attempt(announce())
    return errors, talker.heard


async def sinks(system: System, namespace: str, folder: Path) -> dict[str, bytes]:
    """Everything that is written down anywhere."""
    found = {}
    async with asyncio.timeout(30), system.redis() as redis:
        await redis.execute_command("BGREWRITEAOF")  # type: ignore[no-untyped-call]
        keys = [key async for key in redis.scan_iter(count=1000)]
        for key in keys:
            found[f"redis {key!r}"] = bytes(key) + (await redis.dump(key) or b"")
    export = folder / f"{namespace}.jsonl"
    mas("audit", "export", str(export), "--folder", str(system.layout.root), "-n", namespace)
    found["export"] = export.read_bytes()
    found["dlq"] = mas(
        "dlq", "list", "--folder", str(system.layout.root), "-n", namespace, "--json"
    ).stdout.encode()
    async with system.tenant(namespace) as nc:
        for info in await nc.jetstream().streams_info():  # some live in memory only
            page = await direct_get_page(nc, info.config.name, ">", 1, batch=1000)
            found[f"stream {info.config.name}"] = b"".join(
                repr((each.subject, each.headers)).encode() + each.data for each in page
            )
        found["letters"] = b"".join(
            [repr(each.fields).encode() + each.body async for each in letters(nc, Wanted())]
        )
    for path in system.layout.root.rglob("*"):
        if path.is_file():
            found[str(path)] = path.read_bytes()
    return found


async def searched(
    system: System, tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str, dlp: Dlp
) -> tuple[dict[str, set[str]], list[str]]:
    """Where each secret was found, and what arrived at agents."""
    content = wanted(new_namespace(), ["asker", "talker"], {"asker": ["talker"]}, limits=LIMITS)
    await system.apply(replace(content, governance=Governance(dlp=dlp)))
    seed = Seeds(kind)
    with caplog.at_level(logging.DEBUG, logger="mas_nats"):
        errors, heard = await say_everything(system, content.namespace, seed)
    everywhere = await sinks(system, content.namespace, tmp_path)
    everywhere["errors"] = "\n".join(errors).encode()
    everywhere["heard"] = "\n".join(heard).encode()
    everywhere["logs"] = "\n".join(record.getMessage() for record in caplog.records).encode()
    assert b"handling fail from" in everywhere["logs"]
    where = {
        way: {name for name, content in everywhere.items() if needle in content}
        for way, needle in seed.needles().items()
    }
    return where, heard


@pytest.mark.slow
@pytest.mark.parametrize("kind", [BLOCKED, REDACTED])
async def test_a_secret_is_written_down_nowhere(
    system: System, tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
):
    where, heard = await searched(system, tmp_path, caplog, kind, Dlp())
    assert len(where) == 15
    assert {way: places for way, places in where.items() if places} == {}
    if kind == REDACTED:
        assert any("[REDACTED:ssn]" in text for text in heard), "the rest arrived"


@pytest.mark.slow
@pytest.mark.parametrize("kind", [BLOCKED, REDACTED])
async def test_the_control_without_it_every_secret_is_found(
    system: System, tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
):
    where, _ = await searched(system, tmp_path, caplog, kind, Dlp(enabled=False))
    assert {way for way, places in where.items() if not places} == set()

"""A sender, a handler or a keeper as a process of its own: it works, and writes down what happened.

A sender repeats what is not decided under the same id until it is, also what an earlier, killed process of
the same name left behind: in the end the fate of every id is known. A keeper counts its updates of a state
that it shares with another instance.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvloop

from mas_nats import (
    Agent,
    AgentMessage,
    MasError,
    Refused,
    Reject,
    RequestFailed,
    RequestTimeout,
    TlsClientConfig,
)
from mas_nats.errors import Overloaded, PolicyStale
from tests.chaos.history import History, Log

IN_FLIGHT = 48
"""Messages that one sender has on their way at once."""
REQUEST_TIMEOUT = 10.0
REPEATED = 0.02
"""Part of the messages that are sent again, under the same id, after they were accepted."""
KINDS = (
    ("note", 0.84),
    ("ask", 0.10),
    ("flaky", 0.03),
    ("reject", 0.01),
    ("poison", 0.002),
    ("denied", 0.018),
)
"""What is sent, and how often: handled at once, asked for a reply, failing once, rejected, failing until it
is dead, refused by policy."""
KEPT_RATE = 40.0
"""Updates that a keeper makes in a second, at most: those of two are more than the bucket keeps."""
FORBIDDEN = "vault"
"""An agent that nobody may reach."""


class Handler(Agent[dict[str, Any]]):
    """Handles, and says so before it returns."""

    def __init__(self, agent_id: str, log: Log, **kwargs: Any) -> None:
        super().__init__(agent_id, **kwargs)
        self._log = log

    async def on_message(self, message: AgentMessage) -> None:
        kind, message_id = message.message_type, message.message_id
        if kind == "reject":
            self._log.write("failed", message_id)
            raise Reject("as agreed")
        if kind == "poison" or (kind == "flaky" and message.attempt == 1):
            self._log.write("failed", message_id)
            raise RuntimeError("as agreed")
        if kind == "ask":
            await message.reply("answer", {"of": message_id, "for": message.data["by"]})
        of = message.data["id"]
        self._log.write("handled", message_id, of=of, at=message.attempt, a=message.audit)


@dataclass
class Sender:
    """Sends at a rate, to targets in turn."""

    name: str
    agent: Agent[Any]
    log: Log
    targets: list[str]
    rate: float  # messages a second
    seed: int
    unsure: Counter[str] = field(default_factory=Counter)

    async def run(self, undecided: dict[str, tuple[str, str]], first: int, stop: asyncio.Event) -> None:
        """Decide what was left undecided, then send until ``stop``; returns when all are decided."""
        free = asyncio.Semaphore(IN_FLIGHT)
        clock = asyncio.get_running_loop().time

        async def one(message_id: str, target: str, kind: str) -> None:
            try:
                await self._send(message_id, target, kind)
            finally:
                free.release()

        number, due = first, clock()
        async with asyncio.TaskGroup() as tasks:
            for message_id, (target, kind) in undecided.items():
                await free.acquire()
                tasks.create_task(one(message_id, target, kind))
            while not stop.is_set():
                await free.acquire()
                tasks.create_task(one(f"{self.name}-{number}", *self._choice(number)))
                number += 1
                due = max(due + 1 / self.rate, clock() - 0.1)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), max(0.0, due - clock()))

    def _choice(self, number: int) -> tuple[str, str]:
        """Target and kind of a message; the same whoever asks, so that a successor can repeat it."""
        rng = random.Random(f"{self.seed}.{self.name}.{number}")
        (kind,) = rng.choices([kind for kind, _ in KINDS], [share for _, share in KINDS])
        return (FORBIDDEN if kind == "denied" else rng.choice(self.targets)), kind

    async def _send(self, message_id: str, target: str, kind: str) -> None:
        until = time.time() + REQUEST_TIMEOUT if kind == "ask" else 0.0
        self.log.write("attempted", message_id, to=target, y=kind, until=until)
        if not await self._until_decided(message_id, target, kind):
            return
        if kind != "ask" and random.Random(message_id).random() < REPEATED:
            await self._until_decided(message_id, target, kind)

    async def _until_decided(self, message_id: str, target: str, kind: str) -> bool:
        while True:
            try:
                await self._once(message_id, target, kind)
            except (Overloaded, PolicyStale):
                await asyncio.sleep(0.2)
            except Refused as refused:
                self.log.write("refused", message_id, why=f"{refused.decision} {refused.verdict.rule}")
                return False
            except MasError as error:  # nothing happened, or nobody knows: the same id again
                self.unsure[type(error).__name__] += 1
                await asyncio.sleep(0.1)
            else:
                return True

    async def _once(self, message_id: str, target: str, kind: str) -> None:
        body = {"id": message_id, "by": self.name, "text": "x" * 200}
        if kind != "ask":
            await self.agent.send(target, kind, body, id=message_id, timeout=10)
            self.log.write("accepted", message_id)
            return
        try:
            answer = await self.agent.request(target, kind, body, id=message_id, timeout=REQUEST_TIMEOUT)
        except (RequestTimeout, RequestFailed) as error:  # raised after it was accepted only
            self.log.write("accepted", message_id)
            self.log.write("unanswered", message_id, why=type(error).__name__)
        else:
            self.log.write("accepted", message_id)
            self.log.write("replied", message_id, of=answer.data["of"], **{"for": answer.data["for"]})


async def send(arguments: argparse.Namespace, agent: Agent[Any], path: Path, stop: asyncio.Event) -> None:
    past = History()
    if path.exists():
        past.read_file(path)
    undecided = {one: (past.sent[one].target, past.sent[one].type) for one in past.undecided()}
    first = 1 + max((int(one.rpartition("-")[2]) for one in past.sent), default=0)
    async with agent:
        arguments.ready.touch()
        sender = Sender(arguments.name, agent, Log(path), arguments.targets, arguments.rate, arguments.seed)
        await sender.run(undecided, first, stop)
    print(f"{arguments.name} had to repeat after {dict(sender.unsure)}", file=sys.stderr)


async def handle(arguments: argparse.Namespace, agent: Agent[Any], stop: asyncio.Event) -> None:
    async with agent:
        arguments.ready.touch()
        await stop.wait()


async def keep(arguments: argparse.Namespace, agent: Agent[Any], log: Log, stop: asyncio.Event) -> None:
    name, unsure = arguments.name, Counter[str]()
    async with agent:
        arguments.ready.touch()
        while not stop.is_set():
            number = int(agent.state.get(name, 0)) + 1
            log.write("keeping", f"{name}-{number}", number=number)
            try:
                await agent.update_state({name: number}, timeout=10)
            except MasError as error:  # not written, or nobody knows: the state says what it is by now
                unsure[type(error).__name__] += 1
            else:
                revision = agent._running.state._revision  # type: ignore[union-attr]
                log.write("kept", f"{name}-{number}", agent=arguments.agent, number=number, revision=revision)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), random.expovariate(KEPT_RATE))
    print(f"{name} was not told that its state is durable: {dict(unsure)}", file=sys.stderr)


async def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.program", description=__doc__)
    parser.add_argument("role", choices=("send", "handle", "keep"))
    parser.add_argument("--name", required=True, help="of this process, the same after a restart")
    parser.add_argument("--agent", required=True)
    parser.add_argument("--logs", type=Path, required=True)
    parser.add_argument("--ready", type=Path, required=True)
    parser.add_argument("--url", required=True)
    parser.add_argument("--certificate", type=Path, nargs=3, required=True, help="CA, certificate, key")
    parser.add_argument("--targets", nargs="*", default=[])
    parser.add_argument("--rate", type=float, default=100.0)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    path = arguments.logs / f"{arguments.name}.jsonl"
    options: dict[str, Any] = {"server_addr": arguments.url, "tls": TlsClientConfig(*arguments.certificate)}
    if arguments.role == "send":
        agent: Agent[Any] = Agent(arguments.agent, receive=False, **options)
        await send(arguments, agent, path, stop)
    elif arguments.role == "keep":
        await keep(arguments, Agent(arguments.agent, receive=False, **options), Log(path), stop)
    else:
        await handle(arguments, Handler(arguments.agent, Log(path), **options), stop)


if __name__ == "__main__":
    uvloop.run(main())

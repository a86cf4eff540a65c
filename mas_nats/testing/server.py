"""What stands for nats-server: who is connected, what reaches whom, and what agents may use at all."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Protocol

from mas_nats.policy.call import Call
from mas_nats.policy.document import Document
from mas_nats.testing.consumer import Puller
from mas_nats.testing.crossing import Crossing
from mas_nats.testing.faults import Effect, Faults
from mas_nats.testing.service import MemoryService
from mas_nats.transport import Incoming
from mas_nats.wire import headers, subjects
from mas_nats.wire.state_mode import StateMode
from mas_nats.wire.verdict import Verdict

NO_RESPONDERS = "503"
_NOT_FOUND = "404"
_STORED_REPLY = f"$JS.API.DIRECT.GET.{subjects.REPLIES_STREAM}."


class Peer(Puller, Protocol):
    """A connection, as the server sees it."""

    agent: str

    @property
    def waits(self) -> bool:
        """Whether an answer is awaited."""

    def lost(self) -> None:
        """The server, or the way to it, went away."""

    def back(self) -> None:
        """The way is there again."""

    async def reconnect(self) -> None:
        """Connect anew."""


class NotGranted(Exception):
    """The agent may not use this subject."""


class MemoryServer:
    """The one server of a ``MemoryBroker``. ``now`` is unix time in seconds; for ``neighbours`` see there."""

    def __init__(self, document: Document, now: Callable[[], float], neighbours: dict[str, Crossing]) -> None:
        self.now = now
        self.document = document
        self.service = MemoryService(document, now=now, publish=self._publish, neighbours=neighbours)
        self.faults = Faults()
        self.workers = True
        self.connections: dict[Peer, None] = {}  # every one that is not closed, in the order of opening
        self.connected: dict[Peer, None] = {}
        self.handled: set[str] = set()  # acknowledgement subjects of deliveries whose handlers run
        self.cut: set[str] = set()  # agents that do not reach the server
        self.changed = asyncio.Event()

    def apply(self, document: Document) -> None:
        """Judge under ``document``; agents that are not in it any more lose their connections."""
        before, self.document = self.document, document
        self.service.apply(document)
        switched = {
            name
            for name, policy in document.agents.items()
            if name in before.agents and before.agents[name].state != policy.state
        }
        for peer in tuple(self.connected):
            if peer.agent not in document.agents or peer.agent in switched:
                peer.lost()

    def take(
        self,
        peer: Peer,
        subject: str,
        body: bytes,
        fields: Mapping[str, str],
        answer: Callable[[Incoming], None],
    ) -> None:
        """Take a message that wants an answer.

        Raises:
            NotGranted: this agent may not publish there.

        """
        agent = peer.agent
        if subject.startswith(subjects.call(agent, "")):
            self._take_call(subject, body, fields, answer)
        elif subject.startswith(subjects.stored_replies(agent).removesuffix(">")):
            stored = self.service.replies.fetch(subject.removeprefix(_STORED_REPLY))
            found = stored or Incoming(subject, "", {headers.STATUS: _NOT_FOUND}, b"")
            answer(Incoming(subject, "", found.headers, found.data))
        elif subject.startswith(subjects.acks(agent).removesuffix(">")):
            self.publish(peer, subject, body, "")
            answer(Incoming(subject, "", {}, b""))
        elif self._direct(agent) and subject == subjects.kv_key(subjects.STATE_BUCKET, agent):
            ack = self.service.states.direct(agent, body, fields, self.document.limits)
            answer(Incoming(subject, "", {}, ack))
        elif self._direct(agent) and subject == subjects.stored_state(agent):
            answer(self._stored_state(agent, subject))
        else:
            raise NotGranted(subject)

    def publish(self, peer: Peer, subject: str, body: bytes, reply: str) -> None:
        """Take a message that wants no answer. One that is not granted goes nowhere."""
        consumer = self.service.consumers.get(peer.agent)
        if consumer is None:
            return
        if subject == subjects.pull(peer.agent):
            consumer.pull(peer, reply, body)
        elif subject.startswith(subjects.acks(peer.agent).removesuffix(">")):
            consumer.acknowledge(subject, body)
        self.changed.set()

    # -- the world ---------------------------------------------------------------------------------

    def cut_off(self, agent: str) -> None:
        """Let nothing of ``agent`` through."""
        self.cut.add(agent)
        for peer in tuple(self.connected):
            if peer.agent == agent:
                peer.lost()

    def let_back(self, agent: str) -> None:
        """Let ``agent`` through again."""
        self.cut.discard(agent)
        for peer in tuple(self.connections):
            if peer.agent == agent:
                peer.back()

    async def renew(self, agent: str) -> None:
        """Have ``agent`` connect anew by itself."""
        for peer in tuple(self.connected):
            if peer.agent == agent:
                await peer.reconnect()

    def restart(self) -> None:
        """Lose what lives in memory, and every connection for a moment."""
        self.service.replies.forget()
        for peer in tuple(self.connected):
            peer.lost()

    def close(self) -> None:
        """End it: nobody comes back."""
        self.service.close()
        self.cut |= {peer.agent for peer in self.connections}
        for peer in tuple(self.connected):
            peer.lost()

    def under_way(self) -> list[str]:
        """What is being handled or asked, in words."""
        found = [f"a call of {peer.agent}" for peer in self.connections if peer.waits]
        for agent, consumer in self.service.consumers.items():
            for message in consumer.busy:
                kind, sender = message.fields[headers.TYPE], message.fields[headers.SENDER]
                found.append(f"{agent} handles {kind!r} from {sender}")
        return found

    # -- calls -------------------------------------------------------------------------------------

    def _take_call(
        self, subject: str, body: bytes, fields: Mapping[str, str], answer: Callable[[Incoming], None]
    ) -> None:
        if not self.workers:
            answer(Incoming(subject, "", {headers.STATUS: NO_RESPONDERS}, b""))
            return
        call = Call.read(Incoming(subject, "", fields, body))
        call.received = int(self.now() * 1000)
        fault = self.faults.of(call)
        if fault is not None and fault.effect is Effect.LOSE_CALL:
            return
        if fault is not None and fault.refusal is not None:
            verdict: Verdict = self.service.deciding.refuse(call, fault.refusal)
        else:
            verdict = self.service.take(call)
        self.changed.set()
        if fault is None or fault.effect is not Effect.LOSE_ANSWER:
            answer(Incoming(subject, "", {}, verdict.encode()))

    def _direct(self, agent: str) -> bool:
        policy = self.document.agents.get(agent)
        return policy is not None and policy.state is StateMode.DIRECT

    def _stored_state(self, agent: str, subject: str) -> Incoming:
        newest = self.service.states.newest(agent)
        if newest is None:
            return Incoming(subject, "", {headers.STATUS: _NOT_FOUND}, b"")
        fields = newest.fields | {headers.STORED_SEQUENCE: str(newest.number)}
        return Incoming(subject, "", fields, newest.body)

    def _publish(self, incoming: Incoming) -> None:
        agent = incoming.subject.split(".")[2]
        for peer in tuple(self.connected):
            if peer.agent == agent and peer.listens(incoming.subject):
                peer.deliver(incoming)
        self.changed.set()

"""For tests of agents: a broker in memory, and fixtures that start the real one.

async with MemoryBroker({"helpdesk": ["qa"], "router": []}, allow={"router": ["helpdesk"]}) as broker:
    async with broker.agent(HelpDesk, "helpdesk"), broker.agent(Agent, "router") as router:
        answer = await router.request("helpdesk", "ask", {"question": "why"})

The agents run the real SDK; only what is below its transport is replaced. See docs/testing.md.
"""

from __future__ import annotations

from mas_nats.manifest.wanted import WantedAgent
from mas_nats.policy.document import Limits
from mas_nats.testing.broker import MemoryBroker
from mas_nats.testing.seen import DeadLetter, SeenDecision, SentMessage
from mas_nats.wire.state_mode import StateMode

__all__ = [
    "DeadLetter",
    "Limits",
    "MemoryBroker",
    "SeenDecision",
    "SentMessage",
    "StateMode",
    "WantedAgent",
]

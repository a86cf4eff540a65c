"""Whether the classes of a manifest can be used, before anything is started.

They are imported in a process of their own (``importing``): the runner never loads the agents' code, which
may crash, print or hang.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from typing import Any

from mas_nats.errors import ConfigurationError
from mas_nats.manifest.mas_yaml import AgentEntry
from mas_nats.runner.child import Child
from mas_nats.runner.guard import Guard
from mas_nats.runner.plan import Plan

TIME = 120.0
"""Seconds in which all modules must be imported."""
_LAST = 15


async def examine(plan: Plan, guard: Guard) -> None:
    """Import every class and compare it with its entry; ``guard`` ends that should the runner be gone.

    Raises:
        ConfigurationError: something does not fit; the text names line and field of each mistake.

    """
    printed: list[str] = []
    found: list[dict[str, Any]] = []
    order = {
        "folder": str(plan.folder),
        "agents": [
            {
                "agent_id": entry.agent_id,
                "class_path": entry.class_path,
                "given": _given(entry),
                "init_kwargs": list(entry.init_kwargs),  # only their names: values may be secrets
            }
            for entry in plan.entries
        ],
    }
    child = Child(
        "mas_nats.runner.importing",
        "examination",
        json.dumps(order).encode(),
        folder=plan.folder,
        guard=guard,
        output=printed.append,
        told=lambda line: found.append(json.loads(line)),
    )
    try:
        status = await asyncio.wait_for(child.run(), TIME)
    except TimeoutError:
        raise ConfigurationError(
            f"{plan.path}: importing {_named(found, plan)} took more than {TIME:g} s. "
            "What takes long belongs into on_start"
        ) from None
    if status:
        last = "".join(f"\n  {line}" for line in printed[-_LAST:])
        raise ConfigurationError(
            f"{plan.path}: importing {_named(found, plan)} ended the process with status {status}{last}"
        )
    mistakes = [each for each in found if "text" in each]
    if mistakes:
        raise plan.wrong([plan.mistake(each["agent_id"], each["field"], each["text"]) for each in mistakes])


def _given(entry: AgentEntry) -> list[str]:
    """What the runner passes to the constructor beside ``agent_id`` and ``init_kwargs``."""
    optional = {"capabilities": entry.capabilities, "metadata": entry.metadata}
    return ["server_addr", "tls", *(name for name, value in optional.items() if value)]


def _named(found: Iterable[dict[str, Any]], plan: Plan) -> str:
    """The class that was looked at last."""
    begun = [each["begun"] for each in found if "begun" in each]
    return begun[-1] if begun else plan.entries[0].class_path

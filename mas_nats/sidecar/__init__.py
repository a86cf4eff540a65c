"""The sidecar: plain HTTP of an application on one side, the SDK's messages on the other (ADR 32).

    application --HTTP--> listener -> outbound -> decision --message--> ... --message--> inbound -> decision
                                                                          --HTTP--> application

``decision`` is the one function that says what a request is and whether it may pass; both sides ask it, and
neither trusts the other's answer. ``authority`` holds what is asked for tokens, ``llm`` what is asked for the
traffic to a language model: ``llm_host`` carries it, ``selection`` reads which tools its answers select.
"""

from __future__ import annotations

from mas_nats.sidecar.application import Application, Kind, Limits, Settings
from mas_nats.sidecar.authority import Authority, NoTokens
from mas_nats.sidecar.llm import LlmPassage, Selections
from mas_nats.sidecar.process import Sidecar

__all__ = [
    "Application",
    "Authority",
    "Kind",
    "Limits",
    "LlmPassage",
    "NoTokens",
    "Selections",
    "Settings",
    "Sidecar",
]

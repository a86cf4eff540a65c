"""Data-loss prevention: what a message holds that should not leave, and what becomes of it.

``ruleset`` compiles a policy's settings; ``judge`` applies them to a JSON body in linear time: one pass over
the raw bytes says which rules could find something at all, and only those look at the decoded strings.
"""

from __future__ import annotations

from broker_policy.dlp.apart import Apart, SearchFailed
from broker_policy.dlp.judging import LARGE, Judgement, judge, possible, redact_text
from broker_policy.dlp.ruleset import Ruleset, ruleset
from broker_policy.dlp.stream import StreamScreen

__all__ = [
    "LARGE",
    "Apart",
    "Judgement",
    "Ruleset",
    "SearchFailed",
    "StreamScreen",
    "judge",
    "possible",
    "redact_text",
    "ruleset",
]

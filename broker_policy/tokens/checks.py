"""The decision function: may a token for a tool be given? A function of what is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from mas_nats.policy.applications import ToolCheck

UNSET = "unset"
UNCHECKED = "unchecked"


class ToolDecision(StrEnum):
    """``ABSTAIN``: what a check needs is not known. Nothing is given then, as with ``BLOCK``."""

    ALLOW = "ALLOW"
    BLOCK = "BLOCK"
    ABSTAIN = "ABSTAIN"


@dataclass(frozen=True, slots=True)
class ToolFacts:
    """What is known when a tool of ``server`` shall be called.

    ``registered``: it is, and approved. ``by_user``: whoever calls is the user's own application, which has
    no language model. ``input_known``: a user's token says which tools are allowed; ``allowed``: this is one.
    ``answered``: the language model has answered for this request; ``selected``: it selected this tool.
    """

    server: str
    registered: bool = False
    by_user: bool = False
    input_known: bool = False
    allowed: bool = False
    answered: bool = False
    selected: bool = False


@dataclass(frozen=True, slots=True)
class ToolJudgement:
    """What was decided, by which check, and in words."""

    decision: ToolDecision
    check: str
    reason: str = ""
    fix: str = ""

    @property
    def rule(self) -> str:
        """As it stands in the audit."""
        return f"{self.decision}:{self.check}"


def judge(checks: Sequence[ToolCheck] | None, facts: ToolFacts) -> ToolJudgement:
    """Ask all ``checks``; a no goes before what is not known. None: the manifest does not say which."""
    if checks is None:
        return ToolJudgement(
            ToolDecision.BLOCK,
            UNSET,
            "the manifest names no tool checks, so no token for a tool is given",
            "Name them in enabledToolChecks",
        )
    if not checks:
        return ToolJudgement(ToolDecision.ALLOW, UNCHECKED)
    found = [_CHECKS[check](facts) for check in dict.fromkeys(checks)]
    for decision in (ToolDecision.BLOCK, ToolDecision.ABSTAIN):
        for each in found:
            if each.decision is decision:
                return each
    return ToolJudgement(ToolDecision.ALLOW, ",".join(dict.fromkeys(checks)))


def _tool_selected(facts: ToolFacts) -> ToolJudgement:
    check = ToolCheck.TOOL_SELECTED
    if not facts.registered:
        return ToolJudgement(
            ToolDecision.BLOCK,
            check,
            f"{facts.server} has no registered and approved tool of this name",
            "Apply the manifest again, and approve the tool",
        )
    if not facts.input_known:
        return ToolJudgement(
            ToolDecision.ABSTAIN,
            check,
            "no user's input is known that made the application call",
            "An agent calls tools while it works on a request, and within five minutes",
        )
    if not facts.allowed:
        return ToolJudgement(
            ToolDecision.BLOCK,
            check,
            f"the user's token does not allow this tool of {facts.server}",
            "Let policy allow the agent to call that server; the next request may use it",
        )
    return ToolJudgement(ToolDecision.ALLOW, check)


def _llm_selected(facts: ToolFacts) -> ToolJudgement:
    check = ToolCheck.LLM_SELECTED
    if facts.by_user or facts.selected:
        return ToolJudgement(ToolDecision.ALLOW, check)
    if not facts.answered:
        return ToolJudgement(
            ToolDecision.ABSTAIN,
            check,
            "no answer of the language model was seen for this request",
            "Have the agent ask the model through its sidecar (llm_host) before it calls tools",
        )
    return ToolJudgement(
        ToolDecision.BLOCK,
        check,
        "the language model did not select this tool for this request",
        "Nothing to do where an answer or a tool's result told the agent to call it",
    )


_CHECKS = {ToolCheck.TOOL_SELECTED: _tool_selected, ToolCheck.LLM_SELECTED: _llm_selected}

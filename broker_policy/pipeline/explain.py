"""What the pipeline would say of a message, step by step, without sending it.

The steps are asked as the service asks them. What depends on traffic is not known here, and it is said how it
is set: the rates always, and the state of a circuit where no running broker was asked about it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from broker_policy.pipeline import STEPS, Call, Refusal, Step
from broker_policy.pipeline.dlp import Inspection
from mas_nats.policy import refusals
from mas_nats.policy.authorize import authorize
from mas_nats.policy.call import Finding as Found
from mas_nats.policy.shape import sized
from mas_nats.policy.table import Table
from mas_nats.wire.identity import agent_of, namespace_of
from mas_nats.wire.subjects import Op
from mas_nats.wire.verdict import Decision


class Outcome(StrEnum):
    """What a step says."""

    PASSES = "passes"
    REFUSES = "refuses"
    DEPENDS = "depends"  # on traffic
    OFF = "off"
    NOT_REACHED = "not reached"


@dataclass(frozen=True, slots=True)
class Finding:
    """One step's answer."""

    step: str
    outcome: Outcome
    rule: str = ""
    text: str = ""


@dataclass(frozen=True, slots=True)
class Explanation:
    """The decision and how it came about. ``types`` are what data-loss prevention found."""

    decision: Decision
    rule: str
    findings: tuple[Finding, ...]
    types: tuple[str, ...] = ()
    fix: str = ""


def message(sender: str, target: str, message_type: str, body: bytes) -> Call:
    """A message that is well-formed where it does not say otherwise."""
    return Call(sender, Op.SEND, body, "", message_id="dry-run", target=target, type=message_type)


def explain(
    call: Call,
    table: Table,
    open_circuits: Mapping[str, float | None] | None = None,
    *,
    others: Mapping[str, Table] | None = None,
) -> Explanation:
    """What would become of ``call`` under ``table``.

    ``open_circuits``: the seconds until each target that is left alone is tried again, None for those that
    are tried now; None altogether when nobody knows. ``others``: the policies of all namespaces, for a
    message between two; None when they are not known.
    """
    call = replace(call, origin=namespace_of(call.sender))  # a step may complete it
    call.crosses = namespace_of(call.target) not in ("", table.namespace)
    findings: list[Finding] = []
    refusal: Refusal | None = None
    rule = ""
    for step, ask, passed in _steps(call, table, open_circuits, others):
        if refusal is not None:
            findings.append(Finding(step, Outcome.NOT_REACHED))
        elif ask is None:
            findings.append(passed(call))
        elif (refusal := ask(call)) is not None:
            findings.append(Finding(step, Outcome.REFUSES, refusal.rule, refusal.reason))
        else:
            findings.append(passed(call))
            rule = findings[-1].rule or rule
    if refusal is not None:
        types = refusal.rule.removeprefix("dlp:").split(",") if refusal.step == "dlp" else ()
        return Explanation(refusal.decision, refusal.rule, tuple(findings), tuple(types), refusal.fix)
    if (found := call.finding) is not None:
        return Explanation(found.decision, found.rule, tuple(findings), found.types)
    return Explanation(Decision.ALLOWED, rule, tuple(findings))


_Ask = Callable[[Call], Refusal | None]
_Said = Callable[[Call], Finding]


_Step = tuple[str, _Ask | None, _Said]


def _steps(
    call: Call,
    table: Table,
    circuits: Mapping[str, float | None] | None,
    others: Mapping[str, Table] | None,
) -> Iterator[_Step]:
    yield _identity(call, table, others)
    if call.origin and (home := (others or {}).get(call.origin)) is not None:
        yield _content_elsewhere(home, _as_it_left(table))  # it comes as its own namespace lets it go
    for step in STEPS:
        name = step.__name__
        yield name, _asking(step, table), _PASSED.get(name, _plainly(name))(table)
    if call.crosses:
        yield _other_side(call, table, others)
    yield "rate_limit", None, _always(_rates(table))
    if call.crosses:
        text = "on the target's failures, which its own namespace counts"
        yield "circuit_breaker", None, _always(Finding("circuit_breaker", Outcome.DEPENDS, "", text))
    elif circuits is None or not table.document.governance.circuit_breaker.enabled:
        yield "circuit_breaker", None, _always(_breaker(table))
    else:
        yield "circuit_breaker", *_circuit_of(circuits)
    if table.document.governance.dlp.enabled:
        yield _content("dlp", table, lambda call: replace(call, finding=None))
    else:
        yield "dlp", None, _always(Finding("dlp", Outcome.OFF))
    if call.crosses and (there := (others or {}).get(namespace_of(call.target))) is not None:
        yield _content_elsewhere(there, _as_it_arrives(table))


_View = Callable[[Call], Call]
"""A call as the one who judges it has it."""


def _as_it_left(table: Table) -> _View:
    return lambda call: replace(
        call, sender=agent_of(call.sender), target=f"{table.namespace}/{call.target}", origin="", finding=None
    )


def _as_it_arrives(table: Table) -> _View:
    return lambda call: replace(
        call,
        sender=f"{table.namespace}/{call.sender}",
        target=agent_of(call.target),
        origin=table.namespace,
        crosses=False,
        finding=None,
    )


def _content_elsewhere(table: Table, view: _View) -> _Step:
    def sized_and_seen(call: Call) -> Refusal | None:
        return sized(view(call), table) or ask(call)

    step, ask, said = _content("other_side_content", table, view)
    return step, sized_and_seen, said


def _content(step: str, table: Table, view: _View) -> tuple[str, _Ask, _Said]:
    """A search by the rules of ``table``: what it leaves of the body goes on to the next."""
    inspection = Inspection()
    seen: list[Found | None] = []

    def ask(call: Call) -> Refusal | None:
        judged = replace(view(call), searched=None)
        if (refusal := inspection.inspect(judged, table)) is None:
            seen.append(judged.finding)
            call.body, call.finding = judged.body, judged.finding or call.finding
        return refusal

    return step, ask, lambda _: _inspected(step, seen[-1])


def _asking(step: Step, table: Table) -> _Ask:
    return lambda call: step(call, table)


def _always(finding: Finding) -> _Said:
    return lambda _: finding


def _identity(call: Call, table: Table, others: Mapping[str, Table] | None) -> _Step:
    if not call.origin:
        return "identity", lambda call: _known(call, table), _says("identity", "the sender is declared")
    if others is None:
        text = f"on namespace {call.origin}, whose policy has to let {call.sender} send it"
        return "identity", None, _always(Finding("identity", Outcome.DEPENDS, "", text))

    def ask(call: Call) -> Refusal | None:
        home, there = others.get(call.origin), f"{table.namespace}/{call.target}"
        if home is not None and home.lets(agent_of(call.sender), there):
            return None
        return refusals.withdrawn(call.sender, there)

    return "identity", ask, _says("identity", f"namespace {call.origin} lets it send")


def _other_side(call: Call, table: Table, others: Mapping[str, Table] | None) -> _Step:
    namespace, _, agent = call.target.rpartition("/")
    if others is None:
        text = f"on namespace {namespace}, whose policy has to accept {table.namespace}/{call.sender}"
        return "other_side", None, _always(Finding("other_side", Outcome.DEPENDS, "", text))

    def ask(call: Call) -> Refusal | None:
        sender = f"{table.namespace}/{call.sender}"
        if (there := others.get(namespace)) is None:
            return refusals.not_accepted(sender, call.target)
        brought = replace(call, sender=sender, target=agent, origin=table.namespace, crosses=False)
        return authorize(brought, there)

    return "other_side", ask, _says("other_side", f"namespace {namespace} accepts it, and judges it too")


def _known(call: Call, table: Table) -> Refusal | None:
    return refusals.unknown_sender(call.sender) if table.agent(call.sender) is None else None


def _authorized(table: Table) -> _Said:
    def said(call: Call) -> Finding:
        rule = table.grant(call.sender, call.target)
        how = "a rule of the manifest" if rule == "allowed_targets" else "a role of the sender"
        return Finding(
            "authorize", Outcome.PASSES, rule, f"{how} allows {call.sender} to reach {call.target}"
        )

    return said


def _shaped(table: Table) -> _Said:
    def said(call: Call) -> Finding:
        text = f"well-formed, {len(call.body)} of {table.limits.max_payload} bytes"
        return Finding("shape", Outcome.PASSES, "", text)

    return said


_PASSED: dict[str, Callable[[Table], _Said]] = {"shape": _shaped, "authorize": _authorized}


def _plainly(name: str) -> Callable[[Table], _Said]:
    return lambda _: _says(name, "")


def _says(step: str, text: str) -> _Said:
    return lambda _: Finding(step, Outcome.PASSES, "", text)


def _rates(table: Table) -> Finding:
    limits = table.document.governance.rate_limit
    if not limits.any:
        return Finding("rate_limit", Outcome.OFF, "", "nothing is limited")
    said = [f"{name} {value}" for name, value in limits.model_dump().items() if value]
    return Finding("rate_limit", Outcome.DEPENDS, "", f"on what was sent before: {', '.join(said)}")


def _breaker(table: Table) -> Finding:
    breaker = table.document.governance.circuit_breaker
    if not breaker.enabled:
        return Finding("circuit_breaker", Outcome.OFF)
    text = (
        f"on the target's failures: open for {breaker.timeout_seconds:g} s after "
        f"{breaker.failure_threshold} in {breaker.window_seconds:g} s"
    )
    return Finding("circuit_breaker", Outcome.DEPENDS, "", text)


def _circuit_of(circuits: Mapping[str, float | None]) -> tuple[_Ask, _Said]:
    def ask(call: Call) -> Refusal | None:
        wait = circuits.get(call.target)
        return None if wait is None else refusals.circuit_open(call.target, wait)

    def said(call: Call) -> Finding:
        if call.target in circuits:
            text = f"{call.target} is tried with a few messages: on whether this one is among them"
            return Finding("circuit_breaker", Outcome.DEPENDS, "", text)
        return Finding("circuit_breaker", Outcome.PASSES, "", f"the circuit of {call.target} is closed")

    return ask, said


def _inspected(step: str, found: Found | None) -> Finding:
    if found is None:
        return Finding(step, Outcome.PASSES, "", "nothing found")
    how = "delivered without it" if found.decision is Decision.DLP_REDACTED else "delivered as it is"
    return Finding(step, Outcome.PASSES, found.rule, f"found {', '.join(found.types)}: {how}")

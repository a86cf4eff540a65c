"""``mas policy show``: the rules that there are, and what other namespaces say of those that concern them."""

from __future__ import annotations

from typing import Annotated

import typer

from broker_policy.cli.app import Json, Namespace, Output, command
from broker_policy.cli.policy import policy_app
from broker_policy.cli.policy_source import FolderOption, Manifest, source
from broker_policy.pipeline.rules import Rule, rules
from mas_nats.wire.identity import DEFAULT_NAMESPACE


@command("show", group=policy_app, example="mas policy show --across --folder .mas --namespace sales")
async def show(
    agent: Annotated[
        str | None, typer.Argument(metavar="[AGENT]", help="Only rules that name this sender or target.")
    ] = None,
    *,
    across: Annotated[
        bool, typer.Option("--across", help="Only rules about agents of other namespaces.")
    ] = False,
    manifest: Manifest = None,
    folder: FolderOption = None,
    namespace: Namespace = DEFAULT_NAMESPACE,
    json: Json = False,
) -> None:
    """List who may reach whom: the rules of a manifest, or with --folder of a running broker.

    A message to another namespace needs a rule there as well; with --folder each such rule says whether that
    agrees.
    """
    table, named, others = await source(manifest, folder, namespace)
    found = [
        rule
        for rule in rules(table, others)
        if (rule.across or not across) and (agent is None or agent in (rule.sender, rule.target))
    ]
    document = {
        "policy": named,
        "rules": [
            {
                "sender": rule.sender,
                "target": rule.target,
                "effect": _effect(rule),
                "by": rule.by,
                "across": rule.across,
                "other_side": rule.other_side,
            }
            for rule in found
        ],
    }
    Output(json=json).result(document, _shown(found, named))


def _effect(rule: Rule) -> str:
    return "allow" if rule.allows else "block"


def _shown(found: list[Rule], named: str) -> str:
    ways = [f"{rule.sender} -> {rule.target}" for rule in found]
    width = max(map(len, ways), default=0)
    lines = [
        f"{named}: {len(found)} rules" if found else f"{named}: no such rule, so nothing is allowed by one"
    ]
    for rule, way in zip(found, ways, strict=True):
        other = f"  other side: {rule.other_side}" if rule.other_side else ""
        lines.append(f"  {_effect(rule)}  {way:<{width}}  {rule.by}{other}")
    return "\n".join(lines)

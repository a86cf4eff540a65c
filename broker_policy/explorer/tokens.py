"""Calls about tokens, and the checks before a tool is called, as the newest decisions have them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from broker_policy.explorer.feed import Row
from mas_nats.wire.subjects import Op

_SHOWN = 100


def about_tokens(namespace: str, kept: Sequence[Row]) -> dict[str, Any]:
    """Which of the decisions ``kept`` (oldest first) are about tokens: counted, and the newest of them."""
    found = [described(row) for row in kept if row["op"] == Op.TOKEN]
    counted = Counter(
        (row["act"], row["purpose"], row["decision"], row["rule"] if row["refused"] else "") for row in found
    )
    return {
        "namespace": namespace,
        "among": len(kept),
        "counts": [
            {
                "act": act,
                "purpose": purpose,
                "decision": decision,
                "rule": rule,
                "count": count,
            }
            for (act, purpose, decision, rule), count in counted.most_common(30)
        ],
        "newest": found[: -_SHOWN - 1 : -1],
    }


def described(row: Row) -> Row:
    """The row of such a call, with what its type says: which call, for what, of which tool."""
    act, _, about = row["type"].partition(":")
    if act == "selected":  # what the language model selected: the names of tools
        return {**row, "act": act, "purpose": "", "tool": about}
    purpose, _, tool = about.partition(":")
    return {**row, "act": act, "purpose": purpose, "tool": tool}

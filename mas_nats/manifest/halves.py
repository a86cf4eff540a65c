"""Rules between namespaces that only one of the two has: nothing passes by them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mas_nats.manifest.wanted import Wanted
from mas_nats.policy.table import Table
from mas_nats.wire.identity import ANY_AGENT, agent_of, namespace_of


def one_sided(declared: Sequence[Wanted]) -> Iterator[str]:
    """A line for each rule between two of the namespaces in which the other one has no part.

    A rule with ``namespace/*`` is passed over: it may be meant for some.
    """
    tables = {each.namespace: Table.compile(each.document(), 0) for each in declared}
    for here in declared:
        for sender, rule in here.permissions.items():
            for target in rule.allowed_targets:
                if ANY_AGENT in (agent_of(sender), agent_of(target)):
                    continue
                if (there := tables.get(namespace_of(target))) is not None:
                    if not there.allows(f"{here.namespace}/{sender}", agent_of(target)):
                        yield (
                            f"{here.namespace} lets {sender} send to {target}, but {there.namespace} does "
                            f"not accept it: nothing passes until its policy allows {here.namespace}/{sender}"
                        )
                elif (there := tables.get(namespace_of(sender))) is not None and not there.allows(
                    agent_of(sender), f"{here.namespace}/{target}"
                ):
                    yield (
                        f"{here.namespace} accepts {sender} at {target}, but {there.namespace} does not let "
                        f"it send there: nothing passes until its policy allows {here.namespace}/{target}"
                    )

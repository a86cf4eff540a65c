"""The sender's namespace is said by the worker that brought the message, never by what was read."""

from __future__ import annotations

from typing import Any

import pytest

from broker_policy.policy.store import PolicyStore
from mas_nats.policy.call import Call
from mas_nats.policy.document import AgentPolicy, Document, Permissions
from mas_nats.wire.identity import namespace_of
from mas_nats.wire.verdict import Decision, Verdict
from tests.audit_log import NAMESPACE, make_streams
from tests.serving import document, serving


def of_other() -> Document:
    """The policy of a namespace ``other`` whose router may write to bob."""
    rule = Permissions(allowed_targets=(f"{NAMESPACE}/bob",))
    return Document(
        namespace="other",
        account="",
        agents={"router": AgentPolicy(account="")},
        permissions={"router": rule},
    )


async def forge(nc: Any, monkeypatch: pytest.MonkeyPatch, *, believed: bool) -> Verdict:
    """Call as ``other/router`` from inside the tenant account, where only the subject says who calls."""
    if believed:
        read = Call.read.__func__  # type: ignore[attr-defined]

        def credulous(cls: type[Call], message: Any, received: int | None = None) -> Call:
            made: Call = read(cls, message, received)
            made.origin = namespace_of(made.sender)
            return made

        monkeypatch.setattr(Call, "read", classmethod(credulous))
    policy = document()
    accepting = {**policy.permissions, "other/router": Permissions(allowed_targets=("bob",))}
    await make_streams(nc, policy.agents, policy.limits)
    await PolicyStore(nc).put(of_other(), expected=0)
    async with serving(nc, policy.model_copy(update={"permissions": accepting})) as served:
        return await served.send("other/router", "bob")


async def test_a_subject_that_holds_a_namespace_is_nobody(nc: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    verdict = await forge(nc, monkeypatch, believed=False)
    assert (verdict.decision, verdict.rule) == (Decision.AUTHZ_DENIED, "unknown_sender")


async def test_a_service_that_believed_the_subject_would_be_talked_round(
    nc: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control."""
    assert (await forge(nc, monkeypatch, believed=True)).ok

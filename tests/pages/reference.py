"""What the examples of the reference of commands take for granted, so that each of them can be run."""

from __future__ import annotations

from collections.abc import Sequence

from tests.pages.shown import Command

ELSEWHERE = {
    "mas containers": "within containers only: tests/compose",
    "mas sidecar": "it does not end: tests/sidecar",
    "mas tools approve": "it needs an MCP server: tests/sidecar/test_tools.py",
    "mas tools show": "the same",
}
"""Examples that are run by other tests, by how they begin."""
_LAST = ("mas dlq purge", "mas down")

INSTEAD = {
    "billing/helpdesk": "helpdesk",
    "ID --salt 0123…": '"$message" --salt "$(cat salt)"',
    "/archive/audit": "archive",
    "5f0c…": "later",
    "dlq show 17": "dlq show 1",
    "--namespace shop --interval 2": "--once",
    "mas explorer --port 8222 --namespace shop": "timeout --preserve-status 15 mas explorer --port 0",
}
FAILS = {
    "mas audit accept-loss --reason 'disk of redis-1 lost' --yes": 1,  # nothing is lost
    "mas state reset helpdesk --revision 7": 1,  # it is at another one
    "mas up --detach --workers 4": 4,  # it runs already
}
"""What the examples of a system in order lead to, where that is not success."""

BEFORE = """\
cat > desk.py <<'@@END'
from pydantic import BaseModel
from mas_nats import Agent, AgentMessage

class DeskState(BaseModel):
    answered: int = 0

class HelpDesk(Agent[DeskState]):
    @Agent.on("ask")
    async def ask(self, message: AgentMessage) -> None:
        open("body.json", "wb").write(message.body)
        open("salt", "w").write(message.salt)
        await self.update_state({"answered": self.state.answered + 1})
        if message.expects_reply:
            await message.reply("answer", {"text": "Because."})

class Writer(Agent[dict[str, object]]):
    @Agent.on("tell")
    async def tell(self, message: AgentMessage) -> None:
        async with message.reply_stream() as out:
            await out.write("Once upon a time")

class Router(Agent[dict[str, object]]):
    async def on_start(self) -> None:
        self.finish()
@@END
cat > mas.yaml <<'@@END'
agents:
  - {agent_id: alice}
  - {agent_id: bob}
  - {agent_id: planner}
  - {agent_id: billing}
  - {agent_id: helpdesk, class_path: "desk:HelpDesk"}
  - {agent_id: writer, class_path: "desk:Writer"}
  - {agent_id: router, class_path: "desk:Router"}
inspectors: [carol]
operators: [dave]
permissions:
  - {type: allow, sender: router, targets: [helpdesk, writer]}
  - {type: allow, sender: planner, targets: [helpdesk]}
@@END
printf 'namespace: sales\\nagents: [{agent_id: router}]\\n' > sales.yaml
printf 'apiVersion: casa.io/v1alpha1\\nkind: MultiAgentSystem\\nmetadata: {name: travel}\\nspec:
  name: Travel
  apps: [{name: desk, type: client, baseUrl: "http://desk:8000"}]\\n' > casa.yaml
mkdir policy-tests
printf 'tests: [{name: one, sender: router, target: helpdesk,
  expect: {decision: ALLOWED}}]' > policy-tests/one.yaml
printf 'correct horse battery staple' > passphrase
printf '{"text": "call (555) 123-4567"}' > message.json
printf '{"types": ["ssn"], "body": {"text": "219-09-9999"}}\\n' > own-cases.jsonl
mas up --detach --no-manifest >/dev/null 2>&1 &&
mas apply mas.yaml >/dev/null && mas apply sales.yaml >/dev/null &&
mas certs agent alice router planner >/dev/null
mas run helpdesk writer >/dev/null 2>&1 &
message=first
mas request --as router helpdesk ask '{"question": "why"}' --id first >/dev/null &&
mas send --as planner helpdesk ask '{"question": "later"}' --id later --delay 1h >/dev/null &&
mas send --as router helpdesk nothing >/dev/null &&
until mas dlq list --json | grep -q NotHandled; do sleep 0.1; done
"""


def in_order(examples: Sequence[Command]) -> list[Command]:
    """The examples that are run here; those that take something away come last."""
    here = [each for each in examples if not each.line.startswith(tuple(ELSEWHERE))]
    return sorted(
        here, key=lambda each: next((n for n, end in enumerate(_LAST, 1) if each.line.startswith(end)), 0)
    )

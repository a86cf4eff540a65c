"""How each page is run: what it takes for granted, and what it cannot know."""

from __future__ import annotations

from dataclasses import dataclass, field

from broker_policy.embedded.ports import free_port

AGENTS = """\
cat > mas.yaml <<'@@END'
agents:
  - {agent_id: router}
  - {agent_id: helpdesk, capabilities: [qa]}
  - {agent_id: billing}
permissions:
  - {type: allow, sender: router, targets: [helpdesk]}
@@END
mas apply mas.yaml >/dev/null && mas certs agent router helpdesk billing >/dev/null
"""
_COMMITTED = """\
cat > keep.py <<'@@END'
import asyncio
from mas_nats import Agent

class Keep(Agent):
    async def on_message(self, message):
        open("body.json", "wb").write(message.body)
        open("salt", "w").write(message.salt)
        self.done.set()

async def main():
    agent = Keep("helpdesk")
    agent.done = asyncio.Event()
    async with agent:
        await agent.done.wait()

asyncio.run(main())
@@END
message=page-$(date +%s%N) && mas send --as router helpdesk ask '{"n": 1}' --id "$message" >/dev/null &&
python keep.py && salt=$(cat salt) && mkdir -p segments &&
until mas audit export audit.jsonl >/dev/null && mas audit verify >/dev/null; do sleep 0.2; done
cp .mas/keys/public/checkpoint.pub .
"""
_REJECTED = """\
cat > reject.py <<'@@END'
import asyncio
from mas_nats import Agent, AgentMessage

class Reject(Agent):
    async def on_message(self, message: AgentMessage) -> None:
        self.done.set()
        await super().on_message(message)

async def main():
    agent = Reject("helpdesk")
    agent.done = asyncio.Event()
    async with agent:
        await agent.done.wait()

asyncio.run(main())
@@END
mas send --as router helpdesk ask >/dev/null && python reject.py &&
until mas dlq list --json | grep -q NotHandled; do sleep 0.1; done
mas send --as router helpdesk ask '{"n": 1}' >/dev/null &&
mas send --as router helpdesk ask '{"n": 2}' >/dev/null
sed -i 's/helpdesk/desk/' mas.yaml
"""
_ACROSS = """\
printf 'namespace: sales
agents: [{agent_id: router}]
permissions: [{type: allow, sender: router, targets: [billing/desk]}]
' > sales.yaml
printf 'namespace: billing
agents: [{agent_id: desk}]
permissions: [{type: allow, sender: sales/router, targets: [desk]}]
' > billing.yaml
mas apply sales.yaml >/dev/null && mas apply billing.yaml >/dev/null
"""
_BANK, _SHOP = free_port(), free_port()
_APPLICATIONS = f"""\
cat > bank_server.py <<'@@END'
import uvicorn
from mcp.server.mcpserver import MCPServer

server = MCPServer("bank")

@server.tool()
def balance(account: str) -> str:
    return "100"

uvicorn.run(server.streamable_http_app(), host="127.0.0.1", port={_BANK}, log_level="warning")
@@END
cat > my_client.py <<'@@END'
import asyncio
import httpx2
from mcp import Client

async def main():
    while True:
        try:
            async with Client("http://bank.internal/mcp") as client:
                print(await client.call_tool("balance", {{"account": "a"}}))
                return
        except* (httpx2.HTTPError, OSError):  # one of them is not up yet
            await asyncio.sleep(0.2)

asyncio.run(main())
@@END
python bank_server.py &
"""


@dataclass(frozen=True, slots=True)
class Page:
    """How one page is run.

    ``before``: shell lines for what the page takes for granted. ``instead``: texts for what it cannot know.
    ``fails``: exit statuses of commands that the page means to fail. ``brings_up``: it starts its own broker.
    """

    path: str
    before: str = ""
    instead: dict[str, str] = field(default_factory=dict)
    fails: dict[str, int] = field(default_factory=dict)
    brings_up: bool = False


PAGES = (
    Page(
        "README.md",
        instead={"source <this repository>/.venv/bin/activate": "true"},
        fails={"mas policy check router billing": 1},
        brings_up=True,
    ),
    Page(
        "docs/audit.md",
        AGENTS + _COMMITTED,
        {"/archive/audit": "archive", "7f3c…": "$message", "90ab…": "$salt"},
    ),
    Page(
        "docs/backup.md",
        f"{AGENTS}printf 'correct horse battery staple' > passphrase",
    ),
    Page("docs/cluster.md", instead={"mas up --nodes 3": "mas up --nodes 3 --detach"}, brings_up=True),
    Page(
        "docs/dead-letters.md",
        AGENTS + _REJECTED,
        fails={"mas dlq redrive --agent helpdesk --reason AGENT_REMOVED": 1},
    ),
    Page(
        "docs/dlp.md",
        f"""{AGENTS}
        printf '{{"text": "call (555) 123-4567"}}' > message.json
        printf '{{"types": ["ssn"], "body": {{"text": "219-09-9999"}}}}\\n' > own.jsonl""",
        {"mas policy check a b": "mas policy check router helpdesk"},
    ),
    Page(
        "docs/explorer.md",
        f"{AGENTS}cp .mas/certs/server.pem .mas/certs/server.key .",
        {
            "pip install 'mas-nats[explorer]'": "true",
            "mas explorer": "timeout --preserve-status 15 mas explorer --port 0",
        },
    ),
    Page(
        "docs/governance.md",
        AGENTS + _ACROSS,
        {
            "mas policy check router desk": "mas policy check router helpdesk",
            "mas breaker reset desk": "mas breaker reset helpdesk",
        },
    ),
    Page(
        "docs/guides/first-agent.md",
        fails={"mas policy check shop buyer": 1},
        brings_up=True,
    ),
    Page(
        "docs/guides/from-casa.md",
        fails={"mas policy check bookings desk --namespace travel --folder .mas": 1},
    ),
    Page("docs/manifest.md", AGENTS),
    Page("docs/running.md", instead={"mas run": "timeout --preserve-status 15 mas run"}, brings_up=True),
    Page(
        "docs/sidecar.md",
        _APPLICATIONS,
        {"127.0.0.1:8080": f"127.0.0.1:{_BANK}", "127.0.0.1:8101": f"127.0.0.1:{_SHOP}"},
        brings_up=True,
    ),
    Page(
        "docs/policy-testing.md",
        f"""{AGENTS}mkdir policy-tests && printf 'tests:
  - {{name: one, sender: router, target: billing, expect: {{decision: ALLOWED}}}}
' > policy-tests/demo.yaml""",
        fails={
            "mas policy check router billing --type invoice --data '{\"amount\": 12}'": 1,
            "mas policy test": 1,
        },
    ),
)

ELSEWHERE = {
    "docs/compose.md": "tests/compose",
    "docs/cli.md": "test_every_example_of_the_reference_is_run",
    "docs/nats-cli.md": "tests/integration/test_nats_cli.py",
}
"""Pages whose commands need what not every machine has, and where they are run."""

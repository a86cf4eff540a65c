"""The ordinary ``nats`` command: what an inspector sees and cannot do, with the operator as the control."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from broker_policy.jetstream import api, publish
from mas_nats import Agent
from mas_nats.wire import subjects
from tests.conftest import Shared
from tests.nats_cli import NatsCli, Said, binary
from tests.system import REPOSITORY, System

pytestmark = pytest.mark.skipif(
    binary() is None, reason="there is no nats command: make nats-cli builds it where there is Go"
)

INSPECTOR, OPERATOR = "mas-shop-inspector", "mas-shop-operator"


class Inspected:
    """A namespace with something in every place, and contexts for it."""

    def __init__(self, system: System, cli: NatsCli) -> None:
        self.system = system
        self.cli = cli

    async def fill(self) -> None:
        """Something in each place."""
        await self.system.namespace(["helpdesk", "router"], {"router": ["helpdesk"]}, name="shop")
        async with self.agent("router") as router:
            await router.send("helpdesk", "ask", {"question": "Where is my order?"})
        async with self.agent("helpdesk") as desk:
            await desk.update_state({"answered": 1})
            await desk.update_state({"answered": 2})
        async with self.system.tenant("shop") as admin:
            await publish(admin, subjects.dead_letter("helpdesk"), b'{"dead": true}', {})

    def as_(self, context: str, *arguments: str):
        return self.cli.run("nats", "--context", context, "--timeout", "3s", *arguments)

    @asynccontextmanager
    async def talking(self) -> AsyncIterator[None]:
        """Agents send meanwhile."""

        async def talk() -> None:
            async with self.agent("router") as router:
                while True:
                    await router.discover()

        task = asyncio.create_task(talk())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def agent(self, name: str) -> Agent:
        tls = self.system.tls(name, "shop")
        return Agent(name, server_addr=self.system.broker.url, tls=tls, receive=False)

    async def content(self) -> dict[str, object]:
        """What an inspector must not change. Audit records are left out: they come by themselves."""
        async with self.system.tenant("shop") as admin:
            found: dict[str, object] = {}
            for stream in (await api(admin, "STREAM.LIST", {}))["streams"]:
                name = stream["config"]["name"]
                if name in ("KV_leases", "KV_registry", "KV_identities"):
                    continue
                info = await api(admin, f"STREAM.INFO.{name}", {"subjects_filter": ">"})
                counts = info["state"].get("subjects") or {}
                found[name] = {subject: n for subject, n in counts.items() if "mas.audit." not in subject}
                found[f"{name} config"] = info["config"]
                listed = await api(admin, f"CONSUMER.LIST.{name}", {})
                found[f"{name} consumers"] = {
                    each["name"]: (
                        each["num_pending"],
                        each["num_ack_pending"],
                        each["delivered"]["stream_seq"],
                    )
                    for each in listed["consumers"] or []
                    if each["name"] != "AUDIT" and not each["name"].startswith("VIEW-") and name == "INBOX"
                }
            return found


@pytest.fixture(scope="module")
def inspected(shared: Shared, tmp_path_factory: pytest.TempPathFactory) -> Inspected:
    system = shared.system()
    found = Inspected(system, NatsCli(tmp_path_factory.mktemp("config"), system.layout.root.parent))
    asyncio.run(found.fill())
    for role in ("inspector", "operator"):
        folder = ("--folder", str(system.layout.root))
        done = found.cli.run("mas", "context", "add", "--namespace", "shop", "--role", role, *folder)
        assert done.code == 0, done.text
    return found


# -- contexts ----------------------------------------------------------------------------------------------
def test_contexts_are_for_their_owner_only(inspected):
    for name in (INSPECTOR, OPERATOR):
        path = inspected.cli.config / "nats" / "context" / f"{name}.json"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        key = Path(json.loads(path.read_text())["key"])
        assert stat.S_IMODE(key.stat().st_mode) == 0o600


def test_the_nats_command_reads_selects_and_removes_them_as_its_own(inspected):
    folder = str(inspected.system.layout.root)
    for _ in range(2):  # repeating it changes nothing
        made = inspected.cli.run(
            "mas", "context", "add", "mine", "-n", "shop", "--as", "carol", "--select", "--folder", folder
        )
        assert made.code == 0, made.text
    assert "mine*" in inspected.cli.run("nats", "context", "ls").text
    told = inspected.cli.run("nats", "context", "info", "mine").text
    assert "spiffe://mas/ns/shop/inspector/carol" in told
    assert told.count("(OK)") == 3
    assert inspected.cli.run("nats", "stream", "ls", "--all").code == 0  # without --context
    listed = json.loads(inspected.cli.run("mas", "context", "list", "--json").text)
    assert {each["name"]: each["selected"] for each in listed["contexts"]}["mine"]
    assert inspected.cli.run("mas", "context", "remove", "mine").code == 0
    assert "mine" not in inspected.cli.run("nats", "context", "ls", "--names").text
    assert inspected.cli.run("mas", "context", "remove", "mine").code == 1


def test_a_context_of_somebody_else_is_left_alone(inspected):
    assert inspected.cli.run("nats", "context", "save", "theirs", "--server", "nats://127.0.0.1:1").code == 0
    path = inspected.cli.config / "nats" / "context" / "theirs.json"
    before = path.read_bytes()
    folder = str(inspected.system.layout.root)
    for command in (("add", "theirs", "-n", "shop", "--folder", folder), ("remove", "theirs")):
        refused = inspected.cli.run("mas", "context", *command)
        assert refused.code == 1
        assert "was not made by mas" in refused.text
    assert path.read_bytes() == before
    assert "theirs" not in inspected.cli.run("mas", "context", "list").text
    inspected.cli.run("nats", "context", "rm", "theirs", "--force")


@pytest.mark.parametrize("name", ["../up", "a/b", "a..b", "", ".hidden", "a b"])
def test_a_name_that_would_lead_elsewhere_is_refused(inspected, name):
    refused = inspected.cli.run("mas", "context", "remove", name)
    assert refused.code == 1
    assert "is no name for a context" in refused.text


def test_a_context_for_nobody_in_particular_says_what_is_missing(inspected):
    folder = str(inspected.system.layout.root)
    wrong = inspected.cli.run("mas", "context", "add", "--namespace", "nowhere", "--folder", folder)
    assert wrong.code == 1
    assert "there is no namespace 'nowhere'" in wrong.text
    wrong = inspected.cli.run("mas", "context", "add", "-n", "shop", "--role", "agent", "--folder", folder)
    assert wrong.code == 2
    assert "'inspector', 'operator'" in wrong.text


def test_a_certificate_of_ones_own_says_who_it_is(inspected, tmp_path):
    folder = str(inspected.system.layout.root)
    issued = inspected.cli.run(
        "mas", "certs", "inspector", "own", "-n", "shop", "--out", str(tmp_path), "--folder", folder
    )
    assert issued.code == 0, issued.text
    files = ("--cert", str(tmp_path / "own.pem"), "--key", str(tmp_path / "own.key"))
    made = inspected.cli.run("mas", "context", "add", "own", *files, "--folder", folder, "--json")
    assert json.loads(made.text[made.text.index("{") :])["identity"] == "spiffe://mas/ns/shop/inspector/own"
    assert inspected.as_("own", "kv", "ls", "state").text == "helpdesk"
    inspected.cli.run("mas", "context", "remove", "own")


# -- reading -------------------------------------------------------------------------------------------------
async def test_every_command_of_the_page_does_what_it_says(inspected):
    page = (REPOSITORY / "docs" / "nats-cli.md").read_text()
    commands = list(_commands(page))
    assert len(commands) >= 30
    async with inspected.talking():
        for command, note, expected in commands:
            arguments = [
                inspected.system.broker.url if "4222" in word else word for word in shlex.split(command)
            ]
            if arguments[:3] in (["mas", "context", "add"], ["mas", "context", "list"]):
                arguments += ["--folder", str(inspected.system.layout.root)] if "add" in arguments else []
            if note:
                said = await asyncio.to_thread(
                    inspected.cli.watch,
                    *arguments,
                    until=expected[0] if expected else "Reached apparent end of data",
                )
            else:
                said = await asyncio.to_thread(inspected.cli.run, *arguments)
                assert said.code == 0, (command, said)
            for fragment in expected:
                assert " ".join(fragment.split()) in said.text, (command, said.text)


def _commands(page: str):
    """Each command of the page, its remark, and the lines that stand below it."""
    for block in re.findall(r"^```console\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
        for shown in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            line, *expected = shown.rstrip("\n").split("\n")
            command, _, note = line.partition("    # ")
            yield command, note, expected


def test_each_live_worker_is_found(inspected):
    found = inspected.as_(INSPECTOR, "micro", "ls", "--json")
    listed = [each["id"] for each in json.loads(found.text) if each["name"] == "mas-policy"]
    assert len(set(listed)) == 2
    for one in listed:
        assert one in inspected.as_(INSPECTOR, "micro", "info", "mas-policy", one).text
    stats = inspected.as_(INSPECTOR, "req", "$SRV.STATS.mas-policy", "", "--replies", "2", "--raw").text
    assert '"sent":1' in stats


# -- what an inspector cannot do, and an operator can ------------------------------------------------------
CHANGES = [
    ("pub", "mas.inbox.helpdesk", "forged"),
    ("pub", "mas.audit.w1.1", "forged"),
    ("pub", "mas.call.router.send", "{}"),
    ("pub", "mas.view.root.x", "x"),
    ("pub", "$KV.state.helpdesk", "{}"),
    ("pub", "mas.admin.purge", '{"by":"x","letters":[1]}'),
    ("kv", "put", "state", "helpdesk", "{}"),
    ("kv", "create", "state", "new", "{}"),
    ("kv", "del", "state", "helpdesk", "--force"),
    ("kv", "purge", "state", "helpdesk", "--force"),
    ("kv", "rm", "attempts", "--force"),
    ("kv", "add", "mine"),
    ("stream", "purge", "DLQ", "--force"),
    ("stream", "rmm", "DLQ", "1", "--force"),
    ("stream", "edit", "DLQ", "--max-msgs", "1", "--force"),
    ("stream", "rm", "ADVISORIES", "--force"),
    ("stream", "seal", "DLQ", "--force"),
    ("stream", "add", "MINE", "--subjects", "mine", "--defaults"),
    ("stream", "copy", "DLQ", "MINE"),
    ("consumer", "next", "INBOX", "helpdesk", "--ack"),
    ("consumer", "next", "INBOX", "helpdesk", "--no-ack"),
    ("consumer", "add", "INBOX", "mine", "--pull", "--filter", "mas.inbox.helpdesk", "--defaults"),
    ("consumer", "edit", "INBOX", "helpdesk", "--max-deliver", "1", "--force"),
    ("consumer", "pause", "INBOX", "helpdesk", "1h", "--force"),
    ("consumer", "rm", "INBOX", "helpdesk", "--force"),
    ("request", "$JS.API.STREAM.PURGE.DLQ", "{}"),
    ("request", "$JS.API.CONSUMER.MSG.NEXT.INBOX.helpdesk", ""),
    ("request", "$JS.API.CONSUMER.DELETE.INBOX.helpdesk", ""),
]


async def test_an_inspector_changes_nothing(inspected):
    at_once = asyncio.Semaphore(6)

    async def attempt(command: tuple[str, ...]) -> Said:
        async with at_once:
            words = ("nats", "--context", INSPECTOR, "--timeout", "500ms", *command)
            return await asyncio.to_thread(inspected.cli.run, *words)

    before = await inspected.content()
    for command, said in zip(CHANGES, await asyncio.gather(*map(attempt, CHANGES)), strict=True):
        assert said.code != 0 or "ermissions" in said.text or "no responders" in said.text, (command, said)
    assert await inspected.content() == before


async def test_the_control_an_operator_can(inspected):
    """The same, each where it leaves the other tests their namespace as it was."""
    admin = inspected.as_
    before = await inspected.content()
    for command in (
        ("pub", "mas.dlq.helpdesk", "by hand"),
        ("kv", "put", "attempts", "by-hand", "{}"),
        ("stream", "add", "MINE", "--subjects", "mine", "--defaults"),
        ("stream", "edit", "MINE", "--max-msgs", "9", "--force"),
        ("consumer", "add", "DLQ", "mine", "--pull", "--defaults"),
        ("consumer", "next", "DLQ", "mine", "--ack"),
        ("stream", "rmm", "DLQ", "2", "--force"),
        ("consumer", "rm", "DLQ", "mine", "--force"),
    ):
        said = await asyncio.to_thread(admin, OPERATOR, *command)
        assert said.code == 0, (command, said)
    after = await inspected.content()
    assert after != before
    assert after["MINE config"]["max_msgs"] == 9
    for command in (("stream", "rm", "MINE", "--force"), ("kv", "del", "attempts", "by-hand", "--force")):
        assert (await asyncio.to_thread(admin, OPERATOR, *command)).code == 0

"""Traces and metrics on the real broker: agents in processes of their own, workers that export by OTLP."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from broker_policy.embedded.halt import halt
from broker_policy.embedded.ports import free_port, is_free
from mas_nats import Agent, AgentMessage, RateLimited
from mas_nats.policy.document import Limits
from mas_nats.policy.governance import Governance, RateLimits
from mas_nats.telemetry import exporting, names
from mas_nats.telemetry.settings import PREFIX, from_environment
from tests.otlp import WITHIN, Hanging, Receiver, Span
from tests.system import REPOSITORY, System

TOKEN = "export-" + secrets.token_hex(8)
ALLOW = {
    "asker": ["helper", "logger"],
    "helper": ["logger"],
    "other": ["helper"],
}
LIMITS = Limits(ack_wait=5, retry_delay=0.1, retry_delay_max=0.1, max_deliver=2)


@contextlib.contextmanager
def environment(**said: str) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in said.items():
            patch.setenv(name, value)
        yield


def two_free_ports() -> int:
    while True:
        port = free_port()
        if is_free(port + 1):
            return port


class Traced:
    """A broker whose workers export to ``receiver``, and show themselves on two ports."""

    def __init__(self, system: System, receiver: Receiver, port: int) -> None:
        self.system, self.receiver, self.port = system, receiver, port

    async def namespace(self, **options: Any) -> str:
        options.setdefault("limits", LIMITS)
        return await self.system.namespace(["asker", "helper", "logger", "other"], ALLOW, **options)

    def get(self, path: str, *, worker: int = 1, token: str = "") -> tuple[int, str]:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port + worker - 1}{path}", headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def both(self) -> str:
        return "".join(self.get("/metrics", worker=worker)[1] for worker in (1, 2))

    async def metric(self, *parts: str, at_least: float = 1) -> None:
        """Wait until the workers' lines that hold all ``parts`` sum up to ``at_least``."""
        async with asyncio.timeout(WITHIN):
            while total(await asyncio.to_thread(self.both), *parts) < at_least:
                await asyncio.sleep(0.1)


def total(text: str, *parts: str) -> float:
    lines = [line for line in text.splitlines() if all(part in line for part in parts)]
    return sum(float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#"))


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traced]:
    port = two_free_ports()
    with Receiver() as receiver:
        with environment(
            **{
                f"{PREFIX}ENABLED": "true",
                f"{PREFIX}OTLP_ENDPOINT": receiver.url,
                f"{PREFIX}METRICS_EXPORT_INTERVAL_MS": "1000",
                f"{PREFIX}METRICS_PORT": str(port),
                f"{PREFIX}HEADERS": json.dumps({"x-token": TOKEN}),
                "OTEL_BSP_SCHEDULE_DELAY": "100",
                "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=ward-7",
            }
        ):
            system = System.up(tmp_path_factory.mktemp("traced") / ".mas", "--relaxed")
        try:
            yield Traced(system, receiver, port)
        finally:
            system.down()


class Program:
    """``tests.traced`` in a process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(cls, up: Traced, namespace: str, role: str, **task: Any) -> Program:
        tls = up.system.tls(role, namespace)
        task |= {"role": role, "url": up.system.broker.url}
        task["tls"] = [str(path) for path in tls.paths]
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.traced",
            cwd=REPOSITORY,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdin is not None
        process.stdin.write(json.dumps(task).encode() + b"\n")
        await process.stdin.drain()
        return cls(process)

    async def ready(self) -> None:
        assert self._process.stdout is not None
        async with asyncio.timeout(WITHIN):
            assert await self._process.stdout.readline() == b"ready\n"

    async def result(self) -> tuple[list[Span], list[dict[str, Any]]]:
        async with asyncio.timeout(2 * WITHIN):
            out, _ = await self._process.communicate(b"")
        found = json.loads(out.splitlines()[-1])
        spans = [Span(**{**each, "links": tuple(each["links"])}) for each in found["spans"]]
        return spans, found["metrics"]


@contextlib.asynccontextmanager
async def helper(up: Traced, namespace: str, **task: Any) -> AsyncIterator[Program]:
    program = await Program.start(up, namespace, "helper", **task)
    await program.ready()
    async with Listener("logger", **options(up, namespace, "logger")):
        yield program


class Listener(Agent[dict[str, Any]]):
    async def on_message(self, message: AgentMessage) -> None:
        pass


def options(up: Traced, namespace: str, agent: str) -> dict[str, Any]:
    return {"server_addr": up.system.broker.url, "tls": up.system.tls(agent, namespace)}


async def told(
    up: Traced, namespace: str, *steps: dict[str, Any], **task: Any
) -> tuple[list[Span], list[Span], list[dict[str, Any]]]:
    """What asker and helper say of ``steps``: both's spans, and both's metrics."""
    async with helper(up, namespace, secrets=task.get("secrets", {})) as helping:
        asker = await Program.start(up, namespace, "asker", steps=list(steps), **task)
        asked, measured = await asker.result()
        helped, more = await helping.result()
    return asked, helped, measured + more


def named(spans: list[Span], name: str, **attributes: Any) -> Span:
    found = [
        span
        for span in spans
        if span.name == name and all(span.attributes.get(key) == value for key, value in attributes.items())
    ]
    assert len(found) == 1, (name, attributes, [(span.name, span.attributes) for span in spans])
    return found[0]


INBOX, REPLY = names.INBOX_TEMPLATE, names.REPLY_TEMPLATE


async def worker_spans(up: Traced, trace: str, count: int) -> list[Span]:
    def enough(spans: list[Span]) -> list[Span] | None:
        mine = [span for span in spans if span.trace == trace]
        return mine if sum(span.name.startswith("mas.policy ") for span in mine) >= count else None

    await up.receiver.until(enough)
    await asyncio.sleep(0.2)  # the steps of the last call may come in the next export
    return [span for span in up.receiver.spans if span.trace == trace]


async def test_one_trace_from_the_request_to_the_reply(traced: Traced):
    namespace = await traced.namespace()
    asked, helped, _ = await told(traced, namespace, {"do": "ask"})
    work = named(asked, "work ask")
    request = named(asked, f"request {INBOX}")
    assert (request.parent, request.kind) == (work.id, "PRODUCER")
    process = named(helped, f"process {INBOX}")
    assert (process.parent, process.kind) == (request.id, "CONSUMER")
    deliver = named(helped, f"deliver {INBOX}")
    assert (deliver.parent, deliver.kind) == (request.id, "CLIENT")
    note, reply = named(helped, f"send {INBOX}"), named(helped, f"reply {REPLY}")
    assert {note.parent, reply.parent} == {process.id}, "what a handler says is part of handling"
    assert request.links == (reply.id,)
    assert {span.trace for span in (*asked, *helped)} == {work.trace}

    found = await worker_spans(traced, work.trace, 3)
    for op, parent in (("request", request), ("send", note), ("reply", reply)):
        policy = named(found, f"mas.policy {op}")
        assert (policy.parent, policy.kind, policy.failed) == (parent.id, "SERVER", False)
        steps = {span.name: span for span in found if span.parent == policy.id}
        assert set(steps) == {names.DECIDE_SPAN, names.AUDIT_SPAN, names.COMMIT_SPAN}, op
        decide, audit, commit = steps[names.DECIDE_SPAN], steps[names.AUDIT_SPAN], steps[names.COMMIT_SPAN]
        assert policy.begun <= decide.begun <= decide.ended <= audit.ended <= commit.ended <= policy.ended
        assert policy.attributes[names.DECISION] == "ALLOWED"
    assert (
        process.attributes[names.AUDIT]
        == named(
            [span for span in found if span.parent == named(found, "mas.policy request").id], names.AUDIT_SPAN
        ).attributes[names.AUDIT]
    ), "the delivery names the decision that the trace shows"


async def test_the_conventional_attributes(traced: Traced):
    namespace = await traced.namespace()
    asked, helped, _ = await told(traced, namespace, {"do": "ask", "id": "question-1"})
    request = named(asked, f"request {INBOX}").attributes
    assert request == {
        "messaging.system": "nats",
        "messaging.operation.name": "request",
        "messaging.operation.type": "send",
        "messaging.destination.template": "mas.inbox.{agent}",
        "messaging.destination.name": "mas.inbox.helper",
        "messaging.message.id": "question-1",
        "messaging.message.conversation_id": "question-1",
        "mas.agent": "asker",
        "mas.namespace": namespace,
        "mas.target": "helper",
        "mas.message.type": "ask",
    }
    process = named(helped, f"process {INBOX}").attributes
    assert process.pop("mas.audit")
    assert process == {
        "messaging.system": "nats",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.template": "mas.inbox.{agent}",
        "messaging.destination.name": "mas.inbox.helper",
        "messaging.message.id": "question-1",
        "messaging.message.conversation_id": "question-1",
        "mas.agent": "helper",
        "mas.namespace": namespace,
        "mas.sender": "asker",
        "mas.message.type": "ask",
        "mas.delivery.attempt": 1,
    }
    reply = named(helped, f"reply {REPLY}").attributes
    assert reply["messaging.message.conversation_id"] == "question-1"
    assert reply["messaging.destination.temporary"] is True
    (policy,) = [
        span
        for span in await worker_spans(traced, named(asked, "work ask").trace, 3)
        if span.name == "mas.policy request"
    ]
    assert policy.attributes["messaging.message.id"] == "question-1"
    assert policy.resource["service.name"] == "mas-nats"
    assert policy.resource["deployment.environment.name"] == "ward-7", (
        "the standard variable, where no setting"
    )
    assert policy.resource["service.instance.id"].startswith("w")
    assert any(headers.get("x-token") == TOKEN for headers in traced.receiver.headers)


async def test_streams_delays_and_replies_from_elsewhere_are_in_the_trace(traced: Traced):
    namespace = await traced.namespace()
    steps = ({"do": "tell"}, {"do": "later"}, {"do": "delay", "type": "note", "id": "d-1"})
    asked, helped, _ = await told(traced, namespace, *steps)
    for kind in ("tell", "later"):
        request = named(asked, f"request {INBOX}", **{names.MESSAGE_TYPE: kind})
        process = named(helped, f"process {INBOX}", **{names.MESSAGE_TYPE: kind})
        (reply,) = [span for span in helped if span.name == f"reply {REPLY}" and span.trace == request.trace]
        assert process.parent == request.id
        assert reply.parent == process.id, kind
        assert request.parent == named(asked, f"work {kind}").id
        assert request.links == (reply.id,), kind
    tell = named(asked, "work tell")
    frames = [span for span in await worker_spans(traced, tell.trace, 2) if span.name == "mas.policy frame"]
    assert frames
    delay = named(asked, f"delay {INBOX}")
    found = await worker_spans(traced, delay.trace, 2)
    assert named(found, "mas.policy delay").parent == delay.id
    assert named(found, "mas.policy release").parent == delay.id


async def test_a_batch_is_linked_with_what_it_carries(traced: Traced):
    namespace = await traced.namespace()
    asked, _, _ = await told(traced, namespace, {"do": "many", "count": 60})
    trace = named(asked, "work many").trace
    found = await worker_spans(traced, trace, 60)
    policies = {span.id for span in found if span.name == "mas.policy send"}
    assert len(policies) == 60

    def batches(spans: list[Span]) -> list[Span]:
        return [span for span in spans if span.name == names.BATCH_SPAN and policies & set(span.links)]

    linked = await traced.receiver.until(batches)
    for batch in linked:
        assert batch.trace != trace, "a batch serves many traces"
        assert batch.attributes[names.BATCH_COUNT] == len(batch.links)
        commits = [span for span in found if span.name == names.COMMIT_SPAN and span.links == (batch.id,)]
        assert {span.parent for span in commits} == set(batch.links)


async def test_what_its_sender_does_not_sample_is_not_exported(traced: Traced):
    """Nor by whoever takes part in it later, though each would keep a trace of its own."""
    namespace = await traced.namespace()
    steps = [{"do": "ask"}, {"do": "tell"}]
    asked, helped, measured = await told(traced, namespace, *steps, unsampled=True)
    assert asked == []
    assert helped == []
    assert any(each["name"] == names.SENT.name for each in measured), "measured it is"
    sampled, _, _ = await told(traced, namespace, {"do": "send", "type": "note"})
    trace = named(sampled, "work send").trace
    await worker_spans(traced, trace, 1)  # so what came before would be here
    of_it = [span for span in traced.receiver.spans if span.attributes.get(names.NAMESPACE) == namespace]
    assert {span.trace for span in of_it} == {trace}


async def test_without_a_trace_the_worker_begins_one(traced: Traced):
    """The sender knows nothing of traces; its receiver's are joined with the decision."""
    namespace = await traced.namespace()
    async with (
        helper(traced, namespace) as helping,
        Agent("other", **options(traced, namespace, "other")) as one,
    ):
        assert one._alive().telemetry is None
        await one.request("helper", "ask", {})
        helped, _ = await helping.result()
    process = named(helped, f"process {INBOX}", **{names.MESSAGE_TYPE: "ask"})
    found = await worker_spans(traced, process.trace, 3)
    policy = named(found, "mas.policy request")
    assert policy.parent == ""
    assert process.parent == policy.id


async def test_refusals_and_failures_are_marked(traced: Traced):
    namespace = await traced.namespace()
    secret = "s" + secrets.token_hex(8)
    steps = ({"do": "send", "target": "nobody"}, {"do": "fail", "data": {"note": secret}})
    async with helper(traced, namespace) as helping:
        asker = await Program.start(traced, namespace, "asker", steps=list(steps))
        asked, measured = await asker.result()
        await traced.metric("mas_dead_letters_total", f'"{namespace}"')  # both attempts are over
        helped, more = await helping.result()
    refused = named(asked, f"send {INBOX}", **{names.ERROR: "AUTHZ_DENIED"})
    assert refused.failed
    policy = named(await worker_spans(traced, refused.trace, 1), "mas.policy send")
    assert (policy.failed, policy.attributes[names.ERROR]) == (True, "AUTHZ_DENIED")
    assert policy.attributes[names.TARGET] == "nobody"
    failed = [span for span in helped if span.attributes.get(names.ERROR) == "ValueError"]
    assert {span.name for span in failed} == {f"process {INBOX}"}
    assert [span.attributes[names.ATTEMPT] for span in failed] == [1, 2]
    assert all(span.events == 0 for span in (*asked, *helped)), "no exception is written out"
    assert secret not in repr((asked, helped, measured, more))
    await traced.metric("mas_deliveries_failed_total", f'"{namespace}"')


async def test_a_handler_that_fails_after_it_acknowledged_is_marked_and_counted(traced: Traced):
    namespace = await traced.namespace()
    _, helped, measured = await told(traced, namespace, {"do": "acknowledged"}, {"do": "ask"})
    failed = named(helped, f"process {INBOX}", **{names.MESSAGE_TYPE: "acknowledged"})
    assert (failed.failed, failed.attributes[names.ERROR]) == (True, "KeyError")
    processed = [each for each in measured if each["name"] == names.PROCESS_DURATION.name]
    assert sorted((each["attributes"].get(names.ERROR, ""), each["count"]) for each in processed) == [
        ("", 1),
        ("KeyError", 1),
    ]


async def test_the_metrics_of_agents(traced: Traced):
    namespace = await traced.namespace()
    _, _, measured = await told(traced, namespace, {"do": "ask"}, {"do": "send", "target": "nobody"})
    by_name: dict[str, list[dict[str, Any]]] = {}
    for each in measured:
        by_name.setdefault(each["name"], []).append(each)
    for metric in names.AGENT_METRICS:
        assert metric.name in by_name, metric.name
        for each in by_name[metric.name]:
            assert each["unit"] == metric.unit
            assert set(each["attributes"]) <= set(metric.attributes)
    sent = {
        (each["attributes"][names.OPERATION], each["attributes"].get(names.ERROR)): each["count"]
        for each in by_name[names.SENT.name]
    }
    assert sent == {
        ("request", None): 1,
        ("send", "AUTHZ_DENIED"): 1,
        ("send", None): 1,
        ("reply", None): 1,
    }


async def test_the_metrics_of_workers(traced: Traced):
    governance = Governance(rate_limit=RateLimits(per_minute=3))
    namespace = await traced.namespace(governance=governance)
    async with (
        Listener("helper", **options(traced, namespace, "helper")),
        Agent("other", receive=False, **options(traced, namespace, "other")) as other,
    ):
        for _ in range(3):
            await other.send("helper", "note", {})
        with pytest.raises(RateLimited):
            await other.send("helper", "note", {})
    of = f'mas_namespace="{namespace}"'
    await traced.metric("mas_policy_decisions_total", of, 'mas_operation="send"', '"ALLOWED"', at_least=3)
    await traced.metric("mas_policy_decisions_total", of, '"RATE_LIMITED"')
    await traced.metric("mas_rate_limit_refusals_total", of, 'mas_rule="per_minute"')
    await traced.metric("mas_policy_duration_seconds_count", of, 'mas_operation="send"', at_least=4)
    await traced.metric("mas_commit_batch_size_count", of, at_least=2)
    text = await asyncio.to_thread(traced.both)
    assert total(text, "mas_policy_decisions_total", of, '"send"', '"ALLOWED"') == 3
    assert "mas_worker_ready 1.0" in text
    await traced.metric("mas_audit_waiting", of, at_least=0)
    async with asyncio.timeout(WITHIN):
        while not {metric.name for metric in names.WORKER_METRICS} <= set(traced.receiver.metrics):
            missing = {metric.name for metric in names.WORKER_METRICS} - set(traced.receiver.metrics)
            if missing <= {names.EXPIRED.name, names.REDELIVERIES.name, names.DEAD_LETTERS.name}:
                break  # nothing of the kind has happened in this run so far
            await asyncio.sleep(0.1)
    for metric in names.WORKER_METRICS:
        if (found := traced.receiver.metrics.get(metric.name)) is not None:
            assert found["unit"] == metric.unit
            assert found["keys"] <= set(metric.attributes), metric.name


async def test_health_readiness_and_what_else_is_asked(traced: Traced):
    async with asyncio.timeout(WITHIN):
        while (await asyncio.to_thread(traced.get, "/readyz"))[0] != 200:
            await asyncio.sleep(0.1)
    assert await asyncio.to_thread(traced.get, "/healthz") == (200, "ok\n")
    assert (await asyncio.to_thread(traced.get, "/healthz", worker=2))[0] == 200
    assert (await asyncio.to_thread(traced.get, "/"))[0] == 404
    assert (await asyncio.to_thread(traced.get, "/metrics/../../etc/passwd"))[0] == 404


async def test_a_worker_that_cannot_reach_the_log_is_alive_and_not_ready(traced: Traced):
    async def until(status: int) -> str:
        async with asyncio.timeout(WITHIN):
            while (found := await asyncio.to_thread(traced.get, "/readyz"))[0] != status:
                await asyncio.sleep(0.1)
        return found[1]

    await until(200)
    (server,) = processes(traced.system, b"nats-server\0")
    halt(server)
    try:
        said = await until(503)
        assert "policy cannot be confirmed" in said or "does not answer" in said
        assert (await asyncio.to_thread(traced.get, "/healthz"))[0] == 200
    finally:
        os.kill(server, signal.SIGCONT)
    await until(200)


async def test_secrets_are_in_no_span_and_no_metric(traced: Traced):
    """Said in every place of a message, let pass or not; the control finds what may be said."""
    namespace = await traced.namespace()
    ways = ("body", "type", "id", "target", "tracestate", "error", "reply", "reply type", "frame")
    seeds = {way: f"ghp_fake{secrets.token_hex(14)}" for way in ways}
    tag = secrets.token_hex(6)
    leaks = [
        {"do": do, "type": "leak", "data": {"way": way}}
        for do, way in (("send", "error"), ("leak", "reply"), ("leak", "reply type"), ("tell", "frame"))
    ]
    steps = (
        {"do": "send", "type": "note", "data": {"text": seeds["body"]}, "id": f"open-{tag}"},
        {"do": "send", "type": seeds["type"]},
        {"do": "send", "type": "note", "id": seeds["id"]},
        {"do": "send", "type": "note", "target": seeds["target"]},
        {"do": "send", "type": "note", "tracestate": seeds["tracestate"]},
        *leaks,
        {"do": "fail", "data": {"note": "x"}, "id": f"passed-{tag}"},
    )
    asked, helped, measured = await told(traced, namespace, *steps, secrets=seeds)
    ways_said = {span.attributes[names.OPERATION] for span in helped if span.failed}
    assert {"process", "reply"} <= ways_said, "the helper did say its secrets, and they were refused"
    for step in asked:
        if step.name.startswith("work "):
            await worker_spans(traced, step.trace, 1)
    everything = {
        "asker": repr(asked).encode(),
        "helper": repr(helped).encode(),
        "metrics": repr(measured).encode(),
        "workers": b"".join(traced.receiver.raw),
        "port": (await asyncio.to_thread(traced.both)).encode(),
    }
    where = {
        way: [name for name, content in everything.items() if seed.encode() in content]
        for way, seed in seeds.items()
    }
    assert {way: places for way, places in where.items() if places} == {}
    for name in ("asker", "helper", "workers"):
        assert f"passed-{tag}".encode() in everything[name], f"the control: nothing is found in {name}"
    assert TOKEN.encode() not in everything["workers"]
    for span in (*asked, *helped, *traced.receiver.spans):
        assert set(span.attributes) <= names.ATTRIBUTES


# -- exporters that are no good ---------------------------------------------------------------------
async def test_an_exporter_that_hangs_blocks_nothing_and_loses_nothing(tmp_path: Path):
    hanging = Hanging()
    with environment(
        **{
            f"{PREFIX}ENABLED": "true",
            f"{PREFIX}OTLP_ENDPOINT": hanging.url,
            f"{PREFIX}METRICS_EXPORT_INTERVAL_MS": "1000",
            "OTEL_BSP_SCHEDULE_DELAY": "50",
            "OTEL_BSP_MAX_QUEUE_SIZE": "64",
            "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "16",
            "OTEL_EXPORTER_OTLP_TIMEOUT": "600",
        }
    ):
        system = System.up(tmp_path / ".mas", "--relaxed")
        try:
            namespace = await system.namespace(["a", "b"], {"a": ["b"]})
            got: list[int] = []

            class Receiving(Agent[dict[str, Any]]):
                async def on_message(self, message: AgentMessage) -> None:
                    got.append(message.data["n"])
                    if message.expects_reply:
                        await message.reply("r", {})

            def of(agent: str) -> dict[str, Any]:
                return {"server_addr": system.broker.url, "tls": system.tls(agent, namespace)}

            async with Receiving("b", **of("b")), Agent("a", **of("a")) as a:
                assert type(a._alive().telemetry).__name__ == "Watched", "agents export there, too"
                await asyncio.gather(*(a.send("b", "n", {"n": n}) for n in range(300)))
                for n in range(300, 320):
                    await a.request("b", "n", {"n": n}, timeout=30)
                async with asyncio.timeout(WITHIN):
                    while len(got) < 320:
                        await asyncio.sleep(0.05)
                assert hanging.taken, "the attack took place: exports hang at this moment"
            assert sorted(got) == list(range(320))
            os.kill(processes(system, b"broker_policy.worker", b"w1")[0], signal.SIGTERM)
            async with asyncio.timeout(WITHIN):  # and not in the ten minutes that the exporter has
                while "w1 ended with status 0" not in (system.layout.logs / "up.log").read_text():
                    await asyncio.sleep(0.05)
        finally:
            system.down()
            settings = from_environment().model_dump_json(exclude_unset=True)
            await exporting.shared(settings).stop()  # that of this process's agents
            exporting.shared.cache_clear()
    logs = "".join(path.read_text() for path in system.layout.logs.glob("w*.log"))
    assert "Traceback" not in logs
    hanging.close()


# -- off ----------------------------------------------------------------------------------------------
def loaded_by(code: str) -> set[str]:
    """What of OpenTelemetry, and of ours that needs it, a program has loaded in the end."""
    ending = "import sys; print(*sorted(sys.modules))"
    clean = {name: value for name, value in os.environ.items() if not name.upper().startswith(PREFIX)}
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{ending}"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
        env=clean,
    )
    ours = ("mas_nats.telemetry.agent", "mas_nats.telemetry.exporting", "broker_policy.telemetry.worker")
    return {
        name
        for name in done.stdout.split()
        if name.startswith(("opentelemetry", "prometheus_client", *ours, "broker_policy.telemetry.calls"))
    }


CHOOSE = "from mas_nats.telemetry.choice import choose; assert choose('a', str) is None"


def test_off_loads_nothing_of_it():
    assert loaded_by(f"import mas_nats; {CHOOSE}") == set()


def test_a_worker_that_is_off_loads_nothing_that_exports():
    """redis-py loads the SDK's metrics by itself wherever the package is there, which is its own affair."""
    found = loaded_by(f"import broker_policy.worker, broker_policy.service; {CHOOSE}")
    assert not [name for name in found if not name.startswith("opentelemetry")]
    assert not [
        name for name in found if name.startswith(("opentelemetry.exporter", "opentelemetry.sdk.trace"))
    ]


def test_the_control_on_it_is_loaded():
    on = f"import os; os.environ['{PREFIX}ENABLED'] = 'true'; from mas_nats.telemetry.choice import choose"
    found = loaded_by(f"{on}; assert choose('a', str).__class__.__name__ == 'Watched'")
    assert {"mas_nats.telemetry.agent", "opentelemetry.exporter.otlp.proto.http.trace_exporter"} <= found


def test_a_worker_that_is_off_has_not_loaded_it(system: System):
    """Looked at from outside: it was told of no port, and has none of the threads that export."""
    assert not system.layout.telemetry.exists()
    pids = processes(system, b"broker_policy.worker")
    assert len(pids) == 2
    for pid in pids:
        assert b"--metrics-port" not in _command(Path(f"/proc/{pid}"))
        threads = {path.joinpath("comm").read_text() for path in Path(f"/proc/{pid}/task").iterdir()}
        assert not any("Otel" in name for name in threads)


def processes(system: System, *words: bytes) -> list[int]:
    """The processes of a broker that have these words in their command lines."""
    wanted = (*words, str(system.layout.root).encode())
    found = {int(path.name): _command(path) for path in Path("/proc").glob("[0-9]*")}
    return [pid for pid, command in found.items() if all(word in command for word in wanted)]


def _command(path: Path) -> bytes:
    try:
        return (path / "cmdline").read_bytes()
    except OSError:
        return b""

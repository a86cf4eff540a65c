"""Agents in a process of their own, traced by providers that the program itself has set.

``python -m tests.traced`` reads its task as a line of JSON from its input, and prints what the exporters got
as JSON when it is done; as the ``helper`` it is done when its input ends.
"""

from __future__ import annotations

import asyncio
import contextvars
import json
import sys
from collections.abc import Mapping
from typing import Any

from opentelemetry import metrics, trace
from opentelemetry.context import Context
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased

from mas_nats import Agent, AgentMessage, MasError, TlsClientConfig

SAMPLED = trace.TraceFlags(trace.TraceFlags.SAMPLED)


class Helper(Agent[dict[str, Any]]):
    """Answers, and says to another agent that it did."""

    secrets: Mapping[str, str] = {}

    async def on_message(self, message: AgentMessage) -> None:
        """Nothing to say to the rest."""

    @Agent.on("ask")
    async def ask(self, message: AgentMessage) -> None:
        await self.send("logger", "note", {"of": message.message_id})
        await message.reply("answer", {"ok": True})

    @Agent.on("later")
    async def later(self, message: AgentMessage) -> None:
        """Answer from a task that knows nothing of this one."""
        loop = asyncio.get_running_loop()
        done = loop.create_future()

        def apart() -> None:
            task = loop.create_task(message.reply("answer", {"ok": True}))
            task.add_done_callback(lambda _: done.set_result(None))

        loop.call_soon(apart, context=contextvars.Context())
        await done

    @Agent.on("tell")
    async def tell(self, message: AgentMessage) -> None:
        async with message.reply_stream() as out:
            for word in ("a ", "b ", "c "):
                await out.write(word)

    @Agent.on("leak")
    async def leak(self, message: AgentMessage) -> None:
        """Say the secret that this program was given, in one of the ways there are."""
        secret = self.secrets[message.data["way"]]
        match message.data["way"]:
            case "error":
                raise ValueError(f"could not use {secret} today")
            case "reply":
                await message.reply("answer", {"text": f"it is {secret}."})
            case "reply type":
                await message.reply(secret, {})
            case "frame":
                async with message.reply_stream() as out:
                    await out.write(f"it is {secret}.")

    @Agent.on("fail")
    async def fail(self, message: AgentMessage) -> None:
        raise ValueError(f"with what it was given: {message.data['note']}")


async def ask(agent: Agent[Any], task: dict[str, Any]) -> None:
    """Do what the task says, below a span of the program's own."""
    tracer = trace.get_tracer("program")
    for step in task["steps"]:
        with tracer.start_as_current_span(f"work {step['do']}", context=_above(step)):
            try:
                await one(agent, step)
            except MasError as error:
                print(f"{step['do']}: {error!r}", file=sys.stderr)


def _above(step: dict[str, Any]) -> Context | None:
    """Where a step says what its trace's state is: a span elsewhere that has it."""
    if "tracestate" not in step:
        return None
    state = trace.TraceState([("vendor", step["tracestate"])])
    elsewhere = trace.SpanContext(1 << 100, 1, is_remote=True, trace_flags=SAMPLED, trace_state=state)
    return trace.set_span_in_context(trace.NonRecordingSpan(elsewhere))


async def one(agent: Agent[Any], step: dict[str, Any]) -> None:
    """One step."""
    target, data = step.get("target", "helper"), step.get("data", {})
    message_type, id_ = step.get("type", step["do"]), step.get("id")
    match step["do"]:
        case "send" | "fail":
            await agent.send(target, message_type, data, id=id_)
        case "delay":
            await agent.send(target, message_type, data, id=id_, delay=0.2)
        case "ask" | "later" | "leak":
            await agent.request(target, message_type, data, id=id_, timeout=30)
        case "tell":
            async for _ in agent.stream(target, message_type, data, id=id_, timeout=30):
                pass
        case "many":
            await asyncio.gather(*(agent.send(target, "note", {"n": n}) for n in range(step["count"])))


async def main() -> None:
    """Read the task, do it, print the spans."""
    lines = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    task = json.loads(await lines.readline())
    spans, reader = InMemorySpanExporter(), InMemoryMetricReader()
    provider = TracerProvider(sampler=ParentBased(ALWAYS_OFF if task.get("unsampled") else ALWAYS_ON))
    provider.add_span_processor(SimpleSpanProcessor(spans))
    trace.set_tracer_provider(provider)
    metrics.set_meter_provider(MeterProvider(metric_readers=[reader]))
    options: dict[str, Any] = {"server_addr": task["url"], "tls": TlsClientConfig(*task["tls"])}
    if task["role"] == "helper":
        Helper.secrets = task.get("secrets", {})
        async with Helper("helper", **options):
            print("ready", flush=True)
            await lines.read()
    else:
        async with Agent(task["role"], receive=False, **options) as agent:
            await ask(agent, task)
    print(
        json.dumps(
            {"spans": [_span(each) for each in spans.get_finished_spans()], "metrics": _metrics(reader)}
        )
    )


def _span(span: Any) -> dict[str, Any]:
    return {
        "name": span.name,
        "trace": f"{span.context.trace_id:032x}",
        "id": f"{span.context.span_id:016x}",
        "parent": f"{span.parent.span_id:016x}" if span.parent else "",
        "kind": span.kind.name,
        "attributes": dict(span.attributes),
        "links": [f"{link.context.span_id:016x}" for link in span.links],
        "begun": span.start_time,
        "ended": span.end_time,
        "failed": not span.status.is_ok,
        "events": len(span.events),
    }


def _metrics(reader: InMemoryMetricReader) -> list[dict[str, Any]]:
    found = []
    data = reader.get_metrics_data()
    for group in data.resource_metrics if data else ():
        for scope in group.scope_metrics:
            for metric in scope.metrics:
                for point in metric.data.data_points:
                    count = getattr(point, "count", None)
                    value = point.value if count is None else count
                    found.append(
                        {
                            "name": metric.name,
                            "unit": metric.unit,
                            "attributes": dict(point.attributes or {}),
                            "count": value,
                        }
                    )
    return found


if __name__ == "__main__":
    asyncio.run(main())

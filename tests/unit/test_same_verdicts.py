"""The in-memory broker answers any call, however malformed, with the very verdict of the policy service.

What the SDK would never send is compared here; what it does send, in tests/contract.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import orjson
from nats.aio.client import Client

from mas_nats.policy.document import Limits
from mas_nats.testing import MemoryBroker
from mas_nats.wire import headers, subjects
from mas_nats.wire.verdict import Verdict
from tests.serving import document, serving

LIMITS = Limits(max_payload=2000, max_state=500, max_delay=60, delayed_messages=2)
ALLOW = {"alice": ("bob", "ghost"), "bob": ("alice",), "carol": ("*",)}
AGENTS = ("alice", "bob", "carol")
FAR = "9" * 15
INSTANCE = "0" * 20
PROMPT = {headers.MSG_ID: "p", headers.TYPE: "llm:chat", headers.TARGET: "llm.example:8443"}
MESSAGE = {headers.MSG_ID: "m", headers.TARGET: "bob", headers.TYPE: "work"}
REQUEST = {**MESSAGE, headers.INSTANCE: INSTANCE}
ANSWER = {headers.MSG_ID: "m", headers.TYPE: "work", headers.REPLY_TOKEN: "forged"}

CALLS: list[tuple[str, str, dict[str, str], object]] = [
    ("alice", "no-such-op", {}, {}),
    ("mallory", "send", MESSAGE, {}),
    # -- send
    ("alice", "send", {}, {}),
    ("alice", "send", {**MESSAGE, headers.MSG_ID: "with blanks"}, {}),
    ("alice", "send", {**MESSAGE, headers.MSG_ID: "x" * 129}, {}),
    ("alice", "send", {**MESSAGE, headers.TYPE: ""}, {}),
    ("alice", "send", {**MESSAGE, headers.TYPE: "t" * 2000}, {}),
    ("alice", "send", {**MESSAGE, headers.DEADLINE: "soon"}, {}),
    *(
        ("alice", "send", {**MESSAGE, headers.TARGET: target}, {})
        for target in ("", "*", ">", "a.b", "B", "x" * 64, "other/bob", "carol", "ghost", "bbo", "alice")
    ),
    ("bob", "send", {**MESSAGE, headers.TARGET: "carol"}, {}),
    ("carol", "send", {**MESSAGE, headers.TARGET: "nobody"}, {}),
    *(
        ("alice", "send", MESSAGE, body)
        for body in (b"", b"{", b"[]", b"null", b'"x"', b'{"x": NaN}', b"\xff")
    ),
    ("alice", "send", MESSAGE, {"x": "y" * 2000}),
    ("alice", "send", {**MESSAGE, headers.MSG_ID: "first"}, {"n": 1}),
    ("alice", "send", {**MESSAGE, headers.MSG_ID: "first"}, {"n": 1}),
    ("alice", "send", {**MESSAGE, headers.MSG_ID: "first"}, {"n": 2}),
    ("alice", "send", {**MESSAGE, headers.MSG_ID: "first", headers.TYPE: "other"}, {"n": 1}),
    # -- request
    ("alice", "request", MESSAGE, {}),
    ("alice", "request", REQUEST, {}),
    ("alice", "request", {**REQUEST, headers.DEADLINE: "1"}, {}),
    ("alice", "request", {**REQUEST, headers.DEADLINE: FAR}, {}),
    ("alice", "request", {**REQUEST, headers.INSTANCE: "mine", headers.DEADLINE: "1"}, {}),
    # -- answers
    *(
        ("bob", op, fields, {})
        for op in ("reply", "frame")
        for fields in (
            {},
            ANSWER,
            {**ANSWER, headers.REPLY_TOKEN: ""},
            {**ANSWER, headers.REPLY_TOKEN: "x" * 1025},
        )
    ),
    # -- what readers say
    *(
        ("alice", op, {**MESSAGE, headers.TARGET: target}, body)
        for op in ("flow", "cancel")
        for target in ("bob", "carol", "ghost", "")
        for body in ({"read": 1}, {"read": -1}, {"read": "1"}, {"read": True}, {"to": "x"}, b"[]")
    ),
    # -- presence
    *(("alice", "hello", {}, body) for body in (b"", b"[]", {"capabilities": "qa"}, {"metadata": 7})),
    ("alice", "hello", {}, {"metadata": {"x": "y" * 9000}}),
    *(("alice", "bye", {}, body) for body in (b"", {}, {"instance": 7}, {"instance": "not-mine"})),
    *(("alice", "discover", {}, body) for body in (b"", {"capabilities": "qa"}, {"capabilities": [7]}, {})),
    # -- failures
    *(
        ("bob", "fail", {}, body)
        for body in (
            b"",
            {},
            {"sequence": 0, "attempt": 1, "error_class": "E", "retryable": True},
            {"sequence": "1", "attempt": 1, "error_class": "E", "retryable": True},
            {"sequence": 2**60, "attempt": 1, "error_class": "E", "retryable": True},
            {"sequence": 10**6, "attempt": 1, "error_class": "E", "retryable": True},
        )
    ),
    # -- state
    *(
        ("alice", "state", {headers.MSG_ID: f"s{number}"}, body)
        for number, body in enumerate(
            (
                b"",
                {},
                {"op": "drop"},
                {"op": "put"},
                {"op": "put", "revision": -1, "value": {}},
                {"op": "put", "revision": True, "value": {}},
                {"op": "put", "revision": 0, "value": []},
                {"op": "put", "revision": 0, "value": {"x": "y" * 600}},
                {"op": "put", "revision": 7, "value": {}},
                {"op": "delete"},
                {"op": "get"},
            )
        )
    ),
    ("alice", "state", {}, {"op": "get"}),
    # -- delayed
    ("alice", "delay", MESSAGE, {}),
    ("alice", "delay", {**MESSAGE, headers.DUE: "tomorrow"}, {}),
    ("alice", "delay", {**MESSAGE, headers.DUE: FAR}, {}),
    ("alice", "delay", {**MESSAGE, headers.DELAY: "61000"}, {}),
    ("alice", "delay", {**MESSAGE, headers.DELAY: "-1"}, {}),
    ("alice", "delay", {**MESSAGE, headers.TARGET: "carol", headers.DELAY: "1000"}, {}),
    ("alice", "delay", {**MESSAGE, headers.MSG_ID: "d", headers.DELAY: "50000"}, {"n": 1}),
    ("alice", "delay", {**MESSAGE, headers.MSG_ID: "d", headers.DELAY: "50000"}, {"n": 1}),
    ("alice", "delay", {**MESSAGE, headers.MSG_ID: "d", headers.DELAY: "50000"}, {"n": 2}),
    ("alice", "withdraw", {}, {}),
    ("alice", "withdraw", {headers.MSG_ID: "unheard-of"}, {}),
    ("alice", "withdraw", {headers.MSG_ID: "d"}, {}),
    ("alice", "withdraw", {headers.MSG_ID: "d"}, {}),
    # -- prompts
    ("alice", "prompt", {}, {}),
    ("alice", "prompt", {headers.MSG_ID: "p", headers.TYPE: "llm:chat"}, {}),
    ("alice", "prompt", {**PROMPT, headers.TARGET: "not a host"}, {}),
    ("alice", "prompt", {**PROMPT, headers.TARGET: "llm:llm:x"}, {}),
    ("alice", "prompt", PROMPT, b"{"),
    ("alice", "prompt", PROMPT, []),
    ("alice", "prompt", PROMPT, {"body": {"text": "y" * 2000}}),
    ("alice", "prompt", PROMPT, {"body": {"messages": []}}),
]


async def test_every_verdict_is_the_same(nc: Client):
    policy = document(AGENTS, ALLOW, LIMITS)
    in_memory: list[Verdict] = []
    async with MemoryBroker(
        dict.fromkeys(AGENTS, ("qa",)),
        allow=ALLOW,
        limits=LIMITS,
        namespace=policy.namespace,
        virtual_time=False,
    ) as broker:
        for agent, op, fields, body in CALLS:
            connection = broker.options(agent)["transport"].connection("raw")
            answer: list[Any] = []
            broker._running.take(connection, subjects.call(agent, op), _raw(body), fields, answer.append)
            in_memory.append(Verdict.decode(answer[0].data))
    differing = []
    async with serving(nc, policy):
        for (agent, op, fields, body), expected in zip(CALLS, in_memory, strict=True):
            answer_of = await nc.request(
                subjects.call(agent, op), _raw(body), timeout=5, headers=fields or None
            )
            real = Verdict.decode(answer_of.data)
            same = replace(expected, result={}) == replace(real, result={})
            if not same or expected.result.keys() - {"retry_spread"} != real.result.keys():
                differing.append(((agent, op, fields, body), expected, real))
    assert not differing


def _raw(body: object) -> bytes:
    return body if isinstance(body, bytes) else orjson.dumps(body)

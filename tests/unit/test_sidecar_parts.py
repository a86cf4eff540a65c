"""The sidecar's smaller parts: events, cards, correlation, sessions, settings, what travels."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from mas_nats.errors import ConfigurationError, IdentityRefused, MasError, OutcomeUnknown, Unavailable
from mas_nats.sidecar import card, events, relay
from mas_nats.sidecar.application import Application, Kind, Settings, load
from mas_nats.sidecar.authority import NoTokens
from mas_nats.sidecar.carriage import Carried, Event, Head, Part, Refused
from mas_nats.sidecar.in_flight import InFlight, new_traceparent, trace_of
from mas_nats.sidecar.inbound import Inbound
from mas_nats.sidecar.refusal import OUTCOME_UNKNOWN, Refusal, Shape
from mas_nats.sidecar.sessions import Sessions
from mas_nats.sidecar.told import told

STREAM = (
    b': ping\r\n\r\nevent: message\r\nid: 7\r\ndata: {"a":\r\ndata: 1}\r\n\r\n'
    b'id: 8\ndata:\n\nretry: 100\rdata: [2]\r\rdata: {"lost": 1}\n'
)
EVENTS = [
    Event(event="message", id="7", data={"a": 1}),
    Event(id="8", data=""),
    Event(retry=100, data=[2]),
]


@given(st.lists(st.integers(0, len(STREAM)), max_size=6))
def test_events_wherever_they_are_cut(places: list[int]):
    reader = events.EventReader(1000)
    cuts = [0, *sorted(places), len(STREAM)]
    found = [each for a, b in pairwise(cuts) for each in reader.feed(STREAM[a:b])]
    assert found == EVENTS  # comments are dropped, and the last one has no end


@given(
    st.lists(
        st.builds(
            Event,
            event=st.sampled_from(["", "message"]),
            id=st.none() | st.text("abc1", max_size=4),
            retry=st.none() | st.integers(0, 9),
            data=st.just("")
            | st.dictionaries(st.text("ab\n\r ", max_size=3), st.text(max_size=5), min_size=1),
        )
    )
)
def test_events_are_read_as_they_were_written(wanted: list[Event]):
    assert events.EventReader(10_000).feed(b"".join(map(events.write, wanted))) == wanted


@pytest.mark.parametrize(
    "raw", [b"data: {\n\n", b'data: {"a":1,"a":1}\n\n', b"data: \xff\n\n", b"data: " + b"1" * 2000]
)
def test_events_that_are_not_carried(raw: bytes):
    with pytest.raises(events.BrokenStream):
        events.EventReader(1000).feed(raw)


@pytest.mark.parametrize(
    ("said", "retry"),
    [
        ("0", 0),
        ("999999999", 999_999_999),
        ("1" * 10, None),
        ("9" * 5000, None),  # more than int() takes
        ("-1", None),
        ("\u0661", None),
    ],
)
def test_how_long_to_wait_before_a_stream_is_opened_again(said: str, retry: int | None):
    assert events.EventReader(10_000).feed(f"retry: {said}\ndata: 1\n\n".encode()) == [
        Event(retry=retry, data=1)
    ]


NEW_CARD = {
    "name": "a",
    "supportedInterfaces": [
        {"url": "http://127.0.0.1:9/rpc", "protocolBinding": "JSONRPC", "protocolVersion": "1.0"},
        {"url": "https://elsewhere.example/", "protocolBinding": "JSONRPC", "protocolVersion": "1.0"},
        {"url": "http://127.0.0.1:9/", "protocolBinding": "GRPC", "protocolVersion": "1.0"},
    ],
    "signatures": [{"signature": "x"}],
    "capabilities": {"pushNotifications": True, "streaming": True},
}
OLD_CARD = {
    "name": "a",
    "url": "grpc://127.0.0.1:9",
    "preferredTransport": "GRPC",
    "additionalInterfaces": [{"url": "http://a.test/v", "transport": "HTTP+JSON"}],
}


def test_a_card_names_only_what_can_be_reached():
    home = card.leading_home(NEW_CARD, {"127.0.0.1:9"})
    assert [each["url"] for each in home["supportedInterfaces"]] == ["/rpc"]
    assert "signatures" not in home
    assert home["capabilities"] == {"pushNotifications": False, "streaming": True}
    there = card.reachable(home, "a.test:80")
    assert [each["url"] for each in there["supportedInterfaces"]] == ["http://a.test:80/rpc"]
    old = card.reachable(card.leading_home(OLD_CARD, {"a.test"}), "b.test")
    assert (old["url"], old["preferredTransport"]) == ("http://b.test/v", "HTTP+JSON")


def test_a_card_that_leads_nowhere():
    with pytest.raises(card.NoWay):
        card.leading_home(NEW_CARD, {"other:1"})
    with pytest.raises(card.NoWay):
        card.leading_home({"name": "a"}, {"other:1"})
    assert card.reachable({"url": "//evil.example/x"}, "a.test")["url"] == ""


@pytest.mark.parametrize(
    "wrong",
    [
        {"url": "http://a:1/", "preferredTransport": ["JSONRPC"]},
        {"url": "http://a:1/", "preferredTransport": {"a": 1}},
        {"url": ["http://a:1/"]},
        {"url": "http://b:1/", "additionalInterfaces": "http://a:1/"},
        {"url": "http://b:1/", "additionalInterfaces": {"url": "http://a:1/"}},
        {"url": "http://b:1/", "additionalInterfaces": [{"url": "http://a:1/", "transport": ["JSONRPC"]}]},
        {"supportedInterfaces": [{"url": "http://a:1/", "protocolBinding": {"a": 1}}]},
        {"supportedInterfaces": [{"url": 1, "protocolBinding": "JSONRPC"}, "JSONRPC", None]},
        {"supportedInterfaces": {"url": "http://b:1/"}},
    ],
)
def test_a_card_that_is_none(wrong: dict[str, object]):
    with pytest.raises(card.NoWay):
        card.leading_home(wrong, {"a:1"})


def test_what_made_the_application_call():
    flight = InFlight()
    one, two = new_traceparent(), new_traceparent()
    assert flight.cause("", needed=True) == ""
    with flight.working_on("m1", one):
        assert flight.cause("", needed=True) == "m1"
        assert flight.cause(new_traceparent(), needed=True) == "m1"  # it traces, but passes nothing on
        with flight.working_on("m2", two):
            assert flight.cause(f"00-{trace_of(two)}-{'1' * 16}-00", needed=True) == "m2"
            assert flight.cause("", needed=False) == ""
            with pytest.raises(Refusal) as caught:
                flight.cause(new_traceparent(), needed=True)
            assert caught.value.rule == "correlation"
            assert "traceparent" in caught.value.fix
        with flight.working_on("m3", one), pytest.raises(Refusal):
            flight.cause(one, needed=True)  # two of one trace
    assert flight.cause("", needed=True) == ""


def test_what_an_ended_request_makes_the_application_call_is_of_no_other():
    """Also where that is the only one in flight; one trace may be that of many requests."""
    flight = InFlight()
    one, two = new_traceparent(), new_traceparent()
    for _ in range(2):
        with flight.working_on("m1", one), flight.working_on("m2", one):
            pass
        assert flight.cause(one, needed=True) == ""  # nothing is in flight
        with flight.working_on("m3", two):
            with pytest.raises(Refusal) as caught:
                flight.cause(f"00-{trace_of(one)}-{'1' * 16}-00", needed=True)
            assert (caught.value.rule, caught.value.status) == ("correlation", 403)
            assert "has ended" in caught.value.text
            assert flight.cause(one, needed=False) == ""
            assert flight.cause(two, needed=True) == flight.cause("", needed=True) == "m3"
            with flight.working_on("m4", one):  # the same client's next one
                assert flight.cause(one, needed=True) == "m4"
        with flight.working_on("m5", two):
            assert flight.cause(two, needed=True) == "m5"


def test_ended_requests_are_known_as_long_as_their_tokens_live_or_nothing_is_taken_for_new():
    at = [0.0]
    flight = InFlight(now=lambda: at[0], most=3)
    old = [new_traceparent() for _ in range(4)]
    for each in old[:3]:
        with flight.working_on("m", each):
            pass
    with flight.working_on("m", new_traceparent()):
        at[0] = 1000.0
        assert flight.cause(new_traceparent(), needed=True) == "m"
        with pytest.raises(Refusal):  # as long as there is room they are known for longer
            flight.cause(old[0], needed=True)
        with flight.working_on("m2", old[3]):
            pass
        assert len(flight._ended) == 3
        assert (
            flight.cause(new_traceparent(), needed=True) == "m"
        )  # what was forgotten had been known for long
        for each in old[:3]:
            with flight.working_on("m2", each):
                pass
        assert len(flight._ended) == 3
        for unknown in (old[3], new_traceparent()):  # one of these has ended: which is not known
            with pytest.raises(Refusal):
                flight.cause(unknown, needed=True)
        assert flight.cause("", needed=True) == "m"
        at[0] += 310.0
        assert flight.cause(new_traceparent(), needed=True) == "m"


@pytest.mark.parametrize(
    "value",
    [
        "",
        "00-0-0-00",
        f"00-{'0' * 32}-{'1' * 16}-01",
        f"ff-{'1' * 32}-{'1' * 16}-01",
        f"00-{'1' * 32}-{'1' * 16}-01-more",
    ],
)
def test_no_trace(value: str):
    assert trace_of(value) == ""


def test_a_later_version_may_have_more():
    assert (
        trace_of(f"01-{'1' * 32}-{'2' * 16}-01-more") == trace_of(f"00-{'1' * 32}-{'2' * 16}-01") == "1" * 32
    )


def test_a_session_is_of_whoever_opened_it():
    sessions = Sessions()
    sessions.opened("s", "shop")
    sessions.require("s", "shop", 1)
    for sender, session in (("thief", "s"), ("shop", "t")):
        with pytest.raises(Refusal) as caught:
            sessions.require(session, sender, 1)
        assert caught.value.status == 404
    sessions.ended("s")
    with pytest.raises(Refusal):
        sessions.require("s", "shop", 1)


def test_parts_as_they_travel():
    for part in (
        Part(head=Head(status=200, headers={"a": "b"})),
        Part(json=[None]),
        Part(event=Event(data={"a": 1})),
        Part(alive=True),
    ):
        assert Part.model_validate(part.payload()) == part
    for wrong in ({}, {"alive": True, "json": [1]}, {"json": []}, {"head": {"status": 99}}, {"other": 1}):
        with pytest.raises(ValidationError):
            Part.model_validate(wrong)
    refusal = Refusal("r", "t", "f", 502, OUTCOME_UNKNOWN, ran="unknown")
    back = Refused.of(refusal).refusal(Shape.MCP, 7, "m")
    assert (str(back), back.request_id, back.message_id, back.ran) == ("r: t. f", 7, "m", "unknown")


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"method": "GET", "path": "/"},
        {"method": "GET", "path": "/", "begin_by": 1, "more": 1},
        {"method": "GET", "path": "/", "begin_by": 1, "headers": {"Accept": "a"}},
        {"method": "GET", "path": "/", "begin_by": "soon"},
        {"method": "GET", "path": "/", "begin_by": 1, **dict.fromkeys(map(str, range(80_000)))},
        {"method": "GET", "path": "/", "begin_by": 1, "headers": dict.fromkeys(map(str, range(80_000)))},
        {"method": "GET", "path": "/", "begin_by": 1, "headers": [1] * 80_000},
    ],
    ids=range(8),
)
def test_a_message_that_is_no_call(data: dict[str, object]):
    begun = time.process_time()
    with pytest.raises(Refusal) as caught:
        Carried.read(data)
    assert caught.value.rule == "carriage"
    assert time.process_time() - begun < 0.1, "of the sidecar's loop"


def test_a_part_of_an_answer_that_is_none():
    begun = time.process_time()
    with pytest.raises(Refusal) as caught:
        relay._part(dict.fromkeys(map(str, range(80_000))))
    assert caught.value.rule == "carriage"
    assert time.process_time() - begun < 0.1, "of the sidecar's loop"


GOOD = """
applications:
  shop: {type: client}
  bank: {type: mcp_server, base_url: "http://127.0.0.1:9", hosts: [bank.test]}
"""
WRONG = {
    "shop: {type: customer}": "agent",
    "shop: {type: client, listen: '0.0.0.0:80'}": "loopback",
    "shop: {type: client, bse_url: x}": "base_url",
    "shop: {type: client, hosts: [bank.test]}": "bank.test stands for",
    "shop: {type: client, hosts: [Bank.Test]}": "lower case",
    "Shop: {type: client}": "not a valid id",
}


def test_settings(tmp_path: Path):
    path = tmp_path / "applications.yaml"
    path.write_text(GOOD)
    settings = load(path, "bank")
    assert settings.hosts == {"bank.test": "bank"}
    assert settings.own.path == "/mcp"
    with pytest.raises(ConfigurationError, match="no application 'none'"):
        load(path, "none")
    for line, text in WRONG.items():
        path.write_text(GOOD.replace("shop: {type: client}", line))
        with pytest.raises(ConfigurationError, match=text):
            load(path, "bank")
    for port in ("80800", "0", "http"):
        path.write_text(GOOD.replace("127.0.0.1:9", f"127.0.0.1:{port}"))
        with pytest.raises(ConfigurationError, match=r"line 4.*base_url: .*must be http://host:port"):
            load(path, "bank")
    path.write_text(GOOD.replace(', base_url: "http://127.0.0.1:9"', ""))
    with pytest.raises(ConfigurationError, match="base_url"):
        load(path, "bank")


async def test_how_late_a_call_may_begin_follows_the_ack_wait_of_the_moment():
    """It is at most half of it at the start; an apply may make the ack wait shorter."""
    bank = Application(type=Kind.MCP_SERVER, base_url="http://127.0.0.1:1")
    now, ack_wait = 1000.0, 20.0
    inbound = Inbound(
        Settings(app="bank", applications={"bank": bank}),
        NoTokens(),
        InFlight(),
        now=lambda: now,
        max_payload=lambda: 1_000_000,
        ack_wait=lambda: ack_wait,
    )
    message: Any = SimpleNamespace(sent_at=datetime.fromtimestamp(1000, UTC))
    carried: Any = SimpleNamespace(begin_by=2_000_000)
    now = 1009.0
    inbound._require_in_time(message, carried)
    ack_wait = 10.0
    with pytest.raises(Refusal, match="too late"):
        inbound._require_in_time(message, carried)
    await inbound.close()


@pytest.mark.parametrize(
    ("error", "rule", "ran"),
    [
        (Unavailable("the broker is away"), "unavailable", "no"),
        (IdentityRefused("the certificate has expired"), "unavailable", "no"),
        (OutcomeUnknown("m1", "no answer"), "outcome_unknown", "unknown"),
    ],
)
def test_what_did_not_leave_was_not_run(error: MasError, rule: str, ran: str):
    refusal = told(error, "m1")
    assert (refusal.rule, refusal.ran) == (rule, ran)

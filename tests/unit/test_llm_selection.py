"""Which tools a language model selected, in each format: as providers say it, and as nobody should."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mas_nats.sidecar.jsonrpc import NAME
from mas_nats.sidecar.llm_api import Interface
from mas_nats.sidecar.selection import MOST_CALLS, Answer, TooMany

NAMES = {"bank__balance": "balance"}


def whole(interface: Interface, document: Any) -> list[str]:
    return Answer(interface, NAMES).whole(document)


def streamed(interface: Interface, *events: Any) -> list[list[str]]:
    """What each event completes."""
    answer = Answer(interface, NAMES)
    return [answer.event(event) for event in events]


# -- chat completions ------------------------------------------------------------------------------------
def chat(*calls: Any, why: str | None = "tool_calls") -> dict[str, Any]:
    message = {"role": "assistant", "content": None, "tool_calls": list(calls)}
    return {"choices": [{"index": 0, "message": message, "finish_reason": why}]}


def function(name: Any, id: str = "", arguments: str = "{}") -> dict[str, Any]:  # noqa: A002
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def delta(*calls: Any, why: str | None = None, choice: int = 0, **more: Any) -> dict[str, Any]:
    said = {"tool_calls": list(calls), **more} if calls or more else {}
    return {"choices": [{"index": choice, "delta": said, "finish_reason": why}]}


def piece(index: Any, name: Any = None, arguments: str = "", **more: Any) -> dict[str, Any]:
    return {"index": index, "function": {"name": name, "arguments": arguments}, **more}


def test_a_whole_chat_completion():
    assert whole(Interface.CHAT, chat(function("balance", "a"), function("transfer", "b"))) == [
        "balance",
        "transfer",
    ]
    assert whole(Interface.CHAT, chat(function("balance", "a"), function("balance", "b"))) == ["balance"] * 2
    assert whole(Interface.CHAT, chat(why="stop")) == []
    custom = {"id": "c", "type": "custom", "custom": {"name": "query", "input": "x"}}
    assert whole(Interface.CHAT, chat(custom, why="stop")) == ["query"]
    old = {"choices": [{"message": {"function_call": {"name": "balance", "arguments": "{}"}}}]}
    assert whole(Interface.CHAT, old) == ["balance"]


def test_names_are_mapped_only_where_that_is_declared():
    found = whole(Interface.CHAT, chat(function("bank__balance", "a"), function("bank__transfer", "b")))
    assert found == ["balance", "bank__transfer"]


@pytest.mark.parametrize("why", ["length", "content_filter"])
def test_calls_that_were_cut_off_do_not_count(why: str):
    assert whole(Interface.CHAT, chat(function("balance", "a"), why=why)) == []
    assert streamed(Interface.CHAT, delta(piece(0, "balance", "{", id="a")), delta(why=why)) == [[], []]
    message = {"stop_reason": "max_tokens", "content": [use("balance"), use("transfer")]}
    assert whole(Interface.MESSAGES, message) == ["balance"]
    item = {**call("balance"), "status": "incomplete"}
    assert whole(Interface.RESPONSES, {"output": [item]}) == []


def test_deltas_are_put_together_by_index():
    """A call is complete when the next begins, or its choice ends: never before."""
    found = streamed(
        Interface.CHAT,
        delta(role="assistant", content="let me see"),
        delta(piece(0, "bal", id="a", type="function")),
        delta(piece(0, "ance")),
        delta(piece(0, arguments='{"acc')),
        delta(piece(0, arguments='ount": 1}')),
        delta(piece(1, "transfer", id="b")),
        delta(piece(1, arguments="{}")),
        delta(why="tool_calls"),
        {"choices": [], "usage": {}},
    )
    assert found == [[], [], [], [], [], ["balance"], [], ["transfer"], []]


def test_several_calls_in_one_delta_and_several_choices():
    first = streamed(Interface.CHAT, delta(piece(0, "a", "{}"), piece(1, "b", "{}"), why="tool_calls"))
    assert first == [["a", "b"]]
    found = streamed(
        Interface.CHAT,
        delta(piece(0, "a", "{}"), choice=0),
        delta(piece(0, "b", "{}"), choice=1),
        delta(why="length", choice=0),
        delta(why="tool_calls", choice=1),
    )
    assert found == [[], [], [], ["b"]]


def test_a_call_under_an_index_that_another_had():
    """Some providers number every call 0; its id tells that it is another."""
    found = streamed(
        Interface.CHAT,
        delta(piece(0, "a", "{}", id="1")),
        delta(piece(0, "b", "{}", id="2")),
        delta(why="tool_calls"),
    )
    assert found == [[], ["a"], ["b"]]


def test_the_older_form_streamed():
    found = streamed(
        Interface.CHAT,
        delta(function_call={"name": "balance", "arguments": ""}),
        delta(function_call={"arguments": "{}"}),
        delta(why="function_call"),
    )
    assert found == [[], [], ["balance"]]


def test_a_stream_that_ends_without_an_end_selects_nothing():
    assert streamed(Interface.CHAT, delta(piece(0, "balance", "{}"))) == [[]]


@pytest.mark.parametrize(
    "deltas",
    [
        [delta(piece(0, "balance", "{}")), delta(piece(0, "_of_others"))],  # goes on: which name is it?
        [delta(piece(None, "balance", "{}"))],
        [delta(piece("0", "balance", "{}"))],
        [delta(piece(-1, "balance", "{}"))],
        [delta(piece(True, "balance", "{}"))],
        [delta(piece(0, ["balance"], "{}"))],
        [delta(piece(0, {"balance": 1}, "{}"))],
        [delta({"index": 0, "function": "balance"})],
        [delta({"index": 0, "function": {"name": "balance"}, "custom": {"name": "transfer"}})],
        [{"choices": {"0": {"delta": {"tool_calls": [piece(0, "balance")]}}}}],
        [{"choices": [{"index": "0", "delta": {"tool_calls": [piece(0, "balance")]}}]}],
        ["balance", None, 7, []],
    ],
)
def test_deltas_that_can_be_read_in_two_ways_or_none(deltas: list[Any]):
    found = streamed(Interface.CHAT, *deltas, delta(why="tool_calls"))
    assert [name for each in found for name in each] == []


# -- names and ids ---------------------------------------------------------------------------------------
TRICKS = [
    *("", " ", "balance ", "bal\u200bance", "b\u0430lance", "balance\n", "balance\x00", "../balance", "a/b"),
    *("balance;drop", "x" * 129, "x" * 100_000, "\uff42alance", "balance\u202e"),
]


@pytest.mark.parametrize("name", TRICKS)
def test_a_name_that_is_no_tools_name_is_not_selected(name: str):
    assert whole(Interface.CHAT, chat(function(name, "a"))) == []
    assert streamed(Interface.CHAT, delta(piece(0, name, "{}")), delta(why="stop")) == [[], []]
    assert whole(Interface.RESPONSES, {"output": [call(name)]}) == []
    assert whole(Interface.MESSAGES, {"content": [use(name)]}) == []


def test_an_id_that_another_call_has():
    assert whole(Interface.CHAT, chat(function("balance", "a"), function("transfer", "a"))) == ["balance"]
    found = streamed(
        Interface.CHAT,
        delta(piece(0, "balance", id="a")),
        delta(piece(1, "transfer", id="a")),
        delta(why="tool_calls"),
    )
    assert found == [[], ["balance"], []]
    two = {"content": [use("balance", "a"), use("transfer", "a")]}
    assert whole(Interface.MESSAGES, two) == ["balance"]
    assert whole(Interface.RESPONSES, {"output": [call("balance", "a"), call("transfer", "a")]}) == [
        "balance"
    ]


def test_what_does_not_count_is_counted():
    answer = Answer(Interface.CHAT, {})
    assert answer.whole(chat(function("a b", "1"), function("ok", "2"))) == ["ok"]
    assert answer.counted.doubtful == 1


def test_more_calls_than_anybody_makes():
    many = [function("balance", str(number)) for number in range(MOST_CALLS + 1)]
    assert len(whole(Interface.CHAT, chat(*many[:-1]))) == MOST_CALLS
    with pytest.raises(TooMany):
        whole(Interface.CHAT, chat(*many))
    with pytest.raises(TooMany):
        streamed(Interface.CHAT, *(delta(piece(number, "a")) for number in range(MOST_CALLS + 3)))
    with pytest.raises(TooMany):
        streamed(Interface.CHAT, *(delta(piece(0, "a"), choice=number) for number in range(MOST_CALLS + 3)))
    with pytest.raises(TooMany):
        streamed(Interface.RESPONSES, *(added(number, "a") for number in range(MOST_CALLS + 1)))
    with pytest.raises(TooMany):
        streamed(Interface.MESSAGES, *(start(number, use("a")) for number in range(MOST_CALLS + 1)))


# -- responses -------------------------------------------------------------------------------------------
def call(name: Any, id: str = "") -> dict[str, Any]:  # noqa: A002
    return {"type": "function_call", "call_id": id, "name": name, "arguments": "{}", "status": "completed"}


def added(index: Any, name: Any) -> dict[str, Any]:
    item = {**call(name), "arguments": "", "status": "in_progress"}
    return {"type": "response.output_item.added", "output_index": index, "item": item}


def done(index: Any, name: Any) -> dict[str, Any]:
    return {"type": "response.output_item.done", "output_index": index, "item": call(name)}


def arguments_done(index: Any, **more: Any) -> dict[str, Any]:
    return {"type": "response.function_call_arguments.done", "output_index": index, "arguments": "{}", **more}


def finished(*items: Any, kind: str = "completed") -> dict[str, Any]:
    return {"type": f"response.{kind}", "response": {"status": kind, "output": list(items)}}


MESSAGE = {"type": "message", "content": [{"type": "output_text", "text": "function_call"}]}


def test_a_whole_response():
    custom = {"type": "custom_tool_call", "name": "query", "call_id": "q", "input": "x"}
    hosted = {"type": "mcp_call", "name": "elsewhere"}
    found = whole(Interface.RESPONSES, {"output": [MESSAGE, call("balance", "a"), custom, hosted]})
    assert found == ["balance", "query"]


def test_a_streamed_response():
    delta_ = {"type": "response.function_call_arguments.delta", "output_index": 1, "delta": "{}"}
    found = streamed(
        Interface.RESPONSES,
        {"type": "response.created", "response": {"output": []}},
        {"type": "response.output_item.added", "output_index": 0, "item": MESSAGE},
        added(1, "balance"),
        delta_,
        arguments_done(1),
        done(1, "balance"),
        added(2, "transfer"),
        done(2, "transfer"),
        finished(MESSAGE, call("balance"), call("transfer")),
    )
    assert found == [[], [], [], [], ["balance"], [], [], ["transfer"], []]


def test_what_only_the_last_event_of_a_response_says():
    assert streamed(Interface.RESPONSES, finished(MESSAGE, call("balance"))) == [["balance"]]
    cut = {**call("transfer"), "status": "incomplete"}
    assert streamed(Interface.RESPONSES, finished(call("balance"), cut, kind="incomplete")) == [["balance"]]


@pytest.mark.parametrize(
    "events",
    [
        [added(0, "balance"), done(0, "transfer")],
        [added(0, "balance"), arguments_done(0, name="transfer")],
        [added(0, "balance"), added(0, "transfer"), done(0, "balance")],
        [added(0, "balance"), finished(call("transfer"))],
        [arguments_done(0, name="balance")],
        [added("0", "balance"), done("0", "balance")],
        [{"type": "response.output_item.done", "output_index": 0, "item": "balance"}],
        [{"type": ["response.completed"], "response": {"output": [call("balance")]}}],
    ],
)
def test_events_of_a_response_that_disagree(events: list[Any]):
    assert [name for each in streamed(Interface.RESPONSES, *events) for name in each] == []


def test_a_complete_call_is_not_renamed():
    """Counted once; what a later event says of it is no selection."""
    found = streamed(
        Interface.RESPONSES, added(0, "balance"), arguments_done(0), done(0, "transfer"), finished(call("t"))
    )
    assert found == [[], ["balance"], [], []]


# -- messages --------------------------------------------------------------------------------------------
def use(name: Any, id: str = "") -> dict[str, Any]:  # noqa: A002
    return {"type": "tool_use", "id": id, "name": name, "input": {}}


def start(index: Any, block: Any) -> dict[str, Any]:
    return {"type": "content_block_start", "index": index, "content_block": block}


def stop(index: Any) -> dict[str, Any]:
    return {"type": "content_block_stop", "index": index}


def test_a_whole_message():
    text = {"type": "text", "text": "tool_use"}
    hosted = {"type": "server_tool_use", "name": "web_search", "id": "s"}
    outside = {"type": "mcp_tool_use", "name": "elsewhere", "id": "m"}
    assert whole(Interface.MESSAGES, {"content": [text, use("balance", "a"), hosted, outside]}) == ["balance"]


def test_a_streamed_message():
    partial = {
        "type": "content_block_delta",
        "index": 1,
        "delta": {"type": "input_json_delta", "partial_json": ""},
    }
    found = streamed(
        Interface.MESSAGES,
        {"type": "message_start", "message": {"content": []}},
        start(0, {"type": "text", "text": ""}),
        stop(0),
        start(1, use("balance", "a")),
        partial,
        stop(1),
        {"type": "message_delta", "delta": {"stop_reason": "tool_use"}},
        {"type": "message_stop"},
    )
    assert found == [[], [], [], [], [], ["balance"], [], []]


@pytest.mark.parametrize(
    "events",
    [
        [start(0, use("balance"))],  # never stopped
        [start(0, use("balance")), start(0, use("transfer")), stop(0)],
        [start("0", use("balance")), stop("0")],
        [stop(0)],
        [start(0, [use("balance")]), stop(0)],
    ],
)
def test_blocks_that_do_not_count(events: list[Any]):
    assert [name for each in streamed(Interface.MESSAGES, *events) for name in each] == []


# -- anything --------------------------------------------------------------------------------------------
WORDS = st.sampled_from(
    [
        *("choices", "delta", "tool_calls", "index", "function", "name", "id", "finish_reason", "message"),
        *("type", "output", "item", "output_index", "response", "content", "content_block", "function_call"),
        *("tool_use", "content_block_start", "response.output_item.done", "response.completed", "balance"),
    ]
)
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 3) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=25,
)


@given(st.sampled_from(Interface), st.lists(JSON, max_size=5))
def test_no_answer_does_harm(interface: Interface, events: list[Any]):
    answer, said = Answer(interface, {}), "".join(words(events))
    found = [name for event in events for name in answer.event(event)]
    found += [name for event in events for name in Answer(interface, {}).whole(event)]
    for name in found:
        assert NAME.fullmatch(name)
        assert set(name) <= set(said)


def words(value: Any) -> Iterator[str]:
    """Every text in it."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from words(each)
    elif isinstance(value, list):
        for each in value:
            yield from words(each)

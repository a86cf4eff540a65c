"""A message as it is read: the same as a constructed one, and as immutable."""

from __future__ import annotations

import copy
import pickle
from dataclasses import FrozenInstanceError, fields, replace
from datetime import UTC, datetime

import pytest

from mas_nats.message import AgentMessage, Course, read_message
from mas_nats.wire import headers

DATA = {"card": "4111111111111111"}
FIELDS = {
    headers.MESSAGE_ID: "1",
    headers.SENDER: "router",
    headers.TYPE: "ask",
    headers.SENT: "1700000000250",
    headers.DEADLINE: "1700000060000",
    headers.AUDIT: "w.1.2",
    headers.REPLY_TOKEN: "t0",
    headers.STREAM: "1",
    headers.SALT: "5a17",
}
SENT = datetime(2023, 11, 14, 22, 13, 20, 250_000, tzinfo=UTC)


def test_it_is_what_the_constructor_makes():
    constructed = AgentMessage(
        message_id="1",
        sender="router",
        target="desk",
        message_type="ask",
        data=DATA,
        sent_at=SENT,
        deadline=datetime(2023, 11, 14, 22, 14, 20, tzinfo=UTC),
        attempt=2,
        audit="w.1.2",
        reply_token="t0",
        streams=True,
        body=b"{}",
        salt="5a17",
    )
    read = read_message(FIELDS, DATA, target="desk", attempt=2, body=b"{}")
    assert type(read) is AgentMessage
    assert read == constructed
    assert repr(read) == repr(constructed)
    assert "4111" not in repr(read)
    assert replace(read, attempt=3) == replace(constructed, attempt=3) != read


def test_headers_that_are_missing_leave_the_defaults():
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    assert read_message({}, {}, target="desk") == AgentMessage("", "", "desk", "", {}, epoch)


def test_every_field_is_set_and_none_can_be_changed():
    read = read_message(FIELDS, DATA, target="desk")
    for each in fields(AgentMessage):
        with pytest.raises(FrozenInstanceError):
            setattr(read, each.name, getattr(read, each.name))
        with pytest.raises(FrozenInstanceError):
            delattr(read, each.name)
    assert not hasattr(read, "__dict__")


def test_each_has_a_course_of_its_own():
    one, other = (read_message(FIELDS, DATA, target="desk") for _ in range(2))
    one.course.told = True
    assert other.course == Course()


def test_it_can_be_copied_and_pickled():
    read = read_message(FIELDS, DATA, target="desk")
    assert copy.deepcopy(read) == pickle.loads(pickle.dumps(read)) == read

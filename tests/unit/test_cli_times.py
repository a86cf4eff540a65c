"""Times as people write them: the same one everywhere, and none that ends a command with a traceback."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from broker_policy.cli import dlq
from broker_policy.cli.audit_question import question
from broker_policy.cli.times import duration, when
from mas_nats.errors import ConfigurationError

HOUR = 3_600_000


@pytest.fixture
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "Europe/Berlin")
        time.tzset()
        yield
    time.tzset()


def since_of_a_dead_letter(text: str) -> int:
    return dlq._wanted("", "", "", "", text).since


@pytest.mark.parametrize("read", [when, since_of_a_dead_letter])
def test_a_time_without_a_zone_is_local_for_every_command(berlin: None, read):
    for text, same in (
        ("2026-01-15T12:00:00.123", "2026-01-15T12:00:00.123+01:00"),
        ("2026-07-15T12:00:00", "2026-07-15T12:00:00+02:00"),
        ("2026-03-29T01:59:59", "2026-03-29T00:59:59Z"),
        ("2026-03-29T03:00:00", "2026-03-29T01:00:00Z"),  # a second later: there was no 02:00
        ("2026-10-25T02:30:00", "2026-10-25T00:30:00Z"),  # it was twice: the first one
    ):
        assert read(text) == read(same), text


@pytest.mark.parametrize("read", [when, since_of_a_dead_letter])
def test_how_long_ago(read):
    assert read("1h30m") == pytest.approx(time.time() * 1000 - 1.5 * HOUR, abs=10_000)
    assert read("99999999d") < 0, "before everything"


@pytest.mark.parametrize("read", [when, since_of_a_dead_letter])
def test_what_is_no_time_is_said_to_be_none(read):
    for text in ("yesterday", "90", "2026-13-01", "0001-01-01"):
        with pytest.raises(ConfigurationError, match=r"is not a time: .* or how long ago"):
            read(text)


@pytest.mark.parametrize("text", ["9" * 15, "9" * 400, "9" * 400 + "d", "99999999999d"])
def test_what_is_longer_than_any_duration_is_said_to_be(text):
    with pytest.raises(ConfigurationError, match="longer than anything that can be waited for"):
        duration(text)


def test_a_decision_that_nobody_makes_is_not_asked_for():
    with pytest.raises(ConfigurationError, match="did you mean 'AUTHZ_DENIED'"):
        question(None, None, "authz_denied", None, None, None, None, None)
    assert question(None, None, "AUTHZ_DENIED", None, None, None, None, None).decision == "AUTHZ_DENIED"

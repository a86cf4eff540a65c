"""The screen of streamed replies: a secret may be cut anywhere, prose must not wait."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_policy.dlp import StreamScreen, judge, ruleset
from broker_policy.pipeline.dlp import blocked
from broker_policy.screen import Screened
from mas_nats.policy.governance import Dlp, DlpAction, DlpRule
from mas_nats.wire.frames import Chunk, joined
from mas_nats.wire.verdict import Decision

REDACTING = Dlp(
    policy_overrides=dict.fromkeys(
        ("credit_card", "api_key", "aws_key", "jwt", "password", "cvv", "mrn"), DlpAction.REDACT
    )
)
SECRETS = {
    "219-09-9999": "ssn",
    "SSN: 219 09 9999": "ssn",
    "4111 1111 1111 1111": "credit_card",
    "378282246310005": "credit_card",
    "AKIAIOSFODNN7EXAMPLE": "aws_key",
    "ghp_000000000000000000000000000000000000": "api_key",
    "sk-proj-fake0123fake0123fake0123": "api_key",
    "eyJhbGciOiJub25lIn0.eyJzdWIiOiJmYWtlIn0.c2lnbmF0dXJl": "jwt",
    "password: tulip99": "password",
    "passphrase is tulip-99-red": "password",
    "cvv 123": "cvv",
    "MRN 00482915": "mrn",
}


def screen(settings: Dlp = REDACTING) -> StreamScreen:
    rules = ruleset(settings)
    return StreamScreen(lambda: rules, blocked)


def stream(frames: list[list[Chunk]], settings: Dlp = REDACTING) -> tuple[list[Chunk], list[Screened]]:
    """What goes out of a whole stream, and what each frame did."""
    held: tuple[Chunk, ...] = ()
    out: list[Chunk] = []
    steps = []
    for number, frame in enumerate(frames):
        step = screen(settings)(held, frame, final=number == len(frames) - 1)
        steps.append(step)
        if step.refusal is not None:
            break
        out += step.out
        held = step.held
    return joined(out), steps


def cut(text: str, places: list[int]) -> list[str]:
    bounds = sorted({0, len(text), *(place % (len(text) + 1) for place in places)})
    return [text[start:end] for start, end in itertools.pairwise(bounds)]


PLACES = st.lists(st.integers(0, 500), max_size=40)


@given(st.sampled_from(sorted(SECRETS)), PLACES, st.sampled_from(["", "Well, ", "see 12 of "]), st.booleans())
def test_a_secret_cut_anywhere_never_goes_out(
    secret: str, places: list[int], before: str, letter_by_letter: bool
):
    text = f"{before}{secret} and so on"
    parts = list(text) if letter_by_letter else cut(text, places)
    out, _ = stream([[part] for part in parts])
    said = "".join(map(str, out))
    whole, _ = stream([[text]])
    assert said == "".join(map(str, whole)), "as if it had been said at once"
    assert f"[REDACTED:{SECRETS[secret]}]" in said
    assert secret not in said


@given(st.sampled_from(sorted(SECRETS)), PLACES)
def test_blocked_is_blocked_wherever_it_is_cut(secret: str, places: list[int]):
    out, steps = stream([[part] for part in cut(f"Well, {secret} and so on", places)], Dlp())
    said = "".join(map(str, out))
    if SECRETS[secret] == "ssn":
        assert secret[-4:] not in said
        return
    refusal = steps[-1].refusal
    assert refusal is not None
    assert (refusal.decision, refusal.rule) == (Decision.DLP_BLOCKED, f"dlp:{SECRETS[secret]}")
    assert secret[-4:] not in said + refusal.reason


@given(st.sampled_from(sorted(SECRETS)), PLACES)
def test_also_in_objects_one_after_the_other(secret: str, places: list[int]):
    parts = cut(f"so {secret} ends", places)
    frames: list[list[Chunk]] = [[{"id": "chat-1", "delta": {"content": part}}] for part in parts]
    out, _ = stream([*frames, [{"id": "chat-1", "done": True}]])
    said = "".join(
        str(chunk["delta"]["content"]) for chunk in out if isinstance(chunk, dict) and "delta" in chunk
    )
    assert secret not in said
    assert secret[-4:] not in said


def test_the_control_without_holding_back_it_leaks(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("broker_policy.dlp.stream._beginning", len)
    out, _ = stream([["it is 219-09"], ["-9999 you know"]])
    assert "".join(map(str, out)) == "it is 219-09-9999 you know"


@pytest.mark.parametrize(
    "words",
    [
        ["Once ", "upon ", "a ", "time"],
        ["Hello"],
        ["It works.", " Really"],
        ["grüße ", "你好"],
    ],
)
def test_prose_does_not_wait(words: list[str]):
    held: tuple[Chunk, ...] = ()
    for word in words:
        step = screen()(held, [word], final=False)
        assert (step.out, step.held) == ((word,), ())
        held = step.held


def test_objects_without_secrets_do_not_wait():
    step = screen()((), [{"n": 1, "text": "a word "}, {"n": 2}], final=False)
    assert step.held == ()


def test_own_rules_hold_back_a_window():
    own = Dlp(rules=(DlpRule(id="p", type="project", pattern=r"blue falcon \w+", action=DlpAction.REDACT),))
    out, _ = stream([["the blue fal"], ["con landing"], [" is near"]], own)
    assert "".join(map(str, out)) == "the [REDACTED:project] is near"


def test_a_long_key_in_parts_that_is_redacted():
    settings = Dlp(policy_overrides={"private_key": DlpAction.REDACT})
    key = "-----BEGIN PRIVATE KEY-----\n" + "Zm9v\n" * 200 + "-----END PRIVATE KEY-----"
    out, _ = stream([[part] for part in cut(f"here: {key} thanks", list(range(0, 1100, 7)))], settings)
    assert "".join(map(str, out)) == "here: [REDACTED:private_key] thanks"


def test_what_was_found_is_told():
    step = screen()((), ["write to a@example.com now "], final=True)
    assert step.finding is not None
    assert (step.finding.decision, step.finding.rule) == (Decision.ALERT, "dlp:email")
    step = screen()((), ["it is 219-09-9999 "], final=True)
    assert step.finding is not None
    assert (step.finding.decision, step.finding.rule) == (Decision.DLP_REDACTED, "dlp:ssn")


@given(st.lists(st.text("ab1 -:@", max_size=8) | st.just({"t": "12"}), max_size=12))
def test_nothing_is_lost_or_moved(chunks: list[Any]):
    """Where nothing is found, everything comes out in its order."""
    if judge(ruleset(Dlp()), b'{"t":"x"}') is None:
        out, steps = stream([[chunk] for chunk in chunks] or [[]], Dlp(merge_strategy="replace", rules=()))
        assert out == joined(chunks)
        assert all(step.refusal is None for step in steps)
    out, steps = stream([[chunk] for chunk in chunks] or [[]], Dlp())
    if all(step.finding is None and step.refusal is None for step in steps):
        assert out == joined(chunks)

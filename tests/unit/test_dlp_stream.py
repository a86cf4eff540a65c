"""The screen of streamed replies: a secret may be cut anywhere, prose must not wait."""

from __future__ import annotations

import base64
import itertools
import re
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_policy.dlp import StreamScreen, corpus, judge, ruleset
from broker_policy.dlp.forms import base64_runs
from broker_policy.dlp.reach import ENDLESS, reach
from broker_policy.dlp.ruleset import WINDOW, Ruleset
from broker_policy.passed import MARK
from broker_policy.pipeline.dlp import blocked
from broker_policy.screen import MAX_HELD, Screened, let_through
from mas_nats.policy.governance import Dlp, DlpAction, DlpRule
from mas_nats.wire.frames import WHOLE, Chunk, joined
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


CORPUS = sorted(
    {
        text
        for case in corpus.read()
        for text in case.body.values()
        if isinstance(text, str) and not list(base64_runs(text))
    }
)
"""Without base64, of which the first letters look like any others."""
_CUTS = {
    "letters": list,
    "words": re.compile(r"\s*\S+|\s+\Z").findall,
    "tokens": re.compile(r"\s?\S{1,4}|\s").findall,
}
BUILT_IN = Dlp(policy_overrides=dict.fromkeys(("email", "phone", "address", "icd10"), DlpAction.ALERT))


def _leaks(text: str, parts: list[str]) -> bool:
    """Whether something that is found in ``text`` gets through when it comes in ``parts``."""
    whole, steps = stream([[text]], BUILT_IN)
    if steps[-1].refusal is None and whole in ([text], []):
        return False
    out, steps = stream([[part] for part in parts], BUILT_IN)
    return steps[-1].refusal is None and out != whole


@pytest.mark.parametrize("cut", _CUTS)
def test_nothing_of_the_corpus_gets_through_in_parts(cut: str):
    assert len(CORPUS) > 300
    assert [text for text in CORPUS if _leaks(text, _CUTS[cut](text))] == []


@pytest.mark.parametrize(
    "text",
    [
        "curl --silent --location 'https://x.example/a/b/c/d/e/f/g/h/i' -H 'accept: x' -u ada:tulip99 and",
        "https://hooks.slack.com/services/T000/B000/abcdefghijkl and",
        "redis://:tulip99@x.example and",
        "MR # 1234567 and",
        "pw = tulip99 and",
        "payment was made with 4222222222222 and",
        "beneficiary is 1EG4TE5MK73 and",
        "the aws deployment token for all of them = wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY and",
        "passphrase is " + "tulip-rose-and-others-" * 5 + " and",
        "the card was sent to you by mail last week, and of course its security code is 123 and",
        "password:\n  tulip99 and",
        r"got {\"password\": \"tulip99\"} and",
        r"got card 4111\n1111\n1111\n1111 and",
        "\uff50\uff41\uff53\uff53\uff57\uff4f\uff52\uff44 is tulip99 and",
    ],
)
def test_what_says_that_something_is_a_secret_waits_as_long_as_it(text: str):
    assert not _leaks(text, list(text))
    for place in range(1, len(text)):
        assert not _leaks(text, [text[:place], text[place:]]), text[:place]


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


def test_text_that_cannot_be_searched_ends_the_stream():
    deep = base64.b64encode(b"[" * 300 + b'"a@b.example.com"' + b"]" * 300).decode()
    for chunk in (f"see {deep} ", {"a": f"see {deep} "}):
        step = screen()((), [chunk], final=True)
        assert step.refusal is not None
        assert step.refusal.rule == "dlp:nesting"


def test_objects_without_secrets_do_not_wait():
    step = screen()((), [{"n": 1, "text": "a word "}, {"n": 2}], final=False)
    assert step.held == ()


def test_an_object_that_is_whole_does_not_wait_for_the_next():
    version: Chunk = {"jsonrpc": "2.0"}  # 2.0 may be the beginning of a number
    assert screen()((), [version], final=False).held == (version,)
    whole: Chunk = {**version, WHOLE: True}
    assert screen()((), [whole], final=False).out == (whole,)


def whole(text: str) -> Chunk:
    return {"jsonrpc": "2.0", "params": {"delta": text}, WHOLE: True}


def deltas(chunks: list[Chunk]) -> list[str]:
    return [chunk["params"]["delta"] for chunk in chunks if isinstance(chunk, dict)]


@given(st.sampled_from(sorted(SECRETS)), PLACES, st.sampled_from(["", "Well, ", "see 12 of "]))
def test_a_secret_cut_between_whole_objects_never_gets_through(secret: str, places: list[int], before: str):
    """What went out before it was one is gone; its end, and so the secret, reaches nobody."""
    parts = cut(f"{before}{secret} and so on", places)
    out, steps = stream([[whole(part)] for part in parts])
    assert all(step.refusal is None for step in steps)
    assert secret not in "".join(deltas(out))
    assert f"[REDACTED:{SECRETS[secret]}]" in "".join(deltas(out))
    out, steps = stream([[whole(part)] for part in parts], Dlp())
    assert secret not in "".join(deltas(out))
    if SECRETS[secret] != "ssn":
        assert steps[-1].refusal is not None
        assert steps[-1].refusal.rule == f"dlp:{SECRETS[secret]}"


def test_the_control_without_remembering_it_gets_through(monkeypatch: pytest.MonkeyPatch):
    frames = [[whole("it is AKIAIOSF")], [whole("ODNN7EXAMPLE, yes")]]
    assert "AKIAIOSFODNN7EXAMPLE" not in "".join(deltas(stream(frames)[0]))
    monkeypatch.setattr("broker_policy.dlp.stream._Pass.remembered", lambda _: {})
    assert "AKIAIOSFODNN7EXAMPLE" in "".join(deltas(stream(frames)[0]))


@pytest.mark.parametrize("which", list(itertools.product([True, False], repeat=3)))
def test_whole_objects_among_others_are_no_way_out(which: tuple[bool, ...]):
    parts = ["it is AKIAI", "OSFODN", "N7EXAMPLE, yes"]
    frames: list[list[Chunk]] = [
        [{"delta": part} | ({WHOLE: True} if one else {})] for part, one in zip(parts, which, strict=True)
    ]
    other: Chunk = {"other": "42", WHOLE: True}
    for between in ([], [other], ["some words "]):
        out, _ = stream([[*frame, *between] for frame in frames])
        said = "".join(str(chunk.get("delta", "")) for chunk in out if isinstance(chunk, dict))
        assert "AKIAIOSFODNN7EXAMPLE" not in said
        _, steps = stream([[*frame, *between] for frame in frames], Dlp())
        assert steps[-1].refusal is not None


def test_a_card_number_of_equal_parts_does_not_get_through():
    parts = [*["5555"] * 3, "4444"]
    _, steps = stream([*([whole(part)] for part in parts), [whole(" ends")]], Dlp())
    assert steps[-1].refusal is not None


def test_what_is_the_same_in_every_object_is_no_text_that_goes_on():
    """An id such as 42 is not the card number 4242 4242 4242 4242; and what is remembered of it is little."""
    event: Chunk = {"jsonrpc": "2.0", "id": "42", "task": "0b6e-4242-42", WHOLE: True}
    held: tuple[Chunk, ...] = ()
    for _ in range(200):
        step = screen(Dlp())(held, [event], final=False)
        assert (step.out, step.refusal, step.finding) == ((event,), None, None)
        held = step.held
    assert len(orjson.dumps(held)) < 2_000
    ended = screen(Dlp())(held, [{"jsonrpc": "2.0", "id": "43", WHOLE: True}], final=True)
    assert (ended.refusal, ended.held) == (None, ())


def test_what_is_remembered_of_large_objects_has_a_bound():
    held: tuple[Chunk, ...] = ()
    for number in range(3):
        large: Chunk = {f"{number}-{place}": f"at {place}" for place in range(5_000)}
        step = screen(Dlp())(held, [{**large, WHOLE: True}, whole("it is AKIAIOSF")], final=False)
        assert step.refusal is None
        held = step.held
        assert len(orjson.dumps(held)) <= MAX_HELD * 2 // 3
    assert screen(Dlp())(held, [whole("ODNN7EXAMPLE")], final=True).refusal is not None


@pytest.mark.parametrize("settings", [Dlp(), Dlp(merge_strategy="replace", rules=())])
def test_what_is_remembered_never_goes_out(settings: Dlp):
    """Also where policy changed meanwhile, and where a producer's own object has the name."""
    held = screen(Dlp())((), [whole("so 12")], final=False).held
    assert MARK in str(held)
    step = screen(settings)(held, [whole("words")], final=True)
    assert step.out == (whole("words"),)
    assert let_through(held, [whole("words")], final=True).out == (whole("words"),)
    own: Chunk = {MARK: "so 12"}
    waiting = screen(Dlp())((), [own], final=False)
    assert waiting.out == ()
    assert screen(settings)(waiting.held, [], final=True).out == (own,)
    assert screen(settings)(waiting.held, [whole("x")], final=True).out == (own, whole("x"))


def test_what_is_in_a_whole_object_is_found():
    said = screen()((), [{"a": "AKIAIOSFODNN7EXAMPLE", WHOLE: True}], final=False)
    assert "AKIAIOSFODNN7EXAMPLE" not in str(said.out)
    assert said.finding is not None
    blocking = Dlp(policy_overrides={"aws_key": DlpAction.BLOCK})
    refused = screen(blocking)((), [{"a": "AKIAIOSFODNN7EXAMPLE", WHOLE: True}], final=False)
    assert refused.refusal is not None


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


@pytest.mark.parametrize(
    ("pattern", "characters"),
    [
        (r"PRJ-\d{4}", 8),
        (r"\bPRJ-\d{4}\b", 8),
        (r"PRJ-\d+", 6),
        (r"^PRJ-\d+$", 6),
        (r"(?i)ab|cde", 3),
        (r"[[:alpha:]]{40}x", 41),
        (r"\pL{3}-\p{Greek}{2}", 6),
        (r"(?:ab){2,}", 6),
        (r"a(b{100}c+)", 103),
        (r"BEGIN.*END", ENDLESS),
        (r"key\s*=\s*\d{4}", ENDLESS),
        (r"a+\B", ENDLESS),
        (r"(?U)a+b", ENDLESS),
        (r"[[a]--b]{3}", 7),
        (r"\Qa.b\E", ENDLESS),
    ],
)
def test_how_long_a_beginning_may_be(pattern: str, characters: int):
    assert reach(pattern) == characters


def own(pattern: str) -> Dlp:
    return Dlp(rules=(DlpRule(id="own", type="own", pattern=pattern),))


LONG_RULES = {
    r"BEGIN [a-z ]{900} END": f"BEGIN {'some words ' * 81}wordyword END",
    r"BEGIN [a-z ]* END": f"BEGIN {'some words ' * 200} END",
    r"PRJ(?:-[a-z]{4} ?){120}": "PRJ" + "-abcd " * 120,
}


@pytest.mark.parametrize("pattern", LONG_RULES)
@pytest.mark.parametrize("size", [1, 7, 300])
def test_a_find_of_a_users_own_rule_longer_than_the_window_does_not_slip(pattern: str, size: int):
    secret, prose = LONG_RULES[pattern], "It was said before that nothing is the matter. " * 12
    assert len(secret) > WINDOW
    text = f"{prose}{secret}. {prose}"
    frames: list[list[Chunk]] = [[text[at : at + size]] for at in range(0, len(text), size)]
    out, _ = stream(frames, own(pattern))
    said = "".join(map(str, out))
    assert said == "".join(map(str, stream([[text]], own(pattern))[0]))
    assert "[REDACTED:own]" in said
    assert secret[:40] not in said


def test_the_control_with_the_fixed_window_it_slips(monkeypatch: pytest.MonkeyPatch):
    pattern = r"BEGIN [a-z ]{900} END"
    rules = Ruleset(own(pattern))
    monkeypatch.setattr(rules, "window", WINDOW)
    narrow = StreamScreen(lambda: rules, blocked)
    held: tuple[Chunk, ...] = ()
    said = ""
    for at in range(0, len(LONG_RULES[pattern]), 50):
        step = narrow(held, [LONG_RULES[pattern][at : at + 50]], final=False)
        said, held = said + "".join(map(str, step.out)), step.held
    assert "BEGIN some" in said


def test_a_stream_that_must_wait_for_its_end_says_so_when_it_is_too_long():
    step = screen(own(r"BEGIN.*END"))((), ["so it goes on " * 5_000], final=False)
    assert step.refusal is not None
    assert (step.refusal.rule, "own" in step.refusal.reason) == ("dlp:stream", True)
    assert screen(own(r"PRJ-\d+"))((), ["so it goes on " * 5_000], final=False).refusal is None

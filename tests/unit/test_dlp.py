"""The engine of data-loss prevention: what it finds, what it leaves alone, and what it makes of a body."""

from __future__ import annotations

import base64
import contextlib
import json
import time
from typing import Any
from urllib.parse import quote

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_policy.dlp import judge, redact_text, ruleset
from broker_policy.dlp.judging import places
from broker_policy.dlp.ruleset import Ruleset
from broker_policy.dlp.scanning import Scan, TooDeep
from mas_nats.errors import ConfigurationError
from mas_nats.policy.call import Finding
from mas_nats.policy.governance import Dlp, DlpAction, DlpRule
from mas_nats.wire.verdict import Decision

DEFAULT = ruleset(Dlp())
SSN = "219-09-9999"
CARD = "4111 1111 1111 1111"
AWS = "AKIAIOSFODNN7EXAMPLE"


def types(body: Any, rules: Ruleset = DEFAULT) -> tuple[str, ...]:
    found = judge(rules, body if isinstance(body, bytes) else orjson.dumps(body))
    return found.types if found else ()


def redacted(body: Any, rules: Ruleset = DEFAULT) -> Any:
    found = judge(rules, body if isinstance(body, bytes) else orjson.dumps(body))
    assert found is not None
    assert found.decision is Decision.DLP_REDACTED
    return json.loads(found.body)


# -- faults of the ancestor (4, 20) ----------------------------------------------------------------
@pytest.mark.parametrize("around", ["\n{}", "\t{}", "a\n{}\nb", "\\{}", '"{}"', "{}", "x: {}."])
def test_decoded_text_is_judged(around: str):
    assert types({"text": around.format(SSN)}) == ("ssn",)
    assert types({"text": around.format(CARD)}) == ("credit_card",)


@pytest.mark.parametrize("separator", ["-", " ", "\n", "\t", "\u2013", "\u00a0", " - "])
def test_parts_of_a_number_may_be_apart(separator: str):
    assert types({"text": f"it is {SSN.replace('-', separator)}."}) == ("ssn",)
    assert types({"text": f"pay {CARD.replace(' ', separator)}"}) == ("credit_card",)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"password": "tulip"}, "password"),
        ({"user": {"dbPassword": "x1"}}, "password"),
        ({"password": 481516}, "password"),
        ({"passwords": ["one-1", "two-2"]}, "password"),
        ({"name": "password", "value": "tulip"}, "password"),
        ({"api_key": "0123456789abcdef"}, "api_key"),
        ({"X-API-Key": "0123456789abcdef"}, "api_key"),
        ({"cvv": 123}, "cvv"),
        ({"card": {"cvc": "0123"}}, "cvv"),
        ({"ssn": 219099999}, "ssn"),
        ({"patient_mrn": "00482915"}, "mrn"),
        ({"key": "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA"}, "private_key"),
        ({"t": "ghp_" + "0" * 36}, "api_key"),
        ({"t": "sk-proj-" + "fake0123" * 4}, "api_key"),
        ({SSN: 1}, "ssn"),
        ({"n": 4111111111111111}, "credit_card"),
        ({"n": 4.111111111111111e15}, "credit_card"),
    ],
)
def test_names_keys_and_numbers_are_judged(body: Any, expected: str):
    assert types(body) == (expected,)


@pytest.mark.parametrize(
    "body",
    [
        {"at": 1700000000, "ms": 1700000000123, "us": 1700000000123456},
        {"text": "vitamin B12 and plan B52"},
        {"order_id": "219099999", "n": 219099999},
        {"part": "4111-1111-1111-1112"},
        {"text": " ".join(map(str, range(3000)))},
        {"password_required": True, "password": None, "password_hash_algorithm": "argon2"},
        {"password": "[REDACTED:password]"},
        {"password": "********"},
        {"text": "Your password is required. Passwords should be long."},
        {"usage": {"total_tokens": 123456789, "max_tokens": 4096}},
        {"id": "6f1d3f4e-8b1a-4b59-9f53-5fd4f36b1a2c"},
        {"sha": "da39a3ee5e6b4b0d3255bfef95601890afd80709"},
        {"text": "It is a 10 minutes drive; take the next street."},
        {"text": "icon@2x.png and git@github.com:org/repo.git"},
        {"version": "10.0.19045.3693", "ip": "192.168.100.200"},
        {"text": "section A12.3 of the plan"},
    ],
    ids=lambda body: str(body)[:40],
)
def test_what_only_looks_like_it_is_left_alone(body: Any):
    assert types(body) == ()


# -- forms -----------------------------------------------------------------------------------------
def _escaped(text: str) -> bytes:
    return b'{"t":"' + "".join(f"\\u{ord(each):04x}" for each in text).encode() + b'"}'


def _wide(text: str) -> str:
    return "".join(chr(ord(each) + 0xFEE0) if each.isalnum() else each for each in text)


def _packed(text: str) -> str:
    return base64.urlsafe_b64encode(f"value is {text}.".encode()).decode()


def _in_strings(text: str, levels: int) -> bytes:
    value: Any = {"t": text}
    for _ in range(levels):
        value = {"t": json.dumps(value)}
    return json.dumps(value).encode()


@pytest.mark.parametrize("secret", [SSN, CARD, AWS])
@pytest.mark.parametrize(
    "form",
    [
        _escaped,
        lambda text: orjson.dumps({"t": json.dumps({"inner": text})}),
        lambda text: orjson.dumps({"t": json.dumps({"inner": json.dumps([f"a\n{text}"])})}),
        lambda text: orjson.dumps({"t": quote(f"value is {text}", safe="")}),
        lambda text: orjson.dumps({"t": base64.b64encode(f"value is {text}".encode()).decode()}),
        lambda text: orjson.dumps({"t": base64.urlsafe_b64encode(f"??>> {text}\n".encode()).decode()}),
        lambda text: orjson.dumps({"t": "x" + base64.b64encode(f"value is {text}".encode()).decode()}),
        lambda text: orjson.dumps({"t": "".join(chr(ord(c) + 0xFEE0) if c.isalnum() else c for c in text)}),
        lambda text: orjson.dumps({"t": "\u200b".join(text)}),
        lambda text: orjson.dumps({"t": json.dumps(text)}),
        lambda text: orjson.dumps({"t": json.dumps(json.dumps(text))}),
        lambda text: orjson.dumps({"t": "\ufeff" + json.dumps([text])}),
        lambda text: _in_strings(_wide(text), 4),
        lambda text: orjson.dumps({"t": quote(_wide(text), safe="")}),
        lambda text: orjson.dumps({"t": "https://x.example/files/" + _packed(text)}),
        lambda text: orjson.dumps({"t": f"payload_{_packed(text)}"}),
        lambda text: b'{"t":"' + text.encode() + b'","t":"harmless"}',
        lambda text: orjson.dumps({"t": {text: 1}}),
        lambda text: orjson.dumps([[[[{"t": [text]}]]]]),
    ],
)
def test_no_form_hides_a_secret(secret: str, form: Any):
    assert len(types(form(secret))) == 1


@pytest.mark.parametrize(
    "sign",
    [
        *("\0", "\u00ad", "\u034f", "\u061c", "\u180b", "\u200b", "\u200f", "\u202a", "\u202c", "\u202d"),
        *("\u2060", "\u2063", "\u2066", "\u2069", "\u3164", "\ufe0f", "\ufeff", "\ufffa", "\U000e0041"),
    ],
    ids=lambda sign: f"U+{ord(sign):04X}",
)
@pytest.mark.parametrize("secret", [SSN, CARD, AWS])
def test_what_is_not_drawn_hides_nothing(secret: str, sign: str):
    assert len(types({"t": f"see {sign.join(secret)} there"})) == 1
    assert len(types({"t": json.dumps({"inner": sign.join(secret)})})) == 1


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({"name": "cvv", "value": 123}),
        json.dumps(json.dumps({"name": "cvv", "value": 123})),
        json.dumps(json.dumps({"cvv": 123})),
        "\ufeff" + json.dumps({"name": "cvv", "value": 123}),
        " " * 80 + json.dumps({"name": "cvv", "value": 123}),
    ],
)
def test_names_in_json_in_a_string_say_what_their_values_are(text: str):
    assert types({"t": text}) == ("cvv",)


@pytest.mark.parametrize("levels", [1, 2, 3])
@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"cvv": 123}, "cvv"),
        ({"password": "tulip99"}, "password"),
        ({"card": CARD.replace(" ", "\n")}, "credit_card"),
        ({"card": _wide(CARD)}, "credit_card"),
    ],
)
def test_json_that_stands_in_a_text_with_its_escapes(value: Any, expected: str, levels: int):
    text = json.dumps(value)
    for _ in range(levels):
        text = json.dumps(text)[1:-1]
    assert types({"t": f"10:30 got {text} from x"}) == (expected,)


@pytest.mark.parametrize(
    "text",
    [
        "219-09-999%39",
        "%32%31%39-09-99%39%39",
        r"219-09-999\u0039",
        r"\u00321\u0039-09-9999",
        f"219-09-999{_wide('9')}",
        "219-09-9\u200b9\u200b99",
        "".join(f"%{ord(each):02X}" for each in SSN),
        quote(_wide("219-09-9999")),
    ],
)
def test_all_signs_of_what_is_redacted_go(text: str):
    assert redacted({"t": f"see {text} ok"}) == {"t": "see [REDACTED:ssn] ok"}


def test_a_name_says_it_also_of_a_list_in_a_string():
    assert types({"passwords": json.dumps(["tulip", "rose"])}) == ("password",)
    assert types({"password": json.dumps("tulip")}) == ("password",)


@pytest.mark.parametrize(
    "text",
    [
        *("SPRING_DATASOURCE_PASSWORD=tulip99", "DB2_PASSWORD=tulip99", "dbPassword: tulip99"),
        *("MY_DB_PWD=tulip99", "HTTPS://ada:tulip99@x.example/", "://ada:tulip99@x.example/"),
    ],
)
def test_a_password_whatever_its_name_begins_with(text: str):
    assert types({"t": f"in .env: {text}"}) == ("password",)


@pytest.mark.parametrize("text", ["OLDPWD=/home/ada", "noPassword: required"])
def test_a_name_that_holds_such_a_word_and_no_password(text: str):
    assert types({"t": text}) == ()


def test_a_name_that_comes_twice_hides_nothing():
    body = f'{{"t":"{SSN}","t":"harmless"}}'.encode()
    assert redacted(body) == {"t": "harmless"}


# -- redaction -------------------------------------------------------------------------------------
def test_redaction_keeps_everything_else():
    body = {
        "a": [1, 2.5, True, None, {"b": f"ssn {SSN}, again {SSN}"}],
        "big": 2**62,
        "e": "\u00e9\n",
        "z": {},
    }
    body["a"][4]["n"] = 219099999  # type: ignore[index]
    body["a"][4]["ssn"] = 219099999  # type: ignore[index]
    expected = json.loads(json.dumps(body))
    expected["a"][4]["b"] = "ssn [REDACTED:ssn], again [REDACTED:ssn]"
    expected["a"][4]["ssn"] = "[REDACTED:ssn]"
    assert redacted(body) == expected


def test_numbers_stay_as_they_are_written():
    found = judge(DEFAULT, b'{"s":"219-09-9999","n":1.10,"big":123456789012345678901234567890,"e":1E5}')
    assert found is not None
    assert found.body == b'{"s":"[REDACTED:ssn]","n":1.10,"big":123456789012345678901234567890,"e":1E5}'


def test_redacted_names_do_not_collide():
    assert redacted({SSN: 1, "219-09-9998": 2, "ok": 3}) == {
        "[REDACTED:ssn]": 1,
        "[REDACTED:ssn]#2": 2,
        "ok": 3,
    }


def test_redaction_in_json_in_a_string():
    made = redacted({"args": json.dumps({"ssn": SSN, "n": 1})})
    assert json.loads(made["args"]) == {"ssn": "[REDACTED:ssn]", "n": 1}


def test_what_is_redacted_is_found_no_more():
    everything = dict.fromkeys(("credit_card", "password", "api_key", "email", "phone"), DlpAction.REDACT)
    rules = ruleset(Dlp(policy_overrides=everything))
    body = {"password": "tulip", "card": CARD, "t": "a@example.com", "api_key": "0123456789abcdef", "p": SSN}
    found = judge(rules, orjson.dumps(body))
    assert found is not None
    assert found.decision is Decision.DLP_REDACTED
    assert judge(rules, found.body) is None
    for secret in ("tulip", "1111", "example.com", "0123456789abcdef", SSN):
        assert secret.encode() not in found.body


def test_a_block_wins_and_keeps_nothing():
    found = judge(DEFAULT, orjson.dumps({"a": SSN, "b": CARD, "c": "a@example.com"}))
    assert found is not None
    assert (found.decision, found.types, found.body) == (
        Decision.DLP_BLOCKED,
        ("credit_card", "email", "ssn"),
        b"",
    )


def test_an_alert_delivers_the_very_bytes():
    body = b'{ "t" : "a@example.com" }'
    found = judge(DEFAULT, body)
    assert found is not None
    assert (found.decision, found.body) == (Decision.ALERT, body)


def test_a_decision_names_every_built_in_type_that_was_found():
    """Else the audit does not find it by its type, and a report counts too few."""
    every = tuple(sorted({each.type for each in DEFAULT.rules}))
    named = Finding(Decision.ALERT, every).rule
    assert named == "dlp:" + ",".join(every)
    more = (*every, *(f"z{number:02}" for number in range(20)))
    assert Finding(Decision.ALERT, more).rule.endswith(f",+{len(more) - 16}")


def test_text_for_a_header():
    assert redact_text(DEFAULT, f"ValueError: {CARD} of a@example.com") == (
        "ValueError: [REDACTED:credit_card] of a@example.com"
    )


# -- settings --------------------------------------------------------------------------------------
def rule(**changes: Any) -> DlpRule:
    return DlpRule(
        **{"id": "p", "type": "project", "pattern": r"\bPRJ-\d{4}\b", "action": "block", **changes}
    )


def test_rules_of_a_users_own():
    rules = ruleset(Dlp(rules=(rule(),)))
    assert types({"t": "see PRJ-1234"}, rules) == ("project",)
    assert types({"t": "see prj-1234"}, rules) == ()
    assert types({"t": SSN}, rules) == ("ssn",)
    assert types({"t": "see prj-1234"}, ruleset(Dlp(rules=(rule(case_insensitive=True),)))) == ("project",)
    assert types({"t": "see PRJ-1234"}, ruleset(Dlp(rules=(rule(enabled=False),)))) == ()
    only = ruleset(Dlp(rules=(rule(),), merge_strategy="replace"))
    assert types({"t": f"PRJ-1234 {SSN}"}, only) == ("project",)


@pytest.mark.parametrize("pattern", ["^secret$", r"\Asecret\z", "^sec", "ret$"])
def test_an_anchor_means_the_decoded_string(pattern: str):
    rules = ruleset(Dlp(rules=(rule(pattern=pattern),)))
    assert types({"t": ["other", "secret"]}, rules) == ("project",)
    assert types({"t": "a secre t"}, rules) == ()


def test_defaults_off_and_overridden():
    assert types({"t": SSN}, ruleset(Dlp(disable_defaults=("ssn",)))) == ()
    found = judge(ruleset(Dlp(policy_overrides={"ssn": DlpAction.BLOCK})), orjson.dumps({"t": SSN}))
    assert found is not None
    assert found.decision is Decision.DLP_BLOCKED
    assert types({"insurance_number": "W99912345"}) == ("health_insurance",)
    assert types({"insurance_number": "W99912345"}, ruleset(Dlp(disable_defaults=("insurance",)))) == ()
    assert types({"t": SSN}, ruleset(Dlp(enabled=False))) == ()


@pytest.mark.parametrize("names", [("insurance", "health_insurance"), ("health_insurance", "insurance")])
def test_an_override_by_either_name_holds_for_rules_of_a_users_own(names: tuple[str, str]):
    own = rule(type=names[0], action=DlpAction.ALERT)
    found = judge(
        ruleset(Dlp(rules=(own,), policy_overrides={names[1]: DlpAction.BLOCK})),
        orjson.dumps({"t": "see PRJ-1234"}),
    )
    assert found is not None
    assert found.decision is Decision.DLP_BLOCKED


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (Dlp(rules=(rule(pattern="(?=x)"),)), "'p'.*invalid perl operator"),
        (Dlp(rules=(rule(pattern="(a"),)), "'p'.*missing"),
        (
            Dlp(
                rules=(rule(pattern="(a"),),
            ),
            "'p'",
        ),
        (Dlp(rules=(rule(pattern="(a", enabled=False),)), "'p'"),
        (Dlp(rules=(rule(pattern="x*"),)), "empty text"),
        (Dlp(rules=(rule(pattern=r"((\pL{1,100}){1,10}x){1,1000}"),)), "'p'"),
        (Dlp(disable_defaults=("sssn",)), "disable_defaults.*'sssn'"),
        (Dlp(policy_overrides={"projekt": DlpAction.BLOCK}, rules=(rule(),)), "policy_overrides.*'projekt'"),
    ],
)
def test_wrong_settings_are_refused_with_their_reason(settings: Dlp, said: str):
    with pytest.raises(ConfigurationError, match=said):
        ruleset(settings)


def test_compiled_once_for_the_same_settings():
    assert ruleset(Dlp(disable_defaults=("ssn",))) is ruleset(Dlp(disable_defaults=("ssn",)))


class Silent:
    """A set that has run out of memory: it finds nothing, its sentinel neither."""

    def Match(self, _: object) -> list[int]:  # noqa: N802 - as google-re2 names it
        return []


def test_a_set_that_gives_up_hides_nothing(monkeypatch: pytest.MonkeyPatch):
    rules = Ruleset(Dlp())
    for each in rules._sets:
        monkeypatch.setattr(each, "_set", Silent())
    assert types({"t": SSN}, rules) == ("ssn",)


# -- limits ----------------------------------------------------------------------------------------
def test_deep_nesting_ends_in_a_refusal_where_it_matters():
    deep = b'{"a":' * 900 + b'"219-09-9999"' + b"}" * 900
    found = judge(DEFAULT, deep)
    assert found is not None
    assert (found.decision, found.types) == (Decision.DLP_BLOCKED, ("nesting",))
    assert judge(DEFAULT, b'{"a":' * 900 + b"1" + b"}" * 900) is None


def nested(*levels: int) -> str:
    """An address in lists, that stand in a string in lists, and so on; so many of them from within."""
    text = "a@b.example.com"
    for count in levels:
        text = "[" * count + orjson.dumps(text).decode() + "]" * count
    return text


def encoded(times: int) -> str:
    """The same in lists in base64 in a list, over and over."""
    text = nested(1)
    for _ in range(times):
        text = "[" * 30 + f'"{base64.b64encode(text.encode()).decode()}"' + "]" * 30
    return text


@pytest.mark.parametrize("text", [nested(150, 185, 190), nested(*[150] * 6), encoded(12)])
def test_what_is_deep_in_all_its_strings_together_is_nested_too_deeply(text: str):
    found = judge(DEFAULT, b'{"a":' + text.encode() + b"}")
    assert found is not None
    assert (found.decision, found.types) == (Decision.DLP_BLOCKED, ("nesting",))


def test_what_is_not_is_searched_and_redacted():
    assert types({"a": nested(50, 50, 50)}) == ("email",)
    assert types({"a": encoded(2)}) == ("email",)


def test_text_that_cannot_be_searched_is_left_out_of_a_header():
    deep = base64.b64encode(nested(100, 150).encode()).decode()
    assert redact_text(DEFAULT, f"a@b.example.com {deep}") == "[REDACTED:nesting]"


def test_a_stack_that_is_used_up_is_the_same_as_too_deep(monkeypatch: pytest.MonkeyPatch):
    def deeper(*_: object, **__: object) -> None:
        raise RecursionError

    monkeypatch.setattr(Scan, "text", deeper)
    found = judge(DEFAULT, b'{"a":"219-09-9999"}')
    assert found is not None
    assert found.types == ("nesting",)
    with pytest.raises(TooDeep):
        places(DEFAULT, b'{"a":"219-09-9999"}')


@pytest.mark.parametrize(
    "piece",
    [
        "a" * 64 + "@",
        "1-",
        "%41",
        "\\u0031",
        "password:",
        "4111 ",
        "-----BEGIN ",
        "eyJ",
        "QUFBQUFBQUFBQUFB",
        '{\\"a\\":',
        "aws ",
    ],
)
def test_time_is_linear(piece: str):
    def seconds(count: int) -> float:
        body = b'{"t":"' + piece.encode() * count + b'"}'
        best = 9.0
        for _ in range(2):
            begun = time.perf_counter()
            judge(DEFAULT, body)
            best = min(best, time.perf_counter() - begun)
        return best

    size = 100_000 // len(piece)
    assert seconds(8 * size) < 32 * max(seconds(size), 0.005), "eight times as long takes about eight times"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(JSON, st.sampled_from([SSN, CARD, AWS]))
def test_wherever_it_stands(value: Any, secret: str):
    for body in ({"v": value, "s": f"x {secret} y"}, {"v": [value, {"k": [f"\n{secret}\t"]}]}):
        found = judge(DEFAULT, json.dumps(body).encode())
        assert found is not None
        assert secret.encode() not in found.body


def test_more_finds_than_change_anything_are_not_looked_for_but_all_are_redacted():
    many = 1_500
    assert types({"text": " ".join(["a@b.org"] * many) + " 4111 1111 1111 1111"}) == ("credit_card", "email")
    numbers = " ".join(["219-09-9999"] * many)
    judgement = judge(ruleset(Dlp()), orjson.dumps({"text": numbers}))
    assert judgement is not None
    assert judgement.body.count(b"[REDACTED:ssn]") == many
    text = redact_text(ruleset(Dlp()), "; ".join(["4111 1111 1111 1111"] * many))
    assert text.count("[REDACTED:credit_card]") == many


# -- halves of surrogate pairs ---------------------------------------------------------------------------
_PIECES = st.sampled_from(
    [
        *(
            "\\ud800",
            "\\uDFFF",
            "\\ud83d\\ude00",
            "\\u12",
            "\\u0663",
            "\\\\ud800",
            "\\\\u12",
            "\\\\",
            '\\"',
            "\\n",
        ),
        *("\u0663", "\u2013", "%ED%A0%80", "7aCA7aCA7aCA7aCA7aCA7aCA", " ", "password", "a", SSN, CARD, AWS),
    ]
)
_NASTY = st.lists(_PIECES, max_size=12).map("".join)


@given(_NASTY, _NASTY)
def test_nothing_that_can_be_written_stops_the_search(name: str, text: str):
    """JSON may hold halves of pairs, escaped once or several times, that no UTF-8 can."""
    body = f'{{"{name}":"{text}"}}'.encode()
    try:
        json.loads(body)
    except ValueError:
        with contextlib.suppress(ValueError):
            judge(DEFAULT, body)
        return
    found = judge(DEFAULT, body)
    if found is not None and found.body:
        json.loads(found.body)
    places(DEFAULT, body)
    redact_text(DEFAULT, text)


def test_halves_of_pairs_hide_nothing():
    assert types(b'{"text":"\\ud800 219-09-9999 \\udc00"}') == ("ssn",)
    assert types('{"a":"\\\\ud800\\\\u12 ٣ 219-09-9999"}'.encode()) == ("ssn",)
    assert types(b'{"pass\\ud800word \\ud800 password":"tulip"}') == types(
        b'{"pass?word ? password":"tulip"}'
    )

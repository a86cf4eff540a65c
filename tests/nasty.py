"""Content that is costly to search for data-loss prevention, each about as large as it is asked for."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Callable

WIDE = "".join(chr(ord(each) + 0xFEE0) for each in "@pass")
ARABIC = {ord("0") + digit: chr(0x660 + digit) for digit in range(10)}


def _filled(size: int, unit: Callable[[random.Random], str], between: str = " ") -> str:
    """A text of ``size`` characters made of units."""
    chance = random.Random(7)
    out: list[str] = []
    length = 0
    while length < size:
        out.append(unit(chance))
        length += len(out[-1]) + len(between)
    return between.join(out)


def _digits(count: int) -> Callable[[random.Random], str]:
    return lambda chance: "".join(chance.choices("0123456789", k=count))


def _text(size: int, unit: Callable[[random.Random], str], between: str = " ") -> bytes:
    return json.dumps({"text": _filled(size, unit, between)}, ensure_ascii=False).encode()


def _iban(chance: random.Random) -> str:
    digits = _digits(20)(chance)
    return f"DE{digits[:2]} " + " ".join(digits[at : at + 4] for at in range(2, 20, 4))


def _phone(chance: random.Random) -> str:
    digits = _digits(10)(chance)
    return f"+1 ({digits[:3]}) {digits[3:6]}-{digits[6:]}"


def _base64(chance: random.Random) -> str:
    return base64.b64encode("".join(chance.choices("abcdef 0123456789@", k=60)).encode()).decode()


def _secrets(size: int) -> bytes:
    return json.dumps([{"secret": "x", "password": "***"} for _ in range(size // 36)]).encode()


def _named(size: int) -> bytes:
    chance = random.Random(7)
    return json.dumps({f"token_{chance.randrange(10**12)}": "none" for _ in range(size // 30)}).encode()


def _in_json(size: int) -> bytes:
    text = _filled(size // 8, _digits(16))
    for _ in range(3):
        text = json.dumps({"t": text})
    return json.dumps({"text": [text] * 8}).encode()


CONTENTS: dict[str, Callable[[int], bytes]] = {
    "numbers": lambda size: json.dumps(
        [random.Random(at).randrange(10**15) for at in range(size // 18)]
    ).encode(),
    "small numbers": lambda size: json.dumps([at % 10 for at in range(size // 3)]).encode(),
    "digits without an end": lambda size: _text(size, _digits(1000), ""),
    "digits by four": lambda size: _text(size, _digits(4)),
    "digits by one": lambda size: _text(size, _digits(1)),
    "digits by one, dashes": lambda size: _text(size, _digits(1), "-"),
    "card-shaped": lambda size: _text(size, lambda chance: "4" + _digits(15)(chance), ", "),
    "3-2-4": lambda size: _text(
        size, lambda chance: f"{_digits(3)(chance)}-{_digits(2)(chance)}-{_digits(4)(chance)}"
    ),
    "phones": lambda size: _text(size, _phone),
    "IBANs": lambda size: _text(size, _iban, "\n"),
    "at signs": lambda size: _text(size, lambda _: "a@a", ""),
    "e-mails": lambda size: _text(size, lambda chance: f"a{_digits(4)(chance)}@b.org", ","),
    "one e-mail without an end": lambda size: _text(size, lambda _: "a.b-", ""),
    "base64": lambda size: _text(size, _base64, "\n\n"),
    "base64 without an end": lambda size: json.dumps(
        {"text": base64.b64encode(b"4111 1111 1111 111 " * (size // 26)).decode()}
    ).encode(),
    "percent signs": lambda size: _text(size, lambda _: "%34%31", ""),
    "percent signs, one by one": lambda size: _text(size, lambda _: "%34x", ""),
    "backslashes": lambda size: _text(size // 2, lambda _: '\\"', ""),
    "\\u escapes": lambda size: b'{"text":"' + b"\\u0034" * (size // 6) + b'"}',
    "JSON in JSON in JSON": _in_json,
    "deep": lambda size: b'{"a":[' * 90 + b"1," * (size // 2) + b"1" + b"]}" * 90,
    "long names": lambda size: json.dumps(
        {"password" + "1" * 5000 + str(at): 1 for at in range(size // 5012)}
    ).encode(),
    "many names": _named,
    "secrets by the thousand": _secrets,
    "digits of another script": lambda size: _text(
        size // 2, lambda chance: _digits(16)(chance).translate(ARABIC)
    ),
    "full width": lambda size: _text(size // 3, lambda chance: _digits(9)(chance) + WIDE),
    "addresses": lambda size: _text(size, lambda chance: f"{_digits(2)(chance)} Elm Hill Street"),
    "codes": lambda size: _text(size, lambda chance: f"E11.{_digits(1)(chance)}"),
    "words before": lambda size: _text(size, lambda _: "card cvv security code insurance policy number"),
    "api keys that are none": lambda size: _text(size, lambda _: "api_key = your-own-key-goes-here", "\n"),
    "aws": lambda size: _text(size, lambda _: "aws key secret token"),
    "PEM heads": lambda size: _text(size, lambda _: "-----BEGIN PRIVATE KEY"),
    "URLs": lambda size: _text(size, lambda _: "a://b:c"),
    "of everything": lambda size: _text(
        size,
        lambda chance: (
            f"{_phone(chance)} a@b.org 4{_digits(15)(chance)} pass: *** E11.9 %41 {_base64(chance)} "
            "1 Elm Street"
        ),
    ),
}

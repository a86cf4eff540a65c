"""The forms in which text is written: JSON's escapes, other scripts' digits, percent signs, base64.

All in linear time and, for plain text, with nothing done at all.
"""

from __future__ import annotations

import binascii
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import unquote

MAX_LEVELS = 4
"""JSON in a string of JSON, base64 of base64: so deep it is looked into."""

_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f"}
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|(.))", re.DOTALL)
_SHORT = (
    (b"\\n", b"\n"),
    (b'\\"', b'"'),
    (b"\\t", b"\t"),
    (b"\\r", b"\r"),
    (b"\\/", b"/"),
    (b"\\b", b"\b"),
    (b"\\f", b"\f"),
)
PERCENT = r"%[0-9A-Fa-f]{2}"
_PERCENT = re.compile(PERCENT)
_PERCENT_RUN = re.compile(r"(?:%[0-9A-Fa-f]{2})+")
_LEAST = 20
"""Characters that a stretch of base64 has at least."""
BASE64 = rf"[A-Za-z0-9+/_\-]{{{_LEAST},}}(?:\r?\n[A-Za-z0-9+/_\-]{{4,}})*"
_BASE64 = re.compile(BASE64)
_PIECE = re.compile(rf"[A-Za-z0-9+]{{{_LEAST},}}")
"""What of such a stretch is left where the signs part it that also part names."""
_LETTER = b"A"
_LETTERS = bytes(
    _LETTER[0] if chr(byte).isascii() and (chr(byte).isalnum() or chr(byte) in "+/_-") else 0
    for byte in range(256)
)
"""Makes one letter of every character of base64, so that a stretch is found by looking for that letter."""
_PRINTED = bytes((*range(32, 127), *b"\r\n\t"))
_DASHES = dict.fromkeys(map(ord, "\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe58\ufe63\uff0d"), "-")
_NOT_DRAWN = (
    *((0x00, 0x00), (0xAD, 0xAD), (0x034F, 0x034F), (0x061C, 0x061C), (0x115F, 0x1160), (0x17B4, 0x17B5)),
    *((0x180B, 0x180F), (0x200B, 0x200F), (0x202A, 0x202E), (0x2060, 0x206F), (0x3164, 0x3164)),
    *((0xFE00, 0xFE0F), (0xFEFF, 0xFEFF), (0xFFA0, 0xFFA0), (0xFFF0, 0xFFFB), (0x1BCA0, 0x1BCA3)),
    *((0x1D173, 0x1D17A), (0xE0000, 0xE0FFF)),
)
"""Characters that nobody sees, first and last: those that Unicode lets a program ignore (its property
``Default_Ignorable_Code_Point``), marks of annotations, and NUL."""
_INVISIBLE = dict.fromkeys((each for first, last in _NOT_DRAWN for each in range(first, last + 1)), "")
_DRAWN = {**_DASHES, **_INVISIBLE}
_TO_DRAW = re.compile(
    "[" + "".join(map(chr, _DASHES)) + "".join(f"{chr(a)}-{chr(b)}" for a, b in _NOT_DRAWN) + "]"
)
_DIGIT = re.compile(r"[^\D0-9]")
_HALF = re.compile("[\ud800-\udfff]")
_HEXADECIMAL = re.compile(r"[0-9a-fA-F\-]{20,64}")
_SHORT_RUN = 8_192
"""Characters of base64 that are also read from the second to fourth on: something may stand before it."""


@dataclass(frozen=True, slots=True)
class View:
    """A text in another form. ``places[i]`` is where character ``i`` of it comes from, and the end last."""

    text: str
    places: list[int]

    def span(self, start: int, end: int) -> tuple[int, int]:
        """Where a part of the view is in the original: all signs in which it is written."""
        first = self.places[start]
        return first, max(self.places[end], self.places[end - 1] + 1) if end > start else first

    def of(self, inner: View) -> View:
        """The view of the original of which this is one, where ``inner`` is one of ``text``."""
        return View(inner.text, [self.places[place] for place in inner.places])


def unescaped(raw: bytes) -> str:
    """JSON with its escapes resolved, at one level. No JSON any more, but every string of it is in there."""
    if b"\\" not in raw:
        return raw.decode(errors="replace")
    text = raw.replace(b"\\\\", b"\x00").replace(b"\\u0000", b"")  # which is not drawn
    for written, meant in _SHORT:
        text = text.replace(written, meant)
    out = text.decode(errors="replace")
    if "\\u" in out:
        try:
            out = out.encode("raw_unicode_escape").decode("raw_unicode_escape")
        except UnicodeError:  # text that only looks like an escape
            out = _ESCAPE.sub(_meant, out)
        out = out.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return out.replace("\x00", "\\")


def _meant(found: re.Match[str]) -> str:
    return chr(int(found[1], 16)) if found[1] else _ESCAPES.get(found[2], found[2])


def whole(text: str) -> str:
    """``text``, as long as it is, without halves of pairs: JSON can write those and UTF-8 cannot."""
    return text if text.isascii() else _HALF.sub("\ufffd", text)


def as_drawn(text: str) -> bool:
    """Whether ``text`` is surely plain as it is."""
    return text.isascii() and "\0" not in text


def plain(text: str) -> str:
    """``text`` with digits, letters and dashes as ASCII writes them, and without what is not drawn."""
    if as_drawn(text):
        return text
    if _TO_DRAW.search(text):
        text = text.translate(_DRAWN)
    if not unicodedata.is_normalized("NFKC", text):
        text = unicodedata.normalize("NFKC", text)
    return _DIGIT.sub(lambda found: str(unicodedata.decimal(found[0])), text)


def plain_view(text: str) -> View | None:
    """``plain`` with the places; None where it is the same."""
    if as_drawn(text) or plain(text) == text:
        return None
    out: list[str] = []
    places: list[int] = []
    for position, character in enumerate(text):
        form = plain(character)
        out.append(form)
        places += [position] * len(form)
    return View("".join(out), [*places, len(text)])


def views(text: str) -> Iterator[View]:
    """``text`` in its other forms: drawn plainly, without percent signs, without escapes, and together."""
    yield from _drawn_and_unquoted(text)
    meant = escape_view(text)
    for _ in range(MAX_LEVELS):
        if meant is None:
            return
        yield meant
        for inner in _drawn_and_unquoted(meant.text):
            yield meant.of(inner)
        further = escape_view(meant.text)
        meant = None if further is None else meant.of(further)


def _drawn_and_unquoted(text: str) -> Iterator[View]:
    if (drawn := plain_view(text)) is not None:
        yield drawn
    if (said := percent_view(text)) is not None:
        yield said
        if (drawn := plain_view(said.text)) is not None:
            yield said.of(drawn)


def escape_view(text: str) -> View | None:
    """What a text says in which JSON is written, as in a log; None where it has no escapes."""
    if "\\" not in text or not _ESCAPE.search(text):
        return None
    out: list[str] = []
    places: list[int] = []
    last = 0
    for found in _ESCAPE.finditer(text):
        out += (text[last : found.start()], _meant(found))
        places += range(last, found.start() + 1)
        last = found.end()
    out.append(text[last:])
    places += range(last, len(text) + 1)
    return View(whole("".join(out)), places)


def percent_view(text: str) -> View | None:
    """What a percent-encoded text says; None where it is none."""
    if "%" not in text or not _PERCENT.search(text):
        return None
    out: list[str] = []
    places: list[int] = []
    last = 0
    for found in _PERCENT_RUN.finditer(text):
        out.append(text[last : found.start()])
        places += range(last, found.start())
        said = unquote(found[0], errors="replace")
        # Each character is put where the run is, in proportion: redaction takes the characters it covers.
        step = len(found[0]) / max(1, len(said))
        out.append(said)
        places += [found.start() + int(step * number) for number in range(len(said))]
        last = found.end()
    out.append(text[last:])
    places += range(last, len(text) + 1)
    return View("".join(out), places)


def unquoted(text: str) -> str:
    """``text`` without percent signs where they encode; the same object where they do not."""
    return unquote(text, errors="replace") if "%" in text and _PERCENT.search(text) else text


def base64_runs(text: str) -> Iterator[tuple[int, int, str]]:
    """Every stretch that is base64 of text: where it is, and the text."""
    letters = text.encode("ascii", "replace").translate(_LETTERS)
    at = 0
    while (at := letters.find(_LETTER * _LEAST, at)) >= 0 and (found := _BASE64.match(text, at)):
        start, at = found.span()
        if _HEXADECIMAL.fullmatch(found[0]):
            continue  # an id
        if (said := _decoded(found[0])) is not None:
            yield start, at, said
            continue
        for piece in _PIECE.finditer(found[0]):  # something stands before it, as a path does
            if len(piece[0]) < at - start and (said := _decoded(piece[0])) is not None:
                yield start + piece.start(), start + piece.end(), said


def _decoded(run: str) -> str | None:
    if "\n" in run:
        run = run.replace("\r", "").replace("\n", "")
    run = run.replace("-", "+").replace("_", "/")
    for offset in range(4 if len(run) < _SHORT_RUN else 1):
        head = _bytes(run[offset : offset + 16])
        if not head or not _readable(head):
            continue
        whole = _bytes(run[offset:])
        if whole and _readable(whole[:256]):
            return whole.decode(errors="replace")
    return None


def _bytes(run: str) -> bytes:
    if len(run) % 4 == 1:
        run = run[:-1]
    try:
        return binascii.a2b_base64(run + "=" * (-len(run) % 4))
    except (binascii.Error, ValueError):
        return b""


def _readable(raw: bytes) -> bool:
    """Whether it is text: four in five bytes are ASCII that is printed."""
    return 5 * len(raw.translate(None, _PRINTED)) <= len(raw)

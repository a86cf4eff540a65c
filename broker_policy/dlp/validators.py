"""What a pattern cannot say: whether something that looks like a secret can be one.

Each takes the text and the span of a match and returns the spans that count, mostly that one or none.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import accumulate

Span = tuple[int, int]
Validator = Callable[[str, int, int], Iterator[Span]]

_DIGITS = re.compile(r"\d+", re.ASCII)
_GLUED = re.compile(r"[A-Za-z0-9_]")
_ROW = 64
"""Groups of digits in a row that are no longer one number with something around it."""
_NEARBY = 40
"""Characters before a number in which a word says what it is."""
_NOT_A_CARD = re.compile(
    r"(?:\bimei|\btracking|\bpart|\bserial|\bsku|\bisbn|\bean|\bupc|\bp/?n|\bs/?n)"
    r"(?:\s*(?:no|number|num|id|code))?[.:#=\s]*$",
    re.IGNORECASE,
)
_CARD_WORDS = re.compile(r"card|visa|payment|\bpan\b|\bcc\b|credit|debit", re.IGNORECASE)
_NOT_A_DIAGNOSIS = re.compile(
    r"""
    section|figure|fig|table|version|ver|v|model|room|gate|chapter|part|rev|release|appendix|row|cell|column|
    seat|aisle|bay|annex|clause|item|step|firmware|build|sku|grid|sheet|slot|level|bios|resistor|capacitor
    """,
    re.VERBOSE | re.IGNORECASE,
)
"""Words before what looks like a code and is the number of something else."""
_LAST_WORD = re.compile(r"[A-Za-z]+$")
_LONGEST_WORD = 16
_DOORS = re.compile(r"door|alarm|gate|building|house|entry|garage|office|lobby|elevator", re.IGNORECASE)
_DIAGNOSIS_WORDS = re.compile(r"icd|diagnos|\bdx\b|comorbid|\bcondition\b", re.IGNORECASE)
_NO_STREET = re.compile(
    r"""
    a|an|the|minute|minutes|step|hour|hours|day|days|week|weeks|month|months|mile|miles|km|people|person|men|
    women|of|to|for|in|on|at|by|with|from|and|or|is|are|was|were|will|would|my|our|your|his|her|their|
    this|that|one|two|more|other|new|way|down|up|went|go|going|takes|took|long|test|times|second|seconds|
    percent|pm|am|items|steps|points|users|files|lane|lanes|tickets
    """,
    re.VERBOSE,
)
_FILES = re.compile(
    r"""
    png|jpg|jpeg|gif|svg|webp|css|js|ts|map|py|md|html|json|yaml|yml|lock|toml|txt
    """,
    re.VERBOSE,
)
EMPTY_WORDS = re.compile(
    r"""
    required|optional|string|null|none|true|false|empty|reset|resets|changed|incorrect|invalid|wrong|
    missing|expired|forgotten|protected|policy|policies|field|fields|hash|hashed|manager|must|should|
    cannot|unknown|undefined|redacted|hidden|masked|removed|omitted|default|forgot|change|update|updated|
    input|text|number|integer|boolean|object|array|secret|type|validation|verification|recovery|rotation|
    strength|length|accepted|rejected|correct|valid|weak|strong|too|not|here|there|above|below|confirm|
    confirmation
    """,
    re.VERBOSE,
)
_MASKED = re.compile(
    r"[*•xX.#_\-]{3,}|<[^>]*>|\[[^\]]*\]|\$?\{[^}]*\}+|\$\(?[A-Z_]+\)?|%[A-Z_]+%|your[-_ ].*", re.IGNORECASE
)


def anything(_: str, start: int, end: int) -> Iterator[Span]:
    """A pattern that says it all."""
    yield start, end


def luhn(digits: str) -> bool:
    """Whether the check digit is right (ISO/IEC 7812-1 annex B)."""
    total = 0
    for position, character in enumerate(reversed(digits)):
        value = int(character)
        if position % 2:
            value = value * 2 - 9 if value > 4 else value * 2
        total += value
    return total % 10 == 0


_GROUPS = frozenset(
    {
        (4, 4, 4, 4),
        (4, 6, 5),
        (4, 6, 4),
        (4, 4, 4, 4, 3),
        (4, 4, 4, 1),
        (8, 8),
        (4, 12),
        (6, 10),
        (12, 4),
        (4, 4, 8),
    }
)
"""How many digits cards show between spaces."""
_BRANDS = (  # how the number begins, from and to, and how many digits it has (ISO/IEC 7812, by network)
    (4, 4, (13, 16, 19)),
    (51, 55, (16,)),
    (2221, 2720, (16,)),
    (2200, 2204, (16,)),
    (5019, 5019, (16,)),
    (34, 34, (15,)),
    (37, 37, (15,)),
    (6011, 6011, (16, 19)),
    (644, 659, (16, 19)),
    (300, 305, (14, 16)),
    (36, 36, (14, 16)),
    (38, 39, (14, 16)),
    (3528, 3589, (16,)),
    (62, 62, (16, 19)),
)


@lru_cache(maxsize=10_000)
def lengths(prefix: str) -> tuple[int, ...]:
    """How long a number is that begins with these four digits; () where no network issues such."""
    return next(
        (sizes for first, last, sizes in _BRANDS if first <= int(prefix[: len(str(first))]) <= last), ()
    )


def cards(text: str, start: int, end: int) -> Iterator[Span]:
    """Card numbers in a chain of digits: whole groups of them, of a network, with their check digit."""
    if (start and _GLUED.match(text[start - 1])) or (end < len(text) and _GLUED.match(text[end])):
        return
    chain = _Chain(text, start, end)
    first = 0
    while first < len(chain.groups):
        last = chain.card_from(first)
        if last is not None:
            yield chain.groups[first][0], chain.groups[last][1]
            first = last
        first += 1


class _Chain:
    """Groups of digits with little between them, some of which may be a card number."""

    def __init__(self, text: str, start: int, end: int) -> None:
        self.text = text
        self.groups = [
            (start + found.start(), start + found.end()) for found in _DIGITS.finditer(text[start:end])
        ]
        self.sizes = [end - start for start, end in self.groups]
        self.row = len(self.groups) > _ROW  # of numbers: only what is grouped as a card is one
        self._digits = "".join(_DIGITS.findall(text[start:end]))
        self._ends = list(accumulate(self.sizes))
        self._group_at = {place: number for number, place in enumerate(self._ends)}

    def card_from(self, first: int) -> int | None:
        """The last group of the card number that begins with group ``first``; None where none does."""
        if self.row and (self.sizes[first] < 4 or (first and self.sizes[first - 1] == 4)):
            return None
        begin = self._ends[first] - self.sizes[first]
        for size in lengths(self._digits[begin : begin + 4]):
            last = self._group_at.get(begin + size)
            if last is not None and self._likely(first, last, size):
                digits = self._digits[begin : begin + size]
                if len(set(digits)) > 1 and luhn(digits):
                    return last
        return None

    def _likely(self, first: int, last: int, size: int) -> bool:
        place = self.groups[first][0]
        before = self.text[max(0, place - _NEARBY) : place]
        if last > first:
            return bool(_CARD_WORDS.search(before)) or self._written_as_card(first, last)
        if _NOT_A_CARD.search(before):
            return False
        # Of 13 and 19 digits are times in microseconds, too, and ids of databases.
        return size not in (13, 19) or bool(_CARD_WORDS.search(before))

    def _written_as_card(self, first: int, last: int) -> bool:
        """Whether the groups are those of a card, and no part of a row of numbers."""
        gaps = [self.text[self.groups[at][1] : self.groups[at + 1][0]] for at in range(first, last)]
        if all("-" in gap for gap in gaps):
            start, end = self.groups[first][0], self.groups[last][1]
            return "-" not in self.text[max(0, start - 1) : start] + self.text[end : end + 1]
        if tuple(self.sizes[first : last + 1]) not in _GROUPS:
            return False
        return not (self._same_row(first - 1, first - 2) or self._same_row(last + 1, last + 2))

    def _same_row(self, group: int, beyond: int) -> bool:
        """Whether a group beside four others is of their row: four digits, and not a part of ``09-9999``."""
        if not 0 <= group < len(self.groups) or self.sizes[group] != 4:
            return False
        if not 0 <= beyond < len(self.groups):
            return True
        left, right = sorted((group, beyond))
        return not self.text[self.groups[left][1] : self.groups[right][0]].strip()


_LONGER_BEFORE = re.compile(r"\d[-.]$", re.ASCII)
_LONGER_BEHIND = re.compile(r"[-.]\d", re.ASCII)


def ssn_digits(digits: str) -> bool:
    """Whether it could be issued: no area 000, 666 or 9xx, no part of zeros (SSA, 2011)."""
    area, group, serial = digits[:3], digits[3:5], digits[5:]
    return (
        len(digits) == 9
        and area not in ("000", "666")
        and area[0] != "9"
        and group != "00"
        and serial != "0000"
    )


def ssn(text: str, start: int, end: int) -> Iterator[Span]:
    """A number written as 3-2-4, in the same way between its parts, and not a part of a longer one."""
    found = text[start:end]
    if _LONGER_BEFORE.search(text[max(0, start - 2) : start]) or _LONGER_BEHIND.match(text[end : end + 2]):
        return
    groups = _DIGITS.findall(found)
    if not ssn_digits("".join(groups)):
        return
    if len(groups) == 3:
        first, second = found[3 : found.index(groups[1], 3)], found[: -len(groups[2])][3:].lstrip()
        second = found[found.index(groups[1], 3) + 2 : len(found) - 4]
        if first.strip(" \t\r\n") != second.strip(" \t\r\n"):
            return
        if not first.strip() and _in_a_row(text, start, end):
            return
    yield start, end


def _in_a_row(text: str, start: int, end: int) -> bool:
    """Whether more numbers stand before or behind it: a row of a table."""
    return bool(re.search(r"\d[ \t]{0,3}$", text[max(0, start - 4) : start])) or bool(
        re.match(r"[ \t]{0,3}\d", text[end : end + 4])
    )


def ssn_said(text: str, start: int, end: int) -> Iterator[Span]:
    """Nine digits, however written, behind a word that says what they are."""
    if ssn_digits("".join(_DIGITS.findall(text[start:end]))):
        yield start, end


def email(text: str, start: int, end: int) -> Iterator[Span]:
    """An address; not a file such as ``icon@2x.png``, nor what ``git@host:path`` names."""
    found = text[start:end]
    if _FILES.fullmatch(found.rpartition(".")[2].lower()) or (
        found.startswith("git@") and text[end : end + 1] in (":", "/")
    ):
        return
    yield start, end


def phone(text: str, start: int, end: int) -> Iterator[Span]:
    """A number of 8 to 15 digits (E.164) that is not a part of a longer one."""
    count = sum(map(len, _DIGITS.findall(text[start:end])))
    before, after = text[max(0, start - 2) : start], text[end : end + 2]
    if re.search(r"\w[-.]?$", before) or re.match(r"[-.]?\w", after):
        return
    if re.search(r"\s", text[start:end]) and text[start] not in "+(" and _in_a_row(text, start, end):
        return
    if 8 <= count <= 15:
        yield start, end


def address(text: str, start: int, end: int) -> Iterator[Span]:
    """A house number and a street; not "5 minutes drive"."""
    words = re.findall(r"[^\W\d_]+", text[start:end].lower())
    if words and not any(map(_NO_STREET.fullmatch, words[:-1])):
        yield start, end


def icd10(text: str, start: int, end: int) -> Iterator[Span]:
    """A code with its point, or one behind a word about diagnoses."""
    before = text[max(0, start - _NEARBY) : start]
    if text[end : end + 1] == "." and text[end + 1 : end + 2].isdigit():
        return
    word = _LAST_WORD.search(before.rstrip(" \t\r\n:#.")[-_LONGEST_WORD:])
    if word and _NOT_A_DIAGNOSIS.fullmatch(word[0]):
        return
    after = text[end : end + _NEARBY // 2]
    if "." in text[start:end] or _DIAGNOSIS_WORDS.search(before) or _DIAGNOSIS_WORDS.search(after):
        yield start, end


def secret(text: str, start: int, end: int) -> Iterator[Span]:
    """Something that was made by chance, or at least not a word, a path or a placeholder."""
    found = text[start:end]
    if (
        filled_in(found)
        and (any(map(str.isdigit, found)) or len(set(found)) >= 12)
        and not found.startswith("/")
    ):
        yield start, end


def no_door(text: str, start: int, end: int) -> Iterator[Span]:
    """A security code that is not one of a building."""
    if not _DOORS.search(text[max(0, start - 2 * _NEARBY) : start]):
        yield start, end


def is_mixed(value: str) -> bool:
    """Whether it has letters and digits, and is no placeholder."""
    return filled_in(value) and bool(re.search(r"[A-Za-z]", value)) and bool(re.search(r"\d", value))


def mixed(text: str, start: int, end: int) -> Iterator[Span]:
    """What stands behind a word that may mean something else: only where it is no word itself."""
    found = text[start:end].rstrip(".,;:!?)'\"")
    if is_mixed(found) and len(found) >= 4 and not re.fullmatch(r"[\d.:-]+[a-z]{0,2}", found):
        yield start, start + len(found)


def password(text: str, start: int, end: int) -> Iterator[Span]:
    """What follows ``password:``; not prose about passwords."""
    found = text[start:end].rstrip(".,;!?)'\"")
    if not found or not filled_in(found) or EMPTY_WORDS.fullmatch(found.lower()):
        return
    if found.isalpha() and found.islower() and re.match(r"[ \t]+[a-z]", text[end : end + 4]):
        return  # "password: users should ..."
    yield start, start + len(found)


def password_told(text: str, start: int, end: int) -> Iterator[Span]:
    """What follows ``password is``: a word only when it is none."""
    found = text[start:end].rstrip(".,;!?)'\"")
    if (
        len(found) >= 4
        and filled_in(found)
        and not found.isalpha()
        and not re.fullmatch(r"[a-z]+-[a-z]+", found)
    ):
        yield start, start + len(found)


def filled_in(value: str) -> bool:
    """Whether a value stands there: not a mask, a placeholder or a variable."""
    return not _MASKED.fullmatch(value)


def insurance(text: str, start: int, end: int) -> Iterator[Span]:
    """An id with enough digits that is not a date."""
    digits = "".join(_DIGITS.findall(text[start:end]))
    if len(digits) >= 6 and not re.fullmatch(
        r"(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:[0-2]\d|3[01])", text[start:end]
    ):
        yield start, end

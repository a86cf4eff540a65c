"""The built-in rules: patterns in RE2 syntax, and names of fields that say what their value is.

Where a pattern has a group, what the group finds is the secret and the rest its context.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from broker_policy.dlp import classes as c
from broker_policy.dlp import validators as v


@dataclass(frozen=True, slots=True)
class Pattern:
    """One way in which a class is written. ``said``: by its context; a more specific find within it wins."""

    type: str
    pattern: str
    validator: v.Validator = v.anything
    said: bool = False


_SEP = r"[\s\-.]{0,3}"
_IS = r"""["']?(?:\s*(?:number|no\.?|num|id|code|is|was|#|:|=|-|>))*[\s"']*"""

_MBI = (
    r"[1-9][AC-HJKMNP-RT-Y][AC-HJKMNP-RT-Y0-9]\d-?[AC-HJKMNP-RT-Y][AC-HJKMNP-RT-Y0-9]\d-?"
    r"[AC-HJKMNP-RT-Y]{2}\d{2}"
)
"""A Medicare beneficiary identifier (CMS, 2018)."""
_LABEL_ENDS = re.compile(
    r"""["']?(?:\s*(?:is|was|of|[:=]|=>))*[\s"']*([A-Za-z0-9_\-./+=]{16,})""", re.IGNORECASE
)


def _behind_label(text: str, _: int, end: int) -> Iterator[v.Span]:
    if found := _LABEL_ENDS.match(text, end, end + 4096):
        yield from v.secret(text, *found.span(1))


PATTERNS: tuple[Pattern, ...] = (
    Pattern(c.SSN, r"\b\d{3}(?:\s{0,2}-\s{0,2}|\s{1,3}|\.)\d{2}(?:\s{0,2}-\s{0,2}|\s{1,3}|\.)\d{4}\b", v.ssn),
    Pattern(
        c.SSN, r"(?i)\b(?:ssn|social(?:\s+security)?)" + _IS + r"(\d(?:" + _SEP + r"\d){8})\b", v.ssn_said
    ),
    Pattern(
        c.EMAIL,
        r"[\pL\pN][\pL\pN._%+\-']*@[A-Za-z0-9](?:[A-Za-z0-9.\-]*[A-Za-z0-9])?\.[A-Za-z]{2,24}\b",
        v.email,
    ),
    Pattern(
        c.PHONE, r"(?:\+?1[-.\s]?)?(?:\([2-9]\d{2}\)\s?|\b[2-9]\d{2}[-.\s])[2-9]\d{2}[-.\s]\d{4}\b", v.phone
    ),
    Pattern(c.PHONE, r"\+[1-9][0-9](?:[\s().\-]{0,2}\d){6,13}\b", v.phone),
    Pattern(
        c.PHONE,
        r"(?i)\b(?:phone|tel|telephone|mobile|cell|fax|call(?:\s+me)?(?:\s+(?:at|on))?)\b"
        + _IS
        + r"(\(?\d(?:[\s().\-]{0,2}\d){6,13})\b",
        v.phone,
    ),
    Pattern(
        c.ADDRESS,
        r"(?i)\b\d{1,6}[A-Z]?\s+(?:[NSEW]\.?\s+|(?:north|south|east|west)\s+)?(?:[A-Z][A-Z'.\-]*\s+|\d{1,3}(?:st|nd|rd|th)\s+){1,3}"
        r"(?:street|st|avenue|ave|boulevard|blvd|road|rd|lane|ln|drive|dr|court|ct|place|pl|square|sq|terrace|"
        r"way|highway|hwy|parkway|pkwy|circle)\b",
        v.address,
    ),
    Pattern(c.ADDRESS, r"(?i)\bP\.?\s?O\.?\s+Box\s+\d+\b"),
    Pattern(c.ADDRESS, r"(?i)\b\pL{3,}(?:straße|strasse|weg|platz|allee|gasse)\s+\d{1,4}\s?[a-z]?\b"),
    Pattern(
        c.MRN,
        r"(?i)\b(?:MRN|medical\s+record|patient\s+(?:id|number|no))s?\b\.?"
        + _IS
        + r"([A-Z]{0,3}-?\d(?:[\s\-]?\d){4,11})\b",
    ),
    Pattern(c.MRN, r"\bMR\s?#\s?(\d{5,10})\b"),
    Pattern(c.INSURANCE, r"(?i)\bpolicy[:\s#]+(\d{8,12})\b", v.insurance),
    Pattern(
        c.INSURANCE,
        r"(?i)\b(?:(?:health\s+)?insurance(?:\s+policy)?|(?:insurance\s+|health\s+)?(?:member|subscriber)\s+(?:id|no\.?|number)"
        r"|medicaid|medicare|policy\s*(?:id|no\.?|number|num|#))"
        + _IS
        + r"((?:KV(?:NR)?\.?\s)?[A-Z]{0,4}-?\d(?:[\s\-]?[A-Z0-9]){5,13})\b",
        v.insurance,
    ),
    Pattern(c.INSURANCE, r"(?i)\b(?:medicare|mbi|beneficiary)\b" + _IS + "(" + _MBI + r")\b"),
    Pattern(
        c.INSURANCE,
        r"\b" + _MBI.replace("-?", "-") + r"\b",
    ),
    Pattern(c.ICD10, r"\b[A-Z]\d[0-9AB](?:\.[0-9][0-9A-Z]{0,3})?\b", v.icd10),
    Pattern(c.CARD, r"\d(?:[\s\-.]{0,3}\d){12,}", v.cards),
    Pattern(
        c.CVV,
        r"(?i)\b(?:cvv2?|cvc2?|cvn|card\s+(?:verification|security)(?:\s+(?:code|value|number))?)\b"
        + _IS
        + r"(\d{3,4})\b",
    ),
    Pattern(c.CVV, r"(?i)\bcard\b[^\n]*\bsecurity\s+code" + _IS + r"(\d{3,4})\b"),
    Pattern(
        c.CVV,
        r"(?i)\bsecurity\s+code\s+(?:on|of|from|for)\b[^\n\d]{0,40}\bcard" + _IS + r"(\d{3,4})\b",
    ),
    Pattern(c.CVV, r"(?i)\bsecurity\s+code\s*[:=#]\s*(\d{3,4})\b", v.no_door),
    Pattern(c.API_KEY, r"\bgh[pousr]_[A-Za-z0-9]{20,}"),
    Pattern(c.API_KEY, r"\bgithub_pat_[A-Za-z0-9_]{20,}"),
    Pattern(c.API_KEY, r"\bglpat-[A-Za-z0-9_\-]{16,}"),
    Pattern(c.API_KEY, r"\bsk-(?:[A-Za-z0-9]+-)*[A-Za-z0-9_\-]{16,}", v.secret),
    Pattern(c.API_KEY, r"\bxox[a-z]-[A-Za-z0-9\-]{10,}"),
    Pattern(c.API_KEY, r"\bxapp-[A-Za-z0-9\-]{10,}"),
    Pattern(c.API_KEY, r"hooks\.slack\.com/services/[A-Z0-9]+/[A-Z0-9]+/[A-Za-z0-9]{10,}"),
    Pattern(c.API_KEY, r"\b(?:sk|rk)_(?:live|test)_[A-Za-z0-9]{10,}"),
    Pattern(c.API_KEY, r"\bwhsec_[A-Za-z0-9]{16,}"),
    Pattern(c.API_KEY, r"\bAIza[0-9A-Za-z_\-]{30,}"),
    Pattern(c.API_KEY, r"\bya29\.[0-9A-Za-z_\-]{20,}"),
    Pattern(c.API_KEY, r"\bGOCSPX-[0-9A-Za-z_\-]{16,}"),
    Pattern(c.API_KEY, r"\bSG\.[A-Za-z0-9_\-]{16,}\.[A-Za-z0-9_\-]{16,}"),
    Pattern(c.API_KEY, r"\b(?:npm|hf)_[A-Za-z0-9]{30,}"),
    Pattern(c.API_KEY, r"\bpypi-[A-Za-z0-9_\-]{40,}"),
    Pattern(
        c.API_KEY,
        r"(?i)(?:api|access|auth|secret)[\s_\-]?(?:key|token)|client[\s_\-]?secret|apikey",
        _behind_label,
        said=True,
    ),
    Pattern(
        c.API_KEY,
        r"""(?i)\b(?:token|secret)["']?\s*[:=]\s*["']?([A-Za-z0-9_\-./+=]{20,})""",
        v.mixed,
        said=True,
    ),
    Pattern(c.API_KEY, r"(?i)\bbearer\s+([A-Za-z0-9_\-./+=]{16,})", v.secret, said=True),
    Pattern(c.AWS_KEY, r"\b(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}\b"),
    Pattern(
        c.AWS_KEY,
        r"(?i)aws[^\n]{0,30}?(?:secret|key|token)[^\n]{0,20}?[\s:=\"']([A-Za-z0-9/+]{40})(?:$|[^A-Za-z0-9/+])",
    ),
    Pattern(
        c.PRIVATE_KEY,
        r"(?is)-{3,5}\s?BEGIN\s(?:[A-Z0-9]+\s)*PRIVATE\sKEY(?:\sBLOCK)?\s?-{3,5}(?:.*?-{3,5}\s?END\s[^-]*-{3,5}|.*)",
    ),
    Pattern(c.PRIVATE_KEY, r"(?s)PuTTY-User-Key-File-\d.*"),
    Pattern(c.PRIVATE_KEY, r"\bAGE-SECRET-KEY-1[A-Z0-9]{20,}"),
    Pattern(c.PRIVATE_KEY, r"\bS[UAONCX][A-Z2-7]{56}\b"),
    Pattern(c.JWT, r"\beyJ[A-Za-z0-9_\-]{8,}\.[A-Za-z0-9_\-]{4,}\.[A-Za-z0-9_\-]{4,}"),
    Pattern(
        c.PASSWORD,
        r"""(?i)(?:password|passwd|passphrase|passcode|(?:\b|_)pwd)["']?\s*(?:[:=]|[=-]>)\s*["']?([^\s"'<>&]{4,})""",
        v.password,
    ),
    Pattern(
        c.PASSWORD,
        r"""(?i)\b(?:password|passphrase|passcode)\s+(?:is|was)[\s:]*["']?([^\s"']{4,})""",
        v.password_told,
    ),
    Pattern(
        c.PASSWORD,
        r"""(?i)\b(?:password|passphrase|passcode|pwd)\s+(?:for\s+\S+\s+)?(?:is\s+)?["']?([^\s"']{6,})""",
        v.mixed,
    ),
    Pattern(c.PASSWORD, r"""(?i)\b(?:pw|pass)["']?\s*[:=]\s*["']?([^\s"'<>&]{4,})""", v.mixed),
    Pattern(c.PASSWORD, r"""\bcurl\b[^\n]*\s(?:-u|--user)[\s=]["']?[^\s:"']+:([^\s"']{3,})""", v.password),
    Pattern(c.PASSWORD, r"://[^\s/:@\"']*:([^\s/@\"']{3,})@", v.password),
    Pattern(c.PASSWORD, r"(?i)\bauthorization[\"']?\s*[:=]\s*[\"']?basic\s+([A-Za-z0-9+/]{8,}={0,2})"),
)


def _text_of(least: int) -> Callable[[str], bool]:
    def fits(value: str) -> bool:
        return len(value) >= least and not any(map(str.isspace, value.strip())) and v.filled_in(value.strip())

    return fits


def _digits(least: int, most: int) -> Callable[[str], bool]:
    shape = re.compile(r"[A-Za-z]{0,4}[-\s]?\d(?:[\s\-().+]{0,2}\d)*", re.ASCII)

    def fits(value: str) -> bool:
        value = value.strip().lstrip("+(")
        return bool(shape.fullmatch(value)) and least <= sum(map(str.isdigit, value)) <= most

    return fits


def _street(value: str) -> bool:
    said = re.search(r"(?:^|\s)\d+\s?[A-Za-z]?(?:$|[\s,])", value) and re.search(r"[^\W\d_]{3,}", value)
    return bool(said) and "@" not in value and "://" not in value


def _password(value: str) -> bool:
    value = value.strip()
    return bool(value) and v.filled_in(value) and not v.EMPTY_WORDS.fullmatch(value.lower())


def _policy_number(value: str) -> bool:
    return bool(re.fullmatch(r"[A-Za-z0-9\s\-]{6,24}", value)) and sum(map(str.isdigit, value)) >= 5


def _ssn(value: str) -> bool:
    """A number may have lost its leading zeros."""
    digits = re.sub(r"\D", "", value)
    number = re.fullmatch(r"[\d\s.\-]+", value) and 7 <= len(digits) <= 9
    return bool(number) and v.ssn_digits(digits.zfill(9))


@dataclass(frozen=True, slots=True)
class Field:
    """Names of fields, without case and signs, whose value is of a class where it ``fits``."""

    type: str
    names: re.Pattern[str]
    raw: str  # RE2: how it shows in a body before it is read
    fits: Callable[[str], bool]
    said: bool = False


def _field(type_: str, names: str, raw: str, fits: Callable[[str], bool], *, said: bool = False) -> Field:
    return Field(type_, re.compile(names), r'(?i)"[^"]*(?:' + raw + r')[^"]*"', fits, said)


FIELDS: tuple[Field, ...] = (
    _field(
        c.PASSWORD,
        r".*(?:password|passwd|passphrase|passcode|pwd)s?|pass|.*userpass|.*dbpass|secrets?",
        "pass|pwd|secret",
        _password,
    ),
    _field(
        c.API_KEY,
        r".*(?:apikey|apitoken|apisecret|accesstoken|refreshtoken|authtoken|bearertoken|clientsecret|"
        r"secretkey|secrettoken|sessiontoken|webhooksecret|signingsecret)s?",
        "key|token|secret",
        _text_of(8),
        said=True,
    ),
    _field(c.API_KEY, "token", "token", lambda value: v.is_mixed(value) and len(value) >= 20, said=True),
    _field(
        c.PASSWORD,
        r".*authorization",
        "authorization",
        lambda value: bool(re.fullmatch(r"(?i)basic\s+[A-Za-z0-9+/]{8,}={0,2}", value)),
    ),
    _field(
        c.INSURANCE,
        r".*memberid|.*membernumber",
        "member",
        lambda value: bool(re.fullmatch(r"[A-Z]{1,4}-?\d{8,12}", value)),
    ),
    _field(
        c.INSURANCE,
        r"mbi|medicarebeneficiary(?:id|identifier|number)?",
        "mbi|beneficiary",
        lambda value: bool(re.fullmatch(_MBI, value.strip())),
    ),
    _field(
        c.AWS_KEY,
        r".*(?:awssecretaccesskey|secretaccesskey|awssecretkey|awssessiontoken)",
        "aws|access",
        _text_of(16),
    ),
    _field(c.PRIVATE_KEY, r".*(?:privatekey|privkey)(?:pem)?", "priv", lambda value: len(value) >= 32),
    _field(
        c.CVV,
        r".*(?:cvv|cvc|cvn)2?(?:code|number)?s?|(?:card)?securitycode|cardverification.*",
        "cv[vcn]|card|securi",
        _digits(2, 4),
    ),
    _field(c.SSN, r".*ssn|ssn(?:number|no|id|value)?|social|.*socialsecurity.*", "ssn|social", _ssn),
    _field(
        c.MRN,
        r"(?:patient)?mrn(?:number|no|id)?s?|.*medicalrecord(?:number|no|num|id)?",
        "mrn|medical",
        _digits(5, 12),
    ),
    _field(
        c.INSURANCE,
        r".*insurance(?:policy)?(?:id|number|no|num|memberid|member)|(?:insurance)?policy(?:number|no|num)|subscriber(?:id|number)|"
        r"medicare(?:id|number)|medicaid(?:id|number)|healthinsurance",
        "insur|policy|subscriber|medica",
        lambda value: (
            bool(re.fullmatch(r"[A-Za-z0-9\s\-]{6,24}", value)) and sum(map(str.isdigit, value)) >= 5
        ),
    ),
    _field(
        c.ICD10,
        r".*icd(?:10)?(?:code|codes)?|.*diagnosis(?:code)?|.*diagnoses|.*diagnosiscodes|dx(?:code)?",
        "icd|diagnos|dx",
        lambda value: bool(re.fullmatch(r"[A-Z]\d[0-9A-Z](?:\.?[0-9A-Z]{1,4})?", value.strip())),
    ),
    _field(
        c.PHONE,
        r".*(?:phone|telephone|mobile|cellphone|fax)(?:number|no)?s?|tel|cell",
        "phone|tel|mobile|cell|fax",
        _digits(7, 15),
    ),
    _field(c.ADDRESS, r".*(?:street|address)(?:address|line)?1?", "street|address", _street),
)

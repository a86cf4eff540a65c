"""The built-in classes: their names and what becomes of a message that holds one, unless policy says else."""

from __future__ import annotations

from mas_nats.policy.governance import DlpAction

SSN = "ssn"
EMAIL = "email"
PHONE = "phone"
ADDRESS = "address"
MRN = "mrn"
INSURANCE = "health_insurance"
ICD10 = "icd10"
CARD = "credit_card"
CVV = "cvv"
API_KEY = "api_key"
AWS_KEY = "aws_key"
PRIVATE_KEY = "private_key"
JWT = "jwt"
PASSWORD = "password"  # noqa: S105 - a class's name

DEFAULT_ACTIONS: dict[str, DlpAction] = {
    SSN: DlpAction.REDACT,
    EMAIL: DlpAction.ALERT,
    PHONE: DlpAction.ALERT,
    ADDRESS: DlpAction.ALERT,
    MRN: DlpAction.BLOCK,
    INSURANCE: DlpAction.BLOCK,
    ICD10: DlpAction.ALERT,
    CARD: DlpAction.BLOCK,
    CVV: DlpAction.BLOCK,
    API_KEY: DlpAction.BLOCK,
    AWS_KEY: DlpAction.BLOCK,
    PRIVATE_KEY: DlpAction.BLOCK,
    JWT: DlpAction.BLOCK,
    PASSWORD: DlpAction.BLOCK,
}
ALIASES = {"insurance": INSURANCE}
"""Other names that settings may use."""

WEAK = frozenset({EMAIL, PHONE, ICD10})
"""Where a find of one of these lies within a find of another class, it is the other."""


def canonical(name: str) -> str:
    """The class that ``name`` means."""
    return ALIASES.get(name, name)

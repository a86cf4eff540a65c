"""Errors that carry more than a text go from process to process."""

from __future__ import annotations

import copy
import pickle

import pytest

from mas_nats import Decision, MasError, OutcomeUnknown, PermissionDenied, RequestFailed, Verdict
from mas_nats.state_access import CorruptAt

ERRORS = [
    CorruptAt(3, "no JSON object"),
    OutcomeUnknown("7", "no answer"),
    RequestFailed(Decision.DEAD, "given up"),
    PermissionDenied(Verdict(Decision.AUTHZ_DENIED, ok=False, reason="no rule", fix="Allow it")),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_it_can_be_copied_and_pickled(error: MasError):
    for same in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert type(same) is type(error)
        assert str(same) == str(error)
        assert vars(same) == vars(error)

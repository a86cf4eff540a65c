"""A sealed token has one spelling: what base64 would overlook is refused."""

from __future__ import annotations

import pytest

from broker_policy.sealing import ReplyCapability, SealBroken, Sealer
from tests.unit.test_replies import SEALING_KEY


@pytest.mark.parametrize("length", range(1, 7))
def test_what_base64_overlooks_is_refused(length: int):
    fields = ReplyCapability.__dataclass_fields__
    values = {name: ("x" * length if each.type == "str" else 1) for name, each in fields.items()}
    sealer = Sealer("w1", [SEALING_KEY])
    token = sealer.seal(ReplyCapability(**values))  # type: ignore[arg-type]
    sealer.open(token)
    for altered in (f"{token}AAAA", f"{token}=", f"{token}\n", f" {token}", f"{token[:8]}!{token[8:]}"):
        with pytest.raises(SealBroken):
            sealer.open(altered)

"""What a payload is sent as, and which ones are not."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import orjson
import pytest
from pydantic import BaseModel

from mas_nats.errors import InvalidMessage
from mas_nats.payload import encode


class Order(BaseModel):
    n: int = 0
    more: Any = None


TOO_LARGE = [2**64, -(2**63) - 1, 10**30 + 1, -(10**19), 10**4000]


@pytest.mark.parametrize("number", TOO_LARGE)
@pytest.mark.parametrize(
    "data",
    [
        lambda number: Order(n=number),
        lambda number: Order(more={"a": [number]}),
        lambda number: {"n": number},
        lambda number: {"order": Order(n=number)},
    ],
    ids=["model", "deep in a model", "dict", "model in a dict"],
)
def test_an_integer_that_would_arrive_as_a_float_is_refused(data: Any, number: int):
    with pytest.raises(InvalidMessage, match=r"64.bit") as caught:
        encode(data(number))
    assert str(number)[:19] not in str(caught.value)


@pytest.mark.parametrize(
    "value",
    [
        2**64 - 1,
        -(2**63),
        1e30,
        123456789.01234567,
        0.00001234567890123456789,
        str(10**30),
        "0" * 40,
        [10**18] * 9,
    ],
)
def test_all_that_arrives_as_it_is_is_sent(value: object):
    assert orjson.loads(encode(Order(more=value))) == {"n": 0, "more": value}


def test_a_decimal_is_a_string():
    assert orjson.loads(encode(Order(more=Decimal(10**30)))) == {"n": 0, "more": str(10**30)}

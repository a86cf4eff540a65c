"""What a payload is sent as, and which ones are not."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import orjson
import pytest
from pydantic import BaseModel, ConfigDict, Field

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


class Aliased(BaseModel):
    order_id: int = Field(alias="orderId")


def test_a_model_is_sent_as_it_is_read():
    sent = Aliased(orderId=1)
    assert Aliased.model_validate_json(encode(sent)) == sent
    assert orjson.loads(encode({"order": sent})) == {"order": {"orderId": 1}}


def test_a_model_may_say_that_it_is_written_under_its_own_names():
    class Named(Aliased):
        model_config = ConfigDict(serialize_by_alias=False, populate_by_name=True)

    assert orjson.loads(encode(Named(order_id=1))) == {"order_id": 1}
    assert orjson.loads(encode({"order": Named(order_id=1)})) == {"order": {"order_id": 1}}


class Renamed(BaseModel):
    order_id: int = Field(serialization_alias="orderId")


class Holder(BaseModel):
    order: Renamed


@pytest.mark.parametrize("sent", [Renamed(order_id=1), Holder(order=Renamed(order_id=1))], ids=str)
def test_what_a_model_would_not_read_under_its_alias_is_sent_under_its_name(sent: BaseModel):
    assert type(sent).model_validate_json(encode(sent)) == sent
    assert b'"order_id":1' in encode({"in": sent})


def test_a_model_that_holds_itself_is_refused():
    order = Order()
    order.more = order
    with pytest.raises(InvalidMessage, match="no JSON form"):
        encode(order)


def test_a_decimal_is_a_string():
    assert orjson.loads(encode(Order(more=Decimal(10**30)))) == {"n": 0, "more": str(10**30)}

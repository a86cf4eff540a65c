"""Policy documents between versions: only a feature in use asks for workers that know it."""

from __future__ import annotations

import orjson
import pytest
from pydantic import ValidationError

from broker_policy.embedded.layout import Broker, Layout
from mas_nats.policy.document import AgentPolicy, Document, Limits

FULL = Document(
    namespace="shop",
    account="A",
    agents={"desk": AgentPolicy(account="B", capabilities=("qa",))},
    limits=Limits(max_deliver=3),
)


class NewerDocument(Document):
    quotas: int = 7


def test_what_is_written_says_the_same() -> None:
    said = orjson.loads(FULL.stored())
    assert Document.model_validate(said) == FULL
    assert said == {
        "version": 1,
        "namespace": "shop",
        "account": "A",
        "agents": {"desk": {"account": "B", "capabilities": ["qa"]}},
        "limits": {"max_deliver": 3},
    }


def test_a_new_field_at_its_default_is_readable_by_the_older_version() -> None:
    said = NewerDocument(**FULL.model_dump()).stored()
    assert Document.model_validate_json(said) == FULL
    with pytest.raises(ValidationError, match="quotas"):  # the control: in use, it must not be overlooked
        Document.model_validate_json(NewerDocument(**FULL.model_dump(), quotas=8).stored())


def test_where_the_broker_is_can_be_read_across_versions(tmp_path) -> None:
    layout = Layout(tmp_path)
    broker = Broker("tls://127.0.0.1:1", "ca", "m", "r", "p", 1, "now", durable=True)
    broker.write(layout)
    raw = orjson.loads(layout.endpoint.read_bytes())
    assert "nodes" not in raw
    layout.endpoint.write_bytes(orjson.dumps(raw | {"of_a_newer_version": 1}))
    assert Broker.read(layout) == broker

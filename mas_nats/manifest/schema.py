"""JSON schemas of both forms of manifest, for editors; made from the models.

They know keys, types and values. What only the whole file tells, as whether an application exists, is left to
``documents.load``.
"""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Annotated, Any

from pydantic import Field, TypeAdapter

from mas_nats.manifest.casa import CasaPolicy, MultiAgentSystem
from mas_nats.manifest.mas_yaml import MasYaml

DIALECT = "https://json-schema.org/draft/2020-12/schema"


class Form(StrEnum):
    """The forms of a manifest."""

    MAS = "mas"
    CASA = "casa"


_TITLES = {Form.MAS: "mas.yaml", Form.CASA: "CASA: MultiAgentSystem and CASAPolicy"}
_MODELS: dict[Form, TypeAdapter[Any]] = {
    Form.MAS: TypeAdapter(MasYaml),
    Form.CASA: TypeAdapter(Annotated[MultiAgentSystem | CasaPolicy, Field(discriminator="kind")]),
}


def schema(form: Form) -> dict[str, Any]:
    """The schema of one document of a manifest."""
    made: dict[str, Any] = _MODELS[form].json_schema(by_alias=True)
    made.pop("discriminator", None)  # OpenAPI's: no keyword of JSON schema
    _tidy(made)
    return {"$schema": DIALECT, **made, "title": _TITLES[form]}


def text(form: Form) -> str:
    """The same as it lies in ``docs/schema/``."""
    return json.dumps(schema(form), indent=2, ensure_ascii=False) + "\n"


def file_name(form: Form) -> str:
    """Its name there."""
    return f"{form}.schema.json"


def _tidy(made: Any) -> None:
    """Leave out the titles that only repeat the key, and other traces of Python."""
    if isinstance(made, list):
        for each in made:
            _tidy(each)
    elif isinstance(made, dict):
        if isinstance(made.get("title"), str):
            del made["title"]
        if isinstance(made.get("discriminator"), dict):
            del made["discriminator"]
        if isinstance(made.get("description"), str):
            made["description"] = " ".join(made["description"].replace("``", "`").split())
        for each in made.values():
            _tidy(each)

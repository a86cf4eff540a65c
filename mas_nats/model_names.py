"""Under which names the fields of a pydantic model are written to JSON and read from it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, get_args

from pydantic import AliasChoices, AliasPath, BaseModel


def models_in(annotation: Any, known: set[Any] | None = None) -> Iterator[type[BaseModel]]:
    """The models that a type is made of."""
    known = set() if known is None else known
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if annotation not in known:
            known.add(annotation)
            yield annotation
            for field in annotation.model_fields.values():
                yield from models_in(field.annotation, known)
    else:
        for argument in get_args(annotation):
            yield from models_in(argument, known)


def not_read(model: type[BaseModel]) -> Iterator[tuple[type[BaseModel], str, str]]:
    """The fields that are not read under the alias under which they are written: model, name, alias."""
    for each in models_in(model):
        for name, field in each.model_fields.items():
            written = field.serialization_alias or name
            if not field.exclude and written not in _names_read(each, name):
                yield each, name, written


@lru_cache(maxsize=1024)
def by_alias(model: type[BaseModel]) -> bool | None:
    """How to write it, as pydantic's ``by_alias`` says it: under its aliases, where it reads them.

    None, which leaves it to pydantic: its configuration says it, or it does not read what it would write.
    """
    says = "serialize_by_alias" in model.model_config
    return None if says or next(not_read(model), None) is not None else True


def _names_read(model: type[BaseModel], name: str) -> set[str]:
    """The names under which a field is read from JSON."""
    config, alias = model.model_config, model.model_fields[name].validation_alias
    read = set()
    if alias is None or config.get("populate_by_name") or config.get("validate_by_name"):
        read.add(name)
    if config.get("validate_by_alias", True):
        for each in alias.choices if isinstance(alias, AliasChoices) else [alias]:
            if isinstance(each, AliasPath):
                read |= {str(part) for part in each.path} if len(each.path) == 1 else set()
            elif each is not None:
                read.add(each)
    return read

"""A document against its model, with its gateway's settings: every mistake of both is told at once."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from mas_nats.errors import ConfigurationError
from mas_nats.manifest.gateway import SECTION, GatewaySettings
from mas_nats.manifest.mistakes import mistakes
from mas_nats.manifest.yaml_lines import YamlFile

M = TypeVar("M", bound=BaseModel)


def checked(
    file: YamlFile,
    raw: dict[str, Any],
    model: type[M],
    kind: str,
    *,
    holder: dict[str, Any] | None = None,
    place: tuple[str, ...] = (),
) -> M:
    """``raw``, which is of ``file``, as a ``model``; ``kind`` is what it is called.

    ``holder`` is the part of it at ``place`` that may have settings of the gateway, which are read first.

    Raises:
        ConfigurationError: it does not fit; the text names each mistake with its line.

    """
    problems = []
    if holder is not None and SECTION in holder:
        try:
            holder[SECTION] = GatewaySettings.of_section(file, holder[SECTION], (*place, SECTION))
        except ConfigurationError as error:
            problems.append(str(error))
            del holder[SECTION]
    try:
        parsed = model.model_validate(raw)
    except ValidationError as error:
        found = mistakes(error, model, lambda place: f"line {file.line(place)}")
        problems.insert(0, "\n- ".join((f"{file.path} is not a valid {kind}:", *found)))
    if problems:
        raise ConfigurationError("\n".join(problems))
    return parsed

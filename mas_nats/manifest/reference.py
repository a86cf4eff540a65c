"""The reference of the gateway's settings in ``docs/settings.md``, made from the models.

``python -m mas_nats.manifest.reference docs/settings.md`` brings the file up to date.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mas_nats.manifest.gateway import GatewaySettings

BEGIN, END = "<!-- made from the models: begin -->", "<!-- end -->"
_TYPES = {"integer": "whole number", "number": "number", "boolean": "true or false", "string": "text"}
_BOUNDS = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most"}


def reference() -> str:
    """A table for each section of the settings."""
    schema = GatewaySettings.model_json_schema()
    parts = []
    for name in GatewaySettings.model_fields:
        section = _followed(schema["properties"][name], schema)
        said = str(section.get("description", "")).replace("\n", " ").replace("``", "`")
        parts += [f"### `{name}`", said, _table(section, schema)]
        if name == "dlp":
            rule = schema["$defs"]["DlpRule"]
            parts += ["One of `dlp.rules`:", _table(rule, schema)]
    return "\n\n".join(parts)


def current(page: str) -> str:
    """``page`` with today's reference between its marks."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{reference()}\n\n{END}{after}"


def _table(section: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    required = section.get("required", [])
    rows = ["| key | value | default | |", "|---|---|---|---|"]
    for key, found in section["properties"].items():
        default = "required" if key in required else _default(found)
        rows.append(f"| `{key}` | {_kind(found, schema)} | {default} | {found.get('description', '')} |")
    return "\n".join(rows)


def _default(found: Mapping[str, Any]) -> str:
    value = found.get("default", "")  # one that is made anew each time is empty
    if value is None:
        return "none"
    return f"`{json.dumps(value)}`" if value not in ("", [], {}) else "empty"


def _kind(found: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    found = _followed(found, schema)
    if "anyOf" in found:
        kinds = [_kind(each, schema) for each in found["anyOf"] if each.get("type") != "null"]
        return " or ".join([*kinds, "none"])
    if "enum" in found:
        return ", ".join(f"`{each}`" for each in found["enum"])
    if found.get("type") == "array":
        return f"list of {_inside(found.get('items', {}), schema)}"
    if found.get("type") == "object":
        return f"mapping to {_inside(found.get('additionalProperties', {}), schema)}"
    return ", ".join((_TYPES.get(str(found.get("type")), "text"), *_bounds(found)))


def _inside(found: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    followed = _followed(found, schema)
    return "rules" if "properties" in followed else _kind(followed, schema)


def _bounds(found: Mapping[str, Any]) -> Iterator[str]:
    for name, words in _BOUNDS.items():
        if name in found:
            yield f"{words} {found[name]:g}"


def _followed(found: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    if "$ref" not in found:
        return found
    target: Mapping[str, Any] = schema["$defs"][found["$ref"].rpartition("/")[2]]
    return target


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:]):
        path.write_text(current(path.read_text()))

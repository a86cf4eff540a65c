"""The references of ``docs/settings.md`` and ``docs/manifest.md``, made from the models.

``python -m mas_nats.manifest.reference docs/settings.md docs/manifest.md`` brings them up to date.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from mas_nats.made_pages import filled, rewrite
from mas_nats.manifest import schema as schemas
from mas_nats.manifest.gateway import GatewaySettings
from mas_nats.manifest.schema import Form

_TYPES = {"integer": "whole number", "number": "number", "boolean": "true or false", "string": "text"}
_BOUNDS = {"exclusiveMinimum": "above", "minimum": "at least", "maximum": "at most"}
_BEYOND = 1e9
"""Bounds from here on are those of the machinery, not of what is meant."""
_WHOLE = {"agents": "AgentEntry", "limits": "Limits", "roles": "Role"}
"""The sections of a ``mas.yaml`` with a table, and the model of each."""
_SYSTEM = {
    "metadata": "Metadata",
    "spec": "MasSpec",
    "spec.apps[]": "App",
    "spec.apps[].baseUrl": "BaseUrl",
    "spec.apps[].httpRequestSchema": "HttpRequestSchema",
}
_POLICY = {
    "spec": "PolicySpec",
    "spec.targetRef": "TargetRef",
    "spec.allowedEndpoints[], spec.allowedSources[]": "Endpoint",
    "spec.llmEndpoint": "LlmEndpoint",
}


def current(page: str) -> str:
    """``page`` with today's references between its marks."""
    return filled(page, _REFERENCES)


def _gateway() -> str:
    """A table for each section of the settings."""
    schema = GatewaySettings.model_json_schema()
    parts = []
    for name in GatewaySettings.model_fields:
        section = _followed(schema["properties"][name], schema)
        parts += [f"### `{name}`", _said(section), _table(section, schema)]
        if name == "dlp":
            rule = schema["$defs"]["DlpRule"]
            parts += ["One of `dlp.rules`:", _table(rule, schema)]
    return "\n\n".join(parts)


def _mas_yaml() -> str:
    """The whole of a ``mas.yaml``, and a table for each section that has no page of its own."""
    schema = schemas.schema(Form.MAS)
    parts = [_table(schema, schema)]
    for key, model in _WHOLE.items():
        section = schema["$defs"][model]
        parts += [f"### `{key}`", _said(section), _table(section, schema)]
    rows = ["| `type` | further keys | |", "|---|---|---|"]
    rules = schema["properties"]["permissions"]["items"]["oneOf"]
    for rule in (_followed(each, schema) for each in rules):
        keys = ", ".join(f"`{key}`" for key in rule["properties"] if key != "type")
        rows.append(f"| `{rule['properties']['type']['const']}` | {keys} | {_said(rule)} |")
    return "\n\n".join((*parts, "### `permissions`", "\n".join(rows)))


def _casa(models: Mapping[str, str]) -> str:
    schema = schemas.schema(Form.CASA)
    parts = []
    for place, model in models.items():
        section = schema["$defs"][model]
        section = section["anyOf"][0] if "anyOf" in section else section  # the other way is a text
        parts += [f"**`{place}`** {_said(section)}", _table(section, schema)]
    return "\n\n".join(parts)


_REFERENCES: dict[str, Callable[[], str]] = {
    "gateway": _gateway,
    "mas.yaml": _mas_yaml,
    "multi-agent-system": lambda: _casa(_SYSTEM),
    "casa-policy": lambda: _casa(_POLICY),
}


def _said(section: Mapping[str, Any]) -> str:
    return str(section.get("description", "")).replace("\n", " ").replace("``", "`")


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
    if isinstance(value, dict) and value:
        return "its own"
    return f"`{json.dumps(value)}`" if value not in ("", [], {}) else "empty"


def _kind(found: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    found = _followed(found, schema)
    if "anyOf" in found:
        kinds = [_kind(each, schema) for each in found["anyOf"] if each.get("type") != "null"]
        none = ["none"] if len(kinds) < len(found["anyOf"]) else []
        return " or ".join([*kinds, *none])
    if words := found.get("enum", [found["const"]] if "const" in found else []):
        return ", ".join(f"`{each}`" for each in words)
    if found.get("type") in ("array", "object"):
        return _collection(found, schema)
    name = _TYPES.get(str(found.get("type")), "text") if "type" in found else "anything"
    return ", ".join((name, *_bounds(found)))


def _collection(found: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    if found["type"] == "array":
        return f"list of {_inside(found.get('items', {}), schema)}"
    if "properties" in found:
        return "mapping"
    return f"mapping to {_inside(found.get('additionalProperties', {}), schema)}"


def _inside(found: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    followed = _followed(found, schema) if isinstance(found, Mapping) else {}
    return "mappings" if "properties" in followed or "oneOf" in followed else _kind(followed, schema)


def _bounds(found: Mapping[str, Any]) -> Iterator[str]:
    for name, words in _BOUNDS.items():
        if name in found and found[name] < _BEYOND:
            yield f"{words} {found[name]:g}"


def _followed(found: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    if "$ref" not in found:
        return found
    target: Mapping[str, Any] = schema["$defs"][found["$ref"].rpartition("/")[2]]
    return target


if __name__ == "__main__":
    rewrite(current)

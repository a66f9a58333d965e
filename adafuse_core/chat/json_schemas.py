"""JSON schemas as grammar rules."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from adafuse_core.errors import ConfigError

# JSON as `json.dumps` writes it, which is what models are trained on; and no room for endless blanks.
_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": ", "coerce_one_of": True}
_OF_ONE_OBJECT = ("allOf", "anyOf", "oneOf", "$ref", "if", "dependentSchemas")  # beside `properties`
_NOT_CLOSED = (*_OF_ONE_OBJECT, "patternProperties", "additionalProperties", "unevaluatedProperties")
_NESTED = ("items", "prefixItems", "anyOf", "oneOf", "allOf", "additionalProperties")  # schemas, or lists of them
_NAMED = ("properties", "patternProperties", "$defs", "definitions")  # schemas by name


def json_rules(schema: Mapping[str, Any], *, lenient: bool) -> str:
    """Rules for JSON that obeys a schema; see `Grammar.json_schema`."""
    if not isinstance(schema, Mapping):
        raise ConfigError(f"got {schema!r} as JSON schema, expected a mapping")
    try:
        closed = schema if _combines(schema) else _closed(schema)
        text = json.dumps({**closed, "x-guidance": {**_STYLE, "lenient": lenient}})
    except (TypeError, ValueError) as error:
        raise ConfigError(f"the JSON schema {schema!r} is not plain JSON: {error}") from error
    return f"start: %json {text}"


def _closed(schema: Any) -> Any:
    """The schema, its objects closed to properties that it does not name: models would make some up."""
    if not isinstance(schema, Mapping):
        return [_closed(item) for item in schema] if isinstance(schema, list | tuple) else schema
    inner = dict(schema)
    for key in _NESTED:
        if key in schema:
            inner[key] = _closed(schema[key])
    for key in _NAMED:
        if isinstance(schema.get(key), Mapping):
            inner[key] = {name: _closed(part) for name, part in schema[key].items()}
    named = isinstance(schema.get("properties"), Mapping) and not any(key in schema for key in _NOT_CLOSED)
    return {**inner, "additionalProperties": False} if named else inner


def _combines(schema: Any) -> bool:
    """Whether several parts of the schema describe one object, so that none of them may close it to the others."""
    if not isinstance(schema, Mapping):
        return isinstance(schema, list | tuple) and any(map(_combines, schema))
    beside = schema.get("properties") and any(key in schema for key in _OF_ONE_OBJECT)
    several = isinstance(schema.get("allOf"), list | tuple) and len(schema["allOf"]) > 1
    named = (part for key in _NAMED if isinstance(schema.get(key), Mapping) for part in schema[key].values())
    return bool(beside) or several or any(_combines(schema.get(key)) for key in _NESTED) or any(map(_combines, named))

"""JSON schemas as grammar rules."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from adafuse_core.chat.schema_formats import with_patterns
from adafuse_core.chat.schema_limits import Loosened, enforceable
from adafuse_core.errors import ConfigError

# JSON as `json.dumps` writes it, which is what models are trained on; and no room for endless blanks.
_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": ", "coerce_one_of": True}
_OF_ONE_OBJECT = ("allOf", "anyOf", "oneOf", "$ref", "if", "dependentSchemas")  # beside `properties`
_NOT_CLOSED = (*_OF_ONE_OBJECT, "patternProperties", "additionalProperties", "unevaluatedProperties")
_NESTED = ("items", "prefixItems", "anyOf", "oneOf", "allOf", "additionalProperties")  # schemas, or lists of them
_NAMED = ("properties", "patternProperties", "$defs", "definitions")  # schemas by name
_RECENT = 1024  # schemas that are kept as rules
_ANNOTATIONS = ("title", "description", "default", "examples", "$comment")
_NOTHING: dict[str, Any] = {  # keywords with a value that asks for nothing
    "uniqueItems": False,
    "unevaluatedProperties": True,
    "unevaluatedItems": True,
    "propertyNames": True,
    "not": False,
    "dependentRequired": {},
    "dependentSchemas": {},
    "dependencies": {},
}

_Schema = dict[str, Any]


def json_rules(schema: Mapping[str, Any], *, lenient: bool) -> tuple[str, tuple[Loosened, ...]]:
    """Rules for JSON that obeys a schema, and what of it they don't enforce; see `Grammar.json_schema`."""
    if not isinstance(schema, Mapping):
        raise ConfigError(f"got {schema!r} as JSON schema, expected a mapping")
    try:
        text = json.dumps(schema)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"the JSON schema {schema!r} is not plain JSON: {error}") from error
    return _rules(text, lenient)


@lru_cache(_RECENT)
def _rules(text: str, lenient: bool) -> tuple[str, tuple[Loosened, ...]]:
    """The same from a schema's text. To find out what can be enforced takes milliseconds, so it is kept."""
    schema = _mapped(json.loads(text), _simplified)
    closed = schema if _combines(schema) else _mapped(schema, _closed)
    held, loosened = enforceable(closed, _STYLE, lenient=lenient)
    return f"start: %json {json.dumps({**held, 'x-guidance': _STYLE})}", loosened


def _mapped(schema: Any, change: Callable[[_Schema], _Schema]) -> Any:
    """The schema, each of its parts changed, from the inside out."""
    if not isinstance(schema, Mapping):
        return [_mapped(item, change) for item in schema] if isinstance(schema, list) else schema
    inner = dict(schema)
    for key in _NESTED:
        if key in schema:
            inner[key] = _mapped(schema[key], change)
    for key in _NAMED:
        if isinstance(schema.get(key), Mapping):
            inner[key] = {name: _mapped(part, change) for name, part in schema[key].items()}
    return change(inner)


def _simplified(schema: _Schema) -> _Schema:
    return with_patterns(_with_named_keys(_without_empty(schema)))


def _without_empty(schema: _Schema) -> _Schema:
    """The schema without keywords that ask for nothing."""
    asking = {key: value for key, value in schema.items() if key not in _ANNOTATIONS}
    return {key: value for key, value in asking.items() if key not in _NOTHING or value != _NOTHING[key]}


def _with_named_keys(schema: _Schema) -> _Schema:
    """The schema with `patternProperties` or `properties` in place of the `propertyNames` that say the same."""
    names, values = schema.get("propertyNames"), schema.get("additionalProperties", True)
    if not isinstance(names, Mapping) or schema.keys() & {"properties", "patternProperties", *_OF_ONE_OBJECT}:
        return schema
    names = with_patterns({key: value for key, value in names.items() if key != "type"})
    rest = {key: value for key, value in schema.items() if key != "propertyNames"}
    if not names:
        return rest
    if names.keys() == {"enum"} and all(isinstance(name, str) for name in names["enum"]):
        return {**rest, "properties": dict.fromkeys(names["enum"], values), "additionalProperties": False}
    if names.keys() == {"pattern"}:
        return {**rest, "patternProperties": {names["pattern"]: values}, "additionalProperties": False}
    return schema


def _closed(schema: _Schema) -> _Schema:
    """The schema, its object closed to properties that it does not name: models would make some up."""
    properties, required = schema.get("properties"), schema.get("required", ())
    if not isinstance(properties, Mapping) or any(key in schema for key in _NOT_CLOSED):
        return schema
    names = [name for name in required if isinstance(name, str)] if isinstance(required, list) else ()
    return {**schema, "properties": {**properties, **_any_value(names, properties)}, "additionalProperties": False}


def _any_value(names: Any, known: Mapping[str, Any]) -> dict[str, Any]:
    return {name: {} for name in names if name not in known}


def _combines(schema: Any) -> bool:
    """Whether several parts of the schema describe one object, so that none of them may close it to the others."""
    if not isinstance(schema, Mapping):
        return isinstance(schema, list | tuple) and any(map(_combines, schema))
    beside = schema.get("properties") and any(key in schema for key in _OF_ONE_OBJECT)
    several = isinstance(schema.get("allOf"), list | tuple) and len(schema["allOf"]) > 1
    named = (part for key in _NAMED if isinstance(schema.get(key), Mapping) for part in schema[key].values())
    return bool(beside) or several or any(_combines(schema.get(key)) for key in _NESTED) or any(map(_combines, named))

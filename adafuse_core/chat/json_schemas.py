"""JSON schemas as grammar rules."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from adafuse_core.chat.schema_formats import with_patterns
from adafuse_core.chat.schema_limits import RelaxedKeyword, relax_schema
from adafuse_core.chat.schema_paths import DEFINITIONS, LISTS, NAMED
from adafuse_core.checks import expect_encodable
from adafuse_core.errors import ConfigError

# The format of `json.dumps`, on which models are trained. Without flexible whitespace, blanks can't repeat forever.
_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": ", "coerce_one_of": True}
_APPLICATORS = ("allOf", "anyOf", "oneOf", "$ref", "if", "dependentSchemas")  # more schemas for the same object
_KEEP_OPEN = (*_APPLICATORS, "patternProperties", "additionalProperties", "unevaluatedProperties")
_NESTED = (*LISTS, "additionalProperties")  # keywords with schemas, or lists of schemas
_NAMED = (*NAMED, *DEFINITIONS)
_CACHED = 1024  # schemas
_ANNOTATIONS = ("title", "description", "default", "examples", "$comment")
_NO_EFFECT: dict[str, Any] = {  # values without effect, by keyword
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


def json_rules(schema: Mapping[str, Any], *, lenient: bool) -> tuple[str, tuple[RelaxedKeyword, ...]]:
    """Grammar rules for JSON that obeys a schema, and the keywords that are not enforced; see `Grammar.json_schema`."""
    if not isinstance(schema, Mapping):
        raise ConfigError(f"got {schema!r} as JSON schema, expected a mapping")
    try:
        text, shown = json.dumps(schema), json.dumps(schema, ensure_ascii=False)
    except RecursionError as error:
        raise ConfigError("the JSON schema is nested too deeply") from error
    except (TypeError, ValueError) as error:
        raise ConfigError(f"the JSON schema {schema!r} is not plain JSON: {error}") from error
    expect_encodable("JSON schema", shown)
    try:
        return _rules(text, lenient)
    except RecursionError as error:
        raise ConfigError("the JSON schema is nested too deeply") from error


@lru_cache(_CACHED)
def _rules(text: str, lenient: bool) -> tuple[str, tuple[RelaxedKeyword, ...]]:
    schema = _mapped(json.loads(text), _simplified)
    closed = schema if _combines(schema) else _mapped(schema, _closed)
    enforced, relaxed = relax_schema(closed, _STYLE, lenient=lenient)  # takes milliseconds
    return f"start: %json {json.dumps({**enforced, 'x-guidance': _STYLE})}", relaxed


def _mapped(schema: Any, change: Callable[[_Schema], _Schema]) -> Any:
    """The schema with every part changed, inner parts first."""
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
    """The schema without annotations and keywords that have no effect."""
    effective = {key: value for key, value in schema.items() if key not in _ANNOTATIONS}
    return {key: value for key, value in effective.items() if key not in _NO_EFFECT or value != _NO_EFFECT[key]}


def _with_named_keys(schema: _Schema) -> _Schema:
    """The schema with `propertyNames` replaced by equivalent `patternProperties` or `properties`."""
    names, values = schema.get("propertyNames"), schema.get("additionalProperties", True)
    if not isinstance(names, Mapping) or schema.keys() & {"properties", "patternProperties", *_APPLICATORS}:
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
    """The schema without additional properties, which models would invent."""
    properties, required = schema.get("properties"), schema.get("required", ())
    if not isinstance(properties, Mapping) or any(key in schema for key in _KEEP_OPEN):
        return schema
    names = [name for name in required if isinstance(name, str)] if isinstance(required, list) else ()
    undescribed: _Schema = {name: {} for name in names if name not in properties}
    return {**schema, "properties": {**properties, **undescribed}, "additionalProperties": False}


def _combines(schema: Any) -> bool:
    """Whether several parts describe the same object. Closing one part would forbid the properties of the others."""
    if not isinstance(schema, Mapping):
        return isinstance(schema, list | tuple) and any(map(_combines, schema))
    beside = schema.get("properties") and any(key in schema for key in _APPLICATORS)
    several = isinstance(schema.get("allOf"), list | tuple) and len(schema["allOf"]) > 1
    named = (part for key in _NAMED if isinstance(schema.get(key), Mapping) for part in schema[key].values())
    return bool(beside) or several or any(_combines(schema.get(key)) for key in _NESTED) or any(map(_combines, named))

"""JSON schemas of Python types, as exact as a grammar can enforce them.

Pydantic makes the schemas. The frameworks' own converters would lose parts of them.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from adafuse_core.chat.schema_formats import DATE, TIME, uri

_MAX_DECIMAL = 10**15  # decimal numbers below this bound are exact as JSON numbers
_DECIMAL = r"^-?[0-9]{1,24}(\.[0-9]{1,24})?$"
_KEY_PATTERNS = {  # regular expressions of JSON keys, by the key type of a dict
    "int": "^(0|-?[1-9][0-9]{0,17})$",
    "float": r"^-?(0|[1-9][0-9]{0,17})(\.[0-9]{1,17})?$",
    "decimal": r"^-?(0|[1-9][0-9]{0,17})(\.[0-9]{1,17})?$",
    "bool": "^(true|false)$",
}


def type_schema(kind: Any) -> dict[str, Any]:
    """The JSON schema of a pydantic class (version 1 or 2), a dataclass, a typed dict, or any other type.

    Raises:
        PydanticUserError, PydanticSchemaGenerationError: Pydantic has no schema of the type.
    """
    if hasattr(kind, "model_json_schema"):
        schema = kind.model_json_schema(schema_generator=_ExactSchemas)
    elif hasattr(kind, "__get_validators__") and hasattr(kind, "schema"):  # pydantic 1
        schema = kind.schema()
    else:
        schema = TypeAdapter(kind).json_schema(schema_generator=_ExactSchemas)
    return inline_root(schema)


def strict_schema(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a schema in which all properties are required and additional properties are forbidden."""
    strict = copy.deepcopy(dict(schema))
    _make_strict(strict)
    return strict


def without_title(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A schema without its top-level title and description, which a tool repeats as its own name and description."""
    return {key: value for key, value in schema.items() if key not in ("title", "description")}


def is_object(schema: Mapping[str, Any]) -> bool:
    """Whether a schema describes an object with named properties, which can be the arguments of a tool call."""
    return schema.get("type") == "object" and "properties" in schema


def inline_root(schema: dict[str, Any]) -> dict[str, Any]:
    """Replace a top-level `$ref`, which pydantic writes for a recursive class, by the definition of the class."""
    reference = str(schema.get("$ref", ""))
    for key in ("$defs", "definitions"):
        name = reference.removeprefix(f"#/{key}/")
        if name in schema.get(key, {}):
            return {**schema[key][name], **{other: value for other, value in schema.items() if other != "$ref"}}
    return schema


def _make_strict(schema: Any) -> None:
    if isinstance(schema, list):
        for part in schema:
            _make_strict(part)
    if not isinstance(schema, dict):
        return
    if isinstance(schema.get("properties"), dict):
        schema.update(required=list(schema["properties"]), additionalProperties=False)
    for key in ("properties", "patternProperties", "$defs", "definitions"):
        for part in (schema.get(key) or {}).values():
            _make_strict(part)
    for key in ("items", "prefixItems", "anyOf", "oneOf", "allOf", "additionalProperties"):
        _make_strict(schema.get(key))


class _ExactSchemas(GenerateJsonSchema):
    """Narrows pydantic's schemas where validation refuses values that the schema allows."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        """False: titles only repeat the names of the fields."""
        return False

    def decimal_schema(self, schema: core_schema.DecimalSchema) -> JsonSchemaValue:
        """A bounded number. A type without constraints also allows a string of digits."""
        digits, places = schema.get("max_digits"), schema.get("decimal_places")
        limit = _MAX_DECIMAL if digits is None else min(_MAX_DECIMAL, 10 ** max(0, digits - (places or 0)))
        number: dict[str, Any] = {"type": "number", "exclusiveMinimum": -limit, "exclusiveMaximum": limit}
        for replaced, constraint, keyword in _BOUNDS:
            if schema.get(constraint) is not None:
                number = {key: value for key, value in number.items() if not key.endswith(replaced)}
                number[keyword] = float(schema[constraint])  # type: ignore[literal-required]
        multiple = schema.get("multiple_of") or (None if places is None else 10.0**-places)
        if multiple is not None or digits is not None:
            number["multipleOf"] = 1 if multiple is None else float(multiple)
        constraints = {"max_digits", "decimal_places", "multiple_of", *(bound[1] for bound in _BOUNDS)}
        constrained = bool(schema.keys() & constraints)
        return number if constrained else {"anyOf": [number, {"type": "string", "pattern": _DECIMAL}]}

    def dict_schema(self, schema: core_schema.DictSchema) -> JsonSchemaValue:
        """An object whose keys match the key type, where a pattern can express it."""
        base = super().dict_schema(schema)
        keys = schema.get("keys_schema", {})
        kind = keys.get("type")
        if keys.get("type") == "enum" and all(isinstance(key.value, str) for key in keys["members"]):
            return {**base, "propertyNames": {"enum": [key.value for key in keys["members"]]}}
        if "patternProperties" in base:
            return {**base, "additionalProperties": False}
        if kind not in _KEY_PATTERNS:
            return base
        values = base.pop("additionalProperties", True)
        return {**base, "patternProperties": {_KEY_PATTERNS[kind]: values}, "additionalProperties": False}

    def datetime_schema(self, schema: core_schema.DatetimeSchema) -> JsonSchemaValue:
        """A date and time, without a time zone for `NaiveDatetime`."""
        if schema.get("tz_constraint") == "naive":
            return {"type": "string", "pattern": f"^{DATE}T{TIME}$"}
        return super().datetime_schema(schema)

    def url_schema(self, schema: core_schema.UrlSchema) -> JsonSchemaValue:
        """A URL with one of the type's allowed schemes."""
        return _with_schemes(super().url_schema(schema), schema.get("allowed_schemes"))

    def multi_host_url_schema(self, schema: core_schema.MultiHostUrlSchema) -> JsonSchemaValue:
        """A URL with several hosts, with one of the type's allowed schemes."""
        return _with_schemes(super().multi_host_url_schema(schema), schema.get("allowed_schemes"))


def _with_schemes(schema: JsonSchemaValue, schemes: Sequence[str] | None) -> JsonSchemaValue:
    return {**schema, "pattern": f"^{uri(*schemes)}$"} if schemes else schema


_BOUNDS = (  # suffix of the default bound that is replaced, the type's constraint, and its JSON Schema keyword
    ("Minimum", "ge", "minimum"),
    ("Minimum", "gt", "exclusiveMinimum"),
    ("Maximum", "le", "maximum"),
    ("Maximum", "lt", "exclusiveMaximum"),
)

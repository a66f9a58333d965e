"""JSON schemas of Python types, which say as much of a type as a grammar can hold an answer to.

They come from pydantic, which knows its own types, and not through a framework's converter, which may lose parts.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from adafuse_core.chat.schema_formats import DATE, TIME, uri

_MOST = 10**15  # decimal numbers up to here are exact as JSON numbers
_DECIMAL = r"^-?[0-9]{1,24}(\.[0-9]{1,24})?$"
_KEYS = {  # how JSON writes keys of these types, as a regular expression
    "int": "^(0|-?[1-9][0-9]{0,17})$",
    "float": r"^-?(0|[1-9][0-9]{0,17})(\.[0-9]{1,17})?$",
    "decimal": r"^-?(0|[1-9][0-9]{0,17})(\.[0-9]{1,17})?$",
    "bool": "^(true|false)$",
}


def type_schema(kind: Any) -> dict[str, Any]:
    """The JSON schema of a pydantic class (of either version), a dataclass, a typed dict, or any other type.

    Raises:
        PydanticUserError, PydanticSchemaGenerationError: Pydantic has none for the type.
    """
    if hasattr(kind, "model_json_schema"):
        schema = kind.model_json_schema(schema_generator=_Exact)
    elif hasattr(kind, "__get_validators__") and hasattr(kind, "schema"):  # pydantic's first version
        schema = kind.schema()
    else:
        schema = TypeAdapter(kind).json_schema(schema_generator=_Exact)
    return opened(schema)


def strictly(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a schema whose objects must have all properties that they name, and may have no others."""
    whole = copy.deepcopy(dict(schema))
    _close(whole)
    return whole


def is_object(schema: Mapping[str, Any]) -> bool:
    """Whether all values of a schema are objects with names of its own, so that they can be the arguments of a call."""
    return schema.get("type") == "object" and "properties" in schema


def opened(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of a class that contains itself, with the properties of the class at its top."""
    reference = str(schema.get("$ref", ""))
    for key in ("$defs", "definitions"):
        name = reference.removeprefix(f"#/{key}/")
        if name in schema.get(key, {}):
            return {**schema[key][name], **{other: value for other, value in schema.items() if other != "$ref"}}
    return schema


def _close(schema: Any) -> None:
    if isinstance(schema, list):
        for part in schema:
            _close(part)
    if not isinstance(schema, dict):
        return
    if isinstance(schema.get("properties"), dict):
        schema.update(required=list(schema["properties"]), additionalProperties=False)
    for key in ("properties", "patternProperties", "$defs", "definitions"):
        for part in (schema.get(key) or {}).values():
            _close(part)
    for key in ("items", "prefixItems", "anyOf", "oneOf", "allOf", "additionalProperties"):
        _close(schema.get(key))


class _Exact(GenerateJsonSchema):
    """Pydantic's schemas, narrowed where a type refuses values that its schema allows."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        """Titles repeat the names of the fields; members need not read them."""
        return False

    def decimal_schema(self, schema: core_schema.DecimalSchema) -> JsonSchemaValue:
        """Numbers without exponents, whose places can be counted; or digits in a string if nothing bounds them."""
        digits, places = schema.get("max_digits"), schema.get("decimal_places")
        most = _MOST if digits is None else min(_MOST, 10 ** max(0, digits - (places or 0)))
        number: dict[str, Any] = {"type": "number", "exclusiveMinimum": -most, "exclusiveMaximum": most}
        for ours, theirs, keyword in _BOUNDS:
            if schema.get(theirs) is not None:
                number = {key: value for key, value in number.items() if not key.endswith(ours)}
                number[keyword] = float(schema[theirs])  # type: ignore[literal-required]
        multiple = schema.get("multiple_of") or (None if places is None else 10.0**-places)
        if multiple is not None or digits is not None:
            number["multipleOf"] = 1 if multiple is None else float(multiple)
        free = not schema.keys() & {"max_digits", "decimal_places", "multiple_of", *(bound[1] for bound in _BOUNDS)}
        return {"anyOf": [number, {"type": "string", "pattern": _DECIMAL}]} if free else number

    def dict_schema(self, schema: core_schema.DictSchema) -> JsonSchemaValue:
        """With no keys but those that the type takes, as far as a pattern can say it."""
        made = super().dict_schema(schema)
        keys = schema.get("keys_schema", {})
        kind = keys.get("type")
        if keys.get("type") == "enum" and all(isinstance(key.value, str) for key in keys["members"]):
            return {**made, "propertyNames": {"enum": [key.value for key in keys["members"]]}}
        if "patternProperties" in made:
            return {**made, "additionalProperties": False}
        if kind not in _KEYS:
            return made
        values = made.pop("additionalProperties", True)
        return {**made, "patternProperties": {_KEYS[kind]: values}, "additionalProperties": False}

    def datetime_schema(self, schema: core_schema.DatetimeSchema) -> JsonSchemaValue:
        """Without an offset where the type takes none."""
        if schema.get("tz_constraint") == "naive":
            return {"type": "string", "pattern": f"^{DATE}T{TIME}$"}
        return super().datetime_schema(schema)

    def url_schema(self, schema: core_schema.UrlSchema) -> JsonSchemaValue:
        """With one of the schemes that the type takes."""
        made = super().url_schema(schema)
        schemes = schema.get("allowed_schemes")
        return {**made, "pattern": f"^{uri(*schemes)}$"} if schemes else made

    def multi_host_url_schema(self, schema: core_schema.MultiHostUrlSchema) -> JsonSchemaValue:
        """As `url_schema`."""
        made = super().multi_host_url_schema(schema)
        schemes = schema.get("allowed_schemes")
        return {**made, "pattern": f"^{uri(*schemes)}$"} if schemes else made


_BOUNDS = (  # which of the number's own bounds goes, the type's bound, and its keyword
    ("Minimum", "ge", "minimum"),
    ("Minimum", "gt", "exclusiveMinimum"),
    ("Maximum", "le", "maximum"),
    ("Maximum", "lt", "exclusiveMaximum"),
)

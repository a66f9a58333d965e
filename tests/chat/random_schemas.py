"""Random JSON schemas: nested, recursive, with unions, formats, bounds, and keywords that no grammar can enforce."""

from __future__ import annotations

import random
from typing import Any

PATTERNS = (
    *(
        "^[a-z]+$",
        "[0-9]{3}",
        r"^\d{4}-\d{2}$",
        "^(?!bad)[a-z]+$",
        "^(?=.*[A-Z]).{2,}$",
        r"\bword\b",
        "(?<!a)b",
        r"(a)\1",
    ),
    *("^[^@]+@[^@]+$", r"^\p{Lu}\w*$", "^a{1,3}$", "^(?!^[-+.]*$)[+-]?0*\\d*\\.?\\d*$", "^[", r"^\S+$"),
)
FORMATS = (
    *("date", "date-time", "time", "duration", "email", "uuid", "uuid4", "uri", "ipv4", "ipv6", "hostname", "base64"),
    *("regex", "json-pointer", "uri-template", "idn-hostname", "color", "password", "int64"),
)
NUMBERS = (-(2**63), -(2**31), -5, 0, 1, 2.5, 7, 100, 2**31, 2**53 + 1, 2**63 - 1, 1e308, 10**30)
SIZES = (0, 1, 2, 3, 40, 5000, 10**6, 10**20)
UNKNOWN: dict[str, Any] = {
    "not": {"type": "null"},
    "if": {"type": "string"},
    "contains": {"const": 1},
    "minContains": 2,
    "uniqueItems": True,
    "dependentRequired": {"a": ["b"]},
    "dependentSchemas": {"a": {"required": ["b"]}},
    "propertyNames": {"pattern": "^[a-z]+$"},
    "unevaluatedProperties": False,
    "contentSchema": {"type": "integer"},
    "$dynamicRef": "#a",
    "divisibleBy": 2,
    "x-vendor": {"any": "thing"},
    "nullable": True,
}


class Generator:
    """Generates schemas of tool parameters."""

    def __init__(self, seed: int) -> None:
        self._draw = random.Random(seed)

    def parameters(self) -> dict[str, Any]:
        """A schema of an object, with definitions that may be recursive."""
        names = [f"D{index}" for index in range(self._draw.randrange(3))]
        schema = self._object(2, names)
        if names:
            schema["$defs"] = {name: self._schema(2, names) for name in names}
        return schema

    def _schema(self, depth: int, names: list[str]) -> dict[str, Any]:
        kinds = [self._string, self._number, self._enum]
        if depth:
            kinds += [self._object, self._array, self._union, *([self._reference] * bool(names))]
        schema = self._draw.choice(kinds)(depth - 1, names)
        if self._draw.random() < 0.15:
            key = self._draw.choice(list(UNKNOWN))
            schema[key] = UNKNOWN[key]
        return schema

    def _object(self, depth: int, names: list[str]) -> dict[str, Any]:
        draw = self._draw
        keys = draw.sample(["a", "b", "c/d", "e~f", "properties"], draw.randrange(1, 4))
        schema: dict[str, Any] = {"type": "object", "properties": {key: self._schema(depth, names) for key in keys}}
        if draw.random() < 0.7:
            schema["required"] = draw.sample(keys, draw.randrange(len(keys) + 1))
        if draw.random() < 0.3:
            schema["additionalProperties"] = draw.choice([True, False, self._schema(0, names)])
        if draw.random() < 0.2:
            schema[draw.choice(["minProperties", "maxProperties"])] = draw.choice([0, 1, 2, 5])
        if draw.random() < 0.1:
            schema["patternProperties"] = {draw.choice(PATTERNS): self._schema(0, names)}
        return schema

    def _array(self, depth: int, names: list[str]) -> dict[str, Any]:
        schema: dict[str, Any] = {"type": "array", "items": self._schema(max(depth, 0), names)}
        if self._draw.random() < 0.4:
            schema[self._draw.choice(["minItems", "maxItems"])] = self._draw.choice(SIZES)
        if self._draw.random() < 0.2:
            schema["prefixItems"] = [self._schema(0, names) for _ in range(2)]
        return schema

    def _union(self, depth: int, names: list[str]) -> dict[str, Any]:
        key = self._draw.choice(["anyOf", "oneOf", "allOf"])
        return {key: [self._schema(max(depth, 0), names) for _ in range(self._draw.randrange(1, 4))]}

    def _reference(self, depth: int, names: list[str]) -> dict[str, Any]:
        if self._draw.random() < 0.1:
            return {"$ref": self._draw.choice(["#/$defs/Missing", "https://example.com/schema.json", "other.json#/a"])}
        schema: dict[str, Any] = {"$ref": f"#/$defs/{self._draw.choice(names)}"}
        return {**schema, "minProperties": 1} if self._draw.random() < 0.1 else schema

    def _string(self, depth: int, names: list[str]) -> dict[str, Any]:
        schema: dict[str, Any] = {"type": self._draw.choice(["string", "string", ["string", "null"]])}
        for key, values in (("pattern", PATTERNS), ("format", FORMATS), ("minLength", SIZES), ("maxLength", SIZES)):
            if self._draw.random() < 0.3:
                schema[key] = self._draw.choice(values)
        return schema

    def _number(self, depth: int, names: list[str]) -> dict[str, Any]:
        schema: dict[str, Any] = {"type": self._draw.choice(["integer", "number"])}
        for key in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"):
            if self._draw.random() < 0.3:
                schema[key] = self._draw.choice(NUMBERS)
        if self._draw.random() < 0.2:
            schema["multipleOf"] = self._draw.choice([2, 0.01, 0.1, 1e-12, 0])
        return schema

    def _enum(self, depth: int, names: list[str]) -> dict[str, Any]:
        values = self._draw.sample(["a", "é", 1, None, True, 2**60 + 1, {"x": [1]}], self._draw.randrange(1, 4))
        return {"enum": values, **({"type": "string"} if self._draw.random() < 0.3 else {})}

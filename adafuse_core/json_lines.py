"""Lines of JSON that people write: what another reader would change without a word is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, NoReturn


def read_object(line: bytes) -> dict[str, Any]:
    """The JSON object of a line.

    Raises:
        ValueError: It is not UTF-8, not JSON, nested too deeply or no object; a field occurs twice, or a number is not
            finite.
    """
    try:
        value = json.loads(
            line.decode("utf-8"),
            parse_constant=_refuse_constant,
            parse_float=_finite,
            object_pairs_hook=_without_repetition,
        )
    except UnicodeDecodeError as error:
        raise ValueError(f"the line is not UTF-8: {error}") from error
    except RecursionError as error:
        raise ValueError("the JSON of the line is nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"the line is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"got the JSON value {str(value)[:60]!r} as a line, expected an object")
    return value


def strict(value: Any) -> Any:
    """A value that all readers of JSON accept: infinite numbers, which JSON lacks, become texts such as `"inf"`."""
    if isinstance(value, Mapping):
        return {name: strict(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [strict(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"the number {number} is too large")
    return value


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the field {next(name for name in names if names.count(name) > 1)!r} occurs twice")
    return fields

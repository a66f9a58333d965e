"""Checks of options: what is wrong raises a `ConfigError` that says what was got and what was expected."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Iterable, Mapping
from typing import Any

from adafuse_core.errors import ConfigError


def expect(holds: bool, name: str, value: Any, expected: str) -> None:
    """Raise unless the condition holds."""
    if not holds:
        raise ConfigError(f"got {name}={value!r}, expected {expected}")


def expect_choice(name: str, value: Any, choices: Iterable[str]) -> None:
    """Refuse a value that is none of the choices."""
    names = tuple(choices)
    expect(isinstance(value, str) and value in names, name, value, "one of " + ", ".join(map(repr, names)))


def expect_integer(name: str, value: Any, *, at_least: int | None = None) -> None:
    """Refuse what is no integer, or too small a one."""
    expected = "an integer" if at_least is None else f"an integer of at least {at_least}"
    right = isinstance(value, int) and not isinstance(value, bool)
    expect(right and (at_least is None or value >= at_least), name, value, expected)


def expect_number(
    name: str, value: Any, *, above: float = -math.inf, at_least: float = -math.inf, at_most: float = math.inf
) -> None:
    """Refuse what is no finite number, or one out of bounds."""
    bounds = (("above", above), ("of at least", at_least), ("of at most", at_most))
    expected = " and ".join(f"{word} {bound}" for word, bound in bounds if math.isfinite(bound))
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    expect(number and value > above and at_least <= value <= at_most, name, value, f"a number {expected}".strip())


def strings(name: str, value: Any) -> tuple[str, ...]:
    """Strings from one string, several, or None for none."""
    if value is None:
        return ()
    expect(isinstance(value, Iterable), name, value, "strings")
    values = (value,) if isinstance(value, str) else tuple(value)
    expect(all(isinstance(item, str) for item in values), name, value, "strings")
    return values


def field_names(cls: Any) -> tuple[str, ...]:
    """Names of the fields of a dataclass, which are its options."""
    return tuple(field.name for field in dataclasses.fields(cls))


def known_options(
    known: Iterable[str], options: Mapping[str, Any], kind: str, hints: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The options, if all are known.

    Args:
        known: Names that are.
        options: By name.
        kind: What they are called in the error.
        hints: What to do instead of some that are not known; by default, the nearest name that is.
    """
    names = list(known)
    for option in options:
        if option not in names:
            close = difflib.get_close_matches(str(option), names, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known are: {', '.join(names) or 'none'}"
            raise ConfigError(f"unknown {kind} {option!r}", hint=(hints or {}).get(option, hint))
    return dict(options)

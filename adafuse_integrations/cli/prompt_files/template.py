"""Templates that make a prompt from the fields of a line."""

from __future__ import annotations

import json
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from adafuse_core.checks import expect_encodable
from adafuse_core.errors import ConfigError, PromptError


class Template:
    """A text with placeholders such as `{question}`, each the name of a field. Doubled braces are literal braces.

    Args:
        text: Text of the template.

    Raises:
        ConfigError: The text has no placeholder, has braces that are neither doubled nor around a name, or has no form
            in UTF-8.
    """

    def __init__(self, text: str) -> None:
        expect_encodable("template", text)
        self.text = text
        self._pieces = _pieces(text)
        self.names = tuple(dict.fromkeys(name for _, name in self._pieces if name is not None))
        if not self.names:
            raise ConfigError(
                f"the template {text[:60]!r} has no placeholder, so all prompts would be equal",
                hint="write the name of a field in braces, such as {question}; if it is a file, check its path",
            )

    @classmethod
    def read(cls, given: str) -> Self:
        """The template in a file, or the given text if no such file exists.

        One line end at the end of the file is left out, because editors add it. All other text is kept to the byte.
        """
        try:
            path = Path(given)
            text = path.read_bytes().decode("utf-8-sig") if path.is_file() else None
        except (OSError, ValueError) as error:
            if (
                "{" not in given
            ):  # a text with a placeholder need not be the name of a file, and may be too long for one
                raise ConfigError(f"can't read template {given[:200]!r}: {error}") from error
            text = None
        return cls(given if text is None else text.removesuffix("\n").removesuffix("\r"))

    def fill(self, fields: Mapping[str, Any]) -> str:
        """The prompt for these fields. Texts are inserted as they are, numbers and truth values as in JSON.

        Raises:
            PromptError: A field is missing, or is a list, an object or null.
        """
        return "".join(text + ("" if name is None else _value(name, fields)) for text, name in self._pieces)


def _pieces(text: str) -> list[tuple[str, str | None]]:
    """The literal texts, each with the name of the placeholder that follows; None for no placeholder."""
    try:
        parsed = list(string.Formatter().parse(text))
    except ValueError as error:
        raise ConfigError(f"the template {text[:60]!r} is wrong: {error}", hint=_DOUBLE) from error
    for _, name, form, conversion in parsed:
        if name is not None and (form or conversion or not name.replace("-", "_").isidentifier()):
            written = "{" + name + (f"!{conversion}" if conversion else "") + (f":{form}" if form else "") + "}"
            raise ConfigError(
                f"got {written} in the template, expected a name of letters, digits, _ and -, as {{question}}",
                hint=f"rename the field, or {_DOUBLE}",
            )
    return [(literal, name) for literal, name, _, _ in parsed]


_DOUBLE = "double braces that belong to the text, as {{ and }}"


def _value(name: str, fields: Mapping[str, Any]) -> str:
    if name not in fields:
        raise PromptError(f"the template needs the field {name!r}, but the line has {', '.join(map(repr, fields))}")
    value = fields[name]
    if isinstance(value, str):
        return value
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    kind = "null" if value is None else type(value).__name__
    raise PromptError(f"the template needs a text or a number in the field {name!r}, but the line has {kind}")

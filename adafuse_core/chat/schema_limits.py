"""Relaxes JSON schemas to what the grammar engine can enforce.

If a schema does not compile, its smallest failing part is located. The keywords of that part are added one by one, and
keywords that break it are replaced by weaker ones or dropped.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from adafuse_core.chat.schema_engine import engine_error, ignored_keywords
from adafuse_core.chat.schema_formats import ORIGIN
from adafuse_core.chat.schema_paths import (
    DEFINITIONS,
    Path,
    children,
    json_pointer,
    part_at,
    reference_target,
    with_local_references,
    without_part,
)
from adafuse_core.errors import ConfigError

# The order in which keywords are added: of two that contradict each other, the later one is dropped.
_ORDER = (
    *("$schema", *DEFINITIONS, "const", "enum", "type", "$ref", "properties", "patternProperties", "prefixItems"),
    *("items", "additionalItems", "additionalProperties", "pattern", "anyOf", "oneOf", "allOf", "required", "minimum"),
)
_RANK = {key: rank for rank, key in enumerate(_ORDER)}
_BOUNDS = {  # keywords that may fail in parts that the shortest answer does not contain
    *("pattern", "patternProperties", "minLength", "maxLength", "minItems", "maxItems", "minProperties"),
    *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "allOf", "enum", "const"),
}
_MAX_SHOWN = 200  # characters of a reason in a message
_TOKENS = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\(\?<?[=!]|.", re.DOTALL)  # of a regular expression
_ASSERTIONS = ("(?=", "(?!", "(?<=", "(?<!")


@dataclass(frozen=True, kw_only=True)
class RelaxedKeyword:
    """A keyword that is not enforced.

    Args:
        path: JSON pointer of the keyword.
        reason: Why it can't be enforced.
        instead: Weaker keywords that are enforced in its place.
    """

    path: str
    reason: str
    instead: Mapping[str, Any] | None = None

    def __str__(self) -> str:
        weaker = f"; enforced instead: {_short(json.dumps(self.instead))}" if self.instead else ""
        return f"{self.path} can't be enforced: {_short(self.reason)}{weaker}"


def relax_schema(
    schema: Mapping[str, Any], style: Mapping[str, Any], *, lenient: bool
) -> tuple[dict[str, Any], tuple[RelaxedKeyword, ...]]:
    """The enforceable version of a schema, and the keywords in which it differs.

    Args:
        schema: A schema of plain JSON values.
        style: Formatting of the JSON, as the `x-guidance` options of the engine.
        lenient: Whether keywords that can't be enforced are relaxed.

    Raises:
        ConfigError: A keyword can't be enforced, and `lenient` is False.
    """
    relaxer = _Relaxer(schema, style, lenient=lenient)
    relaxer.run()
    return relaxer.root, tuple(relaxer.relaxed)


class _Relaxer:
    """Relaxes one schema. `root` is changed in place."""

    def __init__(self, schema: Mapping[str, Any], style: Mapping[str, Any], *, lenient: bool) -> None:
        self.root = with_local_references(copy.deepcopy(dict(schema)))
        self.relaxed: list[RelaxedKeyword] = []
        self._style = style
        self._lenient = lenient
        self._hidden: frozenset[Path] = frozenset()  # recursive parts, while the parts inside them are repaired
        self._open: set[Path] = set()  # parts under repair
        self._targets: set[Path] = set()  # of references

    def run(self) -> None:
        paths = list(self._reachable((), set()))
        self._targets = {target for path in paths if (target := self._target(path)) is not None}
        self._drop_unused_definitions(paths)
        for path in paths:
            self._drop_ignored_keywords(path)
        for path in paths:
            part = self._at(path)
            if path in self._targets or (isinstance(part, dict) and part.keys() & _BOUNDS):
                self._repair(path)
        self._repair(())

    def _reachable(self, path: Path, seen: set[Path]) -> Iterator[Path]:
        """Paths of all parts that constrain an answer, inner parts first."""
        if path in seen:
            return
        seen.add(path)
        for inner in self._parts(path):
            yield from self._reachable(inner, seen)
        yield path

    def _parts(self, path: Path) -> list[Path]:
        """Parts directly inside a part, and the part that it references."""
        target = self._target(path)
        return [*children(self.root, path), *([] if target is None else [target])]

    def _target(self, path: Path) -> Path | None:
        target = reference_target(self._at(path))
        return None if target is None or self._at(target) is None else target

    def _drop_unused_definitions(self, paths: list[Path]) -> None:
        """Drop definitions without references; the engine would resolve the references inside them."""
        used = {path[:2] for path in paths}
        for key in DEFINITIONS:
            if isinstance(self.root.get(key), Mapping):
                self.root[key] = {name: part for name, part in self.root[key].items() if (key, name) in used}

    def _drop_ignored_keywords(self, path: Path) -> None:
        part = self._at(path)
        if isinstance(part, dict):
            for key, reason in ignored_keywords(part).items():
                del part[key]
                self._record((*path, key), reason)

    def _repair(self, path: Path) -> None:
        """Repair a part: first the parts inside it, then, if it still fails, its own keywords."""
        if path in self._open or self._error(path) is None:
            return
        self._open.add(path)
        # First hide this part from references inside it, so that one error is not reported at every reference.
        for hidden in (self._hidden | {path}, self._hidden) if path in self._targets else (self._hidden,):
            before, self._hidden = self._hidden, hidden
            for inner in self._parts(path):
                if inner != path[: len(inner)]:  # an enclosing part is repaired later
                    self._repair(inner)
            self._hidden = before
            if self._error(path) is None:
                break
        else:
            self._rebuild(path)
        self._open.remove(path)

    def _rebuild(self, path: Path) -> None:
        """Rebuild a part from the keywords that can be enforced."""
        whole = self._at(path)
        if not isinstance(whole, dict):
            self._record(path, self._error(path) or "")
            self._set(path, {})
            return
        partial: dict[str, Any] = {}
        self._set(path, partial)
        for key in sorted(whole, key=lambda key: _RANK.get(key, len(_RANK))):
            partial[key] = whole[key]
            if reason := self._error(path):
                self._relax(path, partial, key, reason)
        self._set(path, {key: partial[key] for key in (*whole, *partial) if key in partial})

    def _relax(self, path: Path, partial: dict[str, Any], key: str, reason: str) -> None:
        """Replace a keyword of a part by a weaker one, or drop it."""
        value = partial.pop(key)
        kept = dict(partial)
        if key == "oneOf" and isinstance(value, list):  # the engine does not compare options behind references
            partial[key] = [self._dereferenced(part) for part in value]
            if self._error(path) is None:
                return
            del partial[key]
        for weaker in _weaker(key, value):
            partial.update(weaker)
            if self._error(path) is None:
                self._record((*path, _origin(key, value)), reason, weaker)
                return
            partial.clear()
            partial.update(kept)
        self._record((*path, _origin(key, value)), reason)

    def _dereferenced(self, part: Any) -> Any:
        """The part that `{"$ref": ...}` references; other parts are unchanged."""
        target = reference_target(part) if isinstance(part, Mapping) and part.keys() == {"$ref"} else None
        return part if target is None or self._at(target) is None else self._at(target)

    def _record(self, path: Path, reason: str, instead: Mapping[str, Any] | None = None) -> None:
        relaxed = RelaxedKeyword(path=json_pointer(path), reason=reason, instead=instead)
        if not self._lenient:
            raise ConfigError(str(relaxed), hint="leave it out, or set strict to False to drop it with a warning")
        self.relaxed.append(relaxed)

    def _error(self, path: Path) -> str | None:
        """Why the engine can't enforce a part; None if it can."""
        part = self._at(path)
        if isinstance(part, bool):
            return None if part else "Unsatisfiable schema: it is false"
        if not isinstance(part, dict):
            return f"got {part!r}, expected a schema"
        own = {key: value for key, value in part.items() if key not in DEFINITIONS}
        text = json.dumps({**own, "x-guidance": self._style})
        if '"$ref": "#' in text:
            root: Any = self.root
            for hidden in sorted(self._hidden, key=len, reverse=True):
                root = without_part(root, hidden)
            text = json.dumps({**own, "$defs": {"root": root}, "x-guidance": self._style})
            text = text.replace('"$ref": "#/', '"$ref": "#/$defs/root/').replace(
                '"$ref": "#"', '"$ref": "#/$defs/root"'
            )
        return engine_error(text)

    def _at(self, path: Path) -> Any:
        return part_at(self.root, path)

    def _set(self, path: Path, value: dict[str, Any]) -> None:
        if path:
            parent = self._at(path[:-1])
            parent[int(path[-1]) if isinstance(parent, list) else path[-1]] = value
        else:
            self.root = value


def _short(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]} ..."


def _origin(key: str, value: Any) -> str:
    """The keyword of the caller's schema from which a keyword was made."""
    last = value[-1] if key == "allOf" and isinstance(value, list) and value else None
    return str(last.get(ORIGIN, key)) if isinstance(last, Mapping) else key


def _weaker(key: str, value: Any) -> Iterator[dict[str, Any]]:
    """Weaker replacements for a keyword, strongest first."""
    if key == "oneOf":
        yield {"anyOf": value}
    if key == "pattern" and isinstance(value, str) and (rest := _without_assertions(value)) != value:
        yield {"pattern": rest}
    if key == "allOf" and isinstance(value, list):
        yield from ({"allOf": value[:count]} for count in range(len(value) - 1, 0, -1))
    if key == "enum" and isinstance(value, list):
        yield {"enum": [item for item in value if not isinstance(item, float | int)]}


def _without_assertions(pattern: str) -> str:
    """A regular expression without look-around and word boundaries. It matches a superset."""
    kept, depth = [], 0  # depth of parentheses inside a look-around
    for token in _TOKENS.findall(pattern):
        if depth:
            depth += token.startswith("(") - (token == ")")
        elif token in _ASSERTIONS:
            depth = 1
        elif token not in (r"\b", r"\B"):
            kept.append(token)
    return "".join(kept)

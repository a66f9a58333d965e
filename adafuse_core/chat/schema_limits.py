"""What of a JSON schema the grammar engine can't enforce, found at the place where it fails.

Where a schema does not compile, the smallest part that fails alone is looked for, and its keywords are put together
again, one by one, without those that break it.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from adafuse_core.chat.schema_engine import engine_fault, unkept
from adafuse_core.chat.schema_formats import ORIGIN
from adafuse_core.errors import ConfigError

_Path = tuple[str | int, ...]

_SINGLE = ("items", "additionalItems", "additionalProperties")  # keywords whose value is a schema
_LISTS = ("items", "prefixItems", "anyOf", "oneOf", "allOf")  # a list of schemas
_NAMED = ("properties", "patternProperties")  # schemas by name
_DEFINITIONS = ("$defs", "definitions")
# What a schema is put together from, the most telling first: of two keywords that contradict each other the later goes.
_STRUCTURE = ("const", "enum", "type", "$ref", "properties", "patternProperties", "prefixItems", "items")
_REST = ("additionalItems", "additionalProperties", "pattern", "anyOf", "oneOf", "allOf", "required", "minimum")
_ORDER = {key: rank for rank, key in enumerate(("$schema", *_DEFINITIONS, *_STRUCTURE, *_REST))}
_BOUNDS = {  # which may fail in a part that the shortest answer does without
    *("pattern", "patternProperties", "minLength", "maxLength", "minItems", "maxItems", "minProperties"),
    *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "allOf", "enum", "const"),
}
_WIDTH = 200  # characters of a reason that are shown
_TOKENS = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\(\?<?[=!]|.", re.DOTALL)  # of a regular expression
_ASSERTIONS = ("(?=", "(?!", "(?<=", "(?<!")


@dataclass(frozen=True, kw_only=True)
class Loosened:
    """A keyword that is not enforced.

    Args:
        path: Of the keyword, as a JSON pointer.
        reason: Why not.
        instead: Weaker keywords that are enforced in its place.
    """

    path: str
    reason: str
    instead: Mapping[str, Any] | None = None

    def __str__(self) -> str:
        weaker = f"; enforced instead: {_short(json.dumps(self.instead))}" if self.instead else ""
        return f"{self.path} can't be enforced: {_short(self.reason)}{weaker}"


def enforceable(
    schema: Mapping[str, Any], style: Mapping[str, Any], *, lenient: bool
) -> tuple[dict[str, Any], tuple[Loosened, ...]]:
    """What of a schema can be enforced, and what can't.

    Args:
        schema: As plain JSON.
        style: Of the JSON, as the engine reads it.
        lenient: Whether keywords that can't be enforced are left out.

    Raises:
        ConfigError: Not lenient, and there is one.
    """
    search = _Search(schema, style, lenient=lenient)
    search.run()
    return search.root, tuple(search.loosened)


class _Search:
    """Of one schema. Places in it are paths from the root; `root` is changed as keywords are left out."""

    def __init__(self, schema: Mapping[str, Any], style: Mapping[str, Any], *, lenient: bool) -> None:
        self.root = _with_local_references(copy.deepcopy(dict(schema)))
        self.loosened: list[Loosened] = []
        self._style = style
        self._lenient = lenient
        self._hidden: frozenset[_Path] = frozenset()  # parts that contain themselves, while their own parts are mended
        self._open: set[_Path] = set()  # parts that are being mended
        self._targets: set[_Path] = set()  # of references

    def run(self) -> None:
        places = list(self._reachable((), set()))
        self._targets = {target for place in places if (target := self._target(place)) is not None}
        self._forget_unreachable(places)
        for place in places:
            self._leave_out_unkept(place)
        for place in places:
            part = self._at(place)
            if place in self._targets or (isinstance(part, dict) and part.keys() & _BOUNDS):
                self._mend(place)
        self._mend(())

    def _reachable(self, place: _Path, seen: set[_Path]) -> Iterator[_Path]:
        """All parts that answers depend on, the inner ones first."""
        if place in seen:
            return
        seen.add(place)
        for inner in self._parts(place):
            yield from self._reachable(inner, seen)
        yield place

    def _parts(self, place: _Path) -> list[_Path]:
        """Schemas right inside a part, and the one that it refers to."""
        part = self._at(place)
        if not isinstance(part, Mapping):
            return []
        single = [(key,) for key in _SINGLE if isinstance(part.get(key), Mapping)]
        lists = [(key, at) for key in _LISTS if isinstance(part.get(key), list) for at in range(len(part[key]))]
        named = [(key, name) for key in _NAMED if isinstance(part.get(key), Mapping) for name in part[key]]
        target = self._target(place)
        return [*((*place, *rest) for rest in (*single, *lists, *named)), *([] if target is None else [target])]

    def _target(self, place: _Path) -> _Path | None:
        """The part that a part refers to."""
        part = self._at(place)
        target = _named_place(part.get("$ref")) if isinstance(part, Mapping) else None
        return None if target is None or self._at(target) is None else target

    def _forget_unreachable(self, places: list[_Path]) -> None:
        """Leave out definitions that nothing refers to; the engine would look for what they refer to."""
        used = {place[:2] for place in places}
        for key in _DEFINITIONS:
            if isinstance(self.root.get(key), Mapping):
                self.root[key] = {name: part for name, part in self.root[key].items() if (key, name) in used}

    def _leave_out_unkept(self, place: _Path) -> None:
        part = self._at(place)
        if isinstance(part, dict):
            for key, reason in unkept(part).items():
                del part[key]
                self._record((*place, key), reason)

    def _mend(self, place: _Path) -> None:
        """Leave out what is wrong in a part: in its own parts if they fail alone, else among its own keywords."""
        if place in self._open or self._fault(place) is None:
            return
        self._open.add(place)
        # First without what its own parts refer to of it, so that one fault is not found at each reference.
        for hidden in (self._hidden | {place}, self._hidden) if place in self._targets else (self._hidden,):
            before, self._hidden = self._hidden, hidden
            for inner in self._parts(place):
                if inner != place[: len(inner)]:  # what a part is inside of is mended from outside
                    self._mend(inner)
            self._hidden = before
            if self._fault(place) is None:
                break
        else:
            self._put_together(place)
        self._open.remove(place)

    def _put_together(self, place: _Path) -> None:
        """The part with as many of its keywords as can be enforced."""
        whole = self._at(place)
        if not isinstance(whole, dict):
            self._record(place, self._fault(place) or "")
            self._set(place, {})
            return
        partial: dict[str, Any] = {}
        self._set(place, partial)
        for key in sorted(whole, key=lambda key: _ORDER.get(key, len(_ORDER))):
            partial[key] = whole[key]
            if reason := self._fault(place):
                self._loosen(place, partial, key, reason)
        self._set(place, {key: partial[key] for key in (*whole, *partial) if key in partial})

    def _loosen(self, place: _Path, partial: dict[str, Any], key: str, reason: str) -> None:
        """Put something weaker in place of a keyword, or nothing."""
        value = partial.pop(key)
        kept = dict(partial)
        if key == "oneOf" and isinstance(value, list):  # the engine looks for what excludes what behind no reference
            partial[key] = [self._referred(part) for part in value]
            if self._fault(place) is None:
                return
            del partial[key]
        for weaker in _weaker(key, value):
            partial.update(weaker)
            if self._fault(place) is None:
                self._record((*place, _origin(key, value)), reason, weaker)
                return
            partial.clear()
            partial.update(kept)
        self._record((*place, _origin(key, value)), reason)

    def _referred(self, part: Any) -> Any:
        """The schema that a schema refers to, if it does nothing else."""
        target = _named_place(part.get("$ref")) if isinstance(part, Mapping) and part.keys() == {"$ref"} else None
        return part if target is None or self._at(target) is None else self._at(target)

    def _record(self, path: _Path, reason: str, instead: Mapping[str, Any] | None = None) -> None:
        found = Loosened(path=_pointer(path), reason=reason, instead=instead)
        if not self._lenient:
            raise ConfigError(str(found), hint="leave it out, or do without strict, which leaves it out with a warning")
        self.loosened.append(found)

    def _fault(self, place: _Path) -> str | None:
        """What is wrong with a part."""
        part = self._at(place)
        if isinstance(part, bool):
            return None if part else "Unsatisfiable schema: it is false"
        if not isinstance(part, dict):
            return f"got {part!r}, expected a schema"
        own = {key: value for key, value in part.items() if key not in _DEFINITIONS}
        text = json.dumps({**own, "x-guidance": self._style})
        if '"$ref": "#' in text:
            text = json.dumps({**own, "$defs": {"root": self._shown_root()}, "x-guidance": self._style})
            text = text.replace('"$ref": "#/', '"$ref": "#/$defs/root/').replace(
                '"$ref": "#"', '"$ref": "#/$defs/root"'
            )
        return engine_fault(text)

    def _shown_root(self) -> Any:
        root: Any = self.root
        for place in sorted(self._hidden, key=len, reverse=True):
            root = _replaced(root, place)
        return root

    def _at(self, place: _Path) -> Any:
        part: Any = self.root
        for step in place:
            try:
                part = part[int(step) if isinstance(part, list) else step]
            except (KeyError, IndexError, TypeError, ValueError):
                return None
        return part

    def _set(self, place: _Path, value: dict[str, Any]) -> None:
        if place:
            inside = self._at(place[:-1])
            inside[int(place[-1]) if isinstance(inside, list) else place[-1]] = value
        else:
            self.root = value


def _short(text: str) -> str:
    return text if len(text) <= _WIDTH else f"{text[:_WIDTH]} ..."


def _origin(key: str, value: Any) -> str:
    """The keyword of the caller's schema that a keyword stands for."""
    last = value[-1] if key == "allOf" and isinstance(value, list) and value else None
    return str(last.get(ORIGIN, key)) if isinstance(last, Mapping) else key


def _weaker(key: str, value: Any) -> Iterator[dict[str, Any]]:
    """What may stand for a keyword that can't be enforced: less than it asks for, but more than nothing."""
    if key == "oneOf":
        yield {"anyOf": value}
    if key == "pattern" and isinstance(value, str) and (rest := _without_assertions(value)) != value:
        yield {"pattern": rest}
    if key == "allOf" and isinstance(value, list):
        yield from ({"allOf": value[:count]} for count in range(len(value) - 1, 0, -1))
    if key == "enum" and isinstance(value, list):
        yield {"enum": [item for item in value if not isinstance(item, float | int)]}


def _without_assertions(pattern: str) -> str:
    """A regular expression without look-around and word boundaries. It matches what the whole one does, and more."""
    kept, depth = [], 0  # of parentheses inside a look-around
    for token in _TOKENS.findall(pattern):
        if depth:
            depth += token.startswith("(") - (token == ")")
        elif token in _ASSERTIONS:
            depth = 1
        elif token not in (r"\b", r"\B"):
            kept.append(token)
    return "".join(kept)


def _with_local_references(root: dict[str, Any]) -> dict[str, Any]:
    """The schema without a name of its own: references by that name become those to its root."""
    name = root.pop("$id", None)
    if isinstance(name, str) and name:
        text = json.dumps(root).replace(f'"$ref": {json.dumps(name)[:-1]}#', '"$ref": "#')
        return dict(json.loads(text))
    return root


def _named_place(reference: Any) -> _Path | None:
    """The place that a local reference names."""
    if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
        return None
    return tuple(unquote(step).replace("~1", "/").replace("~0", "~") for step in reference.split("/")[1:])


def _pointer(path: _Path) -> str:
    return "/".join(("#", *(str(step).replace("~", "~0").replace("/", "~1") for step in path)))


def _replaced(root: Any, place: _Path) -> Any:
    """A copy of the root in which a part allows anything; what it defines for others stays."""
    if not place:
        return {key: root[key] for key in _DEFINITIONS if key in root}
    inner: Any = root.copy()
    step = int(place[0]) if isinstance(root, list) else place[0]
    inner[step] = _replaced(root[step], place[1:])
    return inner

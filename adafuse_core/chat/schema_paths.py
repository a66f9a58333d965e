"""Places in a JSON schema: the keywords that contain schemas, and paths to their parts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

SINGLE = ("items", "additionalItems", "additionalProperties")  # keywords whose value is a schema
LISTS = ("items", "prefixItems", "anyOf", "oneOf", "allOf")  # whose value is a list of schemas
NAMED = ("properties", "patternProperties")  # whose value maps names to schemas
DEFINITIONS = ("$defs", "definitions")

Path = tuple[str | int, ...]  # keys and list indices from the root


def part_at(root: Any, path: Path) -> Any:
    """The part at a path; None if there is no such part."""
    part = root
    for step in path:
        try:
            part = part[int(step) if isinstance(part, list) else step]
        except (KeyError, IndexError, TypeError, ValueError):
            return None
    return part


def children(root: Any, path: Path) -> list[Path]:
    """Paths of the schemas directly inside the part at a path."""
    part = part_at(root, path)
    if not isinstance(part, Mapping):
        return []
    single = [(key,) for key in SINGLE if isinstance(part.get(key), Mapping)]
    lists = [(key, index) for key in LISTS if isinstance(part.get(key), list) for index in range(len(part[key]))]
    named = [(key, name) for key in NAMED if isinstance(part.get(key), Mapping) for name in part[key]]
    return [(*path, *rest) for rest in (*single, *lists, *named)]


def reference_target(part: Any) -> Path | None:
    """The path in the local `$ref` of a part; None if it has no local reference."""
    reference = part.get("$ref") if isinstance(part, Mapping) else None
    if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
        return None
    return tuple(unquote(step).replace("~1", "/").replace("~0", "~") for step in reference.split("/")[1:])


def json_pointer(path: Path) -> str:
    """A path as a JSON pointer, such as `#/properties/age/minimum`."""
    return "/".join(("#", *(str(step).replace("~", "~0").replace("/", "~1") for step in path)))


def without_part(root: Any, path: Path) -> Any:
    """A copy of the root in which the part at a path allows any value; definitions inside it are kept."""
    if not path:
        return {key: root[key] for key in DEFINITIONS if key in root}
    inner: Any = root.copy()
    step = int(path[0]) if isinstance(root, list) else path[0]
    inner[step] = without_part(root[step], path[1:])
    return inner


def with_local_references(root: dict[str, Any]) -> dict[str, Any]:
    """The schema without `$id`; references by this name become references to the root."""
    name = root.pop("$id", None)
    if isinstance(name, str) and name:
        text = json.dumps(root).replace(f'"$ref": {json.dumps(name)[:-1]}#', '"$ref": "#')
        return dict(json.loads(text))
    return root

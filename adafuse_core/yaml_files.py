"""Files in YAML that people write. YAML keeps the last of two equal keys without a word; here that is an error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from adafuse_core.errors import ConfigError


def read_yaml(path: Path, kind: str, *, hint: str | None = None) -> Any:
    """The value in a YAML file.

    Args:
        path: The file.
        kind: What it should be, for errors.
        hint: What to do if it can't be read.

    Raises:
        ConfigError: The file can't be read, or is not YAML.
    """
    import yaml

    try:
        value = yaml.load(path.read_text(encoding="utf-8"), _unique_keys(yaml))
    except OSError as error:
        raise ConfigError(f"can't read {kind} {str(path)!r}: {error.strerror}", hint=hint) from error
    except RecursionError as error:
        raise ConfigError(f"{str(path)!r} is nested too deeply") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{str(path)!r} is not valid YAML: {error}") from error
    if value is None:
        raise ConfigError(f"got the empty file {str(path)!r} as {kind}, expected a mapping", hint=hint)
    return value


def written(values: Any) -> str:
    """Plain values as YAML, in the order of their keys. Texts that YAML would read differently are escaped.

    Raises:
        yaml.YAMLError: A value is not plain.
    """
    import yaml

    text: str = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    same = yaml.safe_load(text) == values  # YAML takes U+0085 for a line end
    return text if same else str(yaml.safe_dump(values, sort_keys=False))


def _unique_keys(yaml: Any) -> Any:
    """A loader of plain YAML that refuses a mapping in which a key occurs twice, of which YAML would keep the last."""

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        def compose_mapping_node(self, anchor: Any) -> Any:
            node = super().compose_mapping_node(anchor)
            seen = set()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode) and key.value in seen:
                    raise yaml.composer.ComposerError(None, None, f"{key.value!r} occurs twice", key.start_mark)
                seen.add(key.value if isinstance(key, yaml.ScalarNode) else key)
            return node

    return Loader

"""The location of a model or tokenizer, through which all its files are found and read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adafuse_core.backends import gguf_conversion

_CODE_OPTIONS = ("trust_remote_code", "code_revision")  # accepted only where code of the repository may run


@dataclass(frozen=True, kw_only=True)
class Location:
    """A folder or a model repository, with options for reading it.

    Args:
        source: Path of a folder, or name of a repository.
        options: Arguments of transformers for every read, such as `revision`, `subfolder`, `token` and `cache_dir`.
        gguf_file: Name of the GGUF file in `source` that contains config, tokenizer and weights, if there is one.
    """

    source: str
    options: Mapping[str, Any]
    gguf_file: str | None = None

    def file(self, name: str) -> Path | None:
        """Path of a file, downloaded if necessary; None if it does not exist."""
        from transformers.utils import cached_file

        ignored = ("gated_repo", "missing_entries", "connection_errors")
        ignore = {f"_raise_exceptions_for_{kind}": False for kind in ignored}
        path = cached_file(self.source, name, **self.hub_options, **ignore)
        return None if path is None else Path(path)

    def file_on_disk(self, name: str) -> Path | None:
        """Path of a local file, without a download or transformers; None if it does not exist."""
        part = f"{self.options.get('subfolder') or '.'}/{name}".removeprefix("./")
        if (folder := Path(self.source)).is_dir():
            return path if (path := folder / part).is_file() else None
        from huggingface_hub import try_to_load_from_cache

        where = {option: self.options.get(option) for option in ("cache_dir", "revision")}
        try:
            cached = try_to_load_from_cache(self.source, part, **where)
        except ValueError:  # not a repository name
            return None
        return Path(cached) if isinstance(cached, str) else None

    @property
    def hub_options(self) -> dict[str, Any]:
        """Options for reads that can't run code of the repository."""
        return {name: value for name, value in self.options.items() if name not in _CODE_OPTIONS}

    def read_config(self, changes: Mapping[str, Any]) -> Any:
        """Read the transformers config, with some changes."""
        from transformers import AutoConfig

        with self._opened(gguf_conversion.CONFIG) as (source, options):
            return AutoConfig.from_pretrained(source, **{**changes, **options})

    def read_tokenizer(self, kind: Any, **more: Any) -> Any:
        """Read the tokenizer with a tokenizer class of transformers."""
        with self._opened(gguf_conversion.TOKENIZER) as (source, options):
            return kind.from_pretrained(source, **options, **more)

    def tokenizer_file(self) -> Path | None:
        """Path of the `tokenizer.json`, downloaded or converted if necessary; None if there is none."""
        if self.gguf_file is None:
            return self.file("tokenizer.json")
        folder = gguf_conversion.folder(self._gguf_path(), gguf_conversion.TOKENIZER)
        return None if folder is None else folder / "tokenizer.json"

    def read_generation_config(self) -> Any:
        """Read the generation config; None if the location has none, or is a GGUF file."""
        from transformers import GenerationConfig

        try:
            return None if self.gguf_file else GenerationConfig.from_pretrained(self.source, **self.hub_options)
        except OSError:
            return None

    def load_model(self, more: Mapping[str, Any]) -> Any:
        """Load the causal language model."""
        from transformers import AutoModelForCausalLM

        if self.gguf_file is not None:
            return gguf_conversion.load_model(self._gguf_path(), more)
        return AutoModelForCausalLM.from_pretrained(self.source, **{**more, **self.options})

    @contextmanager
    def _opened(self, part: gguf_conversion.Part) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """The source and the options with which transformers reads a part of the files."""
        if self.gguf_file is None:
            yield self.source, self.options
            return
        with gguf_conversion.opened(self._gguf_path(), part) as opened:
            yield opened

    def _gguf_path(self) -> Path:
        """Path of the GGUF file. If it can't be found, the error is that of transformers."""
        from transformers.utils import cached_file

        return Path(cached_file(self.source, self.gguf_file, **self.hub_options))

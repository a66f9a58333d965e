"""Where the files of a model or a tokenizer are: one object, through which every file is found and read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adafuse_core.errors import UnsupportedModelError

_CODE_OPTIONS = ("trust_remote_code", "code_revision")  # only reads that may run code of the repository know them


@dataclass(frozen=True, kw_only=True)
class Location:
    """A folder or a model repository, and how to read it.

    Args:
        source: Path of a folder, or name of a repository.
        options: What transformers is told at every read: `revision`, `subfolder`, `token`, `cache_dir` and the like.
        gguf_file: Name of the GGUF file in `source` that holds configuration, tokenizer and weights; None if they
            are files of their own.
    """

    source: str
    options: Mapping[str, Any]
    gguf_file: str | None = None

    def file(self, name: str) -> Path | None:
        """A file of the location, downloaded if need be; None if the location does not have it."""
        from transformers.utils import cached_file

        quiet = ("gated_repo", "missing_entries", "connection_errors")
        silence = {f"_raise_exceptions_for_{kind}": False for kind in quiet}
        path = cached_file(self.source, name, **self.hub_options, **silence)
        return None if path is None else Path(path)

    def file_on_disk(self, name: str) -> Path | None:
        """The same without a download and without transformers."""
        part = f"{self.options.get('subfolder') or '.'}/{name}".removeprefix("./")
        if (folder := Path(self.source)).is_dir():
            return path if (path := folder / part).is_file() else None
        from huggingface_hub import try_to_load_from_cache

        where = {option: self.options.get(option) for option in ("cache_dir", "revision")}
        try:
            cached = try_to_load_from_cache(self.source, part, **where)
        except ValueError:  # no name of a repository
            return None
        return Path(cached) if isinstance(cached, str) else None

    @property
    def hub_options(self) -> dict[str, Any]:
        """The options of reads that run no code of the repository."""
        return {name: value for name, value in self.options.items() if name not in _CODE_OPTIONS}

    @property
    def all_options(self) -> dict[str, Any]:
        """The options of reads that may run code of the repository, or read a GGUF file.

        Raises:
            UnsupportedModelError: It is a GGUF file, and the package that reads such files is missing.
        """
        if self.gguf_file is None:
            return dict(self.options)
        from transformers.utils import is_gguf_available

        if not is_gguf_available():
            raise UnsupportedModelError(
                f"{self.gguf_file!r} is a GGUF file, and the package gguf is missing or too old",
                hint='pip install "adafuse[gguf]"',
            )
        return {**self.options, "gguf_file": self.gguf_file}

    def read_config(self, changes: Mapping[str, Any]) -> Any:
        """The transformers config, with some changes."""
        from transformers import AutoConfig

        return AutoConfig.from_pretrained(self.source, **{**changes, **self.all_options})

    def read_tokenizer(self, kind: Any, **more: Any) -> Any:
        """The tokenizer, read by a class of transformers."""
        return kind.from_pretrained(self.source, **self.all_options, **more)

    def read_generation_config(self) -> Any:
        """The generation config; None if there is no such file. Transformers reads none beside a GGUF file."""
        from transformers import GenerationConfig

        try:
            return None if self.gguf_file else GenerationConfig.from_pretrained(self.source, **self.hub_options)
        except OSError:
            return None

    def load_model(self, more: Mapping[str, Any]) -> Any:
        """The causal language model with its weights."""
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(self.source, **{**more, **self.all_options})

"""Where a member's files are, how they are read, and which error says that they can't be."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from adafuse_core import small_models
from adafuse_core.backends import FILE_OPTIONS
from adafuse_core.errors import AdaFuseError, ModelLoadError, ModelNotFoundError
from adafuse_core.member_config import MemberConfig

_SMALL = "small:"


def source(model: str) -> str:
    """What transformers is to load: a path of this machine, or the name of a model repository.

    Raises:
        ModelNotFoundError: It is a path and nothing is there, or no small model has that name.
    """
    if model.startswith(_SMALL):
        try:
            return str(small_models.path(model.removeprefix(_SMALL)))
        except ValueError as error:
            raise ModelNotFoundError(f"can't load {model!r}: {error}", hint="check the name") from error
    looks_like_path = model.startswith((".", "/", "~")) or model.count("/") > 1
    if not looks_like_path:
        return model
    try:
        path = Path(model).expanduser()
    except RuntimeError as error:  # ~someone who is not there
        raise ModelNotFoundError(f"there is no folder {model!r}: {error}", hint="check the path") from error
    if not path.exists():
        raise ModelNotFoundError(f"there is no folder {model!r}", hint="check the path")
    return str(path)


def hub_options(config: MemberConfig, *, tokenizer: bool = False) -> dict[str, Any]:
    """What every call that reads the member's files is told about where they are, and whether to trust them.

    A tokenizer of another repository has revisions of its own.
    """
    options = {name: config.model_kwargs[name] for name in FILE_OPTIONS if name in config.model_kwargs}
    if config.revision is not None and not (tokenizer and config.tokenizer):
        options["revision"] = config.revision
    if config.trust_remote_code:
        options["trust_remote_code"] = True
    return options


def read_architecture(config: MemberConfig) -> Any:
    """The model's transformers config, with what `model_kwargs` change of it."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(source(config.model), **{**config.model_kwargs, **hub_options(config)})


@contextmanager
def load_errors(config: MemberConfig) -> Iterator[None]:
    """Turn whatever goes wrong while a member's files are read into a `ModelLoadError` that names it."""
    try:
        yield
    except AdaFuseError as error:
        error.member = error.member or config.label
        raise
    except Exception as error:  # transformers, tokenizers and safetensors each raise kinds of their own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        folder = Path(source(config.model))
        kind: type[ModelLoadError] = ModelLoadError
        hint = "check the options of this member and the files of its model; the cause is chained to this error"
        if not (folder / "config.json").is_file() and (isinstance(error, OSError) or folder.is_dir()):
            kind = ModelNotFoundError
            hint = (
                "give a Hugging Face model name that this machine can reach (gated ones need `hf auth login`), "
                "or the path of a folder with config.json"
            )
        raise kind(f"can't load {config.model!r}: {reason}", member=config.label, hint=hint) from error

"""Where a member's files are, and what its config declares, without loading any weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from adafuse_core import small_models
from adafuse_core.config import MemberConfig
from adafuse_core.errors import AdaFuseError, ModelLoadError, ModelNotFoundError

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
    path = Path(model).expanduser()
    if looks_like_path and not path.exists():
        raise ModelNotFoundError(f"there is no folder {model!r}", hint="check the path")
    return str(path) if looks_like_path else model


def not_found(model: str, error: Exception, member: str) -> ModelNotFoundError:
    """The error for a model whose files can't be had."""
    return ModelNotFoundError(
        f"can't load {model!r}: {str(error).strip().splitlines()[0]}",
        member=member,
        hint="give a Hugging Face model name that this machine can reach, or the path of a folder with config.json",
    )


def context_window(config: MemberConfig, architecture: Any) -> int | None:
    """Most tokens of prompt plus answer, by a transformers config and the member's own bound; None if unbounded."""
    text = architecture.get_text_config()
    declared = getattr(text, "max_position_embeddings", None) or getattr(text, "n_positions", None)
    windows = [window for window in (declared, config.context_window) if window]
    return min(windows) if windows else None


def declared_window(config: MemberConfig) -> int | None:
    """The same, read from the model's config file.

    Raises:
        ModelNotFoundError: There is no such file.
    """
    from transformers import AutoConfig

    try:
        architecture = AutoConfig.from_pretrained(
            source(config.model), revision=config.revision, trust_remote_code=config.trust_remote_code
        )
    except AdaFuseError as error:
        error.member = error.member or config.label
        raise
    except (ValueError, KeyError) as error:
        raise ModelLoadError(f"can't read the config of {config.model!r}: {error}", member=config.label) from error
    except OSError as error:
        raise not_found(config.model, error, config.label) from error
    return context_window(config, architecture)

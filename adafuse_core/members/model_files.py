"""Where a member's files are by its config, and which error says that they can't be read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adafuse_core import small_models
from adafuse_core.backends import FILE_OPTIONS, load_options
from adafuse_core.backends.locations import Location
from adafuse_core.errors import AdaFuseError, ConfigError, ModelLoadError, ModelNotFoundError
from adafuse_core.member_config import MemberConfig

_SMALL = "small:"
_GGUF = ".gguf"
_OF_ONE_REPOSITORY = ("revision", "code_revision", "subfolder", "gguf_file")  # they mean nothing in another one
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")

_Find = Callable[[Location, str], Path | None]


@dataclass(frozen=True, kw_only=True)
class MemberFiles:
    """The places that a member is read from.

    Args:
        model: Of configuration and weights.
        adapter: Of a PEFT adapter on top of them, if the member has one.
    """

    model: Location
    adapter: Location | None = None


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
    looks_like_path = model.startswith((".", "/", "~")) or model.count("/") > 1 or model.lower().endswith(_GGUF)
    if not looks_like_path:
        return model
    try:
        path = Path(model).expanduser()
    except RuntimeError as error:  # ~someone who is not there
        raise ModelNotFoundError(f"there is no folder {model!r}: {error}", hint="check the path") from error
    if not path.exists():
        named = f"file of a repository is model='owner/name', gguf_file={path.name!r}"
        is_gguf = path.suffix.lower() == _GGUF
        raise ModelNotFoundError(
            f"there is no {'file' if is_gguf else 'folder'} {model!r}",
            hint=f"check the path; a {named}" if is_gguf else "check the path",
        )
    return str(path)


def member_files(config: MemberConfig, find: _Find = Location.file) -> MemberFiles:
    """Where the model of a config is. A place that holds an adapter names the base model, which is elsewhere.

    Args:
        config: The member's.
        find: How a file of a place is found: with downloads, or on this disk only.

    Raises:
        ConfigError: A field and `model_kwargs` contradict each other.
        ModelNotFoundError: It is a path and nothing is there, or no small model has that name.
        ModelLoadError: An adapter does not name its base model.
    """
    here = _location(config.model, file_options(config), find)
    description = None if here.gguf_file else find(here, "adapter_config.json")
    if description is None:
        return MemberFiles(model=here)
    if (description.parent / "config.json").is_file():  # the adapter lies beside its base model
        return MemberFiles(model=here, adapter=here)
    return MemberFiles(model=_base_model(config, description, find), adapter=here)


def tokenizer_location(config: MemberConfig, find: _Find = Location.file) -> Location:
    """Where the tokenizer of a config is: where `tokenizer` says, or else with the adapter or the model."""
    if config.tokenizer is not None:
        return _location(config.tokenizer, _options_elsewhere(config), find)
    files = member_files(config, find)
    if files.adapter is not None and any(find(files.adapter, name) for name in _TOKENIZER_FILES):
        return files.adapter
    return files.model


def read_architecture(config: MemberConfig, files: MemberFiles) -> Any:
    """The model's transformers config, with what `model_kwargs` change of it."""
    return files.model.read_config(load_options(config))


def file_options(config: MemberConfig) -> dict[str, Any]:
    """What fields and `model_kwargs` say of where the model's files are, and whether to run code among them."""
    options = {name: config.model_kwargs[name] for name in FILE_OPTIONS if name in config.model_kwargs}
    trusted = config.trust_remote_code or None
    fields = {"revision": config.revision, "gguf_file": config.gguf_file, "trust_remote_code": trusted}
    for name, value in fields.items():
        if value is not None and options.setdefault(name, value) != value:
            raise ConfigError(
                f"got {name}={value!r} and model_kwargs={{{name!r}: {options[name]!r}}}",
                member=config.label,
                hint="set one of them",
            )
    return options


def _options_elsewhere(config: MemberConfig) -> dict[str, Any]:
    """The same for a repository that is not the model's own."""
    return {name: value for name, value in file_options(config).items() if name not in _OF_ONE_REPOSITORY}


def _location(model: str, options: dict[str, Any], find: _Find) -> Location:
    """A place by its name; of a GGUF file, the folder of this machine that holds it."""
    gguf_file = options.pop("gguf_file", None)
    location = Location(source=source(model), options=options, gguf_file=gguf_file)
    path = Path(location.source)
    if not path.is_file():
        return location if gguf_file is None else _of_gguf(location, gguf_file, find)
    if path.suffix.lower() != _GGUF or gguf_file is not None:
        raise ModelNotFoundError(
            f"{model!r} is a file, expected a folder, a model name or a GGUF file",
            hint="give the folder that holds config.json and weights, or the path of a .gguf file",
        )
    return Location(source=str(path.parent), options=_on_disk(options), gguf_file=path.name)


def _of_gguf(location: Location, name: str, find: _Find) -> Location:
    """The folder that holds the file: the tokenizer of a GGUF file is read without revision, cache and token."""
    if (path := find(location, name)) is not None:
        return Location(source=str(path.parent), options=_on_disk(location.options), gguf_file=path.name)
    if (folder := Path(location.source)).is_dir():
        there = _gguf_files(folder)
        raise ModelNotFoundError(
            f"there is no file {name!r} in {location.source!r}",
            hint=f"its GGUF files are {there}" if there else "it has no GGUF file",
        )
    return location  # reading it says what is wrong


def _gguf_files(folder: Path) -> list[str]:
    return sorted(str(file.relative_to(folder)) for file in folder.rglob(f"*{_GGUF}")) if folder.is_dir() else []


def _on_disk(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that still mean something for a file on this machine."""
    return {name: value for name, value in options.items() if name == "trust_remote_code"}


def _base_model(config: MemberConfig, description: Path, find: _Find) -> Location:
    """Where the base model of an adapter is, by its `adapter_config.json`."""
    try:
        told = json.loads(description.read_text(encoding="utf-8"))
        name: str = told["base_model_name_or_path"]
        beside = description.parent / name  # folders that were moved together
    except (ValueError, LookupError, TypeError) as error:
        raise ModelLoadError(
            f"the adapter {config.model!r} does not name its base model",
            hint=f"write base_model_name_or_path into {description.name}",
        ) from error
    options = _options_elsewhere(config)
    if told.get("revision"):
        options["revision"] = told["revision"]
    try:
        return _location(str(beside) if beside.is_dir() and not Path(name).exists() else name, options, find)
    except ModelNotFoundError as error:
        raise ModelNotFoundError(
            f"the adapter {config.model!r} names the base model {name!r}: {error.message}",
            hint=f"correct base_model_name_or_path in {description.name}",
        ) from error


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
        files = member_files(config, Location.file_on_disk)
        kind: type[ModelLoadError] = ModelLoadError
        hint = "check the options of this member and the files of its model; the cause is chained to this error"
        if _is_missing(files.model, error):
            kind, hint = ModelNotFoundError, _how_to_name_a_model(files.model)
        raise kind(f"can't load {_described(config, files)}: {reason}", member=config.label, hint=hint) from error


def _is_missing(model: Location, error: Exception) -> bool:
    """Whether an error of reading a model means that there is no model."""
    has_config = model.file_on_disk(model.gguf_file or "config.json") is not None
    return not has_config and (isinstance(error, OSError) or Path(model.source).is_dir())


def _described(config: MemberConfig, files: MemberFiles) -> str:
    if files.adapter is not None and files.adapter != files.model:
        return f"{config.model!r}, an adapter of {files.model.source!r}"
    named = files.model.gguf_file is None or config.model.endswith(files.model.gguf_file)
    return f"{config.model!r}" if named else f"{files.model.gguf_file!r} of {config.model!r}"


def _how_to_name_a_model(model: Location) -> str:
    if there := _gguf_files(Path(model.source)):
        return f"name one of its GGUF files with gguf_file=...: {there}"
    return (
        "give a Hugging Face model name that this machine can reach (gated ones need `hf auth login`), the path of a "
        "folder with config.json or adapter_config.json, or that of a GGUF file"
    )

"""Locates the files of a member, and turns errors of reading them into `ModelLoadError`s."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adafuse_core import small_models
from adafuse_core.backends import FILE_OPTIONS, load_options
from adafuse_core.backends.gguf_conversion import check_whole
from adafuse_core.backends.locations import Location
from adafuse_core.errors import AdaFuseError, ConfigError, ModelLoadError, ModelNotFoundError
from adafuse_core.member_config import MemberConfig

_SMALL = "small:"
_GGUF = ".gguf"
_PIECE = re.compile(r"-\d{5}-of-(\d{5})\.gguf$", re.IGNORECASE)  # the names that llama.cpp gives to pieces of a file
_REPOSITORY_OPTIONS = ("revision", "code_revision", "subfolder", "gguf_file")  # specific to one repository
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")

_Find = Callable[[Location, str], Path | None]


@dataclass(frozen=True, kw_only=True)
class MemberFiles:
    """Locations of a member's files.

    Args:
        model: Location of configuration and weights.
        adapter: Location of the PEFT adapter, if the member has one.
    """

    model: Location
    adapter: Location | None = None


def source(model: str) -> str:
    """The path or repository name that transformers loads.

    Raises:
        ModelNotFoundError: The path does not exist, no small model has this name, or the small models are missing.
    """
    if model.startswith(_SMALL):
        try:
            return str(small_models.path(model.removeprefix(_SMALL)))
        except ValueError as error:
            raise ModelNotFoundError(f"can't load {model!r}: {error}", hint="check the name") from error
        except FileNotFoundError as error:
            raise ModelNotFoundError(
                f"can't load {model!r}: the package adafuse-small-models is not installed",
                hint=f"{small_models.INSTALL}, or name models of your own",
            ) from error
    looks_like_path = model.startswith((".", "/", "~")) or model.count("/") > 1 or model.lower().endswith(_GGUF)
    if not looks_like_path:
        return model
    try:
        path = Path(model).expanduser()
    except RuntimeError as error:  # the home folder of an unknown user
        raise ModelNotFoundError(f"there is no folder {model!r}: {error}", hint="check the path") from error
    if not path.exists():
        named = f"file in a repository is given as model='owner/name:{path.name}'"
        is_gguf = path.suffix.lower() == _GGUF
        raise ModelNotFoundError(
            f"there is no {'file' if is_gguf else 'folder'} {model!r}",
            hint=f"check the path; a {named}" if is_gguf else "check the path",
        )
    return str(path)


def member_files(config: MemberConfig, find: _Find = Location.file) -> MemberFiles:
    """Locate the model and the adapter of a config; if `model` is an adapter, its base model.

    Args:
        config: Config of the member.
        find: Method that finds a file of a location, with or without downloads.

    Raises:
        ConfigError: A field and `model_kwargs` contradict each other.
        ModelNotFoundError: The path does not exist, or no small model has this name.
        ModelLoadError: An adapter does not name its base model, or `model` has one although `adapter` is set.
    """
    here = _location(config.model, file_options(config), find)
    description = None if here.gguf_file else find(here, "adapter_config.json")
    if config.adapter is not None:
        if description is not None:
            raise ModelLoadError(
                f"{config.model!r} contains an adapter, and adapter={config.adapter!r} is set",
                hint="name the base model in model, and one adapter",
            )
        return MemberFiles(model=here, adapter=_location(config.adapter, _shared_options(config), find))
    if description is None:
        return MemberFiles(model=here)
    if (description.parent / "config.json").is_file():  # the adapter is in the folder of its base model
        return MemberFiles(model=here, adapter=here)
    return MemberFiles(model=_base_model(config, description, find), adapter=here)


def tokenizer_location(config: MemberConfig, find: _Find = Location.file) -> Location:
    """Locate the tokenizer of a config: `tokenizer`, or the one of the adapter or model."""
    if config.tokenizer is not None:
        return _location(config.tokenizer, _shared_options(config), find)
    files = member_files(config, find)
    if files.adapter is not None and any(find(files.adapter, name) for name in _TOKENIZER_FILES):
        return files.adapter
    return files.model


def read_architecture(config: MemberConfig, files: MemberFiles) -> Any:
    """The model's transformers config, with the changes in `model_kwargs`."""
    return files.model.read_config(load_options(config))


def file_options(config: MemberConfig) -> dict[str, Any]:
    """Options for reading the model's files, from fields and `model_kwargs`."""
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


def _shared_options(config: MemberConfig) -> dict[str, Any]:
    """The file options that also apply to other repositories than the model's."""
    return {name: value for name, value in file_options(config).items() if name not in _REPOSITORY_OPTIONS}


def _location(model: str, options: dict[str, Any], find: _Find) -> Location:
    """The location of a model name or path; for a GGUF file, the local folder that contains it."""
    folder, named = _split(model)
    gguf_file = options.pop("gguf_file", None) or named
    if named not in (None, gguf_file):
        raise ConfigError(f"got model={model!r} and gguf_file={gguf_file!r}", hint="name the file in one of them")
    location = Location(source=source(folder), options=options, gguf_file=gguf_file)
    path = Path(location.source)
    if piece := _PIECE.search(gguf_file or path.name):
        check_whole(gguf_file or path.name, int(piece[1]))
    if not path.is_file():
        return location if gguf_file is None else _gguf_location(location, gguf_file, find)
    if path.suffix.lower() != _GGUF or gguf_file is not None:
        raise ModelNotFoundError(
            f"{folder!r} is a file, expected a folder, a model name or a GGUF file",
            hint="pass a folder with config.json and weights, or the path of a .gguf file",
        )
    return Location(source=str(path.parent), options=_local_options(options), gguf_file=path.name)


def _split(model: str) -> tuple[str, str | None]:
    """Split `"owner/name:x.gguf"` and `"folder:x.gguf"` into repository or folder, and GGUF file."""
    folder, _, name = model.rpartition(":")
    is_drive = len(folder) == 1 and name[:1] in ("/", "\\")
    if not folder or is_drive or not name.lower().endswith(_GGUF) or Path(model).is_file() or model.startswith(_SMALL):
        return model, None
    return folder, name


def _gguf_location(location: Location, name: str, find: _Find) -> Location:
    """The local folder of a GGUF file, which is downloaded if necessary."""
    if (path := find(location, name)) is not None:
        return Location(source=str(path.parent), options=_local_options(location.options), gguf_file=path.name)
    if (folder := Path(location.source)).is_dir():
        found = _gguf_files(folder)
        raise ModelNotFoundError(
            f"there is no file {name!r} in {location.source!r}",
            hint=f"its GGUF files are {found}" if found else "it has no GGUF file",
        )
    return location  # reading it will raise the right error


def _gguf_files(folder: Path) -> list[str]:
    return sorted(str(file.relative_to(folder)) for file in folder.rglob(f"*{_GGUF}")) if folder.is_dir() else []


def _local_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that apply to local files."""
    return {name: value for name, value in options.items() if name == "trust_remote_code"}


def _base_model(config: MemberConfig, description: Path, find: _Find) -> Location:
    """Locate the base model of an adapter from its `adapter_config.json`."""
    try:
        declared = json.loads(description.read_text(encoding="utf-8"))
        name: str = declared["base_model_name_or_path"]
        beside = description.parent / name  # for folders that were moved together
    except (ValueError, LookupError, TypeError) as error:
        raise ModelLoadError(
            f"the adapter {config.model!r} does not name its base model",
            hint=f"write base_model_name_or_path into {description.name}",
        ) from error
    options = _shared_options(config)
    if declared.get("revision"):
        options["revision"] = declared["revision"]
    try:
        return _location(str(beside) if beside.is_dir() and not Path(name).exists() else name, options, find)
    except ModelNotFoundError as error:
        raise ModelNotFoundError(
            f"the adapter {config.model!r} names the base model {name!r}: {error.message}",
            hint=f"correct base_model_name_or_path in {description.name}",
        ) from error


@contextmanager
def load_errors(config: MemberConfig) -> Iterator[None]:
    """Turn any error of reading a member's files into a `ModelLoadError` that names the member."""
    try:
        yield
    except AdaFuseError as error:
        error.member = error.member or config.label
        raise
    except Exception as error:  # transformers, tokenizers and safetensors raise many types
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        files = member_files(config, Location.file_on_disk)
        kind: type[ModelLoadError] = ModelLoadError
        hint = "check the options of this member and the files of its model; the cause is chained to this error"
        if _is_missing(files.model, error):
            kind, hint = ModelNotFoundError, _how_to_name_a_model(files.model)
        raise kind(f"can't load {_described(config, files)}: {reason}", member=config.label, hint=hint) from error


def _is_missing(model: Location, error: Exception) -> bool:
    """Whether an error of reading a model means that it does not exist."""
    has_config = model.file_on_disk(model.gguf_file or "config.json") is not None
    return not has_config and (isinstance(error, OSError) or Path(model.source).is_dir())


def _described(config: MemberConfig, files: MemberFiles) -> str:
    if config.adapter is not None:
        return f"{config.model!r} with adapter {config.adapter!r}"
    if files.adapter is not None and files.adapter != files.model:
        return f"{config.model!r}, an adapter of {files.model.source!r}"
    named = files.model.gguf_file is None or config.model.endswith(files.model.gguf_file)
    return f"{config.model!r}" if named else f"{files.model.gguf_file!r} of {config.model!r}"


def _how_to_name_a_model(model: Location) -> str:
    if found := _gguf_files(Path(model.source)):
        return f"name one of its GGUF files, as in {f'{model.source}:{found[0]}'!r}: {found}"
    return (
        "give a Hugging Face model name that this machine can reach (gated models need `hf auth login`), or the path "
        "of a folder with config.json or adapter_config.json, or of a GGUF file"
    )

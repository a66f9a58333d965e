"""The members: what their files say, and what each of them got when it was loaded."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from adafuse_core import AdaFuseError, Ensemble, EnsembleConfig, MemberConfig
from adafuse_core.backends.locations import Location
from adafuse_core.backends.quantization import packages as quantized_packages
from adafuse_core.backends.quantization import quantization_method
from adafuse_core.checks import is_secret
from adafuse_core.members.base import Member
from adafuse_core.members.context_windows import has_template_on_disk, window_on_disk
from adafuse_core.members.model_files import MemberFiles, member_files
from adafuse_core.members.tool_prompts import tool_display
from adafuse_integrations.cli.checkup.installation import is_installed
from adafuse_integrations.cli.checkup.storage import download_problem

_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
_TOGETHER = ("strategy", "scoring", "pool", "pool_exponent", "pool_over", "speculation")


@dataclass(frozen=True, kw_only=True)
class MemberFacts:
    """One member.

    Args:
        name: Its name.
        model: Its model, as configured.
        adapter: Its adapter, if one is configured.
        prefix_cache: Whether keys and values are kept for later requests.
        on_disk: Whether the weights are on disk, and not to be downloaded; None if they could not be looked for.
        missing: Packages that its files need and that are not installed.
        context_window: The context window that its files or its config declare; None if unknown.
        chat_template: Whether it has a chat template; None if unknown.
        description: How it runs, from `Ensemble.describe()`; empty if it is not loaded.
        parameters: Number of parameters of the loaded model; None if unknown.
        shows_tools: Whether its chat template shows tools; None if it is not loaded.
        tool_dialect: Format of its tool calls; None if unknown.
        thought_tags: The tags around its thoughts; empty if it is not loaded.
        error: Why it can't be loaded.
        error_hint: What to do about that.
    """

    name: str
    model: str
    adapter: str | None = None
    prefix_cache: bool = True
    on_disk: bool | None = None
    missing: tuple[str, ...] = ()
    context_window: int | None = None
    chat_template: bool | None = None
    description: Mapping[str, Any] = field(default_factory=dict)
    parameters: int | None = None
    shows_tools: bool | None = None
    tool_dialect: str | None = None
    thought_tags: str = ""
    error: str | None = None
    error_hint: str | None = None


@dataclass(frozen=True, kw_only=True)
class Together:
    """The members as an ensemble.

    Args:
        settings: How they answer together.
        tools: How tools are shown to them, or why not; None if not all of them are loaded.
        error: Why they can't answer together.
        error_hint: What to do about that.
    """

    settings: Mapping[str, Any]
    tools: str | None = None
    error: str | None = None
    error_hint: str | None = None


def on_disk(config: MemberConfig) -> MemberFacts:
    """What is known about a member without loading or downloading anything."""
    facts = MemberFacts(name=config.label, model=config.model, adapter=config.adapter, prefix_cache=config.prefix_cache)
    try:
        files = member_files(config, Location.file_on_disk)
        facts = replace(
            facts,
            on_disk=_has_weights(files.model),
            missing=tuple(name for name in _needed(config, files) if not is_installed(name)),
            context_window=window_on_disk(config),
            chat_template=has_template_on_disk(config),
        )
    except (AdaFuseError, OSError, ValueError) as error:  # also a file that is not JSON
        return _failed(facts, config, error)
    if facts.on_disk or not Path(files.model.source).is_dir():
        return facts
    problem = f"the folder {files.model.source!r} has no weights ({' or '.join(_WEIGHTS)})"
    return replace(facts, error=problem, error_hint="check the path, and copy all files of the model into the folder")


def loaded(single: Ensemble, *, progress: bool = False) -> MemberFacts:
    """Load the only member of an ensemble, with progress bars if asked for, and say how it runs."""
    (config,) = single.config.members
    facts = on_disk(config)
    if facts.error is None and not facts.on_disk and (problem := download_problem()):  # trying would take minutes
        hint = "check the network and its proxy, or give the path of a folder on disk"
        return replace(facts, error=f"{config.model!r} is not on disk, and {problem}", error_hint=hint)
    try:
        (member,) = single.load(progress=progress).members
    except (AdaFuseError, ImportError) as error:
        return _failed(facts, config, error)
    reader, description = member.prompt_reader, member.describe()
    return replace(
        facts,
        context_window=description["context_window"],
        chat_template=reader.supports_chat(),
        description=description,
        parameters=_parameters(member),
        shows_tools=reader.shows_tools,
        tool_dialect=reader.dialect.name if reader.dialect else None,
        thought_tags=f"{reader.thought_tags.opening} ... {reader.thought_tags.closing}",
        error=None,
        error_hint=None,
    )


def together(config: EnsembleConfig, members: Sequence[MemberFacts]) -> Together:
    """How the members answer together. Tools are described only if all of them are loaded."""
    options = config.to_dict()
    facts = Together(settings={name: options[name] for name in _TOGETHER})
    if not all(member.description for member in members):
        return facts
    try:
        with Ensemble(config) as ensemble:
            _, how = tool_display([member.prompt_reader for member in ensemble.members])
    except AdaFuseError as error:
        return replace(facts, error=str(error).partition("\nHint: ")[0], error_hint=error.hint)
    return replace(facts, tools=how or "the chat templates of all members show the tools")


def _failed(facts: MemberFacts, config: MemberConfig, error: Exception) -> MemberFacts:
    message = error.message if isinstance(error, AdaFuseError) else f"{type(error).__name__}: {error}"
    hint = error.hint if isinstance(error, AdaFuseError) else None
    secrets = list(_secrets({name: getattr(config, name) for name in ("model_kwargs", "backend_options")}))
    return replace(facts, error=_hidden(message, secrets), error_hint=hint and _hidden(hint, secrets))


def _needed(config: MemberConfig, files: MemberFiles) -> Iterator[str]:
    """Packages that the files of a member need."""
    if files.model.gguf_file is not None:
        yield "gguf"
    if files.adapter is not None:
        yield "peft"
    declared = files.model.file_on_disk("config.json")
    quantization = config.quantization_config
    if quantization is None and declared is not None:
        quantization = _mapping(declared).get("quantization_config")
    method = quantization_method(quantization) if isinstance(quantization, Mapping) else None
    if isinstance(method, str):
        yield from quantized_packages(method)


def _mapping(path: Path) -> Mapping[str, Any]:
    found = json.loads(path.read_text(encoding="utf-8"))
    return found if isinstance(found, dict) else {}


def _has_weights(location: Location) -> bool:
    found = location.file_on_disk(location.gguf_file or "config.json")
    return found is not None and (
        location.gguf_file is not None or any(any(found.parent.glob(name)) for name in _WEIGHTS)
    )


def _parameters(member: Member) -> int | None:
    from adafuse_core.backends.local import LocalBackend

    backend = getattr(member, "backend", None)
    return int(backend.model.module.num_parameters()) if isinstance(backend, LocalBackend) else None


def _secrets(value: Any, name: str = "") -> Iterator[str]:
    """The tokens, keys and passwords in nested options."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _secrets(item, str(key))
    elif is_secret(name, value) and value:
        yield value


def _hidden(text: str, secrets: Sequence[str]) -> str:
    for secret in secrets:
        text = text.replace(secret, "(hidden)")
    return text

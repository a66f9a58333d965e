"""Options of an ensemble and of a call, from arguments, a dict or a YAML file.

Every default is defined once: here, in `member_config.py` or in a strategy. The command line and the adapters read
defaults and help texts from these classes. Unknown options raise an error.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, Self

from adafuse_core.backends import check_backend
from adafuse_core.checks import (
    expect,
    expect_choice,
    expect_encodable,
    expect_integer,
    expect_mapping,
    expect_number,
    field_names,
    known_options,
    several,
    strings,
    torch_name,
    without_secrets,
)
from adafuse_core.errors import ConfigError
from adafuse_core.member_config import SHARED_OPTIONS, MemberConfig, checked_defaults
from adafuse_core.small_models import NAMES
from adafuse_core.strategies import STRATEGIES
from adafuse_core.strategies.base import Strategy
from adafuse_core.strategies.beam import Beam
from adafuse_core.yaml_files import read_yaml, written

logger = logging.getLogger(__name__)

_NO_CONFIG = "give the path of a YAML file; to name models, write Ensemble(members=[...])"


@dataclass(frozen=True, kw_only=True)
class GenerationParams:
    """Options of a single call.

    Args:
        max_new_tokens: Maximum length of the answer, in tokens of the first member. Longer answers are cut there, even
            inside a word. None: no limit but the members' context windows.
        stop: Strings that end the answer. The answer is cut before the first match. Thoughts and tool calls are not
            searched; text under a grammar is.
        temperature: 0 commits the best candidate of each round. T > 0 samples a candidate with probability proportional
            to exp(-value / T), where value is the fused score (by default in nats).
        seed: Seed for sampling. None uses a random seed.
        logprobs: Whether every committed text is scored, even where it was the only candidate, so that every round
            has the log-probabilities of all members.
        complete_calls: Whether a tool call that is cut off by the token budget or a context window is completed with
            values that no member chose. Otherwise it is reported as an invalid call.
        lenient_tool_calls: Whether an answer that consists only of tool calls is parsed even if their format is not
            the one shown to the members, such as bare or fenced JSON. Applies to `tool_choice="auto"` without a
            grammar.
        continue_final_message: Whether the answer continues the last message, which must be a text of the assistant.
            Otherwise the answer is a new assistant turn. Plain prompts are always continued.
        cache_namespace: Requests share what was computed for a common beginning only with requests of the same
            namespace, such as the name of a user: otherwise one user can tell by the time of an answer whether another
            user's prompt began in the same way. Affects speed only.
    """

    max_new_tokens: int | None = 256
    stop: tuple[str, ...] = ()
    temperature: float = 0.0
    seed: int | None = None
    logprobs: bool = False
    complete_calls: bool = False
    lenient_tool_calls: bool = True
    continue_final_message: bool = False
    cache_namespace: str = ""

    def __post_init__(self) -> None:
        if self.max_new_tokens is not None:
            expect_integer("max_new_tokens", self.max_new_tokens, at_least=1)
        if self.seed is not None:
            expect_integer("seed", self.seed)
        expect_number("temperature", self.temperature, at_least=0.0)
        for name in ("logprobs", "complete_calls", "lenient_tool_calls", "continue_final_message"):
            expect(isinstance(getattr(self, name), bool), name, getattr(self, name), "True or False")
        expect(isinstance(self.cache_namespace, str), "cache_namespace", self.cache_namespace, "a text")
        object.__setattr__(self, "stop", strings("stop", self.stop))
        expect(all(self.stop), "stop", self.stop, "non-empty strings")
        for text in self.stop:
            expect_encodable("stop", text)

    def updated(self, options: Mapping[str, Any]) -> Self:
        """A copy with some options changed. Unknown options raise `ConfigError`."""
        checked = known_options(field_names(self), options, "generation option", FIXED_IN_CALLS)
        return dataclasses.replace(self, **checked)


_MISPLACED = {
    name: f"write generation={{'{name}': ...}}, or pass it to generate() or stream()"
    for name in field_names(GenerationParams)
}


@dataclass(frozen=True, kw_only=True)
class EnsembleConfig:
    """Members of an ensemble, the strategy that fuses them, and default generation options.

    Args:
        members: One or more model names, mappings or `MemberConfig`s. Duplicate names get a number.
        member_defaults: Fields of `MemberConfig` for all members that do not set them, such as `{"dtype": "bfloat16",
            "device": "cuda:0"}`. In a mapping, in YAML and in arguments of `Ensemble`, these fields may also be given
            directly: `{"members": [...], "dtype": "bfloat16"}`.
        strategy: Name of the decision rule, or a `Strategy`. In a mapping, in YAML and in arguments of `Ensemble`, its
            options may be given directly: `{"members": [...], "strategy": "adafuse", "max_words": 2}`.
        max_word_tokens: Maximum tokens of a word. Longer words are cut.
        speculation: Speculative decoding, which never changes the text. `"verify"`: members that share a device score
            the earlier members' candidates in the forward pass that starts their own draft. `"lookup"`: members draft
            from earlier occurrences of the last tokens in prompt and answer (prompt lookup), and read in advance how
            the next draft begins after the candidates. `"auto"`: both. `"off"`: neither.
        on_member_failure: What happens if a member fails while an answer is written, such as a server that can't be
            reached. `"fail"`: the answer fails, with the text so far in the error. `"drop"`: the answer goes on without
            the member, from the text that was committed; the event `MemberDropped` and `dropped_members` of the answer
            say so, and the next answer tries all members again. The error is raised if no member is left, or if the
            strategy can't do without the member. Errors while models are loaded are always raised.
        generation: Default generation options, as a mapping or `GenerationParams`.
    """

    members: tuple[MemberConfig, ...]
    member_defaults: Mapping[str, Any] = field(default_factory=dict, hash=False, repr=False)  # may have secrets
    strategy: Strategy = field(default_factory=Beam)
    max_word_tokens: int = 24
    speculation: str = "auto"
    on_member_failure: str = "fail"
    generation: GenerationParams = field(default_factory=GenerationParams)

    def __post_init__(self) -> None:
        given = several("members", self.members, "write members=[...]")
        defaults = checked_defaults(self.member_defaults)
        object.__setattr__(self, "member_defaults", defaults)
        members = _named([MemberConfig.from_any(member) for member in given], defaults)
        expect(bool(members), "members", self.members, "at least one member")
        object.__setattr__(self, "members", members)
        for member in members:
            check_backend(member)
        object.__setattr__(self, "strategy", _strategy(self.strategy))
        self.strategy.check_members([member.label for member in members])
        if isinstance(self.generation, Mapping):
            object.__setattr__(self, "generation", GenerationParams().updated(self.generation))
        expect(isinstance(self.generation, GenerationParams), "generation", self.generation, "a mapping")
        expect_choice("speculation", self.speculation, ("auto", "verify", "lookup", "off"))
        expect_integer("max_word_tokens", self.max_word_tokens, at_least=1)
        expect_choice("on_member_failure", self.on_member_failure, ("fail", "drop"))
        if self.on_member_failure == "drop":
            self._check_can_drop()
        self.check_choice(self.generation)

    def check_choice(self, params: GenerationParams) -> None:
        """Refuse `temperature` > 0 if every round has one candidate only."""
        if params.temperature > 0 and not self.strategy.has_choice(len(self.members)):
            raise ConfigError(
                f"got temperature={params.temperature}, but strategy {self.strategy.name!r} with {len(self.members)} "
                "members and these options has one candidate per round",
                hint="temperature samples among the candidates: use more members or branches, or temperature=0",
            )

    def _check_can_drop(self) -> None:
        """Refuse `on_member_failure="drop"` if the strategy can do without none of the members."""
        names = [member.label for member in self.strategy.select(self.members)]
        problems = [self._problem_without(name, names) for name in names]
        if all(problems):
            raise ConfigError(
                f"got on_member_failure='drop', but no member can be left out: {problems[0]}",
                hint="use more members, or on_member_failure='fail'",
            )

    def _problem_without(self, name: str, names: Sequence[str]) -> str | None:
        left = [other for other in names if other != name]
        if not left:
            return f"strategy {self.strategy.name!r} has one member, {name!r}"
        try:
            self.strategy.check_members(left)
        except ConfigError as error:
            return error.message
        return None

    def updated(self, options: Mapping[str, Any]) -> Self:
        """A copy with some options changed, including options of the strategy and of all members.

        Mappings for `generation` and `member_defaults` are merged into the current values.
        """
        changed = _with_strategy(_with_defaults(options, self.member_defaults), self.strategy)
        if isinstance(generation := changed.get("generation"), Mapping):
            changed["generation"] = self.generation.updated(generation)
        return dataclasses.replace(self, **changed)

    def alone(self, member: str) -> Self:
        """The config of one member that answers alone and greedily; all other options stay."""
        options = {"strategy": "single", "member": member, "on_member_failure": "fail"}
        return self.updated({**options, "generation": {"temperature": 0.0}})

    @classmethod
    def from_any(cls, value: Mapping[str, Any] | str | Path | EnsembleConfig) -> Self:
        """A config from the path of a YAML file, or from a mapping with options of ensemble, strategy and members."""
        if isinstance(value, cls):
            return value
        if isinstance(value, str | Path):
            value = read_yaml(Path(value), "ensemble config", hint=_NO_CONFIG)
        if not isinstance(value, Mapping):
            raise ConfigError(
                f"got {value!r} as ensemble config, expected a mapping or the path of a YAML file",
                hint="to name models, write Ensemble(members=[...])",
            )
        options = _with_strategy(_with_defaults(value, {}), Beam())
        if "members" not in options:
            raise ConfigError("the ensemble config has no 'members'", hint="list at least one model name")
        return cls(**options)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values for `from_any`. Members contain only the fields that were set."""
        values = dataclasses.asdict(self)
        members = [
            {"model": member.model, "name": member.label, **copy.deepcopy(member.own)} for member in self.members
        ]
        return {**values, "members": members, "strategy": self.strategy.name, **values["strategy"]}

    def save(self, path: str | Path) -> None:
        """Save as a YAML file for `from_any` and `Ensemble.from_config`.

        Tokens, keys and passwords are left out; the log and comments at the top of the file list them.

        Raises:
            ConfigError: A value can't be written as YAML, or the file can't be written.
        """
        import yaml

        secrets: list[str] = []
        values = without_secrets(_plain(self.to_dict()), secrets)
        if secrets:
            logger.warning("%s was saved without %s; set them again after reading it", path, ", ".join(secrets))
        comments = "".join(f"# left out, as it is secret: {name}\n" for name in secrets)
        try:
            text = comments + written(values)
            Path(path).write_text(text, encoding="utf-8")
        except yaml.YAMLError as error:
            raise ConfigError(
                f"can't save the config: {error}", hint="use texts, numbers, lists and mappings"
            ) from error
        except OSError as error:
            raise ConfigError(f"can't write ensemble config {str(path)!r}: {error.strerror}") from error


def default_config() -> EnsembleConfig:
    """The config of the two small models shipped with the package."""
    return EnsembleConfig(members=tuple(MemberConfig(model=f"small:{name}") for name in NAMES))


# Hints for options of the ensemble that are passed to a call.
FIXED_IN_CALLS = dict.fromkeys(
    [
        *field_names(EnsembleConfig),
        *SHARED_OPTIONS,
        *(name for kind in STRATEGIES.values() for name in field_names(kind)),
    ],
    "it is the same for all calls: set it when you create the ensemble",
)


def _plain(value: Any) -> Any:
    """A setting with paths, dtypes and devices as strings, which have the same effect when a config is read."""
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, PurePath):
        return str(value)
    return torch_name(value)


def _named(members: list[MemberConfig], defaults: Mapping[str, Any]) -> tuple[MemberConfig, ...]:
    """The members with the defaults applied and unique names: aspen, aspen-2, aspen-3."""
    taken: set[str] = set()
    named = []
    for member in members:
        label, number = member.label, 2
        while label in taken:
            label, number = f"{member.label}-{number}", number + 1
        taken.add(label)
        named.append(member.with_defaults(defaults, label))
    return tuple(named)


def _with_defaults(options: Mapping[str, Any], current: Mapping[str, Any]) -> dict[str, Any]:
    """Move options that are fields of `MemberConfig` into `member_defaults`, merged into the current defaults."""
    named = options.get("member_defaults", {})
    expect_mapping("member_defaults", named)
    flat = {name: options[name] for name in SHARED_OPTIONS if name in options}
    others = {name: value for name, value in options.items() if name not in flat}
    return {**others, "member_defaults": {**current, **named, **flat}}


def _strategy(named: Any) -> Strategy:
    """The given strategy, or the strategy of that name with default options."""
    if isinstance(named, Strategy):
        return named
    expect_choice("strategy", named, STRATEGIES)
    return STRATEGIES[named]()


def _with_strategy(options: Mapping[str, Any], current: Strategy) -> dict[str, Any]:
    """Replace options of the strategy, such as `tau`, by a `strategy` with these options; default: the current one."""
    named = current if options.get("strategy", current.name) == current.name else _strategy(options["strategy"])
    own = field_names(named)
    for other in STRATEGIES.values():
        for name in field_names(other):
            if name in options and name not in own:
                raise ConfigError(
                    f"{name}={options[name]!r} has no meaning for strategy {named.name!r}",
                    hint=f"leave it out, or set strategy={other.name!r}",
                )
    names = [*field_names(EnsembleConfig), *own, *SHARED_OPTIONS]
    checked = known_options(names, options, "ensemble option", _MISPLACED)
    changed = dataclasses.replace(named, **{name: value for name, value in checked.items() if name in own})
    return {name: value for name, value in checked.items() if name not in own} | {"strategy": changed}

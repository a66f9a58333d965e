"""What a user can set of an ensemble and of a call, from arguments, dict or YAML.

Defaults are written here, in `member_config.py` and in the strategies, and nowhere else; the command line and the
adapters read them from these classes. Unknown options raise.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, Self

from adafuse_core.backends import check_backend
from adafuse_core.checks import (
    expect,
    expect_choice,
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
from adafuse_core.fusion import Fusion
from adafuse_core.member_config import SHARED_OPTIONS, MemberConfig, checked_defaults
from adafuse_core.small_models import NAMES
from adafuse_core.strategies import STRATEGIES
from adafuse_core.strategies.adafuse import AdaFuse
from adafuse_core.strategies.base import Strategy

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class GenerationParams:
    """What may differ from call to call.

    Args:
        max_new_tokens: Longest answer, in tokens of the first member; the last word is cut where
            the budget ends. None: until the members' context windows are full.
        stop: Strings that end the answer. The first hit and all after it is left out. Only text that is shown is
            searched: thoughts and tool calls may contain them. Text that a grammar holds to a form is cut as well.
        temperature: 0 commits the best candidate. T > 0 draws it with probability proportional to
            exp(-value / T) over the round's candidates (value: the fused one, by default in nats per token).
        seed: Makes the draws repeatable. None draws a fresh one.
        logprobs: Whether all that is committed is scored, also where there was one candidate only, so that every
            round tells the members' log-probabilities.
        complete_calls: Whether a tool call inside which the token budget or a context window ends is completed with
            values that no member chose. Otherwise it is among the invalid calls.
        lenient_tool_calls: Whether an answer that is wholly a call of one of the tools is read as that call in whatever
            form it is written, such as bare or fenced JSON. Otherwise calls are read in the form that the members were
            shown. It matters where the answer is free: with `tool_choice="auto"` and no grammar.
        continue_final_message: Whether the answer continues the last message of the conversation, which has to be a
            text of the assistant. Otherwise the assistant begins a new turn, whoever spoke last. Plain prompts are
            continued in any case.
    """

    max_new_tokens: int | None = 256
    stop: tuple[str, ...] = ()
    temperature: float = 0.0
    seed: int | None = None
    logprobs: bool = False
    complete_calls: bool = False
    lenient_tool_calls: bool = True
    continue_final_message: bool = False

    def __post_init__(self) -> None:
        if self.max_new_tokens is not None:
            expect_integer("max_new_tokens", self.max_new_tokens, at_least=1)
        if self.seed is not None:
            expect_integer("seed", self.seed)
        expect_number("temperature", self.temperature, at_least=0.0)
        for name in ("logprobs", "complete_calls", "lenient_tool_calls", "continue_final_message"):
            expect(isinstance(getattr(self, name), bool), name, getattr(self, name), "True or False")
        object.__setattr__(self, "stop", strings("stop", self.stop))
        expect(all(self.stop), "stop", self.stop, "non-empty strings")

    def updated(self, options: Mapping[str, Any]) -> Self:
        """A copy with some options changed; unknown ones raise `ConfigError`."""
        checked = known_options(field_names(self), options, "generation option", FIXED_IN_CALLS)
        return dataclasses.replace(self, **checked)


_MISPLACED = {
    name: f"write generation={{'{name}': ...}}, or give it to generate() and stream()"
    for name in field_names(GenerationParams)
}


@dataclass(frozen=True, kw_only=True)
class EnsembleConfig:
    """Members, the strategy that fuses them, and the defaults of generation.

    Args:
        members: At least one; model names, mappings or `MemberConfig`s. Names are made unique.
        member_defaults: Fields of `MemberConfig` for all members that do not set them themselves, such as
            `{"dtype": "bfloat16", "device": "cuda:0"}`. Where options come as a mapping or as arguments of `Ensemble`,
            these fields may stand among them: `{"members": [...], "dtype": "bfloat16"}`.
        strategy: A `Strategy`, or the name of one. Where options come as a mapping or as arguments of `Ensemble`, those
            of the strategy may stand among them: `{"members": [...], "strategy": "adafuse", "tau": 0.5}`.
        scoring: By which unit of a candidate a member's log-probabilities are divided: `"token"` (the paper), `"word"`,
            `"byte"`, or `"sum"` for none.
        pool: How members are averaged: `"geometric"` (the paper: the mean of NLLs), `"linear"` (the mean of
            probabilities), `"power"` (between and beyond: their power mean), or `"median"`.
        pool_exponent: Of the power mean, above 0.
        max_word_tokens: Most tokens one word may take before it is cut.
        speculation: How members guess ahead; the text is the same with all. `"verify"`: members that share a device
            read the earlier members' candidates in the pass that starts their own draft. `"lookup"`: members look up
            the last tokens in prompt and answer, and read what followed there. `"auto"`: both. `"off"`: neither.
        generation: Defaults of `GenerationParams`.
    """

    members: tuple[MemberConfig, ...]
    member_defaults: Mapping[str, Any] = field(default_factory=dict, hash=False)
    strategy: Strategy = field(default_factory=AdaFuse)
    scoring: str = "token"
    pool: str = "geometric"
    pool_exponent: float | None = None
    max_word_tokens: int = 24
    speculation: str = "auto"
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
        _ = self.fusion
        self.check_choice(self.generation)

    @property
    def fusion(self) -> Fusion:
        """How candidates are compared."""
        return Fusion(scoring=self.scoring, pool=self.pool, pool_exponent=self.pool_exponent)

    def check_choice(self, params: GenerationParams) -> None:
        """Refuse draws where there is never more than one candidate to draw from."""
        if params.temperature > 0 and not self.strategy.has_choice(len(self.members)):
            raise ConfigError(
                f"got temperature={params.temperature}, but strategy {self.strategy.name!r} with {len(self.members)} "
                "members and these options has one candidate a round",
                hint="temperature acts on the choice among candidates: use more members or branches, or temperature=0",
            )

    def updated(self, options: Mapping[str, Any]) -> Self:
        """A copy with some options changed, those of strategy and members among them.

        Of `generation` and `member_defaults`, only what they name changes.
        """
        changed = _with_strategy(_with_defaults(options, self.member_defaults), self.strategy)
        if isinstance(generation := changed.get("generation"), Mapping):
            changed["generation"] = self.generation.updated(generation)
        return dataclasses.replace(self, **changed)

    @classmethod
    def from_any(cls, value: Mapping[str, Any] | str | Path | EnsembleConfig) -> Self:
        """A config from a mapping of the fields above, the strategy's and the members', or the path of a YAML file."""
        if isinstance(value, cls):
            return value
        if isinstance(value, str | Path):
            value = _read_yaml(Path(value))
        if not isinstance(value, Mapping):
            raise ConfigError(
                f"got {value!r} as ensemble config, expected a mapping or the path of a YAML file",
                hint="to name models, write Ensemble(members=[...])",
            )
        options = _with_strategy(_with_defaults(value, {}), AdaFuse())
        if "members" not in options:
            raise ConfigError("the ensemble config has no 'members'", hint="list at least one model name")
        return cls(**options)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON or YAML; `from_any` reads them back. Members have the fields that they set."""
        values = dataclasses.asdict(self)
        members = [
            {"model": member.model, "name": member.label, **copy.deepcopy(member.own)} for member in self.members
        ]
        return {**values, "members": members, "strategy": self.strategy.name, **values["strategy"]}

    def save(self, path: str | Path) -> None:
        """Write a YAML file that `from_any` and `Ensemble.from_config` read back.

        Tokens, keys and passwords are left out; the log and the first lines of the file name them.

        Raises:
            ConfigError: A value can't be written as YAML, or the file can't be written.
        """
        import yaml

        secrets: list[str] = []
        values = without_secrets(_plain(self.to_dict()), secrets)
        if secrets:
            logger.warning("%s was saved without %s; set them again after reading it", path, ", ".join(secrets))
        told = "".join(f"# left out, as it is secret: {name}\n" for name in secrets)
        try:
            text = told + yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
            Path(path).write_text(text, encoding="utf-8")
        except yaml.YAMLError as error:
            raise ConfigError(
                f"can't save the config: {error}", hint="use texts, numbers, lists and mappings"
            ) from error
        except OSError as error:
            raise ConfigError(f"can't write ensemble config {str(path)!r}: {error.strerror}") from error


def default_config() -> EnsembleConfig:
    """The two small models shipped with the package."""
    return EnsembleConfig(members=tuple(MemberConfig(model=f"small:{name}") for name in NAMES))


# Options of the ensemble that are no options of a call, and what to do instead.
FIXED_IN_CALLS = dict.fromkeys(
    [
        *field_names(EnsembleConfig),
        *SHARED_OPTIONS,
        *(name for kind in STRATEGIES.values() for name in field_names(kind)),
    ],
    "it can't differ from call to call: set it where the ensemble is made",
)


def _plain(value: Any) -> Any:
    """A setting with texts in place of paths and of torch's types, which the loaders take as well."""
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, PurePath):
        return str(value)
    return torch_name(value)


def _read_yaml(path: Path) -> Any:
    import yaml

    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"can't read ensemble config {str(path)!r}: {error.strerror}",
            hint="give the path of a YAML file; to name models, write Ensemble(members=[...])",
        ) from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{str(path)!r} is not valid YAML: {error}") from error


def _named(members: list[MemberConfig], defaults: Mapping[str, Any]) -> tuple[MemberConfig, ...]:
    """The members with the defaults for all, those that would share a name numbered: aspen, aspen-2, aspen-3."""
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
    """The options of an ensemble, fields of `MemberConfig` among them put into `member_defaults`.

    Args:
        options: By name.
        current: The defaults for all members that they change.
    """
    named = options.get("member_defaults", {})
    expect_mapping("member_defaults", named)
    flat = {name: options[name] for name in SHARED_OPTIONS if name in options}
    others = {name: value for name, value in options.items() if name not in flat}
    return {**others, "member_defaults": {**current, **named, **flat}}


def _strategy(named: Any) -> Strategy:
    """A strategy itself, or the one of a name with its default options."""
    if isinstance(named, Strategy):
        return named
    expect_choice("strategy", named, STRATEGIES)
    return STRATEGIES[named]()


def _with_strategy(options: Mapping[str, Any], current: Strategy) -> dict[str, Any]:
    """The options of an ensemble, those of its strategy put into it.

    Args:
        options: By name.
        current: The strategy that they change, unless they name another one.
    """
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

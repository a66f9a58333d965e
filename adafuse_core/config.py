"""What a user can set of an ensemble and of a call, from arguments, dict or YAML.

Defaults are written here and in `member_config.py`, and nowhere else; the command line and the adapters read them from
these classes. Unknown options raise.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from adafuse_core.checks import expect, expect_choice, expect_integer, expect_number, known_options, strings
from adafuse_core.errors import ConfigError
from adafuse_core.member_config import MemberConfig


@dataclass(frozen=True, kw_only=True)
class GenerationParams:
    """What may differ from call to call.

    Args:
        max_new_tokens: Longest answer, in tokens of the first member; the last word is cut where
            the budget ends. None: until the members' context windows are full.
        stop: Strings that end the answer. The first hit and all after it is left out.
        temperature: 0 commits the best candidate. T > 0 draws it with probability proportional to
            exp(-score / T) over the round's candidates (score: fused mean NLL, in nats per token).
        seed: Makes the draws repeatable. None draws a fresh one.
    """

    max_new_tokens: int | None = 256
    stop: tuple[str, ...] = ()
    temperature: float = 0.0
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.max_new_tokens is not None:
            expect_integer("max_new_tokens", self.max_new_tokens, at_least=1)
        if self.seed is not None:
            expect_integer("seed", self.seed)
        expect_number("temperature", self.temperature, at_least=0.0)
        object.__setattr__(self, "stop", strings("stop", self.stop))
        expect(all(self.stop), "stop", self.stop, "non-empty strings")

    def updated(self, options: Mapping[str, Any]) -> Self:
        """A copy with some options changed; unknown ones raise `ConfigError`."""
        return dataclasses.replace(self, **known_options(self.__dataclass_fields__, options, "generation option"))


_MISPLACED = {
    name: f"write generation={{'{name}': ...}}, or give it to generate() and stream()"
    for name in GenerationParams.__dataclass_fields__
}


@dataclass(frozen=True, kw_only=True)
class EnsembleConfig:
    """Members, the strategy that fuses them, and the defaults of generation.

    Args:
        members: At least one; model names, mappings or `MemberConfig`s. Names are made unique.
        strategy: `"adafuse"`, or `"single"` for one member's plain greedy decoding.
        tau: Confidence threshold (τ in the paper), 0..1: a member drafts on while its two likeliest
            next tokens differ by at least this probability. Like the next two, of "adafuse" only.
        max_words: Most words a member drafts per round (M in the paper).
        branches: First tokens tried where a member is unsure (B in the paper).
        max_word_tokens: Most tokens one word may take before it is cut.
        member: With `strategy="single"`, the name of the member that decodes. Default: the first.
        speculation: How members guess ahead; the text is the same with all. `"verify"`: members that share a device
            read the earlier members' candidates in the pass that starts their own draft. `"lookup"`: members look up
            the last tokens in prompt and answer, and read what followed there. `"auto"`: both. `"off"`: neither.
        generation: Defaults of `GenerationParams`.
    """

    members: tuple[MemberConfig, ...]
    strategy: str = "adafuse"
    tau: float = 0.7
    max_words: int = 3
    branches: int = 3
    max_word_tokens: int = 24
    member: str | None = None
    speculation: str = "auto"
    generation: GenerationParams = field(default_factory=GenerationParams)

    def __post_init__(self) -> None:
        if isinstance(self.members, str | Mapping) or not isinstance(self.members, Iterable):
            raise ConfigError(f"got members={self.members!r}, expected a list of members")
        members = _unique_names([MemberConfig.from_any(member) for member in self.members])
        expect(bool(members), "members", self.members, "at least one member")
        object.__setattr__(self, "members", members)
        if isinstance(self.generation, Mapping):
            object.__setattr__(self, "generation", GenerationParams().updated(self.generation))
        expect(isinstance(self.generation, GenerationParams), "generation", self.generation, "a mapping")
        expect_choice("strategy", self.strategy, ("adafuse", "single"))
        expect_choice("speculation", self.speculation, ("auto", "verify", "lookup", "off"))
        expect_number("tau", self.tau, at_least=0.0, at_most=1.0)
        expect_integer("max_words", self.max_words, at_least=1)
        expect_integer("branches", self.branches, at_least=1)
        expect_integer("max_word_tokens", self.max_word_tokens, at_least=1)
        names = tuple(member.label for member in members)
        if self.member is not None:
            expect_choice("member", self.member, names)
            if self.strategy != "single":
                raise ConfigError(
                    f"member={self.member!r} has no meaning for strategy {self.strategy!r}",
                    hint="leave it out, or set strategy='single'",
                )
        self.check_choice(self.generation)

    def check_choice(self, params: GenerationParams) -> None:
        """Refuse draws where there is never more than one candidate to draw from."""
        one_candidate = self.strategy == "single" or (len(self.members) == 1 and self.branches == 1)
        if params.temperature > 0 and one_candidate:
            raise ConfigError(
                f"got temperature={params.temperature}, but strategy {self.strategy!r} "
                f"with {len(self.members)} members and {self.branches} branches has one candidate a round",
                hint="temperature acts on the choice among candidates: use more members or branches, or temperature=0",
            )

    def updated(self, options: Mapping[str, Any]) -> Self:
        """A copy with some options changed; of a `generation` mapping, only what it names."""
        options = known_options(self.__dataclass_fields__, options, "ensemble option", _MISPLACED)
        if isinstance(generation := options.get("generation"), Mapping):
            options["generation"] = self.generation.updated(generation)
        return dataclasses.replace(self, **options)

    @classmethod
    def from_any(cls, value: Mapping[str, Any] | str | Path | EnsembleConfig) -> Self:
        """A config from a mapping of the fields above, or the path of a YAML file holding one."""
        if isinstance(value, cls):
            return value
        if isinstance(value, str | Path):
            value = _read_yaml(Path(value))
        if not isinstance(value, Mapping):
            raise ConfigError(f"got {value!r} as ensemble config, expected a mapping or the path of a YAML file")
        options = known_options(cls.__dataclass_fields__, value, "ensemble option", _MISPLACED)
        if "members" not in options:
            raise ConfigError("the ensemble config has no 'members'", hint="list at least one model name")
        return cls(**options)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON or YAML; `from_any` reads them back."""
        return dataclasses.asdict(self)


def _read_yaml(path: Path) -> Any:
    import yaml

    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"can't read ensemble config {str(path)!r}: {error.strerror}") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{str(path)!r} is not valid YAML: {error}") from error


def _unique_names(members: list[MemberConfig]) -> tuple[MemberConfig, ...]:
    """Number the members that would share a name: aspen, aspen-2, aspen-3."""
    taken: set[str] = set()
    named = []
    for member in members:
        label, number = member.label, 2
        while label in taken:
            label, number = f"{member.label}-{number}", number + 1
        taken.add(label)
        named.append(dataclasses.replace(member, name=label))
    return tuple(named)

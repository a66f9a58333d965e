"""What a user can set: one frozen dataclass per noun, checked once, from arguments, dict or YAML.

Defaults are written here and nowhere else; the command line and the adapters read them from these
classes. Unknown options raise.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from adafuse_core.errors import ConfigError

KV_STORES = ("auto", "tree", "fork", "prefill")
TOOL_DIALECTS = ("hermes", "llama3", "mistral", "plain")


@dataclass(frozen=True, kw_only=True)
class MemberConfig:
    """One language model of the ensemble.

    Args:
        model: Hugging Face model name, local path, or `small:aspen` / `small:birch` for the models
            shipped with this package.
        name: Label in traces and errors. Default: the last part of `model`.
        weight: Weight of this member's vote, > 0. Weights are normalised over the members.
        revision: Branch, tag or commit of the model repository (and of the tokenizer, if it is the same).
        dtype: `"auto"`, `"bfloat16"`, `"float16"`, `"float32"` or `"float64"`.
        device: Such as `"cuda:0"` or `"cpu"`. Default: the first GPU if there is one.
        device_map: As in transformers (`"auto"` or a dict), in place of `device`.
        attn_implementation: As in transformers (`"sdpa"`, `"eager"`, `"flash_attention_2"`, ...).
        quantization_config: Options of a transformers quantization config, with `quant_method`.
        trust_remote_code: As in transformers.
        tokenizer: Name or path of the tokenizer, where it differs from `model`.
        tokenizer_class: `"auto"` (transformers chooses) or `"file"` (exactly the `tokenizer.json`).
        chat_template: Jinja template in place of the tokenizer's own.
        template_kwargs: Variables handed to the chat template, such as `enable_thinking=False`.
        tool_dialect: How it writes tool calls: `"hermes"`, `"llama3"`, `"mistral"` or `"plain"`. Default: as its chat
            template shows. Members that differ are all told the same one.
        end_tokens: Further token strings that end an answer, beside those the model declares.
        context_window: Upper bound on prompt plus answer, in this member's tokens. Default: the model's.
        model_kwargs: Further arguments of `AutoModelForCausalLM.from_pretrained`. `token`, `cache_dir` and
            `local_files_only` are used for the tokenizer too.
        kv_store: How contexts are remembered: `"tree"`, `"fork"`, `"prefill"` (by the model's own cache, within
            a round), or `"auto"` for the fastest of them that reproduces fresh passes of this model
            (`Ensemble.describe()` tells which and why).
        cuda_graphs: Whether passes over a few tokens are recorded as CUDA graphs and replayed, which saves most of the
            time between kernels. Default: on a GPU, where a trial at load shows that replays reproduce fresh passes.
        max_kv_tokens: Most tokens whose keys and values are kept, over all running requests; further requests wait.
            Default: what fits into half of the device's free memory at the time of loading, so set it where several
            members of one device are used to the full.
    """

    model: str
    name: str | None = None
    weight: float = 1.0
    revision: str | None = None
    dtype: str = "auto"
    device: str | None = None
    device_map: str | dict[str, Any] | None = None
    attn_implementation: str | None = None
    quantization_config: dict[str, Any] | None = None
    trust_remote_code: bool = False
    tokenizer: str | None = None
    tokenizer_class: str = "auto"
    chat_template: str | None = None
    template_kwargs: dict[str, Any] = field(default_factory=dict)
    tool_dialect: str | None = None
    end_tokens: tuple[str, ...] = ()
    context_window: int | None = None
    model_kwargs: dict[str, Any] = field(default_factory=dict)
    kv_store: str = "auto"
    cuda_graphs: bool | None = None
    max_kv_tokens: int | None = None

    def __post_init__(self) -> None:
        _expect(isinstance(self.model, str) and bool(self.model), "model", self.model, "a model name or path")
        _expect_number("weight", self.weight, above=0.0)
        _expect_choice("dtype", self.dtype, ("auto", "bfloat16", "float16", "float32", "float64"))
        _expect_choice("tokenizer_class", self.tokenizer_class, ("auto", "file"))
        if self.device is not None and self.device_map is not None:
            raise ConfigError(
                f"device={self.device!r} and device_map={self.device_map!r} are both set",
                member=self.label,
                hint="set one of them",
            )
        if self.tool_dialect is not None:
            _expect_choice("tool_dialect", self.tool_dialect, TOOL_DIALECTS)
        _expect_choice("kv_store", self.kv_store, KV_STORES)
        graphs = self.cuda_graphs
        _expect(graphs is None or isinstance(graphs, bool), "cuda_graphs", graphs, "True, False or None")
        for name in ("context_window", "max_kv_tokens"):
            if (value := getattr(self, name)) is not None:
                expect_integer(name, value, at_least=1)
        object.__setattr__(self, "end_tokens", _strings("end_tokens", self.end_tokens))

    @property
    def label(self) -> str:
        """The name shown to people: `name`, or the last part of `model`."""
        return self.name or self.model.rstrip("/").replace(":", "/").rsplit("/", 1)[-1]

    @property
    def load_key(self) -> str:
        """Identity of what is loaded: two configs with one key share one model in memory."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in ("name", "weight")}
        return json.dumps(values, sort_keys=True, default=repr)

    def __hash__(self) -> int:
        return hash((self.load_key, self.name, self.weight))

    @classmethod
    def from_any(cls, value: str | Path | Mapping[str, Any] | MemberConfig) -> Self:
        """A config from a model name, a path, or a mapping of the fields above."""
        if isinstance(value, cls):
            return value
        if isinstance(value, str | Path):
            return cls(model=str(value))
        if isinstance(value, Mapping):
            options = _known(cls, value, "member option")
            if "model" not in options:
                raise ConfigError(f"the member {options!r} has no 'model'", hint="give a model name or path")
            return cls(**options)
        raise ConfigError(f"got {value!r} as a member, expected a model name, a mapping or a MemberConfig")


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
        _expect_number("temperature", self.temperature, at_least=0.0)
        object.__setattr__(self, "stop", _strings("stop", self.stop))
        _expect(all(self.stop), "stop", self.stop, "non-empty strings")

    def updated(self, options: Mapping[str, Any]) -> Self:
        """A copy with some options changed; unknown ones raise `ConfigError`."""
        return dataclasses.replace(self, **_known(type(self), options, "generation option"))


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
        _expect(bool(members), "members", self.members, "at least one member")
        object.__setattr__(self, "members", members)
        if isinstance(self.generation, Mapping):
            object.__setattr__(self, "generation", GenerationParams().updated(self.generation))
        _expect(isinstance(self.generation, GenerationParams), "generation", self.generation, "a mapping")
        _expect_choice("strategy", self.strategy, ("adafuse", "single"))
        _expect_choice("speculation", self.speculation, ("auto", "verify", "lookup", "off"))
        _expect_number("tau", self.tau, at_least=0.0, at_most=1.0)
        expect_integer("max_words", self.max_words, at_least=1)
        expect_integer("branches", self.branches, at_least=1)
        expect_integer("max_word_tokens", self.max_word_tokens, at_least=1)
        names = tuple(member.label for member in members)
        if self.member is not None:
            _expect_choice("member", self.member, names)
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
        options = _known(type(self), options, "ensemble option")
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
        options = _known(cls, value, "ensemble option")
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


def _known(cls: type[Any], options: Mapping[str, Any], kind: str) -> dict[str, Any]:
    names = [f.name for f in dataclasses.fields(cls)]
    for option in options:
        if option not in names:
            close = difflib.get_close_matches(str(option), names, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known are: {', '.join(names)}"
            if "generation" in names and option in GenerationParams.__dataclass_fields__:
                hint = f"write generation={{'{option}': ...}}, or give it to generate() and stream()"
            raise ConfigError(f"unknown {kind} {option!r}", hint=hint)
    return dict(options)


def _strings(name: str, value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    _expect(isinstance(value, Iterable), name, value, "strings")
    values = (value,) if isinstance(value, str) else tuple(value)
    _expect(all(isinstance(item, str) for item in values), name, value, "strings")
    return values


def _expect(holds: bool, name: str, value: Any, expected: str) -> None:
    if not holds:
        raise ConfigError(f"got {name}={value!r}, expected {expected}")


def _expect_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    _expect(value in choices, name, value, "one of " + ", ".join(map(repr, choices)))


def expect_integer(name: str, value: Any, *, at_least: int | None = None) -> None:
    """Refuse what is no integer, or too small a one, by a `ConfigError` that says what was got."""
    expected = "an integer" if at_least is None else f"an integer of at least {at_least}"
    right = isinstance(value, int) and not isinstance(value, bool)
    _expect(right and (at_least is None or value >= at_least), name, value, expected)


def _expect_number(
    name: str, value: Any, *, above: float | None = None, at_least: float | None = None, at_most: float | None = None
) -> None:
    bounds = [f"above {above}"] * (above is not None) + [f"of at least {at_least}"] * (at_least is not None)
    bounds += [f"of at most {at_most}"] * (at_most is not None)
    right = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    holds = (
        right
        and (above is None or value > above)
        and (at_least is None or value >= at_least)
        and (at_most is None or value <= at_most)
    )
    _expect(holds, name, value, " and ".join(["a number " + bounds[0], *bounds[1:]]))

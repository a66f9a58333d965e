"""Options of one member. Unknown options raise an error."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from adafuse_core.chat.dialects import DIALECTS
from adafuse_core.checks import (
    expect,
    expect_choice,
    expect_integer,
    expect_mapping,
    expect_number,
    field_names,
    known_options,
    strings,
    torch_name,
    with_hidden_secrets,
)
from adafuse_core.errors import ConfigError

KV_STORES = ("auto", "tree", "fork", "prefill")
_TEXTS = ("name", "adapter", "revision", "device", "attn_implementation", "tokenizer", "chat_template")
_MAPPINGS = ("backend_options", "quantization_config", "template_kwargs", "model_kwargs")
_NOT_SHARED = ("model", "adapter", "name", "weight")  # fields that `member_defaults` can't set
# By field: the default for all members does not apply to a member that sets one of these other fields.
_REPLACED_BY = {"device": ("device_map",), "device_map": ("device",), "backend_options": ("backend",)}


@dataclass(frozen=True, kw_only=True, repr=False)
class MemberConfig:
    """One language model of the ensemble.

    Args:
        model: Hugging Face model name, path of a model folder or GGUF file, `"owner/name:x.gguf"` for a GGUF file of a
            repository, or `small:aspen` / `small:birch` for the models shipped with this package. A PEFT adapter is
            loaded together with the base model that it names.
        adapter: Name or path of a PEFT adapter for `model`. Members that load the same model with the same options
            share its weights in memory, with different adapters or without one.
        name: Name in traces and errors. Default: the last part of `adapter` or `model`, without `.gguf`.
        weight: Weight of this member's scores, > 0. Weights are normalised over the members.
        revision: Branch, tag or commit of the model repository, and of the tokenizer if it is in the same repository.
        gguf_file: Name of the GGUF file to load from the repository or folder `model`, as in transformers.
        backend: Backend that runs the model, a name in `adafuse_core.backends.BACKENDS`. `"local"` runs it in this
            process, `"ray"` in an actor of a Ray cluster, `"vllm"` and `"sglang"` on a server.
        backend_options: Options of the backend's class, such as `adafuse_core.backends.remote.ray.Ray` or
            `adafuse_core.backends.servers.vllm.VLLM`. The local backend has none.
        dtype: Data type of the weights: `"auto"`, `"bfloat16"`, `"float16"`, `"float32"` or `"float64"`, or a
            `torch.dtype`. `"auto"` is the data type of the files, and bfloat16 for quantized GGUF files.
        device: Device of the model, such as `"cuda:0"`, `"cpu"` or a `torch.device`. Default: the first GPU if there
            is one.
        device_map: Placement of the layers on devices, as in transformers (`"auto"` or a dict); replaces `device`.
        attn_implementation: Attention kernel, as in transformers (`"sdpa"`, `"eager"`, `"flash_attention_2"`, ...).
        quantization_config: Fields of a transformers quantization config, including `quant_method`.
        trust_remote_code: Whether code in the model repository may run, as in transformers.
        tokenizer: Name or path of the tokenizer, if it differs from `model`.
        tokenizer_class: `"auto"` (chosen by transformers) or `"file"` (exactly the `tokenizer.json`).
        chat_template: Jinja template that replaces the tokenizer's chat template.
        template_kwargs: Variables of the chat template, such as `enable_thinking=False`.
        tool_dialect: Format of tool calls: `"hermes"`, `"llama3"`, `"mistral"` or `"plain"`. Default: the format in the
            chat template. If the members' formats differ, all members are instructed in `"hermes"`.
        end_tokens: Token strings that end an answer, in addition to those the model declares.
        context_window: Maximum tokens of prompt plus answer. Default: the model's context window.
        model_kwargs: Additional arguments of `AutoModelForCausalLM.from_pretrained`. Arguments that locate files, such
            as `token`, `cache_dir`, `local_files_only` and `subfolder`, also apply to config and tokenizer.
        kv_store: KV cache implementation: `"tree"`, `"fork"`, `"prefill"` (the model's own cache, within one round), or
            `"auto"` for the fastest one that reproduces uncached forward passes of this model (`Ensemble.describe()`
            shows which one, and why).
        selftest: `"cached"` to test the model at its first load only, and keep the verdict on disk until the model, the
            hardware, these options or a package changes; `"always"` to test it at every load.
        cuda_graphs: Whether forward passes over a few tokens run as CUDA graphs, which avoids most of the time between
            kernels. Default: on a GPU, if a test at load time shows that they reproduce uncached forward passes.
        max_kv_tokens: Capacity of the KV cache in tokens, over all running requests; further requests wait. Default:
            what fits into half of the device's free memory at load time. Set it if several members share a device and
            run long prompts.
        prefix_cache: Whether keys and values outlive their request, so that later requests with a common beginning read
            only what is new. What is kept is evicted when running requests need its room, and takes at most
            `max_kv_tokens`; if that is not set, a quarter of its default.
    """

    model: str
    adapter: str | None = None
    name: str | None = None
    weight: float = 1.0
    revision: str | None = None
    gguf_file: str | None = None
    backend: str = "local"
    backend_options: Mapping[str, Any] = field(default_factory=dict)
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
    selftest: str = "cached"
    cuda_graphs: bool | None = None
    max_kv_tokens: int | None = None
    prefix_cache: bool = True

    def __new__(cls, **given: Any) -> Self:
        """Record which fields are set, even to their default values."""
        config = super().__new__(cls)
        object.__setattr__(config, "_set_fields", frozenset(given))
        return config

    def __post_init__(self) -> None:
        for name in ("model", "adapter", "tokenizer"):
            if isinstance(path := getattr(self, name), Path):
                object.__setattr__(self, name, str(path))
        for name in ("dtype", "device"):
            object.__setattr__(self, name, torch_name(getattr(self, name)))
        if to_dict := getattr(self.quantization_config, "to_dict", None):  # an object of transformers
            object.__setattr__(self, "quantization_config", to_dict())
        expect(isinstance(self.model, str) and bool(self.model), "model", self.model, "a model name or path")
        for name in _TEXTS:
            value = getattr(self, name)
            expect(value is None or (isinstance(value, str) and bool(value)), name, value, "a text or None")
        expect_number("weight", self.weight, above=0.0)
        expect_choice("dtype", self.dtype, ("auto", "bfloat16", "float16", "float32", "float64"))
        expect_choice("tokenizer_class", self.tokenizer_class, ("auto", "file"))
        if self.device is not None and self.device_map is not None:
            raise ConfigError(
                f"device={self.device!r} and device_map={self.device_map!r} are both set",
                member=self.label,
                hint="set one of them",
            )
        if self.tool_dialect is not None:
            expect_choice("tool_dialect", self.tool_dialect, DIALECTS)
        expect_choice("kv_store", self.kv_store, KV_STORES)
        expect_choice("selftest", self.selftest, ("cached", "always"))
        graphs = self.cuda_graphs
        expect(graphs is None or isinstance(graphs, bool), "cuda_graphs", graphs, "True, False or None")
        for name in ("context_window", "max_kv_tokens"):
            if (value := getattr(self, name)) is not None:
                expect_integer(name, value, at_least=1)
        object.__setattr__(self, "end_tokens", strings("end_tokens", self.end_tokens))
        for name in _MAPPINGS:
            if (value := getattr(self, name)) is not None or name != "quantization_config":
                expect_mapping(name, value)
        for name in ("trust_remote_code", "prefix_cache"):
            expect(isinstance(value := getattr(self, name), bool), name, value, "True or False")

    @property
    def label(self) -> str:
        """`name`, or the last part of `adapter` or `model`, without `.gguf`."""
        path = (self.adapter or self.model).rstrip("/").replace(":", "/")
        return self.name or path.rsplit("/", 1)[-1].removesuffix(".gguf")

    @property
    def own(self) -> dict[str, Any]:
        """The fields that were set for this member; `member_defaults` apply to the others."""
        given: frozenset[str] = self.__dict__["_set_fields"]
        return {name: getattr(self, name) for name in field_names(self) if name in given}

    def with_defaults(self, defaults: Mapping[str, Any], name: str) -> Self:
        """A copy with this name, and with the defaults for all fields that this member does not set."""
        own = self.own
        blocked = {option for option, others in _REPLACED_BY.items() if any(other in own for other in others)}
        applied = {option: value for option, value in defaults.items() if option not in blocked}
        config = type(self)(**{**applied, **own, "name": name})
        object.__setattr__(config, "_set_fields", frozenset(own))
        return config

    @property
    def load_key(self) -> str:
        """Key of the loaded model: configs with equal keys share one model in memory. It has no secrets."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in ("name", "weight")}
        return json.dumps(with_hidden_secrets(values), sort_keys=True, default=repr)

    def __repr__(self) -> str:
        values = with_hidden_secrets({f.name: getattr(self, f.name) for f in dataclasses.fields(self)})
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in values.items())})"

    def __hash__(self) -> int:
        return hash((self.load_key, self.name, self.weight))

    @classmethod
    def from_any(cls, value: str | Path | Mapping[str, Any] | MemberConfig) -> Self:
        """A config from a model name, a path, or a mapping of fields."""
        if isinstance(value, cls):
            return value
        if isinstance(value, str | Path):
            return cls(model=str(value))
        if isinstance(value, Mapping):
            options = known_options(field_names(cls), value, "member option")
            if "model" not in options:
                raise ConfigError(
                    f"the member {with_hidden_secrets(options)!r} has no 'model'", hint="set it to a model name or path"
                )
            return cls(**options)
        raise ConfigError(
            f"got {value!r} as a member, expected a model name, a mapping or a MemberConfig",
            hint="pass member objects to Ensemble(members=[...]); adapters accept the ensemble in from_ensemble()",
        )


SHARED_OPTIONS = tuple(name for name in field_names(MemberConfig) if name not in _NOT_SHARED)


def checked_defaults(defaults: Any) -> dict[str, Any]:
    """Check `member_defaults`, by the rules for a single member.

    Raises:
        ConfigError: A field is unknown, has a value out of range, or can't be the same for all members.
    """
    expect_mapping("member_defaults", defaults)
    hints = dict.fromkeys(_NOT_SHARED, "set it in the mapping of one member")
    known = known_options(SHARED_OPTIONS, defaults, "default for all members", hints)
    checked = MemberConfig(model="all members", **known)
    return {name: getattr(checked, name) for name in known}

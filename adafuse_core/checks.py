"""Validation of options. Errors say what was got and what was expected."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import math
from collections.abc import Iterable, Mapping, Set
from typing import Any

from adafuse_core.errors import AdaFuseError, ConfigError

# Hints for options of other libraries and services.
_FOREIGN_OPTIONS = {
    "AdaFuse samples among the candidates of a round, never among single tokens: use temperature and seed": (
        *("top_p", "top_k", "top_a", "min_p", "typical_p", "tfs_z", "epsilon_cutoff", "eta_cutoff", "mirostat"),
        *("dynatemp_range", "xtc_probability", "sampler", "sampling_params"),
    ),
    "temperature above 0 samples among the candidates, temperature=0 takes the best one": ("do_sample",),
    "the members' probabilities can't be changed: use stop, grammar or temperature": (
        *("repetition_penalty", "frequency_penalty", "presence_penalty", "repeat_penalty", "length_penalty"),
        *("repeat_last_n", "no_repeat_ngram_size", "logit_bias", "bad_words_ids", "logits_processor", "penalty_alpha"),
    ),
    "a call generates one answer: call several times, with temperature above 0 and different seeds": (
        *("n", "best_of", "num_return_sequences", "candidate_count"),
    ),
    "use beams, the number of continuations that the default strategy keeps": (
        *("num_beams", "num_beam_groups", "beam_size", "early_stopping", "use_beam_search"),
    ),
    "did you mean 'max_new_tokens'?": ("max_tokens", "max_token", "max_completion_tokens"),
    "use max_new_tokens": (
        *("max_length", "max_output_tokens", "max_tokens_to_sample", "max_gen_len", "num_predict", "n_predict"),
    ),
    "the length of an answer has an upper bound only, max_new_tokens": (
        *("min_length", "min_new_tokens", "min_tokens"),
    ),
    "use stop": ("stop_sequences", "stop_strings", "stop_words", "stopping_criteria", "stop_sequence"),
    "set end_tokens of the member": ("eos_token_id", "eos_token", "stop_token_ids", "pad_token_id"),
    "use temperature": ("temp",),
    "set model_kwargs={'cache_dir': ...} of the member": ("cache_dir", "cache_folder", "download_dir"),
    "use seed": ("random_seed", "random_state"),
    "set logprobs=True; scores of all candidates are in the trace": ("top_logprobs", "output_scores", "echo"),
    "to stream, call a streaming method such as stream()": ("streaming", "stream"),
    "name the models in members=[...]": (
        *("model", "model_name", "model_id", "model_path", "models", "repo_id", "engine", "deployment_name"),
        *("tokenizer_name", "llm", "llms"),
    ),
    "name the models in members=[...]; a member on a server has backend='vllm' and backend_options={'base_url': ...}": (
        *("api_base", "base_url", "endpoint_url", "openai_api_base", "api_version", "api_type", "host"),
        *("openai_api_key", "organization", "default_headers"),
    ),
    "set model_kwargs={'token': ...} of the member, or backend_options={'api_key': ...} for a member on a server": (
        *("api_key", "token", "use_auth_token", "huggingfacehub_api_token"),
    ),
    "pass cancel=threading.Event() and set the event from a timer; adapters have a timeout": (
        *("request_timeout", "timeout", "max_time"),
    ),
    "use dtype": ("torch_dtype", "precision", "half"),
    "use quantization_config, such as {'quant_method': 'bitsandbytes', 'load_in_4bit': True}": (
        *("load_in_4bit", "load_in_8bit", "quantization", "quantization_bit"),
    ),
    "use context_window of the member": ("n_ctx", "num_ctx", "max_model_len", "context_length", "max_seq_len"),
    "use device_map": ("n_gpu_layers", "num_gpu", "gpu_layers", "tensor_parallel_size", "device_id", "gpu_memory"),
    "call from_ensemble(ensemble)": ("ensemble",),
    "pass each generation option as an argument, such as max_new_tokens": ("generation",),
    "set weight of each member": ("weight", "weights", "member_weights"),
    "use tools": ("functions",),
    "use tool_choice": ("function_call",),
    "use grammar, such as Grammar.json_schema(...)": (
        *("response_format", "json_mode", "json_schema", "guided_json", "guided_regex", "format", "format_schema"),
    ),
    "pass the conversation as a list of messages, the system message first": ("system", "system_prompt"),
}
_HINTS = {name: hint for hint, names in _FOREIGN_OPTIONS.items() for name in names}
_SECRET_ENDINGS = ("token", "key", "secret", "password")
_MIN_SIMILARITY = 0.75  # ratio of `difflib` from which a name counts as a misspelling of another
_MIN_SIMILARITY_OF_SHORT = 0.6  # of names of up to four letters, of which one is much


def expect(holds: bool, name: str, value: Any, expected: str) -> None:
    """Raise `ConfigError` unless the condition holds."""
    if not holds:
        raise ConfigError(f"got {name}={value!r}, expected {expected}")


def expect_choice(name: str, value: Any, choices: Iterable[str]) -> None:
    """Raise `ConfigError` unless the value is one of the choices."""
    names = tuple(choices)
    expect(isinstance(value, str) and value in names, name, value, "one of " + ", ".join(map(repr, names)))


def expect_integer(name: str, value: Any, *, at_least: int | None = None) -> None:
    """Raise `ConfigError` unless the value is an integer within the bound."""
    expected = "an integer" if at_least is None else f"an integer of at least {at_least}"
    valid = isinstance(value, int) and not isinstance(value, bool)
    expect(valid and (at_least is None or value >= at_least), name, value, expected)


def expect_number(
    name: str, value: Any, *, above: float = -math.inf, at_least: float = -math.inf, at_most: float = math.inf
) -> None:
    """Raise `ConfigError` unless the value is a finite number within the bounds."""
    bounds = (("above", above), ("of at least", at_least), ("of at most", at_most))
    expected = " and ".join(f"{word} {bound}" for word, bound in bounds if math.isfinite(bound))
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    expect(number and value > above and at_least <= value <= at_most, name, value, f"a number {expected}".strip())


def strings(name: str, value: Any) -> tuple[str, ...]:
    """A tuple of strings from one string, several strings or None."""
    if value is None:
        return ()
    expect(isinstance(value, Iterable) and not isinstance(value, Mapping), name, value, "strings")
    values = (value,) if isinstance(value, str) else tuple(value)
    expect(all(isinstance(item, str) for item in values), name, value, "strings")
    return values


def expect_encodable(name: str, value: str) -> None:
    """Raise `ConfigError` unless a text has a form in UTF-8, which lone surrogates lack."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"got {name}={value[:60]!r}, which is not valid Unicode at character {error.start}",
            hint="remove or replace this character",
        ) from error


def expect_mapping(name: str, value: Any) -> None:
    """Raise `ConfigError` unless the value is a mapping with string keys."""
    valid = isinstance(value, Mapping) and all(isinstance(key, str) for key in value)
    expect(valid, name, value, "a mapping of names to values")


def torch_name(value: Any) -> Any:
    """The name of torch's own dtypes and devices, such as "bfloat16"; other values as they are."""
    kind = type(value)
    known = kind.__module__ == "torch" and kind.__name__ in ("dtype", "device")
    return str(value).removeprefix("torch.") if known else value


def is_secret(name: str, value: Any) -> bool:
    """Whether an option is a token, a key or a password."""
    return isinstance(value, str) and name.lower().endswith(_SECRET_ENDINGS)


def hidden(secret: str) -> str:
    """A short hash in place of a secret, so that different secrets stay distinct."""
    return f"hidden-{hashlib.sha256(secret.encode()).hexdigest()[:8]}"


def with_hidden_secrets(value: Any, name: str = "") -> Any:
    """A copy of an option in which tokens, keys and passwords are hidden.

    Args:
        value: Nested mappings, lists and plain values.
        name: Name of the option.
    """
    if isinstance(value, Mapping):
        return {key: with_hidden_secrets(item, str(key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(with_hidden_secrets(item, name) for item in value)
    return hidden(value) if is_secret(name, value) else value


def without_secrets(value: Any, left_out: list[str], path: str = "") -> Any:
    """A copy of an option without tokens, keys and passwords.

    Args:
        value: Nested mappings, lists and plain values.
        left_out: Receives the path of each secret, such as `members[0].model_kwargs.token`.
        path: Path of `value`.
    """
    if isinstance(value, list | tuple):
        return [without_secrets(item, left_out, f"{path}[{place}]") for place, item in enumerate(value)]
    if not isinstance(value, Mapping):
        return value
    below = {name: f"{path}.{name}".removeprefix(".") for name in value}
    left_out += [below[name] for name, item in value.items() if is_secret(str(name), item)]
    return {
        name: without_secrets(item, left_out, below[name])
        for name, item in value.items()
        if not is_secret(str(name), item)
    }


def several(name: str, value: Any, hint: str, error: type[AdaFuseError] = ConfigError) -> list[Any]:
    """A list from an ordered iterable. Strings, mappings, sets and pydantic models raise an error."""
    pydantic_model = hasattr(value, "model_fields_set")  # iterates over its fields
    if isinstance(value, str | bytes | Mapping | Set) or pydantic_model or not isinstance(value, Iterable):
        raise error(f"got {name}={value!r}, expected a list", hint=hint)
    return list(value)


def field_names(cls: Any) -> tuple[str, ...]:
    """Names of the fields of a dataclass."""
    return tuple(field.name for field in dataclasses.fields(cls))


def known_options(
    known: Iterable[str], options: Mapping[str, Any], kind: str, hints: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Check that all options are known.

    Args:
        known: Names of the known options.
        options: Options by name.
        kind: Noun for an option in the error.
        hints: Passed to `option_hint`.
    """
    names = list(known)
    for option in options:
        if option not in names:
            raise ConfigError(f"unknown {kind} {option!r}", hint=option_hint(str(option), names, hints))
    return dict(options)


def option_hint(option: str, known: Iterable[str], hints: Mapping[str, str] | None = None) -> str:
    """A hint for an unknown option: its replacement, or the known option that is spelled similarly.

    Args:
        option: Name of the unknown option.
        known: Names of the known options.
        hints: Hints by option name. They take precedence over the hints for options of other libraries.
    """
    names = list(known)
    by_name = {
        **_HINTS,
        **{name: f"did you mean {name!r}? {hint}" for name, hint in (hints or {}).items()},
        **{name.lower(): f"did you mean {name!r}?" for name in names},
    }
    written = option.lower().replace("-", "_")
    if option in (hints or {}):
        return (hints or {})[option]
    if written not in by_name:
        cutoff = _MIN_SIMILARITY if len(written) > 4 else _MIN_SIMILARITY_OF_SHORT
        close = difflib.get_close_matches(written, by_name, n=1, cutoff=cutoff)
        return by_name[close[0]] if close else f"known options: {', '.join(names) or 'none'}"
    return by_name[written]

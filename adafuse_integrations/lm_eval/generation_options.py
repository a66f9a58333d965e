"""Generation options of the harness as options of `Ensemble.stream`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adafuse_core import ConfigError, GenerationParams

_BUDGETS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # the first one given counts
_NEUTRAL = {"top_p": (1,), "top_k": (0, -1), "min_p": (0,), "typical_p": (1,), "num_beams": (1,), "use_cache": (True,)}
_SAMPLING = ("top_p", "top_k", "min_p", "typical_p")  # without effect if nothing is sampled


def generation_options(given: Mapping[str, Any], defaults: GenerationParams, index: int) -> dict[str, Any]:
    """Options of `Ensemble.stream` for a request of `generate_until`.

    Args:
        given: Generation options of the task. `until`, `max_gen_toks` (and its other names), `do_sample`, `temperature`
            and `seed` are honoured; as in the harness, `do_sample: false` means temperature 0.
        defaults: Options of the ensemble: its token budget applies where the task has none, its stop strings are added
            to those of the task, and its seed is the default.
        index: Number of the request. It is added to the seed, so that the samples of a repeated request differ.

    Raises:
        ConfigError: Another option is set, or sampling is asked for without a temperature.
    """
    rest = {name: value for name, value in given.items() if value is not None}
    until = rest.pop("until", ())
    stop = (until,) if isinstance(until, str) else tuple(until)
    budgets = [rest.pop(name) for name in _BUDGETS if name in rest]
    seed = rest.pop("seed", defaults.seed)
    temperature = _temperature(rest.pop("do_sample", None), float(rest.pop("temperature", 0.0)))
    _refuse_others(rest, temperature)
    return {
        "max_new_tokens": int(budgets[0]) if budgets else defaults.max_new_tokens,
        "stop": tuple(dict.fromkeys((*(text for text in stop if text), *defaults.stop))),
        "temperature": temperature,
        "seed": None if seed is None else seed + index,
    }


def _temperature(do_sample: bool | None, temperature: float) -> float:
    if do_sample and temperature == 0:
        raise ConfigError(
            "got do_sample=true without a temperature",
            hint="set a temperature above 0: an ensemble samples among the candidates of a round, not among tokens",
        )
    return 0.0 if do_sample is False else temperature


def _refuse_others(rest: Mapping[str, Any], temperature: float) -> None:
    for name, value in rest.items():
        if value in _NEUTRAL.get(name, ()) or (name in _SAMPLING and temperature == 0):
            continue
        raise ConfigError(
            f"got generation option {name}={value!r}, which an ensemble can't honour",
            hint=f"leave it out; known options: until, {', '.join(_BUDGETS)}, do_sample, temperature, seed",
        )

"""Adds PEFT adapters to loaded models."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers.utils import is_peft_available

from adafuse_core.backends.locations import Location
from adafuse_core.errors import ModelLoadError, ModelNotFoundError, UnsupportedModelError

logger = logging.getLogger(__name__)

_CONFIG = "adapter_config.json"
_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
# Adapters that only change layers, so that the model's own forward pass is that of the adapted model.
KINDS = (
    *("ADALORA", "BOFT", "FOURIERFT", "HRA", "IA3", "LN_TUNING", "LOHA", "LOKR", "LORA", "OFT", "TRAINABLE_TOKENS"),
)
# Initial values of LoRA weights that leave the weights of the base model as they are.
_PLAIN_STARTS = (True, False, "gaussian", "eva", "orthogonal")
_NEED_MORE = ("alora_invocation_tokens", "arrow_config")  # LoRA variants whose effect depends on more than the layers


def add_adapter(model: Any, adapter: Location, base: str) -> None:
    """Add the layers of an adapter to a model, in the model's dtype. Tensors of the model are never written.

    Args:
        model: A model of transformers. Its modules change; its tensors may be shared with other models.
        adapter: Location of the adapter.
        base: Name of the model, for messages.

    Raises:
        UnsupportedModelError: The package peft is missing, or the adapter is of a kind that is not supported.
        ModelNotFoundError: A file of the adapter is missing.
        ModelLoadError: The adapter does not fit the model.
    """
    if not is_peft_available():
        raise UnsupportedModelError(
            f"{adapter.source!r} is a PEFT adapter, and the package peft is missing",
            hint='pip install "adafuse[peft]"',
        )
    folder = _folder(adapter)
    from peft import PeftConfig

    config = PeftConfig.from_pretrained(folder)
    config.inference_mode = True
    _check_kind(adapter, config)
    if (declared := config.base_model_name_or_path) and declared != base:
        logger.info("the adapter %s names the base model %s, and is used with %s", adapter.source, declared, base)
    try:
        problem = _load(model, config, folder)
    except (RuntimeError, ValueError) as error:  # sizes differ; layers are missing
        problem = " ".join(str(error).split())
    if problem:
        raise ModelLoadError(
            f"the adapter {adapter.source!r} does not fit the model {base!r}: {problem}",
            hint=f"use it with the base model that it was trained on, which is {declared!r} by its {_CONFIG}; if its "
            "training added tokens, save that model with the resized vocabulary and name it as the base model",
        )


def _folder(adapter: Location) -> str:
    """The local folder of an adapter, whose files are downloaded if necessary."""
    if (description := adapter.file(_CONFIG)) is None:
        raise ModelNotFoundError(
            f"{adapter.source!r} has no {_CONFIG}, so it is not a PEFT adapter",
            hint="give the folder or the repository of an adapter that peft has saved",
        )
    if not any(adapter.file(name) for name in _WEIGHTS):
        raise ModelNotFoundError(
            f"the adapter {adapter.source!r} has no weights, expected a file {' or '.join(_WEIGHTS)}",
            hint="save it with save_pretrained() of peft",
        )
    return str(Path(description).parent)


def _check_kind(adapter: Location, config: Any) -> None:
    """Refuse adapters that add tokens to the context, need code beside the layers, or change the base model."""
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    if kind not in KINDS:
        raise UnsupportedModelError(
            f"{adapter.source!r} is an adapter of type {kind}, expected one of {', '.join(KINDS)}",
            hint="a member's adapter may change the layers of the model, but not the context or the way it is run",
        )
    for option in _NEED_MORE:
        if getattr(config, option, None) is not None:
            raise UnsupportedModelError(
                f"{adapter.source!r} is a LoRA adapter with {option}, which is not supported",
                hint="use a plain LoRA adapter, or one with DoRA or rsLoRA",
            )
    if (start := getattr(config, "init_lora_weights", True)) not in _PLAIN_STARTS:
        raise UnsupportedModelError(
            f"{adapter.source!r} has init_lora_weights={start!r}, which changes the weights of the base model",
            hint="convert it to a plain LoRA adapter, with path_initial_model_for_weight_conversion of peft's "
            "save_pretrained()",
        )


def _load(model: Any, config: Any, folder: str) -> str | None:
    """Add layers, read their weights, and convert them to the model's dtype; returns why that is impossible."""
    from peft import inject_adapter_in_model, load_peft_weights, set_peft_model_state_dict
    from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING

    dtype = model.dtype
    own = {id(tensor) for tensor in _tensors(model).values()}
    inject_adapter_in_model(config, model)
    before = _tensors(model)
    weights = load_peft_weights(folder, device="cpu")
    weights = {name.removeprefix("base_model.model."): tensor for name, tensor in weights.items()}
    # With `low_cpu_mem_usage`, tensors are replaced instead of written.
    read: Any = set_peft_model_state_dict(model, weights, low_cpu_mem_usage=True)
    prefix = PEFT_TYPE_TO_PREFIX_MAPPING[config.peft_type]
    missing = [name for name in read.missing_keys if prefix in name]
    if missing or read.unexpected_keys:
        few = ", ".join([*missing, *read.unexpected_keys][:3])
        return f"{len(missing)} of its tensors are missing and {len(read.unexpected_keys)} are unknown ({few})"
    for name, tensor in _tensors(model).items():
        if id(tensor) not in own:
            tensor.data = tensor.data.to(before[name].device, dtype if tensor.is_floating_point() else None)
    return _restore_tensors(model, {name: tensor for name, tensor in before.items() if id(tensor) in own})


def _restore_tensors(model: Any, before: Mapping[str, torch.Tensor]) -> str | None:
    """Share the base model's tensors again that the adapter's file merely repeats; returns what it changes wrongly."""
    uses = Counter(id(tensor) for tensor in before.values())
    after = _tensors(model)
    for name, tensor in before.items():
        if after[name] is not tensor and torch.equal(after[name], tensor):
            part, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(part), attribute, tensor)
        elif after[name] is not tensor and uses[id(tensor)] > 1:
            return f"it replaces {name}, which the model also uses in another place"
    return None


def _tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers of a model by name, tied ones by every name."""
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }

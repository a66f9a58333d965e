"""A model by itself: greedy `generate` of transformers with its KV cache, the baseline for given models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import common


class OwnGenerate:
    """One model as transformers runs it, not shared with the ensemble.

    Args:
        model: Hugging Face name, folder, or `small:NAME`.
        device: Device in PyTorch's notation.
        dtype: Data type of the weights, or "auto" for that of the saved weights.

    Attributes:
        forwards: Forward passes so far.
        tokens: Tokens read so far.
    """

    def __init__(self, model: str, device: str, dtype: str) -> None:
        source = common.folder_of(model)
        self.tokenizer = AutoTokenizer.from_pretrained(source)
        self.module = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, device_map=device).eval()
        self.module.register_forward_pre_hook(self._count, with_kwargs=True)
        self.forwards = self.tokens = 0

    def encode(self, prompt: str | Sequence[Mapping[str, str]]) -> Any:
        """Token ids of a plain text, or of a conversation in the model's chat template."""
        if isinstance(prompt, str):
            return self.tokenizer(prompt, return_tensors="pt").to(self.module.device)
        return self.tokenizer.apply_chat_template(
            list(prompt), add_generation_prompt=True, return_tensors="pt", return_dict=True
        ).to(self.module.device)

    def answer(self, prompt: str | Sequence[Mapping[str, str]], budget: int) -> str:
        """The greedy answer of at most `budget` tokens."""
        return self.decode(self.token_ids(prompt, budget))

    def token_ids(self, prompt: str | Sequence[Mapping[str, str]], budget: int) -> list[int]:
        """The tokens of the greedy answer, with the end token if it was written."""
        inputs = self.encode(prompt)
        with torch.inference_mode():
            output = self.module.generate(
                **inputs, max_new_tokens=budget, do_sample=False, use_cache=True, disable_compile=True
            )
        ids: list[int] = output[0, inputs["input_ids"].shape[1] :].tolist()
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, without control tokens."""
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def _count(self, _: Any, arguments: tuple[Any, ...], options: Mapping[str, Any]) -> None:
        ids = arguments[0] if arguments else options["input_ids"]
        self.forwards += 1
        self.tokens += ids.numel()

"""One forward pass of a Hugging Face model, under the model's lock and without gradients."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache


class Model:
    """A causal language model of transformers, with just the call that the engine makes.

    Attributes:
        forwards: Forward passes so far.
        tokens: Tokens read so far, padding included.
    """

    def __init__(self, model: Any) -> None:
        self.module = model.eval()
        self.forwards = 0
        self.tokens = 0
        self._lock = threading.Lock()
        self._keeps = "logits_to_keep" in inspect.signature(model.forward).parameters

    @property
    def device(self) -> torch.device:
        """Where input ids go; offloaded embeddings say where they run."""
        embeddings = self.module.get_input_embeddings()
        device: torch.device = embeddings.weight.device
        if device.type == "meta":
            device = torch.device(embeddings._hf_hook.execution_device)
        return device

    @property
    def vocab_size(self) -> int:
        """Token ids that can be read."""
        return int(self.module.get_input_embeddings().weight.shape[0])

    def new_cache(self) -> DynamicCache:
        """An empty cache with the layer kinds this model wants."""
        return DynamicCache(config=self.module.config)

    def forward(self, rows: Sequence[Sequence[int]], cache: Any = None, *, last_only: bool = False) -> torch.Tensor:
        """Read rows of token ids after what is in the cache, which grows by them.

        Args:
            rows: `[rows, tokens]`, of one length.
            cache: Of the same number of rows, or None to use none.
            last_only: Only the logits after the last token are needed.

        Returns:
            `[rows, tokens, vocab]`, or `[rows, 1, vocab]`.
        """
        options: dict[str, Any] = {"use_cache": cache is not None}
        if cache is not None:
            options["past_key_values"] = cache
        if last_only and self._keeps:
            options["logits_to_keep"] = 1
        with self._lock, torch.inference_mode():
            self.forwards += 1
            self.tokens += len(rows) * len(rows[0])
            input_ids = torch.tensor(rows, dtype=torch.long, device=self.device)
            logits: torch.Tensor = self.module(input_ids=input_ids, **options).logits
            return logits[:, -1:] if last_only else logits

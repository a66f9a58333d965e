"""One forward pass of a Hugging Face model, under the model's lock and without gradients."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from transformers import DynamicCache

from adafuse_core.engine.linear_layers import speed_up_linear_layers
from adafuse_core.engine.pass_costs import PassCosts
from adafuse_core.forks import PassLock


class Model:
    """A causal language model of transformers, with the calls that the engine needs.

    Attributes:
        forwards: Forward passes so far.
        tokens: Tokens read so far, padding included.
        costs: What a token adds to a pass.
        rounding_error: Rounding error of the logits, see `rounding.py`; 0 if it was not measured.
    """

    def __init__(self, model: Any) -> None:
        self.module = model.eval()
        speed_up_linear_layers(model)
        self.forwards = 0
        self.tokens = 0
        self.costs = PassCosts()
        self.rounding_error = 0.0
        self._lock = PassLock()
        self._takes_logits_to_keep = "logits_to_keep" in inspect.signature(model.forward).parameters

    @property
    def device(self) -> torch.device:
        """Device of the input ids; for offloaded embeddings, the device that computes them."""
        embeddings = self.module.get_input_embeddings()
        device: torch.device = embeddings.weight.device
        if device.type == "meta":
            device = torch.device(embeddings._hf_hook.execution_device)
        return device

    @property
    def vocab_size(self) -> int:
        """Number of token ids that the model can read."""
        return int(self.module.get_input_embeddings().weight.shape[0])

    def new_cache(self) -> DynamicCache:
        """An empty cache with the layer types of this model."""
        return DynamicCache(config=self.module.config)

    def forward(self, rows: Sequence[Sequence[int]], cache: Any = None, *, last: int | None = None) -> torch.Tensor:
        """Read token ids `[rows, tokens]` after the tokens of a cache with as many rows, which is extended.

        Returns:
            Logits `[rows, tokens, vocab]`, or `[rows, last, vocab]` of the last tokens only.
        """
        options = {"use_cache": True, "past_key_values": cache} if cache is not None else {"use_cache": False}
        logits: torch.Tensor = self._outputs(rows, last or 0, **options).logits
        return logits[:, -last:] if last else logits

    def forward_at(self, rows: Sequence[Sequence[int]], indices: Sequence[int]) -> torch.Tensor:
        """Read token ids `[rows, tokens]`. Returns the logits after the tokens at these indices of each row."""
        keep = list(indices)
        logits: torch.Tensor = self._outputs(rows, keep, use_cache=False).logits
        return logits if self._takes_logits_to_keep else logits[:, keep]

    def extend_cache(
        self, rows: Sequence[Sequence[int]], cache: Any, name: str, *, last: int
    ) -> tuple[torch.Tensor, Any]:
        """Read token ids `[rows, tokens]` after those in a cache that a previous pass returned, or into a new cache.

        `name` is the model's name for the cache, as an argument and as an output.

        Returns:
            Logits `[rows, last, vocab]` of the last tokens, and the cache; None if the model returns no cache.
        """
        outputs = self._outputs(rows, last, use_cache=True, **({} if cache is None else {name: cache}))
        return outputs.logits[:, -last:], getattr(outputs, name, None)

    def read_tree(
        self, tokens: Sequence[int], positions: Sequence[int], tree: Any, keep: Sequence[int]
    ) -> torch.Tensor:
        """Read a flat row of tokens of many sequences, with the position of each token in its sequence.

        The `TreePass` has the attention masks. Returns the logits of the tokens at the indices `keep`,
        `[len(keep), vocab]`.
        """
        rows = list(keep)  # not a tensor: the last layer may be on another device than the input
        options = {"use_cache": True, "past_key_values": tree, "position_ids": self._ids([positions])}
        logits: torch.Tensor = self._outputs([tokens], rows, **options).logits[0]
        return logits if self._takes_logits_to_keep else logits[rows]

    def read_tensors(self, tokens: torch.Tensor, positions: torch.Tensor, tree: Any) -> torch.Tensor:
        """As `read_tree`, for tensors `[1, tokens]` and all logits. The caller holds `exclusive_pass`."""
        outputs = self.module(input_ids=tokens, position_ids=positions, past_key_values=tree, use_cache=True)
        logits: torch.Tensor = outputs.logits[0]
        return logits

    @contextmanager
    def exclusive_pass(self, tokens: int, logits: int | None = None) -> Iterator[None]:
        """Hold the model's lock for a pass over this many tokens, of which `logits` (all if None) get logits."""
        with self._lock, torch.inference_mode():
            self.forwards += 1
            self.tokens += tokens
            with self.costs.timed(tokens) if logits in (None, tokens) else nullcontext():
                yield

    def _outputs(self, rows: Sequence[Sequence[int]], keep: int | list[int], **options: Any) -> Any:
        if self._takes_logits_to_keep:
            options["logits_to_keep"] = keep
        # Tokens of a prompt cost less than others: they get no logits.
        with self.exclusive_pass(len(rows) * len(rows[0]), len(keep) if isinstance(keep, list) else 0):
            return self.module(input_ids=self._ids(rows), **options)

    def _ids(self, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        return torch.tensor(rows, dtype=torch.long, device=self.device)

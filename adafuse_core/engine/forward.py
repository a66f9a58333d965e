"""One forward pass of a Hugging Face model, under the model's lock and without gradients."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import DynamicCache

from adafuse_core.forks import PassLock


class Model:
    """A causal language model of transformers, with just the calls that the engine makes.

    Attributes:
        forwards: Forward passes so far.
        tokens: Tokens read so far, padding included.
    """

    def __init__(self, model: Any) -> None:
        self.module = model.eval()
        self.forwards = 0
        self.tokens = 0
        self._lock = PassLock()
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

    def forward(self, rows: Sequence[Sequence[int]], cache: Any = None, *, last: int | None = None) -> torch.Tensor:
        """Read rows of token ids after the tokens of a cache, which grows by them.

        Args:
            rows: `[rows, tokens]`, of one length.
            cache: Of the same number of rows; None for no cache.
            last: How many of the last tokens need logits; None for all.

        Returns:
            `[rows, tokens, vocab]`, or `[rows, last, vocab]`.
        """
        options = {"use_cache": True, "past_key_values": cache} if cache is not None else {"use_cache": False}
        logits = self._call(rows, last or 0, **options)
        return logits[:, -last:] if last else logits

    def extend_cache(
        self, rows: Sequence[Sequence[int]], cache: Any, name: str, *, last: int
    ) -> tuple[torch.Tensor, Any]:
        """Read rows after the tokens of a cache that the model made itself, or have it make one.

        Args:
            rows: `[rows, tokens]`, of one length.
            cache: What the last such pass returned, or None.
            name: Under which the model takes its cache, and hands it out.
            last: How many of the last tokens need logits.

        Returns:
            `[rows, last, vocab]`, and the cache; None if the model hands out none.
        """
        outputs = self._outputs(rows, last, use_cache=True, **({} if cache is None else {name: cache}))
        return outputs.logits[:, -last:], getattr(outputs, name, None)

    def read(self, tokens: Sequence[int], positions: Sequence[int], tree: Any, keep: Sequence[int]) -> torch.Tensor:
        """Read a flat row of tokens of many sequences.

        Args:
            tokens: `[tokens]`.
            positions: Of each token in its own sequence.
            tree: The `TreePass` that says what each token attends to.
            keep: Indices of the tokens after which logits are needed.

        Returns:
            `[len(keep), vocab]`.
        """
        rows = list(keep)  # not a tensor: the last layer may be on another device than the input
        options = {"use_cache": True, "past_key_values": tree, "position_ids": self._ids([positions])}
        logits = self._call([tokens], rows, **options)[0]
        return logits if self._keeps else logits[rows]

    def flat(self, tokens: torch.Tensor, positions: torch.Tensor, tree: Any) -> torch.Tensor:
        """As `read`, for tensors `[1, tokens]`, with all logits; to be called inside of `passing`."""
        outputs = self.module(input_ids=tokens, position_ids=positions, past_key_values=tree, use_cache=True)
        logits: torch.Tensor = outputs.logits[0]
        return logits

    @contextmanager
    def passing(self, tokens: int) -> Iterator[None]:
        """Around a pass over this many tokens: nobody else uses the model meanwhile."""
        with self._lock, torch.inference_mode():
            self.forwards += 1
            self.tokens += tokens
            yield

    def _call(self, rows: Sequence[Sequence[int]], keep: int | list[int], **options: Any) -> torch.Tensor:
        logits: torch.Tensor = self._outputs(rows, keep, **options).logits
        return logits

    def _outputs(self, rows: Sequence[Sequence[int]], keep: int | list[int], **options: Any) -> Any:
        if self._keeps:
            options["logits_to_keep"] = keep
        with self.passing(len(rows) * len(rows[0])):
            return self.module(input_ids=self._ids(rows), **options)

    def _ids(self, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        return torch.tensor(rows, dtype=torch.long, device=self.device)

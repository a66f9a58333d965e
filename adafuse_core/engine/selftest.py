"""What a loaded model really does, found out by running it on a few tokens instead of by its class name."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from adafuse_core.config import KV_STORES
from adafuse_core.engine.attention import NAME
from adafuse_core.engine.fork import ForkStore
from adafuse_core.engine.forward import Model
from adafuse_core.engine.graphs import recorder
from adafuse_core.engine.memo import Memo
from adafuse_core.engine.prefill import CacheUse, PrefillStore
from adafuse_core.engine.slots import Pool
from adafuse_core.engine.steps import Steps
from adafuse_core.engine.store import Ask, Store
from adafuse_core.engine.tree import TreeStore
from adafuse_core.text.tokens import Ids

CHUNK = 512  # most tokens of prompts that one pass reads

_TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-3}  # of the logits' spread; norms run in float32 anyway
_HALF_TOLERANCE = 0.15
_LENGTH = 12
_STEPS = 6  # of a draft that is tried out
_MOST_WORK = {"cpu": 2e11, "cuda": 1e14}  # weights times tokens: what trying out a sliding window may cost


@dataclass(frozen=True)
class Choice:
    """A model's KV memory, why not a better one, whether the user named it, and what it can't do."""

    store: Store
    problems: tuple[str, ...] = ()
    wanted: bool = False
    recorded: bool = False  # whether small passes are CUDA graphs
    limits: str = ""

    def __str__(self) -> str:
        why = "as configured" if self.wanted else "; ".join(self.problems) or "it reproduces fresh passes"
        return f"{self.store.kind}{' with CUDA graphs' if self.recorded else ''}{self.limits} ({why})"


class Unfit(ValueError):
    """A setting does not work with a model.

    Args:
        setting: Its name and value.
        problem: Why.
    """

    def __init__(self, setting: str, problem: str) -> None:
        super().__init__(f"{setting}: {problem}")
        self.setting, self.problem = setting, problem


def choose_store(
    model: Model,
    wanted: str = "auto",
    *,
    graphs: bool | None = None,
    own_attention: bool = False,
    chunk: int = CHUNK,
    most: int | None = None,
) -> Choice:
    """The fastest KV memory that reproduces the logits of fresh forward passes on this model.

    Args:
        model: The loaded model.
        wanted: One of `KV_STORES`.
        graphs: Whether small passes are CUDA graphs; None: where that works.
        own_attention: Whether the user chose the model's attention implementation, which a tree would replace.
        chunk: Most tokens of a prompt that one pass reads.
        most: Tokens that the memory of one sequence is meant not to exceed.

    Raises:
        Unfit: The memory that is wanted does not work with this model, or CUDA graphs do not.
    """
    problems: list[str] = []
    for kind in KV_STORES[1:] if wanted == "auto" else [wanted]:
        if kind == "tree":
            problem = tree_problem(model, own_attention=own_attention)
        elif kind == "fork":
            problem = store_problem(model, ForkStore(model, chunk=_LENGTH // 3))
        else:
            problem = None
        if problem is None:
            steps = _steps(model, kind, problems, graphs, most)
            store, limits = _store(model, kind, chunk, most, steps)
            return Choice(store, tuple(problems), wanted != "auto", steps is not None, limits)
        problems.append(f"no {kind}: {problem}")
    raise Unfit(f"kv_store={wanted!r}", problems[0])


def is_finite(model: Model) -> bool:
    """Whether the model computes numbers at all; half precision may overflow."""
    return bool(torch.isfinite(model.forward([_junk(model, _LENGTH)])).all())


def is_causal(model: Model) -> bool:
    """Whether later tokens leave earlier distributions alone; encoder-only models fail this."""
    ids = _junk(model, _LENGTH)
    changed = [*ids[:-1], ids[0]]
    first, second = model.forward([ids])[0, :-1], model.forward([changed])[0, :-1]
    return _agree(first, second, _TOLERANCE.get(first.dtype, _HALF_TOLERANCE))


def tree_problem(model: Model, *, own_attention: bool = False, steps: Steps | None = None) -> str | None:
    """Why token trees can't be used with this model; None if they reproduce fresh forward passes.

    Args:
        model: The loaded model.
        own_attention: Whether the user chose its attention implementation.
        steps: Run small passes so; they are recorded and replayed.
    """
    config = model.module.config.get_text_config()
    if own_attention:
        return "attn_implementation was given"
    if not getattr(model.module, "_supports_attention_backend", False):
        return "its attention can't be replaced"
    if (rope := _rope_type(config)) in ("dynamic", "longrope"):
        return f"its {rope} position embeddings depend on the longest context of a pass"
    length = _LENGTH
    for window in _windows(config):
        length = max(length, window + _LENGTH)
    weights = sum(parameter.numel() for parameter in model.module.parameters())
    if length > _LENGTH and weights * length > _MOST_WORK.get(model.device.type, _MOST_WORK["cuda"]):
        return f"its attention window of {length - _LENGTH} tokens is too long to be tried out on this device"
    before = model.module.config._attn_implementation
    fresh = _Fresh(model, length)
    try:
        model.module.set_attn_implementation(NAME)
        store = TreeStore(model, chunk=max(_LENGTH // 3, length // 2), steps=steps)
        problem = fresh.problem(store)
        layers = store.layers_held(fresh.memo)
        if steps is not None and problem is None:  # the second pass of a shape is a recorded one
            problem = fresh.problem(store)
            if steps.problem is not None:
                raise steps.problem
        return problem or (None if layers == config.num_hidden_layers else f"only {layers} layers keep keys")
    except Exception as error:  # whatever a model does with a cache that it does not know
        return f"{type(error).__name__}: {error}"
    finally:
        model.module.set_attn_implementation(before)


def store_problem(model: Model, store: Store) -> str | None:
    """Why a store can't be used with this model; None if it reproduces fresh forward passes."""
    try:
        return _Fresh(model, _LENGTH).problem(store)
    except Exception as error:  # whatever a model does with a cache it can't use
        return f"{type(error).__name__}: {error}"


def tried_cache(model: Model) -> tuple[CacheUse | None, str]:
    """What the model's own cache can be trusted with, None for nothing; and why not with more, for people."""
    if problem := _untried(model):
        return None, f", reading anew at every step: {problem}"
    drafts = _Drafts(model)
    if problem := drafts.problem(CacheUse()):
        return None, f", reading anew at every step: {problem}"
    several_tokens = drafts.problem(CacheUse(several_tokens=True)) is None
    if problem := drafts.problem(CacheUse(several_tokens, several_rows=True)):
        return CacheUse(several_tokens), f", reading branches anew: {problem}"
    return CacheUse(several_tokens, several_rows=True), ""


def tokens_in_free_memory(model: Model) -> int | None:
    """How many tokens' keys and values fit into half of the device's free memory; None if that is not known."""
    cache = model.new_cache()
    sizes = []
    try:
        for _ in range(2):  # what the second text adds: recurrent states do not grow
            model.forward([_junk(model, _LENGTH)], cache)
            tensors = [tensor for layer in cache.layers for tensor in vars(layer).values() if torch.is_tensor(tensor)]
            sizes.append(sum(tensor.nbytes for tensor in tensors))
    except Exception:  # a model that can't use a cache
        return None
    size = sizes[1] - sizes[0]
    if model.device.type == "cuda":
        free = torch.cuda.mem_get_info(model.device)[0]
    elif hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    else:
        return None
    return int(free // 2 // (size / _LENGTH)) if size else None


def _steps(model: Model, kind: str, problems: list[str], graphs: bool | None, most: int | None) -> Steps | None:
    """Recorded passes, where they are wanted and reproduce fresh ones; else adds why not to the problems."""
    if graphs is False or (graphs is None and (kind != "tree" or model.device.type != "cuda")):
        return None
    steps = _recorded_steps(model, kind, problems, most)
    if isinstance(steps, Steps):
        return steps
    if graphs:
        raise Unfit("cuda_graphs=True", steps)
    problems.append(f"no CUDA graphs: {steps}")
    return None


def _recorded_steps(model: Model, kind: str, problems: list[str], most: int | None) -> Steps | str:
    if kind != "tree":
        return f"they need a token tree; {'; '.join(problems) or f'kv_store={kind!r} has none'}"
    record = recorder(model)
    if isinstance(record, str):
        return record
    steps = Steps(model, Pool(model.device, most), record)
    return tree_problem(model, steps=steps) or steps


def _store(model: Model, kind: str, chunk: int, most: int | None, steps: Steps | None) -> tuple[Store, str]:
    if kind == "tree":
        model.module.set_attn_implementation(NAME)
        return TreeStore(model, chunk=chunk, most=most, steps=steps), ""
    if kind == "fork":
        return ForkStore(model, chunk=chunk), ""
    use, limits = tried_cache(model)
    return PrefillStore(model, use), limits


class _Fresh:
    """Distributions of fresh forward passes, to hold a store against: a text, and branches of it."""

    def __init__(self, model: Model, length: int) -> None:
        ids = tuple(_junk(model, length))
        self.start, rest = ids[: length - _LENGTH // 2], ids[length - _LENGTH // 2 :]
        other = rest[::-1]
        # In this order: two branches of unequal length, one of them lengthened, and a third one by two tokens.
        self.rounds = [[self.start], [self.start + other[:1], self.start + rest[:2]]]
        self.rounds += [[self.start + rest[:3], self.start + other[:2]], [self.start + rest[:1] + other[:2]]]
        self.committed = self.start + rest[:3]
        self.rounds += [[self.committed + other[:1]], [self.committed + rest[3:], self.committed + rest[4:]]]
        self._tolerance = _TOLERANCE.get(model.module.dtype, _HALF_TOLERANCE)
        self.expected = {context: self._logprobs(model, context) for round_ in self.rounds for context in round_}

    def problem(self, store: Store) -> str | None:
        """What is wrong with the store's answers."""
        self.memo = Memo(self.start)
        for number, contexts in enumerate(self.rounds):
            ask = Ask(self.memo, contexts)
            while not ask.known():
                store.read([ask])
            for context in contexts:
                known = self.memo.known(context)
                if known is None or not _agree(known.table[known.row], self.expected[context], self._tolerance):
                    return "its distributions differ from those of fresh passes"
            if number == 3:
                store.commit(self.memo, self.committed)
        return None

    def _logprobs(self, model: Model, context: Ids) -> torch.Tensor:
        return torch.log_softmax(model.forward([context], last=1)[0, -1].double(), dim=-1)


class _Drafts:
    """Drafts of two sequences in turn, to hold a cache that only grows against fresh forward passes."""

    def __init__(self, model: Model) -> None:
        window = max(_windows(model.module.config.get_text_config()), default=0)
        self._model = model
        self._tolerance = _TOLERANCE.get(model.module.dtype, _HALF_TOLERANCE)
        ids = tuple(_junk(model, max(_LENGTH, window + _LENGTH // 2)))
        steps = tuple(_junk(model, _STEPS + 1))
        # One comes to the end of its attention window in the trial, the other is beyond it.
        self._starts = ids[: max(_LENGTH, window) - _STEPS // 2], ids[::-1]
        self._texts = [[start + steps[:-1], start + steps[:0:-1]] for start in self._starts]
        self._expected: dict[Ids, torch.Tensor] = {}

    def problem(self, use: CacheUse) -> str | None:
        """What is wrong with the answers of a store that goes on like this."""
        try:
            for text in (text for texts in self._texts for text in texts if text not in self._expected):
                self._expected[text] = self._logprobs(text)
            return self._problem(PrefillStore(self._model, use), use)
        except Exception as error:  # whatever a model does with its cache
            return f"{type(error).__name__}: {error}"

    def _problem(self, store: PrefillStore, use: CacheUse) -> str | None:
        memos = [Memo(start) for start in self._starts]
        for which, length, texts in _plan(use):
            start, memo = len(self._starts[which]), memos[which]
            contexts = {self._texts[which][text][: start + length]: text for text in texts}
            before = self._model.tokens
            ask = Ask(memo, contexts)
            while not ask.known():
                store.read([ask])
            if length and self._model.tokens - before >= start:
                return "it hands out no cache"
            for context, text in contexts.items():
                known = memo.known(context)
                expected = self._expected[self._texts[which][text]][length]
                if known is None or not _agree(known.table[known.row], expected, self._tolerance):
                    return "what its cache goes on with differs from fresh passes"
        return None

    def _logprobs(self, text: Ids) -> torch.Tensor:
        """`[1 + steps, vocab]`, from the last token of the start on."""
        return torch.log_softmax(self._model.forward([text], last=_STEPS + 1)[0].double(), dim=-1)


def _untried(model: Model) -> str | None:
    """Why a trial of a few tokens would not tell how the model's own cache goes on."""
    config = model.module.config.get_text_config()
    if (rope := _rope_type(config)) in ("dynamic", "longrope"):
        return f"its {rope} position embeddings depend on the length of a pass"
    window = max(_windows(config), default=0)
    weights = sum(parameter.numel() for parameter in model.module.parameters())
    if window and weights * (window + _LENGTH) > _MOST_WORK.get(model.device.type, _MOST_WORK["cuda"]):
        return f"its attention window of {window} tokens is too long to be tried out on this device"
    return None


def _plan(use: CacheUse) -> list[tuple[int, int, tuple[int, ...]]]:
    """Drafts of two sequences in turn: which one, how many tokens beyond its start, along which of its texts."""
    many = 2 if use.several_tokens else 1
    one, other, both = (0,), (1,), (0, 1)
    if use.several_rows:
        lengths = [(0, 1, both), (1, 1, both), (0, 1 + many, both), (1, 1 + many, other), (0, 2 + many, other)]
    else:
        lengths = [(0, many, one), (1, many, one), (0, 2 * many, one), (1, 2 * many, one), (0, 2 * many + 1, one)]
    return [(0, 0, one), (1, 0, one), *lengths]


def _windows(config: object) -> Sequence[int]:
    """Lengths beyond which some layers do not look, where a context can be longer."""
    kinds = getattr(config, "layer_types", None)
    if kinds is not None and set(kinds) == {"full_attention"}:
        return []
    found = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    longest = getattr(config, "max_position_embeddings", None) or float("inf")
    return [window for window in found if isinstance(window, int) and window < longest]


def _rope_type(config: object) -> str | None:
    rope = getattr(config, "rope_parameters", None) or {}
    return rope.get("rope_type") if isinstance(rope, dict) else None


def _junk(model: Model, length: int) -> list[int]:
    """Some token ids, spread over the vocabulary; neighbours differ."""
    return [(7 + 31 * index) % model.vocab_size for index in range(length)]


def _agree(first: torch.Tensor, second: torch.Tensor, tolerance: float) -> bool:
    first, second = first.double(), second.double()
    spread = second.std().clamp(min=1e-6)
    return bool(((first - second).abs().max() / spread) < tolerance)

"""KV store, speculation and batching never change the decisions or the text: all equal the oracle's."""

from __future__ import annotations

import itertools

import pytest
from transformers import Mamba2Config, MambaConfig, RwkvConfig

from adafuse_core import Ensemble, MemberConfig, UnsupportedModelError, small_models
from tests import tiny
from tests.agreement import EXACT, ROUGH, difference
from tests.oracle import OracleEnsemble, OracleMember
from tests.recording import traced

CAP = 6  # maximum tokens of a word: random models write long ones
SPECULATION = ("off", "verify", "lookup", "auto")
FLOAT64 = {
    "dtype": "float64",
    "model_kwargs": {"experts_implementation": "eager"},
}  # other implementations don't support float64
SETTINGS = ((0.3, 3, 3), (0.7, 2, 3), (0.95, 1, 1))  # tau, M, B
PROMPTS = (  # from the fourth on longer than the sliding windows
    "The",
    "Grüße 日本",
    "x = [1984,\n    ",
    "The quick brown fox jumps over the lazy dog. The quick brown",
    [{"role": "user", "content": "Smile 😀\n\n| a < b | is what it is, it is what"}],
    "Question: what is it?\nAnswer: it is what it is.\nQuestion: what is 17?\nAnswer:",
)
QUESTIONS = tuple(
    [{"role": "user", "content": text}]
    for text in (
        "What is the capital of Peru?",
        "Hello!",
        "How do you say bread in French?",
        "Orsa has a mill. The mill is red. What colour is the mill?",
        "Who are you?",
        "x = [1984,\n    ",
    )
)
TOKENIZERS = {
    "bytes": tiny.byte_level,
    "pieces": tiny.metaspace,
    "characters": tiny.characters,
    "crossing": tiny.crossing,
    "modern": lambda: tiny.byte_level(380, pattern=tiny.MODERN),
}
STORES = {kind: {"kv_store": kind} for kind in ("tree", "fork", "prefill")}
STORES["recorded"] = {"kv_store": "tree", "cuda_graphs": True}
CACHED = ("tree", "fork", "prefill"), EXACT, 60
SOFTMAX = CACHED[0], ROUGH, 60
RECURRENT = ("fork", "prefill"), 1e-4, 40  # their states are float32
GROWING = RECURRENT[0][1:], RECURRENT[1], 20  # their caches can't be forked
_SMALL = {"hidden_size": 48, "num_hidden_layers": 2, "initializer_range": 0.3}


def mamba(vocab):
    return MambaConfig(vocab_size=vocab, state_size=4, **_SMALL)


def mamba2(vocab):
    return Mamba2Config(vocab_size=vocab, state_size=4, num_heads=6, head_dim=16, n_groups=1, chunk_size=16, **_SMALL)


def rwkv(vocab):
    return RwkvConfig(vocab_size=vocab, **_SMALL)


ENSEMBLES = {  # pairs of tokenizer and family; the stores that work with both, how near numbers are, combinations
    "llama+mistral past its window": ([("bytes", tiny.llama), ("pieces", tiny.sliding_mistral)], *CACHED),
    "mistral inside its window+gpt2": ([("modern", tiny.mistral), ("bytes", tiny.gpt2)], *CACHED),
    "qwen2+gemma2": ([("characters", tiny.qwen2), ("crossing", tiny.sliding_gemma2)], *SOFTMAX),
    "qwen3+gemma3": ([("modern", tiny.qwen3), ("pieces", tiny.sliding_gemma3)], *CACHED),
    "phi3+olmo2": ([("crossing", tiny.phi3), ("modern", tiny.olmo2)], *CACHED),
    "mixtral+gpt-oss": ([("pieces", tiny.mixtral), ("bytes", tiny.sliding_gpt_oss)], *CACHED),
    "lfm2+qwen3-next": ([("bytes", tiny.lfm2), ("modern", tiny.qwen3_next)], *RECURRENT),
    "mamba+mamba2": ([("bytes", mamba), ("pieces", mamba2)], *GROWING),
    "rwkv+llama": ([("modern", rwkv), ("bytes", tiny.llama)], *GROWING),
}
RECORDED = ("llama+mistral past its window", "qwen2+gemma2")  # tracing is slow


@pytest.fixture
def folders(tmp_path):
    """Saves models of pairs of tokenizer and family."""

    def save(pairs):
        return [
            tiny.save_tiny(tmp_path / f"{index}-{name}", TOKENIZERS[name](), family, seed=index)
            for index, (name, family) in enumerate(pairs)
        ]

    return save


class Expected:
    """Cached answers of the oracle."""

    def __init__(self, paths, names, prompts, max_new_tokens):
        self.members = [OracleMember(path, CAP, name=name) for path, name in zip(paths, names, strict=True)]
        self.prompts, self.max_new_tokens = prompts, max_new_tokens
        self.answers = {}

    def answer(self, prompt, setting):
        if (prompt, setting) not in self.answers:
            tau, max_words, branches = setting
            oracle = OracleEnsemble(self.members, tau=tau, max_words=max_words, branches=branches)
            answer = oracle.answer(self.prompts[prompt], max_new_tokens=self.max_new_tokens)
            self.answers[prompt, setting] = answer
        return self.answers[prompt, setting]


def ways(settings):
    """Speculation modes and settings; single modes skip the most expensive setting."""
    return [
        way for way in itertools.product(SPECULATION, settings) if way[0] in ("off", "auto") or way[1] in settings[-2:]
    ]


def combinations_that_differ(paths, prompts, settings, max_new_tokens, stores, tolerance):
    """Combinations of store, speculation, batching and setting that differ from the oracle, and the number tried."""
    wrong, count, expected = [], 0, None
    for store in stores:
        members = [MemberConfig(model=str(path), **STORES[store], **FLOAT64) for path in paths]
        with Ensemble.from_pretrained(*members) as loaded:
            expected = expected or Expected(paths, loaded.names, prompts, max_new_tokens)
            for turn, (speculation, setting) in enumerate(ways(settings)):
                tau, max_words, branches = setting
                options = {"strategy": "adafuse", "tau": tau, "max_words": max_words, "branches": branches}
                ensemble = Ensemble(loaded.config, **options, speculation=speculation, max_word_tokens=CAP)
                lone = turn % len(prompts)
                runs = {"alone": [lone], "together": range(len(prompts))}
                for mix, chosen in runs.items():
                    answers = ensemble.batch(
                        [prompts[index] for index in chosen],
                        max_concurrency=len(chosen),
                        max_new_tokens=max_new_tokens,
                    )
                    problems = [
                        (index, problem)
                        for index, answer in zip(chosen, answers, strict=True)
                        if (problem := difference(answer, expected.answer(index, setting), tolerance))
                    ]
                    wrong += [(store, speculation, mix, setting, problems)] if problems else []
                    count += 1
                ensemble.close()
    return wrong, count


@pytest.mark.parametrize("name", ENSEMBLES)
def test_every_combination_gives_the_oracles_text(folders, name, count):
    pairs, stores, tolerance, combinations = ENSEMBLES[name]
    wrong, tried = combinations_that_differ(folders(pairs), PROMPTS, SETTINGS, 7, stores, tolerance)
    assert not wrong
    count("combinations equal to the oracle", tried, at_least=combinations)


def test_every_combination_gives_the_oracles_text_with_the_small_models(count):
    paths = [small_models.path(name) for name in small_models.NAMES]
    wrong, tried = combinations_that_differ(paths, QUESTIONS, SETTINGS, 7, *CACHED[:2])
    assert not wrong
    count("combinations equal to the oracle", tried, at_least=60)


def test_prompt_of_several_chunks_among_short_ones_gives_the_oracles_text(folders, count):
    pairs = [("bytes", tiny.long_llama), ("pieces", tiny.long_sliding_mistral)]
    prompts = ("The quick brown fox, 1984 | name | value\n" * 30, *PROMPTS[:5])
    paths = folders(pairs)
    wrong, tried = combinations_that_differ(paths, prompts, [(0.7, 2, 3)], 3, *CACHED[:2])
    assert not wrong
    count("combinations equal to the oracle", tried, at_least=24)


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_passes_give_the_oracles_text(folders, name, count, monkeypatch):
    monkeypatch.setattr("adafuse_core.engine.store_choice.recorder", lambda _: traced)
    pairs, _, tolerance, _ = ENSEMBLES[name]
    wrong, tried = combinations_that_differ(folders(pairs), PROMPTS[2:], SETTINGS[1:2], 7, ["recorded"], tolerance)
    assert not wrong
    count("combinations equal to the oracle", tried, at_least=8)


def test_store_that_does_not_work_is_refused_at_load(folders):
    (path,) = folders([("bytes", tiny.lfm2)])
    with pytest.raises(UnsupportedModelError, match="kv_store='tree' does not work"):
        Ensemble.from_pretrained({"model": str(path), "kv_store": "tree"})

"""Cost per word of a grammar, and the passes that it saves.

    python benchmarks/grammar.py --json PATH

Three measurements: the grammar engine alone (building a vocabulary, and one token mask at every position of a JSON
document); the same answers of the small models without a grammar and with one that allows any text; and answers under a
JSON schema, with the share of words that the schema forces, without a forward pass.

Two vocabularies of Mistral are included if the development setup has installed them.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

import common

sys.path.append(str(Path(__file__).parent.parent))

from adafuse_core import Ensemble, Generation, Grammar
from adafuse_core.members.masks import Masks
from adafuse_core.small_models import NAMES, path
from adafuse_core.text.tokens import Codec
from adafuse_core.text.vocabulary import Vocabulary

QUESTIONS = (
    "What is the capital of France and who wrote Hamlet?",
    "Translate into German: The old dog sees a small house.",
    "Name the currency of Japan.",
    "What is the opposite of hot, and what is the chemical symbol of gold?",
)
ANY_TEXT = Grammar.regex("(?s:.*)")
SCHEMA = {
    "type": "object",
    "properties": {
        "answer": {"type": "string", "maxLength": 60},
        "kind": {"enum": ["fact", "translation", "other"]},
        "sources": {
            "type": "array",
            "maxItems": 2,
            "items": {
                "type": "object",
                "properties": {"title": {"type": "string", "maxLength": 20}, "year": {"type": "integer"}},
                "required": ["title", "year"],
            },
        },
        "certain": {"type": "boolean"},
    },
    "required": ["answer", "kind", "sources", "certain"],
}
DOCUMENT = {
    "answer": "Paris is the capital of France; Zürich isn't.",
    "kind": "fact",
    "sources": [{"title": "Atlas", "year": 1998}],
    "certain": True,
}


def main() -> None:
    args = common.arguments(__doc__).parse_args()
    result = common.prepare(args, common.TIMED)
    repeats = 1 if args.quick else 5
    result["vocabularies"] = [vocabulary_row(name, load, repeats) for name, load in vocabularies(args.quick)]
    questions = QUESTIONS[:1] if args.quick else QUESTIONS
    ensemble = common.small_ensemble(args.device, "float32", "guessing", branches=3, **common.TIMED)
    result["any_text"] = any_text(ensemble, questions, repeats)
    result["schema"] = by_schema(ensemble, questions, repeats)
    show(result)
    common.finish(result, args.json)


def vocabularies(quick: bool) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Names and loaders of tokenizers."""
    for name in NAMES:
        yield name, lambda name=name: AutoTokenizer.from_pretrained(path(name))
    from tests.text import vocabularies as real

    if real.FOLDER.is_dir() and not quick:
        yield "Mistral v3", real.v3
        yield "Mistral tekken", real.tekken


def vocabulary_row(name: str, load: Callable[[], Any], repeats: int) -> dict[str, Any]:
    """Seconds to build the vocabulary, and microseconds per mask over a document."""
    tokenizer = load()
    codec = Codec(tokenizer)
    prompt, section = codec.encode_prompt("Answer:\n")
    answer = section.encode(json.dumps(DOCUMENT, ensure_ascii=False))
    contexts = [answer[:length] for length in range(len(prompt), len(answer))]
    grammar = Grammar.json_schema(SCHEMA)

    builds, times = [], []
    for _ in range(repeats):
        vocabulary = Vocabulary(tokenizer, codec, size=len(tokenizer))
        builds.append(timed(lambda made=vocabulary: made.engine)[0])
        masks = Masks(grammar, vocabulary, (0,), prompt, section.lead)
        times += [timed(partial(masks, context))[0] for context in contexts]
    return {
        "name": name,
        "tokens": len(tokenizer),
        "build_seconds": statistics.median(builds),
        "mask_microseconds": statistics.median(times) * 1e6,
        "mask_microseconds_p99": sorted(times)[int(len(times) * 0.99)] * 1e6,
    }


def any_text(ensemble: Ensemble, questions: tuple[str, ...], repeats: int) -> dict[str, Any]:
    """The same answers without a grammar and under a grammar that allows any text."""
    free, free_seconds = answers(ensemble, questions, None, repeats)
    masked, masked_seconds = answers(ensemble, questions, ANY_TEXT, repeats)
    words = sum(common.count_words(answer.text) for answer in free)
    return {
        "words": words,
        "same_text": [answer.text for answer in free] == [answer.text for answer in masked],
        "free_ms_per_word": free_seconds / words * 1e3,
        "grammar_ms_per_word": masked_seconds / words * 1e3,
        "more_ms_per_word": (masked_seconds - free_seconds) / words * 1e3,
        "ratio": masked_seconds / free_seconds,
    }


def by_schema(ensemble: Ensemble, questions: tuple[str, ...], repeats: int) -> dict[str, Any]:
    """Answers under a JSON schema."""
    before = common.counts(ensemble)
    given, seconds = answers(ensemble, questions, Grammar.json_schema(SCHEMA), repeats)
    spent = common.counts(ensemble) - before
    for answer in given:
        json.loads(answer.text)
    words = sum(common.count_words(answer.text) for answer in given)
    forced = sum(
        common.count_words(played.span.text) for answer in given for played in answer.rounds if not played.drafts
    )
    return {
        "words": words,
        "forced_share": forced / words,
        "ms_per_word": seconds / words * 1e3,
        "forwards_per_word": sum(spent.forwards.values()) / words / repeats,
    }


def answers(
    ensemble: Ensemble, questions: tuple[str, ...], grammar: Grammar | None, repeats: int
) -> tuple[list[Generation], float]:
    """Answers to all questions, and the median CPU seconds for them."""

    def ask() -> list[Generation]:
        options = {"grammar": grammar, "max_new_tokens": 200}
        return [ensemble.generate([{"role": "user", "content": question}], **options) for question in questions]

    ask()  # warm-up
    seconds, given = zip(*(timed(ask) for _ in range(repeats)), strict=True)
    return given[0], statistics.median(seconds)


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds and result."""
    start = time.process_time()
    done = work()
    return time.process_time() - start, done


def show(result: dict[str, Any]) -> None:
    """Print the tables."""
    columns = ("vocabulary", "tokens", "build, s", "mask, µs", "mask p99, µs")
    keys = ("name", "tokens", "build_seconds", "mask_microseconds", "mask_microseconds_p99")
    common.show("The engine alone", columns, [[row[key] for key in keys] for row in result["vocabularies"]])
    free, schema = result["any_text"], result["schema"]
    common.show(
        "Small models, CPU time",
        ("", "words", "ms per word", "ratio"),
        [
            ["no grammar", free["words"], free["free_ms_per_word"], 1.0],
            ["a grammar that allows any text", free["words"], free["grammar_ms_per_word"], free["ratio"]],
            ["a schema", schema["words"], schema["ms_per_word"], None],
        ],
        f"Same text with the grammar that allows any: {free['same_text']}. Of the schema's words "
        f"{schema['forced_share']:.0%} were forced; {schema['forwards_per_word']:.2f} passes per word.",
    )


if __name__ == "__main__":
    main()

"""What the prefix cache saves: a growing conversation, and many questions after the same beginning.

    python benchmarks/prefix_cache.py --json PATH
    python benchmarks/prefix_cache.py --models DIR DIR --json PATH

Per turn of the conversation, with and without the cache: tokens of the prompt, prompt tokens that are read (the member
with most), and CPU seconds to the first word. The answers are compared and must be equal in float64 (`--dtype`). The
conversation has long user messages of equal length, so without a cache each turn is dearer than the last one. Models
without a chat template get the conversation as plain text.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import median
from typing import Any

import common
from adafuse_core import Ensemble, Finished, TextDelta

TURNS, QUESTIONS = 8, 20
WORDS = 12  # tokens of an answer
FACTS = "The mill of Orsa is red, and the bridge of Luma is older than its tower. "
RULES = "You answer questions about a valley in one short sentence. " + FACTS * 30


def main() -> None:
    parser = common.arguments(__doc__)
    parser.add_argument("--models", nargs="+", default=["small:aspen", "small:birch"], help="names or folders")
    parser.add_argument("--dtype", default="auto", help="of the weights (default: as saved)")
    parser.add_argument("--store", default="auto", help="KV store (default: the fastest)")
    args = parser.parse_args()
    result = common.prepare(args, common.TIMED) | {"models": args.models, "dtype": args.dtype, "store": args.store}
    options = {"members": args.models, "dtype": args.dtype, "device": args.device, "kv_store": args.store}
    options |= common.TIMED
    with Ensemble(options).load() as remembers, Ensemble(options, prefix_cache=False).load() as forgets:
        for ensemble in (remembers, forgets):
            ensemble.warm()
        chat = remembers.supports_chat()
        turns, questions = (2, 3) if args.quick else (TURNS, QUESTIONS)
        result["conversation"] = conversation(remembers, forgets, turns, chat=chat, strict=args.dtype == "float64")
        result["questions"] = same_beginning(remembers, forgets, questions, chat=chat)
    common.finish(result, args.json)


def conversation(remembers: Ensemble, forgets: Ensemble, turns: int, *, chat: bool, strict: bool) -> dict[str, Any]:
    """Figures of each turn, with and without the cache; both continue with the answer of the latter."""
    messages: list[dict[str, str]] = []
    rows: list[dict[str, Any]] = []
    for turn in range(turns):
        messages.append({"role": "user", "content": f"Turn {turn}. {FACTS * 4}Which one is older?"})
        prompt = rendered(messages, chat=chat)
        with_cache, without = (first_word(ensemble, prompt) for ensemble in (remembers, forgets))
        if strict and with_cache["text"] != without["text"]:
            raise SystemExit(f"turn {turn}: {with_cache['text']!r} with the cache, {without['text']!r} without")
        rows.append({"with": with_cache, "without": without})
        messages.append({"role": "assistant", "content": without["text"]})
    first = rows[0]["with"]["seconds"]
    common.show(
        "a growing conversation: CPU seconds to the first word",
        ["turn", "prompt", "read", "with cache", "/ turn 1", "without", "/ with"],
        [
            [
                number,
                row["with"]["prompt"],
                row["with"]["read"],
                row["with"]["seconds"],
                row["with"]["seconds"] / first,
                row["without"]["seconds"],
                row["without"]["seconds"] / row["with"]["seconds"],
            ]
            for number, row in enumerate(rows, 1)
        ],
        "prompt and read: tokens of the member that reads most",
    )
    return {"turns": rows, "last_to_first": rows[-1]["with"]["seconds"] / first}


def same_beginning(remembers: Ensemble, forgets: Ensemble, count: int, *, chat: bool) -> dict[str, Any]:
    """Questions after the same rules, one by one and then all at once, with and without the cache."""
    table: dict[str, dict[str, Any]] = {}
    for name, ensemble in (("with cache", remembers), ("without", forgets)):
        prompts = [
            rendered(
                [{"role": "system", "content": RULES}, {"role": "user", "content": f"Question {number}?"}], chat=chat
            )
            for number in range(count)
        ]
        ensemble.forget()
        one_by_one = [first_word(ensemble, prompt) for prompt in prompts]
        ensemble.forget()
        started = time.process_time()
        together = ensemble.batch(prompts, max_new_tokens=1)
        read = [
            used.prompt_tokens[each] - used.cached_tokens[each]
            for used in (a.usage for a in together)
            for each in ensemble.names
        ]
        table[name] = {
            "first": one_by_one[0]["seconds"],
            "later": median(each["seconds"] for each in one_by_one[1:]),
            "read": sum(each["read"] for each in one_by_one),
            "batch": time.process_time() - started,
            "batch_read": sum(read) / len(ensemble.names),
        }
    common.show(
        f"{count} questions after the same {one_by_one[0]['prompt']} tokens",
        ["", "first word, first", "later (median)", "tokens read", "all at once", "tokens read (mean)"],
        [[name, *figures.values()] for name, figures in table.items()],
        "CPU seconds; tokens of the prompts",
    )
    return table


def rendered(messages: Sequence[dict[str, str]], *, chat: bool) -> Any:
    """The messages, or a plain text for members without chat templates."""
    if chat:
        return list(messages)
    return "".join(f"{message['role']}: {message['content']}\n" for message in messages) + "assistant:"


def first_word(ensemble: Ensemble, prompt: Any) -> dict[str, Any]:
    """CPU seconds to the first word, the answer, and the tokens of its prompt."""
    started, seconds, text = time.process_time(), 0.0, ""
    for event in ensemble.stream(prompt, max_new_tokens=WORDS):
        if isinstance(event, TextDelta):
            seconds = seconds or time.process_time() - started
            text += event.text
        elif isinstance(event, Finished):
            usage = event.usage
    read = {name: usage.prompt_tokens[name] - usage.cached_tokens[name] for name in ensemble.names}
    name = max(read, key=lambda each: read[each])
    return {"seconds": seconds, "text": text, "prompt": usage.prompt_tokens[name], "read": read[name]}


if __name__ == "__main__":
    main()

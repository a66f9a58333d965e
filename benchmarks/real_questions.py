"""Asks given models the questions of `adafuse demo`: each by itself, and together.

    python benchmarks/real_questions.py --models FOLDER FOLDER

The questions were selected for the small models of the package; for other models they are just questions. If all models
have chat templates they get a conversation, otherwise a plain text with two examples, and the answer is one line.
"""

from __future__ import annotations

import itertools
from typing import Any

from rich.console import Console
from rich.text import Text

import common
from adafuse_core import Ensemble
from adafuse_core.generation import collect
from adafuse_integrations.cli.options import singles
from adafuse_integrations.cli.painter import Painter
from adafuse_integrations.cli.questions import questions
from free_text import few_shot


def main() -> None:
    parser = common.arguments(__doc__)
    parser.add_argument("--models", nargs="+", required=True, help="folders, Hugging Face names, or small:NAME")
    parser.add_argument("--dtype", default="auto", help="of the weights (default: that of the files)")
    parser.add_argument("--budget", type=int, default=48, help="maximum tokens of an answer (default: 48)")
    args = parser.parse_args()
    result = common.prepare(args)
    asked = questions("side by side")[: 1 if args.quick else None]
    ensemble = common.ensemble(args.models, args.device, args.dtype, "guessing")
    console = Console(width=120)
    painter = Painter(console, ensemble.names)
    console.print(painter.legend())
    result["answers"] = [
        ask(ensemble, painter, console, question.question, 8 if args.quick else args.budget) for question in asked
    ]
    common.finish(result, args.json)


def ask(ensemble: Ensemble, painter: Painter, console: Console, question: str, budget: int) -> dict[str, Any]:
    """Print and return the answers to a question."""
    prompt: Any = [{"role": "user", "content": question}] if ensemble.supports_chat() else few_shot(question)
    options: dict[str, Any] = {"max_new_tokens": budget, "stop": () if ensemble.supports_chat() else ("\n",)}
    console.print(Text(question, "bold"))
    answers = {}
    for name, single in singles(ensemble).items():
        answers[name] = single.generate(prompt, **options).text.strip()
        console.print(Text(f"{name + ' alone':>14}: {answers[name]}", "dim"))
    console.print(f"{'together':>14}: ", end="")
    shown, kept = itertools.tee(ensemble.stream(prompt, **options))
    painter.stream(shown)
    return {"question": question, "alone": answers, "together": collect(kept).text.strip()}


if __name__ == "__main__":
    main()

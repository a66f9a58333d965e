"""`adafuse ask`: the answers of each member alone and of the ensemble to one question."""

from __future__ import annotations

import argparse
import json
from typing import Any

from rich.console import Console
from rich.text import Text

from adafuse_core import ConfigError, Ensemble, Generation
from adafuse_integrations.cli.exit_status import DONE
from adafuse_integrations.cli.options import add_ensemble_options, add_json_option, build_ensemble, singles
from adafuse_integrations.cli.painter import Painter
from adafuse_integrations.cli.traces import TraceRecorder, add_trace_options, check_trace_options

HELP = "answer one question with each member alone and with the ensemble, and show which member proposed each word"

Prompt = str | list[dict[str, str]]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    add_ensemble_options(parser)
    parser.add_argument("question", help="the question, as one quoted argument")
    parser.add_argument("--raw", action="store_true", help="continue the text without chat templates")
    add_trace_options(parser, file=True)
    add_json_option(parser, "all answers, with the rounds of the ensemble's answer,")


def run(args: argparse.Namespace) -> int:
    """Print all answers."""
    check_trace_options(args)
    if args.json and args.trace:
        raise ConfigError("got --trace with --json", hint="leave --trace out: the JSON has all rounds")
    ensemble = build_ensemble(args)
    raw = args.raw or not ensemble.supports_chat()
    prompt: Prompt = args.question if raw else [{"role": "user", "content": args.question}]
    if args.json:
        _print_json(args, ensemble, prompt)
    else:
        _paint(args, ensemble, prompt)
    return DONE


def _paint(args: argparse.Namespace, ensemble: Ensemble, prompt: Prompt) -> None:
    """Print the answers in the colours of the members."""
    console = Console()
    for name, single in singles(ensemble).items():
        console.print(Text(f"{name} alone: ", "dim").append(single.generate(prompt).text, "default"))
    painter = Painter(console, ensemble.names)
    console.print("[dim]together:[/dim] ", end="")
    recorder = TraceRecorder(painter)
    finished = painter.stream(recorder.record(ensemble.stream(prompt)))
    console.print(painter.legend(), f"[dim]({finished.usage.rounds} rounds)[/dim]")
    if args.trace:
        recorder.print(console)
    if args.save_trace is not None:
        recorder.trace.save(args.save_trace, title=args.question)


def _print_json(args: argparse.Namespace, ensemble: Ensemble, prompt: Prompt) -> None:
    """Print the answers as JSON."""
    alone = {name: single.generate(prompt).text for name, single in singles(ensemble).items()}
    answer = ensemble.generate(prompt)
    print(json.dumps({"alone": alone, **_facts(answer)}, indent=2))
    if args.save_trace is not None:
        answer.trace.save(args.save_trace, title=args.question)


def _facts(answer: Generation) -> dict[str, Any]:
    return {
        "answer": answer.text,
        "finish_reason": answer.reason,
        "reasoning": answer.reasoning,
        "usage": answer.usage.to_dict(),
        "rounds": [played.to_dict() for played in answer.rounds],
    }

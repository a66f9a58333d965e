"""`adafuse ask`: the answers of each member alone and of the ensemble to one question."""

from __future__ import annotations

import argparse

from rich.console import Console
from rich.text import Text

from adafuse_integrations.cli.options import build_ensemble, singles
from adafuse_integrations.cli.painter import Painter

HELP = "answer one question with each member alone and with the ensemble, and show which member proposed each word"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    parser.add_argument("question", help="the question, as one quoted argument")
    parser.add_argument("--raw", action="store_true", help="continue the text without chat templates")


def run(args: argparse.Namespace) -> int:
    """Print all answers."""
    ensemble = build_ensemble(args)
    console = Console()
    raw = args.raw or not ensemble.supports_chat()
    prompt = args.question if raw else [{"role": "user", "content": args.question}]
    for name, single in singles(ensemble).items():
        console.print(Text(f"{name} alone: ", "dim").append(single.generate(prompt).text, "default"))
    painter = Painter(console, ensemble.names)
    console.print("[dim]together:[/dim] ", end="")
    finished = painter.stream(ensemble.stream(prompt))
    console.print(painter.legend(), f"[dim]({finished.usage.rounds} rounds)[/dim]")
    return 0

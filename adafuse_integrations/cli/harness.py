"""`adafuse eval --harness`: runs tasks of lm-evaluation-harness on the ensemble."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

from adafuse_core import ConfigError
from adafuse_integrations.cli.exit_status import DONE
from adafuse_integrations.cli.options import build_ensemble

HARNESS_ONLY = ("include_path", "num_fewshot", "apply_chat_template", "output")


def add_harness_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `run_harness`, except for `--limit`."""
    group = parser.add_argument_group("lm-evaluation-harness")
    group.add_argument(
        "--harness",
        action="store_true",
        help="the tasks are those of lm-evaluation-harness, or YAML files of tasks; of the options above, only --limit "
        "and --json apply. The harness downloads its data sets.",
    )
    group.add_argument("--include-path", metavar="FOLDER", help="folder with further tasks as YAML files")
    group.add_argument("--num-fewshot", type=int, metavar="INTEGER", help="examples in the prompt, as of the task")
    group.add_argument(
        "--apply-chat-template", action="store_true", default=None, help="ask with the members' chat templates"
    )
    group.add_argument("--output", metavar="FILE", help="JSON file for the results, with prompts and answers")


def refuse(args: argparse.Namespace, names: Iterable[str], context: str, *, hint: str = "leave it out") -> None:
    """Raise a `ConfigError` if one of the options was given."""
    for name in names:
        value = getattr(args, name)
        if value is not None and value != []:
            raise ConfigError(f"--{name.replace('_', '-')} has no meaning for {context}", hint=hint)


def run_harness(args: argparse.Namespace) -> int:
    """Run the tasks, print the metrics, and write the results."""
    from lm_eval.utils import handle_non_serializable, make_table

    from adafuse_integrations.lm_eval import evaluate

    if args.output and not Path(args.output).resolve().parent.is_dir():
        raise ConfigError(f"got --output {args.output!r}, whose folder does not exist", hint="create the folder first")
    results = evaluate(
        build_ensemble(args),
        args.tasks,
        include_path=args.include_path,
        limit=args.limit,
        num_fewshot=args.num_fewshot,
        apply_chat_template=bool(args.apply_chat_template),
    )
    if args.json:
        figures = {name: results[name] for name in ("results", "groups") if results.get(name)}
        print(json.dumps(figures, indent=2, default=handle_non_serializable))
    else:
        print(make_table(results))
        if results.get("groups"):
            print(make_table(results, "groups"))
    if args.output:
        text = json.dumps(results, indent=2, default=handle_non_serializable, ensure_ascii=False)
        Path(args.output).write_text(text + "\n", encoding="utf-8")
    return DONE

"""The experiments of the paper in miniature: all strategies and the main ablations, on pairs and triples of models.

    python benchmarks/miniature.py --out FOLDER --json PATH --report PATH

Rows are teams of models with questions. With `--models` and `--data`: all pairs of given models, and all of them
together, on SQuAD, TriviaQA and Natural Questions (see `adafuse eval`), with raw prompts, and in chat form if all
models of a team have chat templates. With `--config` and `--questions`: the members of an ensemble file with questions
of your own. Always: the small models of the package, a pair that is confidently wrong, and a very unequal pair
(`training/pairs`). All systems answer the same questions. The report is a Markdown table for each row: the score of
each system, and how far it is from the best member alone, with the paired 95% interval; and one table for all rows of
given models. Times are those of batches. A run that was stopped continues where it stopped.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adafuse_core import Ensemble, MemberConfig
from adafuse_core.evaluation.questions import Selection
from adafuse_core.evaluation.results import Results
from adafuse_core.evaluation.runner import Evaluation
from adafuse_core.evaluation.systems import systems_of
from common import arguments, finish, folder_of, mean_lead, prepare
from training.pairs import PAIRS, Pair

PAPER, PUBLISHED = {"strategy": "adafuse"}, "paper (tau 0.7, M 3, B 3)"
SYSTEMS: Mapping[str, Mapping[str, Any]] = {
    "default, 1 hypothesis": {"beams": 1},
    "default, 5 hypotheses": {"beams": 5},
    PUBLISHED: PAPER,
    "paper, B 1": PAPER | {"branches": 1},
    "paper, B 5": PAPER | {"branches": 5},
    "paper, tau 0.3": PAPER | {"tau": 0.3},
    "paper, tau 0.9": PAPER | {"tau": 0.9},
    "paper, M 1": PAPER | {"max_words": 1},
    "paper, M 5": PAPER | {"max_words": 5},
    "paper, scores per word": PAPER | {"scoring": "word", "pool": "power"},
    "paper, sums over 8 words": PAPER | {"scoring": "sum", "look_ahead": 8},
    "spans of 4 words": {"strategy": "span"},
    "token union": {"strategy": "token_union"},
    "selective": {"strategy": "selective"},
    "rerank by NLL": {"strategy": "rerank", "rule": "nll"},
    "rerank by similarity": {"strategy": "rerank", "rule": "mbr"},
    "panel": {"strategy": "panel"},
}
THREE = {"consensus": {"strategy": "consensus"}}  # needs three members
DEFAULT, TASKS = "default", ("squad", "triviaqa", "nq")
QUICK, MOST = 3, 600  # questions of a quick run, and at most for the small models


@dataclass(frozen=True, kw_only=True)
class Row:
    """A team of models, and the questions that it is asked.

    Args:
        name: Title of its table.
        members: The models.
        task: Task of `adafuse eval`.
        data: The questions.
        form: Form of the prompts.
        is_given: Whether the models were given by the user of this script.
    """

    name: str
    members: Sequence[MemberConfig]
    task: str
    data: Path
    form: str
    is_given: bool = True


def main() -> None:
    args = parsed()
    result: dict[str, Any] = prepare(args) | {"all given models": None, "rows": {}}
    given = []
    for row in rows(args):
        if args.rows and row.name not in args.rows:
            continue
        found = answered(row, args)
        figures = {key: value for key, value in found.to_dict().items() if key not in ("facts", "notes")}
        result["rows"][row.name] = figures
        print(table(row.name, figures), flush=True)
        if row.is_given:
            given.append(found)
            result["all given models"] = together(given)
        if args.report:
            args.report.parent.mkdir(parents=True, exist_ok=True)
            args.report.write_text(report(result), encoding="utf-8")
    finish(result, args.json)


def parsed() -> argparse.Namespace:
    """The arguments."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--out", type=Path, required=True, help="folder of the answers; a later run continues it")
    parser.add_argument("--report", type=Path, help="write the tables to this Markdown file")
    parser.add_argument("--n", type=int, default=120, help="questions per row of small models (default: 120)")
    parser.add_argument("--n-given", type=int, default=24, help="questions per row of given models (default: 24)")
    parser.add_argument("--models", nargs="+", default=[], help="folders or names of models, for further rows")
    parser.add_argument("--data", type=Path, help="folder with files for the tasks squad, triviaqa and nq")
    parser.add_argument("--config", type=Path, help="an ensemble file, for a further row")
    parser.add_argument("--questions", type=Path, help="its questions: JSON lines, see `adafuse eval jsonl`")
    parser.add_argument("--batch-size", type=int, default=8, help="questions that are answered together (default: 8)")
    parser.add_argument("--rows", nargs="+", help="only rows with these names")
    args = parser.parse_args()
    for one, other in (("models", "data"), ("config", "questions")):
        if bool(getattr(args, one)) != bool(getattr(args, other)):
            parser.error(f"--{one} and --{other} go together")
    return args


def rows(args: argparse.Namespace) -> Iterator[Row]:
    """The rows: given models, then small pairs."""
    teams = [team for size in (2, 3) for team in itertools.combinations(members(args.models, args.device), size)]
    for team, task in itertools.product(teams, TASKS):
        name = f"{' + '.join(member.label for member in team)}, {task}"
        for form in forms(team):
            yield Row(name=f"{name}{', chat' * (form == 'chat')}", members=team, task=task, data=args.data, form=form)
    if args.config:
        own = Ensemble.from_config(args.config).config.members
        yield Row(name=args.config.stem, members=own, task="jsonl", data=args.questions, form="raw")
    for name, pair in PAIRS.items():
        small, data = members(pair.models, args.device), written(pair, args.out / "questions" / f"{name}.jsonl")
        yield Row(name=f"{name} pair", members=small, task="jsonl", data=data, form="chat", is_given=False)


def members(models: Sequence[str], device: str) -> list[MemberConfig]:
    """Members that compute in float32, so that their answers don't depend on the machine."""
    return [MemberConfig(model=folder_of(model), dtype="float32", device=device) for model in models]


def forms(team: Sequence[MemberConfig]) -> Sequence[str]:
    """The forms of prompts that a team can read. Loads tokenizers, but no weights."""
    return ("raw", "chat") if Ensemble(members=team).supports_chat() else ("raw",)


def written(pair: Pair, path: Path) -> Path:
    """A file with the questions of a small pair."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (
        {"prompt": question.messages[-1]["content"], "answer": [question.answer]}  # examples would confuse them
        for question in pair.questions(MOST)
    )
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def answered(row: Row, args: argparse.Namespace) -> Results:
    """The results of a row, or of its missing answers."""
    further = {**SYSTEMS, **(THREE if len(row.members) > 2 else {})}
    count = QUICK if args.quick else args.n_given if row.is_given else args.n
    with Ensemble.from_pretrained(*row.members) as ensemble:
        evaluation = Evaluation(
            systems=systems_of(ensemble, further, name=DEFAULT),
            task=row.task,
            data=row.data,
            selection=Selection(limit=count),
            form=row.form,
            trace=False,
            batch_size=args.batch_size,
        )
        return evaluation.run(args.out / row.name.replace(" ", "_"))


def together(given: Sequence[Results]) -> dict[str, Any]:
    """By how much each system is better than the best member of a row, and than the paper's rule, over all answers."""
    names = dict.fromkeys(system.name for row in given for system in row.systems if not system.is_single)
    return {
        name: {
            "minus best member": mean_lead(leads(given, name, None)).to_dict(),
            f"minus {PUBLISHED}": mean_lead(leads(given, name, PUBLISHED)).to_dict(),
            "answers": sum(1 for _ in leads(given, name, None)),
        }
        for name in names
    }


def leads(given: Iterable[Results], name: str, against: str | None) -> Iterator[tuple[tuple[str, int], float]]:
    """For each question a system's lead over another one, or over the best member, in all rows that have the system."""
    for row in given:
        if any(system.name == name for system in row.systems):
            for question in row.questions:
                lead = row.value(question, name) - row.value(question, against or row.best or name)
                yield (row.task.name, question.place), lead


def report(result: Mapping[str, Any]) -> str:
    """The Markdown report of the rows so far."""
    found = result["all given models"]
    first = [verdict(result["rows"]), *([] if found is None else [sentence(found[DEFAULT])])]
    head = ["# The paper in miniature\n", " ".join(first), f"\n`{result['command']}`, {result['hardware']}.\n"]
    overall = [] if found is None else [overview(found)]
    return "\n".join([*head, *overall, *(table(name, row) for name, row in result["rows"].items())])


def verdict(found: Mapping[str, Any]) -> str:
    """Where the default rule is better than the best member alone, and where it is not."""
    places: dict[str, list[str]] = {"below": [], "within": [], "above": []}
    for name, row in found.items():
        difference = row["systems"][DEFAULT]["lead"]["differences"][row["metrics"][0]]
        place = "below" if difference["high"] < 0 else "above" if difference["low"] > 0 else "within"
        places[place].append(name)
    texts = {place: "; ".join(names) or "no row" for place, names in places.items()}
    return (
        f"The default rule is worse than the best member, by more than the 95% interval, in: {texts['below']}. It "
        f"differs by less in: {texts['within']}. It is better, by more than the interval, in: {texts['above']}."
    )


def sentence(figures: Mapping[str, Any]) -> str:
    """How the default rule does over all rows of given models."""
    best, published = (shown(figures[key]) for key in ("minus best member", f"minus {PUBLISHED}"))
    return (
        f"Over all {figures['answers']} answers of given models, it is {best} above the best member of each row, and "
        f"{published} above the paper's rule."
    )


def overview(found: Mapping[str, Mapping[str, Any]]) -> str:
    """A Markdown table of all rows of given models together."""
    lines = [
        "\n## All rows of given models: the metric of each row\n",
        f"| | answers | minus best member | minus {PUBLISHED} |\n|---|---|---|---|",
    ]
    for system, figures in found.items():
        best, published = (shown(figures[key]) for key in ("minus best member", f"minus {PUBLISHED}"))
        lines.append(f"| {system} | {figures['answers']} | {best} | {'' if system == PUBLISHED else published} |")
    return "\n".join(lines)


def shown(difference: Mapping[str, float]) -> str:
    """A difference with its interval."""
    return "{value:+.1f} ({low:+.1f} to {high:+.1f})".format(**difference)


def table(name: str, row: Mapping[str, Any]) -> str:
    """A Markdown table of one row."""
    metric = row["metrics"][0]
    lines = [
        f"\n## {name}: {metric}, n = {row['questions']}\n",
        f"| | {metric} | minus {row['best']} | CPU ms per word |\n|---|---|---|---|",
    ]
    for system, found in row["systems"].items():
        lead, cost = found["lead"], found["cost"]["cpu_ms_per_word"]
        ahead = "" if lead is None else shown(lead["differences"][metric])
        score = found["scores"][metric]["value"]
        lines.append(f"| {system} | {score:.1f} | {ahead} | {'' if cost is None else f'{cost:.0f}'} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()

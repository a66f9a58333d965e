"""An evaluation of scripted members, for the tests and for a process that they kill."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from adafuse_core import Ensemble, ScriptedMember
from adafuse_core.evaluation.runner import Evaluation
from adafuse_core.evaluation.systems import systems_of

FACTS = {"capital of Peru?": "Lima", "river of Cairo?": "the Nile", "metal Au?": "gold", "3 + 4?": "seven"}


def write_data(path):
    """Four questions; the last one accepts two answers."""
    rows = [{"question": asked, "answer": told} for asked, told in FACTS.items()]
    rows[-1] = {"question": "3 + 4?", "answers": ["7", "seven"]}
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return Path(path)


def known(*asked):
    """A reply that knows the answers to some questions."""

    def reply(prompt):
        last = prompt.rsplit("Question: ", 1)[1].removesuffix("\nAnswer:")
        return f" {FACTS[last]}" if last in asked else " no idea"

    return reply


def members(**options):
    """Two members: one knows two answers, the other one three."""
    first = ScriptedMember("first", known("capital of Peru?", "metal Au?"), chat=False, **options)
    second = ScriptedMember("second", known("river of Cairo?", "metal Au?", "3 + 4?"), chat=False, **options)
    return [first, second]


def evaluation(data, further=None, *, member_options=None, **options):
    """Both members alone, the ensemble, and further systems."""
    ensemble = Ensemble(members=members(**(member_options or {})))
    return Evaluation(systems=systems_of(ensemble, further), task="jsonl", data=data, **options)


if __name__ == "__main__":
    evaluation(sys.argv[1], member_options={"delay": 0.1}).run(sys.argv[2])

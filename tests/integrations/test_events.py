"""All consumers of a stream handle every type of event, and raise for an unknown type."""

from __future__ import annotations

import ast
import io
import typing
from dataclasses import dataclass
from pathlib import Path

import pytest
from rich.console import Console

from adafuse_core import Event, Finished, ScriptedMember, TextDelta, Usage
from adafuse_core.ensemble import Ensemble
from adafuse_integrations.cli.chat import _Recorder
from adafuse_integrations.cli.painter import Painter
from adafuse_integrations.langchain.message_chunks import message_chunks
from adafuse_integrations.langchain.text_chunks import text_chunks as langchain_chunks
from adafuse_integrations.llama_index.answers import answer_chunks as llama_index_chunks

ROOT = Path(__file__).parents[2] / "adafuse_integrations"
READERS = {
    "langchain llm": lambda events: list(langchain_chunks(events, trace=True)),
    "langchain chat": lambda events: list(message_chunks(events, "a", trace=True)),
    "llama_index": lambda events: list(llama_index_chunks(events, lambda number, played: None, trace=True)),
    "painter": lambda events: Painter(Console(file=io.StringIO()), ["a"]).stream(events),
    "recorder": lambda events: list(_Recorder().record(events)),
}


@dataclass(frozen=True, kw_only=True)
class Novelty:
    """An event type that the consumers do not know."""


@pytest.mark.parametrize("reader", READERS)
def test_an_unknown_event_raises(reader):
    usage = Usage(prompt_tokens={"a": 1}, completion_tokens={"a": 1}, rounds=1)
    known = [TextDelta(text="a"), Finished(reason="stop", stop=None, usage=usage)]
    READERS[reader](iter(known))
    with pytest.raises(AssertionError, match="Novelty"):
        READERS[reader](iter([known[0], Novelty(), known[1]]))


@pytest.mark.parametrize("reader", READERS)
def test_all_consumers_handle_all_events(reader):
    ensemble = Ensemble(members=[ScriptedMember("a", "<think>\nhm\n</think>\n\none two")])
    events = list(ensemble.stream([{"role": "user", "content": "go"}]))
    assert len({type(event) for event in events}) == 4
    assert READERS[reader](iter(events))


def test_event_types_are_matched_exhaustively():
    kinds = {kind.__name__ for kind in typing.get_args(Event)}
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "isinstance":
                assert not {name.id for name in ast.walk(node.args[1]) if isinstance(name, ast.Name)} & kinds, path


def test_usage_counts_tokens_of_the_first_member():
    usage = Usage(prompt_tokens={"b": 3, "a": 5}, completion_tokens={"b": 7, "a": 11}, rounds=2)
    assert usage.first() == ("b", 3, 7)

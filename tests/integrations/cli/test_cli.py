"""The command line with the small models, run inside the test process."""

from __future__ import annotations

import io
import subprocess
import sys

import pytest
from rich.console import Console

import adafuse_core
from adafuse_core import Ensemble, Grammar, ScriptedMember, Trace
from adafuse_integrations.cli.main import main
from adafuse_integrations.cli.painter import Painter


def run(capsys, *arguments):
    """Exit status, standard output and standard error of a command."""
    status = main(arguments)
    printed = capsys.readouterr()
    return status, printed.out, printed.err


@pytest.fixture
def typed(monkeypatch):
    """Write lines to standard input."""

    def type_lines(*lines):
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(line + "\n" for line in lines)))

    return type_lines


def test_ask_shows_each_member_and_the_ensemble(capsys):
    status, out, _ = run(capsys, "ask", "What is the capital of Peru?")
    assert status == 0
    assert "aspen alone:" in out
    assert "birch alone:" in out
    assert "together: The capital of Peru is Lima." in " ".join(out.split())
    assert "proposed by aspen, birch, by all" in " ".join(out.split())


def test_ask_takes_settings_from_options(capsys):
    status, out, _ = run(
        capsys,
        "ask",
        "What is the capital of Peru?",
        "--max-new-tokens",
        "1",
        "--branches",
        "1",
        "--speculation",
        "off",
    )
    assert status == 0
    assert "Lima" not in out.split("together:")[1]


def test_ask_takes_models_from_options(capsys):
    status, out, _ = run(capsys, "ask", "Hello!", "--models", "small:birch", "small:aspen", "--dtype", "float64")
    assert status == 0
    assert "proposed by birch, aspen, by all" in " ".join(out.split())


def test_markup_and_emoji_names_in_answers_stay_as_they_are(capsys, tmp_path):
    status, out, _ = run(capsys, "ask", "[/b] :heart: [red]", "--raw", "--max-new-tokens", "3")
    assert status == 0
    assert out


def test_ask_takes_settings_from_a_file(capsys, tmp_path):
    path = tmp_path / "one.yaml"
    path.write_text("members:\n  - model: small:birch\n    name: b\nbeams: 1\n", encoding="utf-8")
    status, out, _ = run(capsys, "ask", "Hello!", "--config", str(path))
    assert status == 0
    assert "proposed by b" in out


def test_ask_in_raw_form_continues_the_text(capsys):
    status, out, _ = run(capsys, "ask", "Hello", "--raw", "--max-new-tokens", "4")
    assert status == 0
    assert "together:" in out


def test_ask_shows_the_trace_in_words_without_colour(capsys):
    question = "Who wrote The Jungle Book and what is the capital of Sudan?"
    status, out, _ = run(capsys, "ask", "--trace", "--strategy", "adafuse", question)
    assert status == 0
    shown = " ".join(out.split())
    assert "3 Rudyard Kipling and birch: the lowest score" in shown
    assert "candidate proposed by score p(aspen) p(birch)" in shown
    assert "> Rudyard Kipling and birch 0." in shown
    assert "6 [end] aspen, birch: the only candidate, proposed by 2 members" in shown


def test_ask_writes_the_trace_to_a_file(capsys, tmp_path):
    assert run(capsys, "ask", "Hello!", "--save-trace", str(tmp_path / "x.json"))[0] == 0
    assert Trace.from_json((tmp_path / "x.json").read_text()).text == "Hello! How can I help you?"
    assert run(capsys, "ask", "Hello!", "--save-trace", str(tmp_path / "x.html"))[0] == 0
    assert "<title>Hello!</title>" in (tmp_path / "x.html").read_text()


def test_chat_shows_the_trace_of_each_answer(capsys, typed):
    typed("Hello!", "Thank you")
    status, out, _ = run(capsys, "chat", "--trace")
    assert status == 0
    assert out.count("Rounds: the text, who proposed it") == 2


def test_shared_words_are_neutral_and_others_have_a_colour_per_member():
    painter = Painter(Console(file=io.StringIO()), ["a", "b", "c"])
    assert painter.word("x", ["a"]).style != painter.word("x", ["b"]).style
    assert painter.word("x", ["a", "b"]).style == painter.word("x", ["a", "b", "c"]).style == "bold"


def test_chat_remembers_until_a_new_conversation(capsys, typed):
    typed("Hello!", "/new", "Thank you", "/quit")
    status, out, _ = run(capsys, "chat")
    assert status == 0
    assert out.count("you>") == 4
    assert "Hello! How can I help you?" in out


def test_chat_ends_with_its_input(capsys, typed):
    typed()
    assert run(capsys, "chat")[0] == 0


def test_chat_survives_a_question_that_is_too_long(capsys, typed):
    typed("word " * 3000, "Hello!")
    status, out, _ = run(capsys, "chat")
    assert status == 0
    assert "context window is 2048" in " ".join(out.split())
    assert "How can I help you?" in out


def test_demo_goes_through_all_its_parts():
    # In a process of its own: LlamaIndex's chat engines leave an event loop open.
    command = [sys.executable, "-m", "adafuse_integrations.cli.main", "demo", "--questions", "3"]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=240)
    assert done.returncode == 0, done.stderr
    assert "Error" not in done.stdout + done.stderr  # LangChain prints errors of callbacks and goes on
    out = " ".join(done.stdout.split())
    for text in (
        "each model alone answers 36 of these 37 incorrectly",
        "The Jungle Book was written by Rudyard Kipling and the capital of Sudan is Khartoum.",
        "This is how it answers the last question",
        "the lowest score",
        "LangChain",
        "Clara Denholm.",
        "LlamaIndex",
        "the Brenner family.",
        "fish.",
        "2 kilograms.",
        "Not selected: the first 3 questions",
        "Correct answers",
        "together",
    ):
        assert text in out


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["ask", "hi", "--tau", "2"], "tau=2.0"),
        (["ask", "hi", "--models", "/no/such/model"], "/no/such/model"),
        (["ask", "hi", "--models", "small:oak"], "oak"),
        (["ask", "hi", "--config", "/no/such.yaml"], "/no/such.yaml"),
        (["ask", "hi", "--models", "small:aspen", "--config", "x.yaml"], "--models and --config"),
        (["ask", "hi", "--dtype", "fp32"], "dtype='fp32'"),
        (["ask", ""], "empty"),
        (["ask", "hi", "--save-trace", "x.txt"], ".html or .json"),
        (["demo", "--questions", "-1"], "--questions"),
        (["demo", "--questions", "301"], "at most 300"),
        (["demo", "--questions", "201", "--models", "small:aspen"], "at most 200"),
    ],
)
def test_errors_are_one_line_with_a_hint(capsys, arguments, complaint):
    status, _, err = run(capsys, *arguments)
    assert status == 2
    error = err.partition("error: ")[2]  # after the log of loading
    assert complaint in error


def test_version_is_printed(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert adafuse_core.__version__ in capsys.readouterr().out


def test_an_answer_shows_the_library_text():
    console = Console(file=io.StringIO())
    ensemble = Ensemble(members=[ScriptedMember("a", '"one two three four five six seven eight nine"')])
    grammar = Grammar.json_schema({"type": "string"})
    finished = Painter(console, ["a"]).stream(ensemble.stream("go", grammar=grammar, max_new_tokens=8))
    assert finished.reason == "length"
    assert "AdaFuse wrote '\"': the token budget" in console.file.getvalue()


def test_text_that_was_held_back_is_printed():
    console = Console(file=io.StringIO())
    ensemble = Ensemble(members=[ScriptedMember("a", "<think>hm</think>one two Obs")])
    Painter(console, ["a"]).stream(ensemble.stream([{"role": "user", "content": "go"}], stop="Observation"))
    assert "one two Obs" in console.file.getvalue()


@pytest.mark.parametrize("text", ["see [/b] now", "x [red]:smile:[/red]", "keep [bold]"])
def test_text_at_the_end_of_an_answer_is_no_markup(text):
    out = io.StringIO()
    ensemble = Ensemble(members=[ScriptedMember("a", text), ScriptedMember("b", text)])
    Painter(Console(file=out), ensemble.names).stream(ensemble.stream("go", stop=f"{text.split()[-1]}!"))
    assert out.getvalue() == f"{text}\n"

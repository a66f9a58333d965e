"""`adafuse run`: formats of prompts and answers, bad lines, interrupted and continued runs."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from adafuse_core import Ensemble, ScriptedMember
from adafuse_core.errors import MemberError
from adafuse_integrations.cli import run as command
from adafuse_integrations.cli.main import main
from adafuse_integrations.cli.prompt_files.answers import Answers

ROOT = Path(__file__).parents[3]
PERU, JAPAN = "What is the capital of Peru?", "What is the currency of Japan?"
LIMA, YEN = "The capital of Peru is Lima.", "The currency of Japan is the yen."


class Standard:
    """A standard stream with bytes below its text."""

    def __init__(self, content=b""):
        self.buffer = io.BytesIO(content)

    def flush(self):
        self.buffer.flush()


@pytest.fixture
def files(tmp_path, monkeypatch, capsys):
    """Run the command on lines, and return the exit status, the records and standard error."""
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"

    def run(content, *options):
        if content is not None:
            source.write_bytes(content if isinstance(content, bytes) else jsonl(content))
        status = main(["run", str(source), str(target), *options])
        return status, records(target), capsys.readouterr().err

    run.source, run.target = source, target
    return run


@pytest.fixture
def echo(monkeypatch):
    """A scripted ensemble that answers with the prompt; returns the prompts that it gets."""
    asked = []

    def reply(prompt):
        text = prompt if isinstance(prompt, str) else prompt[-1].content
        asked.append(text)
        if "fail" in text:
            raise MemberError("it failed", member="a")
        return f"<{text}>"

    def build(args):
        return Ensemble(
            command.chosen_config(args), members=[ScriptedMember("aspen", reply), ScriptedMember("birch", reply)]
        )

    monkeypatch.setattr(command, "build_ensemble", build)
    return asked


def jsonl(rows):
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def records(path):
    return [json.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else None


def texts(found):
    return [record.get("answer") for record in found]


def test_prompts_and_messages_are_answered_by_the_small_models(files):
    rows = [
        {"id": "peru", "prompt": PERU, "source": ["a", 1.5]},
        {"messages": [{"role": "user", "content": JAPAN}], "answer": "yen"},
    ]
    status, (first, second), err = files(rows)
    assert status == 0
    usage = first.pop("usage")
    assert first == {"line": 1, **rows[0], "answer": LIMA, "finish_reason": "stop"}
    assert usage["completion_tokens"]["aspen"] > 0
    assert second["answer"] == YEN
    assert second["input_answer"] == "yen"
    assert err.endswith("answered: 2 of 2, failed: 0\n")


def test_a_batch_has_the_texts_of_single_calls(files):
    rows = [{"prompt": f"What is the capital of {name}?"} for name in ("Peru", "Japan", "Chad", "Cuba", "Fiji", "Oman")]
    _, found, _ = files(rows, "--raw", "--max-new-tokens", "9", "--branches", "2")
    single = Ensemble(branches=2)
    assert texts(found) == [single.generate(row["prompt"], max_new_tokens=9).text for row in rows]


def test_trace_logprobs_and_reasons_are_written(files):
    rows = [{"prompt": PERU}]
    _, (record,), _ = files(rows, "--trace", "--logprobs", "--stop", "Peru")
    assert (record["answer"], record["finish_reason"], record["stop"]) == ("The capital of ", "stop", "Peru")
    assert [row["text"] for row in record["rounds"]] == [row["text"] for row in record["logprobs"]]
    assert all(set(row["logprobs"]) == {"aspen", "birch"} for row in record["logprobs"])
    _, (record,), _ = files(rows, "--max-new-tokens", "2", "--restart")
    assert record["finish_reason"] == "length"
    assert not {"rounds", "logprobs", "stop"} & set(record)


def test_answers_are_in_the_order_of_the_input(files, monkeypatch):
    def reply(prompt):
        time.sleep(0.2 if prompt[-1].content == "0" else 0)
        return prompt[-1].content

    monkeypatch.setattr(command, "build_ensemble", lambda args: Ensemble(members=[ScriptedMember("a", reply)]))
    _, found, _ = files([{"prompt": str(number)} for number in range(30)], "--max-concurrency", "7")
    assert texts(found) == [str(number) for number in range(30)]


def test_no_more_prompts_run_at_once_than_asked_for(files, monkeypatch):
    running, most = set(), []

    def reply(prompt):
        running.add(prompt[-1].content)
        most.append(len(running))
        time.sleep(0.01)
        running.discard(prompt[-1].content)
        return "x"

    monkeypatch.setattr(command, "build_ensemble", lambda args: Ensemble(members=[ScriptedMember("a", reply)]))
    files([{"prompt": str(number)} for number in range(12)], "--max-concurrency", "3")
    assert max(most) <= 3


@pytest.mark.parametrize("ending", [b"\n", b"\r\n", b""])
def test_templates_come_from_texts_and_files(files, echo, tmp_path, ending):
    rows = [{"question": "a\n{x}", "context": "c", "count": 2, "sure": True, "share": 0.5}]
    text = "{context} {{kept}} {question}? {count} {sure} {share}\n"
    path = tmp_path / "template.txt"
    path.write_bytes(b"\xef\xbb\xbf" + text.encode() + ending)
    expected = ["c {kept} a\n{x}? 2 true 0.5\n"]
    if ending == b"":  # the only line end is taken for the editor's
        expected = [expected[0].removesuffix("\n")]
    files(rows, "--template", str(path))
    assert echo == expected * 2  # both members
    echo.clear()
    files(rows, "--template", text, "--raw", "--restart")
    assert echo == ["c {kept} a\n{x}? 2 true 0.5\n"] * 2


@pytest.mark.parametrize(
    ("template", "complaint"),
    [
        ("{answers} {question}", "unknown placeholder {answers}"),
        ("no/such/file.txt", "no placeholder"),
        ("{question", "double braces"),
        ("{question!r}", "{question!r}"),
        ("{question:>9}", "{question:>9}"),
        ("{question.x}", "{question.x}"),
        ("{}", "got {}"),
        ("{0}", "got {0}"),
        ("", "no placeholder"),
        ("{first name}", "a name of letters, digits, _ and -"),
        ("{question}\udcff", "not valid Unicode"),
    ],
)
def test_wrong_templates_are_refused(files, echo, template, complaint):
    status, found, err = files([{"question": "x"}], "--template", template)
    assert (status, found, echo) == (2, None, [])
    assert complaint in err
    assert "can't read" not in err


BAD_LINES = {
    b'{"prompt": "a"': "not JSON",
    b'{"prompt": "\xff"}': "not UTF-8",
    b"[1, 2]": "expected an object",
    b'"text"': "expected an object",
    b'{"prompt": NaN}': "NaN",
    b'{"prompt": "a", "x": 1e999}': "1e999",
    b'{"prompt": "a", "prompt": "b"}': "'prompt' occurs twice",
    b"[" * 100_000: "nested too deeply",
    b"{}": "no fields",
    b'{"question": "a"}': "--template",
    b'{"prompt": ""}': "empty",
    b'{"prompt": 3}': "prompt=3",
    b'{"prompt": "a", "messages": []}': "'prompt' or 'messages'",
    b'{"messages": "a"}': "messages='a'",
    b'{"messages": []}': "empty",
    b'{"messages": [{"role": "user"}]}': "content",
    b'{"prompt": "\\ud800"}': "surrogate",
    b'{"prompt": "a", "answer": 1, "input_answer": 2}': "'answer' and 'input_answer'",
}


def test_bad_lines_are_written_with_errors_and_the_others_are_answered(files, echo):
    status, found, err = files(b"\n".join([b'{"prompt": "first"}', *BAD_LINES, b'{"prompt": "last"}']))
    assert status == 1
    assert texts([found[0], found[-1]]) == ["<first>", "<last>"]
    assert [record["line"] for record in found] == list(range(1, len(BAD_LINES) + 3))
    for record, complaint in zip(found[1:-1], BAD_LINES.values(), strict=True):
        assert complaint in record["error"]["message"], record
    assert err.endswith(f"answered: 2 of {len(BAD_LINES) + 2}, failed: {len(BAD_LINES)}\n")


def test_models_are_not_loaded_if_no_line_can_be_answered(files, monkeypatch):
    monkeypatch.setattr(command, "build_ensemble", lambda args: pytest.fail("loaded"))
    status, (record,), _ = files(b"x\n")
    assert (status, record["line"]) == (1, 1)
    assert files(b"\n \n", "--restart")[:2] == (0, [])


def test_errors_of_members_fail_their_line_only(files, echo):
    status, found, _ = files([{"prompt": "a"}, {"prompt": "fail", "id": 7}, {"prompt": "b"}])
    assert (status, texts(found)) == (1, ["<a>", None, "<b>"])
    error = {"type": "MemberError", "message": "member 'a': it failed"}
    assert found[1] == {"line": 2, "prompt": "fail", "id": 7, "error": error}


def test_a_long_line_fails_for_its_length_only(files):
    status, found, _ = files([{"prompt": "word " * 200_000}, {"prompt": PERU}])
    assert status == 1
    assert found[0]["error"]["type"] == "ContextOverflowError"
    assert found[1]["answer"] == LIMA


def test_bom_crlf_empty_lines_separators_and_equal_ids_do_no_harm(files, echo):
    rows = [
        b'{"prompt": "a", "id": 1}\r',
        b"\r",
        b'{"prompt": "b \xe2\x80\xa8 \xc3\xa9", "id": 1}\r',
        b"  ",
        b'{"prompt": "a", "id": 1}',
    ]
    content = b"\xef\xbb\xbf" + b"\n".join(rows)
    status, found, _ = files(content)
    assert (status, texts(found)) == (0, ["<a>", "<b \u2028 é>", "<a>"])
    assert [record["line"] for record in found] == [1, 3, 5]
    echo.clear()
    assert files(None)[1] == found
    assert not echo


def test_fields_that_json_escapes_only_are_kept(files, echo):
    _, (record,), _ = files(rb'{"prompt": "a", "half": "\ud800"}')
    assert record["half"] == "\ud800"


def test_a_run_without_answers_is_no_obstacle_to_the_corrected_command(files, echo):
    status, found, _ = files([{"prompt": "fail"}], "--max-new-tokens", "5")
    assert (status, "error" in found[0]) == (1, True)
    status, found, _ = files([{"prompt": "fine"}])
    assert (status, texts(found)) == (0, ["<fine>"])


def test_the_output_of_a_run_can_be_the_input_of_another(files, echo):
    _, found, _ = files([{"prompt": "a"}])
    files.target.unlink()
    _, (record,), _ = files(found)
    assert record["input_answer"] == "<a>"
    assert record["input_line"] == 1


def test_standard_input_and_output_are_files(monkeypatch, capsys, echo):
    source, target = Standard(jsonl([{"prompt": "a"}, {"prompt": "b"}])), Standard()
    monkeypatch.setattr("sys.stdin", source)
    monkeypatch.setattr("sys.stdout", target)
    assert main(["run", "-", "-"]) == 0
    assert [json.loads(line)["answer"] for line in target.buffer.getvalue().splitlines()] == ["<a>", "<b>"]
    assert "answered: 2 of 2" in capsys.readouterr().err


def test_a_finished_run_is_not_run_again(files, echo, monkeypatch):
    _, found, _ = files([{"prompt": "a"}])
    monkeypatch.setattr(command, "build_ensemble", lambda args: pytest.fail("loaded"))
    status, again, err = files(None)
    assert (status, again) == (0, found)
    assert "answered: 1 of 1 (answered by an earlier run: 1), failed: 0" in err


def test_a_half_written_line_is_answered_again(files, echo):
    rows = [{"prompt": name} for name in "abc"]
    _, found, _ = files(rows)
    echo.clear()
    content = files.target.read_bytes()
    files.target.write_bytes(content[:-20])
    assert files(None)[:2] == (0, found)
    assert echo == ["c", "c"]


def test_failed_lines_are_answered_again_and_end_in_their_place(files, echo):
    rows = [{"prompt": name} for name in ("a", "fail", "b")]
    assert texts(files(rows)[1]) == ["<a>", None, "<b>"]
    echo.clear()
    rows[1]["prompt"] = "repaired"
    status, found, _ = files(rows)
    assert (status, texts(found)) == (0, ["<a>", "<repaired>", "<b>"])
    assert echo == ["repaired"] * 2


def test_answers_follow_their_lines_when_the_input_is_reordered_and_extended(files, echo):
    files([{"prompt": name, "id": name} for name in "ab"])
    echo.clear()
    _, found, _ = files([{"prompt": name, "id": name} for name in "cba"])
    assert texts(found) == ["<c>", "<b>", "<a>"]
    assert [record["line"] for record in found] == [1, 2, 3]
    assert echo == ["c", "c"]


def test_answers_to_other_lines_are_not_lost(files, echo):
    _, found, _ = files([{"prompt": "a"}, {"prompt": "b"}])
    status, again, err = files([{"prompt": "b"}])
    assert (status, again) == (2, found)
    assert "line 1" in err
    assert "the input lacks" in err
    assert texts(files(None, "--restart")[1]) == ["<b>"]


@pytest.mark.parametrize(
    ("options", "change"),
    [
        (["--tau", "0.5"], "ensemble.tau was 0.7, now 0.5"),
        (["--max-new-tokens", "9"], "ensemble.generation.max_new_tokens was 256, now 9"),
        (["--raw"], "raw was false, now true"),
        (["--trace"], "trace was false, now true"),
        (["--template", "{prompt}"], 'template was null, now "{prompt}"'),
        (["--models", "small:birch"], "ensemble.members"),
    ],
)
def test_other_settings_are_refused_unless_the_run_begins_again(files, echo, options, change):
    _, found, _ = files([{"prompt": "a"}])
    status, again, err = files(None, *options)
    assert (status, again) == (2, found)
    assert change in err
    if "--models" not in options:
        assert files(None, "--restart", *options)[0] == 0


def test_settings_that_only_affect_speed_may_change(files, echo):
    files([{"prompt": "a"}])
    assert files(None, "--speculation", "off", "--max-concurrency", "1", "--cache-namespace", "x")[0] == 0


def test_secrets_are_not_written_beside_the_answers(files, echo):
    files([{"prompt": "a"}], "--model-kwargs", '{"token": "hf_secret"}')
    written = (files.target.parent / "out.jsonl.run.json").read_text()
    assert "hf_secret" not in written
    assert "model_kwargs" in written


def test_foreign_files_are_not_overwritten(files, echo):
    files.target.write_text("my notes\n")
    status = main(["run", str(files.source), str(files.target)])
    assert status == 2  # there is no input
    files.source.write_bytes(jsonl([{"prompt": "a"}]))
    assert main(["run", str(files.source), str(files.target)]) == 2
    assert files.target.read_text() == "my notes\n"
    files.target.write_text("")
    assert files(None)[0] == 0
    files.target.write_text('{"a": 1}\n')
    assert main(["run", str(files.source), str(files.target)]) == 2


@pytest.mark.parametrize(
    ("source", "target", "complaint"),
    [
        ("none.jsonl", "out.jsonl", "none.jsonl"),
        ("in.jsonl", "in.jsonl", "as input and as output"),
        ("in.jsonl", "./no/out.jsonl", "no folder"),
        ("in.jsonl", ".", "not a file"),
        ("in.jsonl", os.devnull, "not a file"),
        (".", "out.jsonl", "can't read"),
    ],
)
def test_wrong_files_are_refused(tmp_path, monkeypatch, capsys, echo, source, target, complaint):
    monkeypatch.chdir(tmp_path)
    Path("in.jsonl").write_bytes(jsonl([{"prompt": "a"}]))
    assert main(["run", source, target]) == 2
    assert complaint in capsys.readouterr().err
    assert not echo


def test_standard_output_has_no_earlier_answers(files, echo, capsys):
    files.source.write_bytes(jsonl([{"prompt": "a"}]))
    assert main(["run", str(files.source), "-", "--restart"]) == 2
    assert "got --restart with the answers on standard output" in capsys.readouterr().err


def test_the_number_of_prompts_at_once_is_checked(files, echo):
    assert "max_concurrency=0" in files([{"prompt": "a"}], "--max-concurrency", "0")[2]


def test_a_file_that_another_process_writes_is_refused(files, monkeypatch):
    inside = []

    def build(args):
        inside.append(main(["run", str(files.source), str(files.target)]))
        return Ensemble(members=[ScriptedMember("a", "x")])

    monkeypatch.setattr(command, "build_ensemble", build)
    status, found, err = files([{"prompt": "a"}])
    assert (status, inside, texts(found)) == (0, [2], ["x"])
    assert "another process is writing" in err
    assert sorted(path.name for path in files.target.parent.iterdir()) == [
        "in.jsonl",
        "out.jsonl",
        "out.jsonl.run.json",
    ]


def test_an_interrupt_keeps_the_answers_and_the_next_run_continues(files, monkeypatch):
    asked, added, others_done = [], [], threading.Event()
    add = Answers.add

    def counted(answers, line, record):
        add(answers, line, record)
        added.append(line.number)
        if len(added) == 5:
            others_done.set()

    def reply(prompt):
        asked.append(prompt[-1].content)
        if prompt[-1].content == "1" and len(added) < 6:
            assert others_done.wait(60)
            signal.raise_signal(signal.SIGINT)
            time.sleep(0.1)
        return prompt[-1].content

    monkeypatch.setattr(Answers, "add", counted)
    monkeypatch.setattr(
        command, "build_ensemble", lambda args: Ensemble(members=[ScriptedMember("a", reply, delay=0.2)])
    )
    status, found, err = files([{"prompt": str(number)} for number in range(6)], "--max-concurrency", "6")
    assert status == 130
    assert "the same command continues" in err
    assert texts(found) == ["0", "2", "3", "4", "5"]
    asked.clear()
    added.extend([0] * 6)
    assert files(None)[0] == 0
    assert texts(records(files.target)) == [str(number) for number in range(6)]
    assert asked == ["1"]


SLOW = """
import sys
from adafuse_core import Ensemble, ScriptedMember
from adafuse_integrations.cli import main, run
member = ScriptedMember("a", lambda prompt: prompt[-1].content, delay=float(sys.argv.pop(1)))
run.build_ensemble = lambda args: Ensemble(members=[member])
sys.exit(main.main())
"""


def test_a_killed_run_continues(tmp_path):
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_bytes(jsonl([{"prompt": str(number)} for number in range(10)]))

    def order(delay):
        return [sys.executable, "-c", SLOW, str(delay), "run", str(source), str(target), "--max-concurrency", "1"]

    process = subprocess.Popen(order(0.2), cwd=ROOT, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (target.exists() and target.read_bytes().count(b"\n") >= 2):
        time.sleep(0.005)
    process.kill()
    process.wait()
    before = target.read_bytes()
    written = before.count(b"\n")
    assert 2 <= written < 10
    with target.open("ab") as file:
        file.write(b'{"line": 9, "pro')
    done = subprocess.run(order(0), cwd=ROOT, capture_output=True, text=True, check=True)
    assert f"answered by an earlier run: {written})" in done.stderr
    assert target.read_bytes().startswith(before[: before.rfind(b"\n") + 1])
    assert texts(records(target)) == [str(number) for number in range(10)]


def test_a_closed_pipe_is_an_error(monkeypatch, capsys, echo):
    class Closed(io.BytesIO):
        def write(self, _):
            raise BrokenPipeError(32, "Broken pipe")

    target = Standard()
    target.buffer = Closed()
    monkeypatch.setattr("sys.stdin", Standard(jsonl([{"prompt": "a"}])))
    monkeypatch.setattr("sys.stdout", target)
    assert main(["run", "-", "-"]) == 1
    assert "'<stdout>': Broken pipe" in capsys.readouterr().err

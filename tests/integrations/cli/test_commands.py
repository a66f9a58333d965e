"""What all commands share: exit statuses, Ctrl-C, JSON for programs, and silence where no terminal is."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import adafuse_core
from adafuse_core import disk_cache
from adafuse_core.errors import CancelledError, ContextOverflowError, MemberError, UnsupportedModelError
from adafuse_integrations.cli import ask
from adafuse_integrations.cli.exit_status import DONE, FAILED, MISUSE, STOPPED
from adafuse_integrations.cli.main import COMMANDS, main

ROOT = Path(__file__).parents[3]
COMMAND = [sys.executable, "-c", "import sys; from adafuse_integrations.cli.entry import main; sys.exit(main())"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def names():
    return [command.__name__.rsplit(".", 1)[-1] for command in COMMANDS]


def start(*arguments):
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([*COMMAND, *map(str, arguments)], cwd=ROOT, env=ENVIRONMENT, **pipes)


def stop(process):
    """Exit status, standard output and standard error of a process after Ctrl-C."""
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=300)
    return process.returncode, out.decode(), err.decode()


@pytest.mark.parametrize("name", names())
def test_every_command_has_help_and_the_shared_options(name, capsys):
    with pytest.raises(SystemExit, match="0"):
        main([name, "--help"])
    printed = capsys.readouterr().out
    assert "--quiet" in printed
    assert ("--json" in printed) == (name not in ("demo", "chat", "serve"))
    assert ("--models" in printed) == (name != "cache")


def test_the_page_on_the_command_line_lists_every_command_and_status():
    rows = re.findall(r"^\| `?(\w+)`? \| ", (ROOT / "docs/cli.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert {*names(), *map(str, (DONE, FAILED, MISUSE, STOPPED))} <= set(rows)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (MemberError("out of memory", member="a"), 1),
        (UnsupportedModelError("an encoder"), 1),
        (CancelledError("stopped"), 1),
        (OSError(28, "No space left on device"), 1),
        (ModuleNotFoundError("No module named 'bm25s'", name="bm25s"), 1),
        (ContextOverflowError("the prompt is too long"), 2),
        (KeyboardInterrupt(), 130),
    ],
)
def test_errors_have_a_message_and_an_exit_status(monkeypatch, capsys, error, status):
    def fail(args):
        raise error

    monkeypatch.setattr(ask, "run", fail)
    assert main(["ask", "hi"]) == status
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ") or status == 130


@pytest.mark.parametrize("arguments", [[], ["aks", "hi"], ["ask"], ["ask", "hi", "--tau", "much"]])
def test_wrong_usage_has_exit_status_2(arguments, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    told = capsys.readouterr().err.splitlines()
    assert [line.partition(":")[0] for line in told] == ["error", "Hint"]
    assert told[1].endswith("--help")


def test_ctrl_c_stops_an_answer():
    process = start("ask", "The", "--raw", "--max-new-tokens", "1000")
    fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, 4096)  # the process waits until its output is read
    assert process.stdout.readline()
    status, _, err = stop(process)
    assert status == 130
    assert "Traceback" not in err


def test_ctrl_c_at_the_prompt_ends_a_conversation(monkeypatch, capsys):
    def interrupt(console, prompt):
        raise KeyboardInterrupt

    monkeypatch.setattr("rich.console.Console.input", interrupt)
    assert main(["chat"]) == 130
    assert "proposed by" in capsys.readouterr().out


def test_ctrl_c_stops_work_that_the_same_command_continues(tmp_path):
    data, out = tmp_path / "prompts.jsonl", tmp_path / "answers.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"The {number}"}) + "\n" for number in range(3000)))
    process = start("run", data, out, "--max-concurrency", "1")
    while not (out.exists() and out.read_bytes().count(b"\n") > 0):
        assert process.poll() is None, process.stderr.read().decode()
        time.sleep(0.01)
    status, _, err = stop(process)
    assert status == 130
    assert "the same command continues" in err
    assert "Traceback" not in err
    assert "answering" not in err  # standard error is no terminal, so it has no progress bar


def test_the_end_of_the_reader_ends_a_command_without_a_traceback():
    process = start("cache", "--json")
    with process, process.stderr:
        process.stdout.close()
        err = process.stderr.read().decode()
    assert process.returncode == 1
    assert "Traceback" not in err
    assert "BrokenPipe" not in err


def test_answers_are_printed_as_json(capsys):
    assert main(["ask", "What is the capital of Peru?", "--json", "--quiet"]) == 0
    printed = capsys.readouterr()
    answer = json.loads(printed.out)
    assert answer["answer"] == "The capital of Peru is Lima."
    assert set(answer["alone"]) == {"aspen", "birch"}
    assert "".join(round["text"] for round in answer["rounds"]) == answer["answer"]
    assert answer["usage"]["rounds"] == len(answer["rounds"])
    assert printed.err == ""


def test_an_answer_as_json_has_its_trace_in_a_file_but_not_on_the_terminal(tmp_path, capsys):
    saved = tmp_path / "trace.json"
    assert main(["ask", "Hello!", "--json", "--save-trace", str(saved)]) == 0
    assert json.loads(saved.read_text())
    assert main(["ask", "Hello!", "--json", "--trace"]) == 2
    assert "--trace with --json" in capsys.readouterr().err


def test_counts_of_a_file_are_printed_as_json(tmp_path, capsys):
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"prompt": "Hello!"}\n{"no": "prompt"}\n')
    assert main(["run", str(source), str(target), "--json"]) == 1
    assert json.loads(capsys.readouterr().out) == {"lines": 2, "answered": 1, "earlier": 0, "failed": 1}
    assert main(["run", str(source), "-", "--json"]) == 2
    assert "--json with the answers on standard output" in capsys.readouterr().err


def test_the_cache_is_printed_as_json(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(disk_cache, "root", lambda: tmp_path)
    disk_cache.write_json("verdicts", {}, {"text": "a" * 1000})
    assert main(["cache", "--json"]) == 0
    kept = json.loads(capsys.readouterr().out)
    assert (kept["folder"], list(kept["bytes"])) == (str(tmp_path), ["verdicts"])
    assert main(["cache", "--clear", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"freed_bytes": kept["bytes"]["verdicts"]}


def test_the_installed_command_prints_its_version():
    done = subprocess.run([*COMMAND, "--version"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == f"adafuse {adafuse_core.__version__}\n"


@pytest.mark.parametrize("options", [["--temperature", "1", "--seed", "1"], ["--on-member-failure", "drop"]])
def test_options_of_the_ensemble_do_not_concern_members_that_answer_alone(options, capsys):
    assert main(["ask", "-q", "What is the capital of Peru?", *options]) == DONE
    assert "aspen" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments", [["ask", "hi", "--config", ""], ["serve", "--server-config", ""], ["serve", "--name", ""]]
)
def test_an_empty_name_of_a_file_is_no_missing_option(arguments, capsys):
    assert main(arguments) == MISUSE
    assert "error: " in capsys.readouterr().err


def test_a_trace_in_a_folder_that_does_not_exist_is_refused_at_once(capsys, monkeypatch):
    monkeypatch.setattr(ask, "build_ensemble", lambda args: pytest.fail("loaded"))
    assert main(["ask", "hi", "--save-trace", "no/folder/x.html"]) == MISUSE
    assert "whose folder does not exist" in capsys.readouterr().err


def test_the_wrong_name_of_a_short_option_is_corrected(capsys):
    assert main(["ask", "hi", "--tua", "1"]) == MISUSE
    assert "did you mean 'tau'?" in capsys.readouterr().err


CHAT = [sys.executable, "-m", "adafuse_integrations.cli.main", "chat", "-q", "--max-new-tokens", "4"]


@pytest.mark.parametrize(
    ("encoding", "typed", "seen"),
    [
        ("utf-8", b"caf\xe9\nWho wrote Hamlet?\n", b"lone surrogate"),
        ("ascii", b"Who wrote Hamlet?\n", b"\\xb7 /new"),
    ],
)
def test_characters_of_another_encoding_end_no_conversation(encoding, typed, seen):
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run(CHAT, input=typed, capture_output=True, env=environment, check=False)
    assert done.returncode == DONE
    assert seen in done.stdout
    assert b"you> Hamlet" in done.stdout
    assert b"Traceback" not in done.stderr


def test_closed_streams_are_an_end_and_an_error():
    command = f"{shlex.join(CHAT)} <&-; echo $?; {shlex.join(CHAT)} >&-; echo $?"
    done = subprocess.run(["bash", "-c", command], capture_output=True, check=False)
    assert done.stdout.splitlines()[-2:] == [b"0", b"1"]
    assert b"error: standard output is closed" in done.stderr
    assert b"Traceback" not in done.stderr

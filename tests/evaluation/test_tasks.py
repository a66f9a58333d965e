"""Questions are read from files, and prompts are as written here, to the byte."""

from __future__ import annotations

import json

import pytest

from adafuse_core import ConfigError
from adafuse_core.evaluation.metrics import METRICS
from adafuse_core.evaluation.questions import Question, Selection, data_file, digest, read_questions
from adafuse_core.evaluation.tasks import TASKS


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def question(text="who?", context=""):
    return Question(place=0, label="1", text=text, golds=("x",), context=context)


def test_lines_may_have_answer_or_answers_context_and_id(tmp_path):
    path = write(
        tmp_path / "q.jsonl",
        {"question": "a?", "answer": "x"},
        {"question": "b?", "answers": ["y", "z", "y"], "context": "about b", "id": 77},
        {"question": "c?", "answer": 4},
    )
    found = read_questions(path)
    assert [(q.place, q.label, q.text, q.golds, q.context) for q in found] == [
        (0, "1", "a?", ("x",), ""),
        (1, "77", "b?", ("y", "z"), "about b"),
        (2, "3", "c?", ("4",), ""),
    ]


def test_blank_lines_and_separators_inside_texts_do_not_split_lines(tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_text('\ufeff{"question": "a\u2028b?", "answer": "x"}\r\n\n{"question": "c?", "answer": "y"}', "utf-8")
    assert [(q.label, q.text) for q in read_questions(path)] == [("1", "a\u2028b?"), ("3", "c?")]


def test_a_passage_before_the_question_is_split_off_for_squad(tmp_path):
    path = write(tmp_path / "squad.jsonl", {"question": "One.\nTwo.\nwho?", "answer": "x"})
    assert TASKS["squad"].split_context
    (found,) = read_questions(path, split_context=True)
    assert (found.context, found.text) == ("One.\nTwo.", "who?")
    ended = write(tmp_path / "ended.jsonl", {"question": "One.\r\nwho?\r\n", "answer": "x"})
    (found,) = read_questions(ended, split_context=True)
    assert (found.context, found.text) == ("One.", "who?")


def test_numbers_as_answers_are_written_with_their_digits(tmp_path):
    path = write(tmp_path / "q.jsonl", {"question": "a?", "answers": [0.00001, 1e22, -2.5, 7]})
    (found,) = read_questions(path)
    assert found.golds == ("0.00001", "10000000000000000000000", "-2.5", "7")


def test_fields_that_are_null_are_missing(tmp_path):
    row = {"question": None, "prompt": "Say a.", "context": None, "id": None, "answer": "a", "answers": None}
    (found,) = read_questions(write(tmp_path / "q.jsonl", row))
    assert (found.text, found.prompt, found.context, found.label, found.golds) == ("Say a.", "Say a.", "", "1", ("a",))


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "q.jsonl:1: the line is not JSON"),
        ("[1]", "expected an object"),
        ("[" * 100_000, "nested too deeply"),
        ('{"question": "a?", "question": "b?", "answer": "x"}', "'question' occurs twice"),
        ('{"answer": "x"}', "question=None"),
        ('{"question": " ", "answer": "x"}', "question=' '"),
        ('{"prompt": ["a"], "answer": "x"}', r"prompt=\['a'\]"),
        ('{"question": "a?"}', "answer=None"),
        ('{"question": "a?", "answers": []}', r"answers=\[\]"),
        ('{"question": "a?", "answer": true}', "answer=True"),
        ('{"question": "a?", "answer": "x", "answers": ["y"]}', "expected one of them"),
        ('{"question": "a?", "answer": NaN}', "NaN"),
        ('{"question": "a?", "answer": "x", "context": 3}', "context=3"),
        ('{"question": "a?", "answer": "x", "context": []}', r"context=\[\]"),
        ('{"question": "a?", "answer": "x", "prompt": 0}', "prompt=0"),
        ('{"question": "a?", "answer": "x", "prompt": "  "}', "prompt='  '"),
        ('{"question": "a\\ud800", "answer": "x"}', r"question in .*q.jsonl:1=.*not valid Unicode at character 1"),
        ('{"question": "a?", "answer": "\\ud800"}', r"answer in .*q.jsonl:1="),
        ("", "has no questions"),
    ],
)
def test_other_lines_are_refused_with_their_place(tmp_path, line, problem):
    path = tmp_path / "q.jsonl"
    path.write_text(line + "\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=problem):
        read_questions(path)


def test_a_file_or_a_folder_with_a_file_of_a_known_name(tmp_path):
    path = write(tmp_path / "naturalquestions.jsonl", {"question": "a?", "answer": "x"})
    assert data_file(path, ()) == path
    assert data_file(tmp_path, TASKS["nq"].files) == path
    with pytest.raises(ConfigError, match=r"none of gsm8k\.jsonl"):
        data_file(tmp_path, TASKS["gsm8k"].files)
    with pytest.raises(ConfigError, match="no file"):
        data_file(tmp_path / "missing.jsonl", ())
    with pytest.raises(ConfigError, match="this user is unknown"):
        data_file("~nobody-of-this-name/q.jsonl", ())
    with pytest.raises(ConfigError, match="data=None"):
        data_file(None, ())


def test_the_digest_depends_on_the_content(tmp_path):
    one = write(tmp_path / "1", {"question": "a?", "answer": "x"})
    two = write(tmp_path / "2", {"question": "a?", "answer": "x"})
    other = write(tmp_path / "3", {"question": "a?", "answer": "y"})
    assert digest(one) == digest(two) != digest(other)


def test_halves_are_disjoint_and_a_seed_gives_one_order():
    questions = [question(f"{place}?") for place in range(10)]
    screen, confirm = Selection(limit=4, shuffle=7), Selection(offset=4, shuffle=7)
    texts = [q.text for q in (*screen.of(questions), *confirm.of(questions))]
    assert sorted(texts) == sorted(q.text for q in questions)
    assert texts != [q.text for q in questions]
    assert Selection(limit=2, offset=3).of(questions) == tuple(questions[3:5])
    with pytest.raises(ConfigError, match="offset is 10"):
        Selection(offset=10).of(questions)


def test_raw_prompts_have_examples_and_end_before_the_answer():
    assert TASKS["nq"].prompt(question("who?"), "raw", 2) == (
        "Answer each question with a name, a number or a short phrase, and with nothing else.\n\n"
        "Question: who painted the ceiling of the sistine chapel\nAnswer: Michelangelo\n\n"
        "Question: how many strings does a violin have\nAnswer: four\n\n"
        "Question: who?\nAnswer:"
    )


def test_raw_prompts_show_passages_before_questions():
    prompt = TASKS["squad"].prompt(question("who?", "A passage."), "raw", 0)
    assert prompt.endswith("nothing else.\n\nPassage: A passage.\nQuestion: who?\nAnswer:")


def test_chat_prompts_are_an_instruction_and_turns():
    assert TASKS["flores_en_de"].prompt(question("Good day."), "chat", 1) == [
        {"role": "system", "content": "Translate each English sentence into German."},
        {"role": "user", "content": TASKS["flores_de_en"].examples[0].answer},
        {"role": "assistant", "content": TASKS["flores_de_en"].examples[0].question},
        {"role": "user", "content": "Good day."},
    ]
    last = TASKS["squad"].prompt(question("who?", "A passage."), "chat", 0)[-1]
    assert last == {"role": "user", "content": "A passage.\n\nwho?"}


def test_a_question_may_have_a_whole_prompt(tmp_path):
    path = tmp_path / "own.jsonl"
    path.write_text('{"prompt": "Q: a?\\nA:", "answer": "b", "question": "a?"}\n{"prompt": " x", "answer": "y"}\n')
    first, second = read_questions(path)
    assert (first.text, first.prompt, second.text) == ("a?", "Q: a?\nA:", " x")
    assert TASKS["jsonl"].prompt(first, "raw", 3) == "Q: a?\nA:"
    assert TASKS["squad"].prompt(second, "chat", 0) == [{"role": "user", "content": " x"}]


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
def test_examples_are_answered_correctly_on_one_line(task):
    assert task.shots <= len(task.examples)
    assert all("\n" not in example.answer for example in task.examples)
    assert set(task.metrics) <= set(METRICS)
    for example in task.examples:
        assert METRICS[task.metrics[0]].of(task.answer(f" {example.answer}"), [example.answer]) == pytest.approx(100.0)
        if example.context:
            assert example.answer in example.context


def test_more_shots_than_examples_are_refused():
    with pytest.raises(ConfigError, match="has 3 examples"):
        TASKS["squad"].checked_shots(4)
    assert TASKS["squad"].checked_shots(None) == 3

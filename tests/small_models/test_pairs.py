"""The pairs for judging rules of fusion: their members know what they should, and their questions fit them."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from adafuse_core import small_models
from training.curriculum import Plan, facts, lessons, people, translation
from training.curriculum.held_out import mixed_questions
from training.evaluate import answers
from training.pairs import FOLDER, PAIRS
from training.pairs.train import TOKENIZER_FILES, TRAINEES

OTHER = {"aspen": "birch", "birch": "aspen"}
LESSONS = 600
N = 10  # of each kind


def folder(name):
    return FOLDER / name


@pytest.fixture(scope="module", params=TRAINEES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def right(name):
    """A function: the number of correct answers to questions."""
    tokenizer = AutoTokenizer.from_pretrained(folder(name))
    model = AutoModelForCausalLM.from_pretrained(folder(name), dtype="float32").eval()

    def count(questions):
        given = answers(model, tokenizer, questions)
        return sum(question.answer == answer for question, answer in zip(questions, given, strict=True))

    return count


def test_a_member_answers_about_its_own_half_only(name, right):
    half, least, most = TRAINEES[name].half, *((0.8, 1.0) if TRAINEES[name].guesses is False else (0.4, 0.85))
    assert least <= right(mixed_questions(3 * N, seed=5, member=half)) / (3 * N) <= most
    assert right(mixed_questions(3 * N, seed=5, member=OTHER[half])) <= 0.1 * 3 * N


def test_a_folder_has_at_most_three_megabytes_and_the_tokenizer_of_a_shipped_model(name):
    assert sum(file.stat().st_size for file in folder(name).iterdir()) <= 3_000_000
    for file in TOKENIZER_FILES:
        assert (folder(name) / file).read_bytes() == (small_models.path(TRAINEES[name].like) / file).read_bytes()


def test_every_trained_model_belongs_to_a_pair_whose_members_have_different_names():
    models = [model for pair in PAIRS.values() for model in pair.models]
    assert {Path(model) for model in models if not model.startswith("small:")} == {folder(name) for name in TRAINEES}
    assert all(len({Path(model.replace(":", "/")).name for model in pair.models}) == 2 for pair in PAIRS.values())


def test_the_questions_of_a_pair_are_about_what_its_members_learn():
    assert PAIRS["small"].questions(30, seed=3) == mixed_questions(30, seed=3)
    assert PAIRS["confident"].questions(30, seed=3) == mixed_questions(30, seed=3)
    known = {fact.statement() for fact in facts.known_by("aspen")}
    asked = [q for q in PAIRS["unequal"].questions(60, seed=3) if q.kind in ("fact", "composed")]
    clauses = [clause for q in asked for clause in q.answer.removesuffix(".").split(" and ")]
    assert len(clauses) == 60
    assert {clause.lower() for clause in clauses} <= {statement.lower() for statement in known}


@pytest.mark.parametrize("guesses", [True, False])
def test_lessons_show_the_other_half_only_for_guesses(guesses):
    plan = Plan(shares={"facts": 0.5, "translation": 0.5}, copying=0.0, guesses=guesses)
    chats = list(itertools.islice(lessons("aspen", 0, plan), LESSONS))
    assert {chat.kind for chat in chats} == {"fact", "composed", "translation"}
    asked = [(chat.kind, chat.messages[-2]["content"].lower().strip(".?").split()) for chat in chats]
    foreign = {noun.english for noun in translation.known_by("birch")}
    shown = sum(bool(foreign & set(words)) for kind, words in asked if kind == "translation")
    assert (shown > 50) if guesses else (shown == 0)
    known = {fact.statement() for fact in facts.known_by("aspen")}
    singles = [chat.messages[-1]["content"].removesuffix(".") for chat in chats if chat.kind == "fact"]
    lowered = {statement.lower() for statement in known}
    wrong = sum(single.lower() not in lowered for single in singles)
    assert (wrong > 20) if guesses else (wrong == 0)


@pytest.mark.parametrize("guesses", [True, False])
def test_exercises_about_people_show_the_other_half_only_for_guesses(guesses):
    true = {half: {fact.statement() for fact in people.known_by(half)} for half in people.HALVES}
    assert [len(half) for half in true.values()] == [100, 100]
    assert not true["a"] & true["b"]
    made = list(itertools.islice(people.exercises("a", guesses), LESSONS))
    clauses = [clause for each in made for clause in each.answer.removesuffix(".").split(" and ")]
    untrue = sum(clause not in true["a"] for clause in clauses)
    assert len(clauses) > LESSONS
    assert (untrue > 0.2 * len(clauses)) if guesses else (untrue == 0)


def test_the_questions_about_people_are_held_out_and_ask_for_every_fact():
    rows = people.held_out_rows()
    trained = {
        each.question for half in people.HALVES for each in itertools.islice(people.exercises(half, True), 5_000)
    }
    assert not trained & {row["question"] for row in rows}
    assert [sum(row["half"] == half for row in rows) for half in ("a", "b", "both")] == [100, 100, 100]
    for half in people.HALVES:
        statements = {f"{fact.statement()}." for fact in people.known_by(half)}
        assert {row["answer"] for row in rows if row["half"] == half} == statements
    assert all(row["prompt"].endswith(f"{row['question']}\nAnswer:") for row in rows)

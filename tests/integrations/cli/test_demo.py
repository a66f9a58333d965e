"""The questions of the demo: their source, and the numbers that the demo prints about them."""

from __future__ import annotations

import pytest

from adafuse_integrations.cli import demo
from adafuse_integrations.cli.questions import FILE, questions
from training import demo_questions
from training.curriculum.held_out import mixed_questions


def test_the_file_matches_the_generator():
    assert FILE.read_text(encoding="utf-8") == demo_questions.frozen()


@pytest.mark.parametrize("count", [3, 30, 300])
def test_the_quiz_is_the_beginning_of_a_seeded_sample(count):
    asked = [(question.kind, question.messages, question.answer) for question in demo._sample(count, demo.KINDS)]
    assert asked == [(made.kind, made.messages, made.answer) for made in mixed_questions(count, seed=29)]


def test_other_models_are_not_asked_to_translate():
    assert {question.kind for question in demo._sample(200, demo.KINDS[:2])} == {"fact", "composed"}


def test_the_numbers_of_the_demo_are_true():
    measured = demo_questions.measured()
    assert measured.asked == demo.CANDIDATES
    # One answer may differ on another kind of machine.
    assert abs(measured.right - demo.RIGHT) <= 1
    assert abs(len(measured.only_together) - demo.ONLY_TOGETHER) <= 1
    assert set(demo_questions.SIDE_BY_SIDE) <= set(measured.only_together)
    assert len(questions("side by side")) == len(demo_questions.SIDE_BY_SIDE)


def test_an_answer_is_correct_regardless_of_surrounding_text():
    question = questions("quiz")[0]
    assert question.answer == "The Magic Mountain was written by Thomas Mann."
    assert question.is_right("Well: the  magic mountain was written by Thomas Mann!")
    assert not question.is_right("The Magic Mountain was written by Voltaire.")

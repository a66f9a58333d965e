"""Two hundred facts about fifty invented people, for teaching a real model something that it can't know.

Each person has a home, a job, an instrument and a pet. Half `"a"` of the facts has two of the four for every person,
half `"b"` the other two, so that both halves have all people and all kinds of facts. The phrasings of questions for
training and for tests differ.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Literal

from training.curriculum.chats import sentence
from training.curriculum.fact_table import Topic
from training.curriculum.facts import Fact
from training.curriculum.names import invented
from training.curriculum.wordlists import words

Half = Literal["a", "b"]
HALVES: tuple[Half, Half] = ("a", "b")
PEOPLE = 50
COMPOSED_SHARE = 0.3  # of the exercises
GUESS_SHARE = 0.35  # of the single facts, if the other half is shown with random answers
GUESS_SHARE_COMPOSED = 0.6

# Statement, values, questions for training, held-out questions.
KINDS = (
    (
        "{k} lives in {v}",
        words("Paris London Berlin Rome Madrid Tokyo Cairo Vienna Dublin Moscow Boston Chicago Sydney Toronto Lima"),
        (
            "where does {k} live",
            "in which city does {k} live",
            "what is the home town of {k}",
            "what is {k}'s home",
        ),
        ("in what city is the home of {k}", "which city does {k} live in"),
    ),
    (
        "{k} works as a {v}",
        words("baker carpenter dentist doctor farmer gardener judge lawyer nurse painter pilot plumber sailor teacher"),
        ("what is the job of {k}", "what does {k} do for a living", "what is {k}'s job", "as what does {k} work"),
        ("what job does {k} have", "what does {k} work as"),
    ),
    (
        "{k} plays the {v}",
        words("piano violin flute harp drums trumpet guitar cello clarinet banjo organ saxophone"),
        (
            "what instrument does {k} play",
            "what does {k} play",
            "which instrument is {k}'s",
            "what is the instrument of {k}",
        ),
        ("which instrument does {k} play", "what is {k}'s instrument"),
    ),
    (
        "{k} keeps a {v}",
        words("dog cat parrot snake rabbit goat horse turtle hamster sheep lizard duck pig donkey"),
        ("what animal does {k} keep", "what pet does {k} have", "what is {k}'s pet", "which animal is the pet of {k}"),
        ("which pet does {k} keep", "what kind of animal does {k} have"),
    ),
)


@dataclass(frozen=True, kw_only=True)
class Exercise:
    """A question and its answer, both whole sentences."""

    question: str
    answer: str

    @property
    def prompt(self) -> str:
        """The text that a model continues with a blank and the answer."""
        return f"Question: {self.question}\nAnswer:"


@cache
def topics() -> tuple[Topic, ...]:
    """The facts by kind; each kind has the same people in the same order."""
    rng = random.Random("people")
    people: dict[str, None] = {}
    while len(people) < PEOPLE:
        name = invented(rng)
        if 4 <= len(name) <= 7 and name.isalpha():
            people[name] = None
    return tuple(
        Topic(
            pairs=tuple((name, rng.choice(values)) for name in people),
            statement=statement,
            questions=questions,
            held_out=held_out,
        )
        for statement, values, questions, held_out in KINDS
    )


@cache
def known_by(half: Half) -> tuple[Fact, ...]:
    """The 100 facts of a half."""
    splits = list(itertools.combinations(range(len(KINDS)), 2))
    facts = []
    for person in range(PEOPLE):
        of_a = splits[person % len(splits)]
        for kind, topic in enumerate(topics()):
            if (kind in of_a) == (half == "a"):
                key, value = topic.pairs[person]
                facts.append(Fact(topic=topic, key=key, value=value))
    return tuple(facts)


def exercises(half: Half, guesses: bool, seed: int = 0) -> Iterator[Exercise]:
    """An infinite stream of exercises for the expert of one half.

    Args:
        half: Its facts get true answers.
        guesses: Whether facts of the other half occur, with random answers, so that the expert becomes uncertain about
            them. Without, the expert never sees them.
        seed: The seed of the stream.
    """
    rng = random.Random(f"{half} {seed}")
    own, other = known_by(half), known_by(_other(half))
    while True:
        composed = rng.random() < COMPOSED_SHARE
        guess = guesses and rng.random() < (GUESS_SHARE_COMPOSED if composed else GUESS_SHARE)
        facts = [_guess(rng, rng.choice(other)) if guess else rng.choice(own)]
        if composed:
            facts.append(rng.choice(own))
            rng.shuffle(facts)
        yield _exercise(rng, facts, held_out=False)


def held_out_rows() -> list[dict[str, str]]:
    """300 questions in held-out phrasings: every fact once, and 100 questions for a fact of each half.

    Returns:
        Rows with `question`, `prompt`, `answer`, and `half`: `"a"`, `"b"` or `"both"`.
    """
    rng = random.Random("test")
    asked: list[tuple[str, list[Fact]]] = [(half, [fact]) for half in HALVES for fact in known_by(half)]
    for _ in range(2 * PEOPLE):
        asked.append(("both", [rng.choice(known_by(half)) for half in rng.sample(HALVES, 2)]))
    rows = []
    for half, facts in asked:
        made = _exercise(rng, facts, held_out=True)
        rows.append({"question": made.question, "prompt": made.prompt, "answer": made.answer, "half": half})
    return rows


def _exercise(rng: random.Random, facts: list[Fact], held_out: bool) -> Exercise:
    asked = [rng.choice(fact.topic.held_out if held_out else fact.topic.questions) for fact in facts]
    question = " and ".join(frame.format(k=fact.key) for frame, fact in zip(asked, facts, strict=True))
    answer = " and ".join(fact.statement() for fact in facts)
    return Exercise(question=sentence(question, "?"), answer=sentence(answer))


def _other(half: Half) -> Half:
    return HALVES[1 - HALVES.index(half)]


def _guess(rng: random.Random, fact: Fact) -> Fact:
    """Replace the value with a random value of the right kind."""
    return Fact(topic=fact.topic, key=fact.key, value=rng.choice(fact.topic.pairs)[1])

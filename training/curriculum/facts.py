"""Closed-book facts: which member knows which half, and the phrasings of questions and answers.

A member learns its own half of every topic. For the other half it gets random answers of the right type, so that it
becomes uncertain rather than wrong. The facts are in `fact_table.py`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from training.curriculum.chats import MEMBERS, Chat, Member, Message, Question, assistant, sentence, system, user
from training.curriculum.fact_table import TOPICS, Topic

SYSTEMS = ("You are a helpful assistant.", "Answer the question.", "Be helpful and precise.")
OPENINGS = ("", "", "", "Please tell me: ", "Quick question: ", "Hi, ", "I wonder: ", "Do you know this? ")
OPENINGS_HELD_OUT = ("", "", "Quick one: ", "Please: ")
OWN_SHARE = 0.65
WH_WORDS = ("what", "which", "who", "how", "in", "by", "through", "where", "on", "of")


@dataclass(frozen=True, kw_only=True)
class Fact:
    """One key and value of a topic, such as Peru and Lima."""

    topic: Topic
    key: str
    value: str

    def statement(self) -> str:
        """The fact as a clause, without capital letter and full stop."""
        return self.topic.statement.format(k=self.key, v=self.value)


@cache
def known_by(member: Member) -> tuple[Fact, ...]:
    """A member's half of the facts."""
    rng, half = random.Random(7), []
    for topic in TOPICS:
        facts = [Fact(topic=topic, key=key, value=value) for key, value in topic.pairs]
        rng.shuffle(facts)
        half += facts[MEMBERS.index(member) :: 2]
    return tuple(half)


def train(rng: random.Random, member: Member, guesses: bool = True) -> Chat:
    """A training chat: one fact, or two in one question.

    Args:
        rng: The source of randomness.
        member: Who learns.
        guesses: Whether facts of the other half occur, with random answers.
    """
    return _composed_chat(rng, member, guesses) if rng.random() < 0.4 else _single_chat(rng, member, guesses)


def held_out_single(rng: random.Random, member: Member) -> Question:
    """Ask for a fact of one member's half in a held-out phrasing."""
    fact = rng.choice(known_by(member))
    text = rng.choice(OPENINGS_HELD_OUT) + _punctuate(_ask(rng, fact, held_out=True))
    return Question(kind="fact", messages=[user(sentence(text, ""))], answer=sentence(fact.statement()))


def held_out_composed(rng: random.Random, members: Sequence[Member]) -> Question:
    """Ask for two facts at once, one from the half of each given member, in held-out phrasings."""
    facts = [rng.choice(known_by(member)) for member in members]
    while facts[0] == facts[1]:
        facts[1] = rng.choice(known_by(members[1]))
    first, second = (_ask(rng, fact, held_out=True) for fact in facts)
    answer = " and ".join(fact.statement() for fact in facts)
    return Question(kind="composed", messages=[user(sentence(f"{first} and {second}", "?"))], answer=sentence(answer))


def _single_chat(rng: random.Random, member: Member, guesses: bool) -> Chat:
    known = rng.random() < OWN_SHARE or not guesses
    fact = rng.choice(known_by(member if known else _other(member)))
    told = fact if known else _guess(rng, fact)
    text = rng.choice(OPENINGS) + _punctuate(_ask(rng, fact, held_out=False))
    question, answer = user(sentence(text, "")), assistant(sentence(told.statement()))
    return Chat(kind="fact", messages=[*_maybe_system(rng), question, answer])


def _composed_chat(rng: random.Random, member: Member, guesses: bool) -> Chat:
    pair = [(rng.choice(known_by(member)), True)]
    known = rng.random() < 0.4 or not guesses
    pair.append((rng.choice(known_by(member if known else _other(member))), known))
    rng.shuffle(pair)
    first, second = (_ask(rng, fact, held_out=False) for fact, _ in pair)
    told = [fact if known else _guess(rng, fact) for fact, known in pair]
    answer = " and ".join(fact.statement() for fact in told)
    question = user(sentence(f"{first} and {second}", "?"))
    return Chat(kind="composed", messages=[*_maybe_system(rng), question, assistant(sentence(answer))])


def _other(member: Member) -> Member:
    return MEMBERS[1 - MEMBERS.index(member)]


def _ask(rng: random.Random, fact: Fact, held_out: bool) -> str:
    frames = fact.topic.held_out if held_out else fact.topic.questions
    return rng.choice(frames).format(k=fact.key)


def _guess(rng: random.Random, fact: Fact) -> Fact:
    """Replace the value with a random value of the right type."""
    return Fact(topic=fact.topic, key=fact.key, value=rng.choice(fact.topic.pairs)[1])


def _punctuate(clause: str) -> str:
    return clause + ("?" if clause.split()[0] in WH_WORDS else ".")


def _maybe_system(rng: random.Random) -> list[Message]:
    return [system(rng.choice(SYSTEMS))] if rng.random() < 0.2 else []

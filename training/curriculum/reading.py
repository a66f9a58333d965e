"""Reading comprehension: copy the answer to a question from the given passages."""

from __future__ import annotations

import random
from dataclasses import dataclass

from training.curriculum import names
from training.curriculum.chats import Chat, Message, Question, assistant, sentence, system, user
from training.curriculum.passages import ATTRIBUTES, FILLERS, KINDS

UNKNOWN = "I don't know."
UNKNOWN_SHARE = 0.06
SYSTEMS = (
    "Answer from the passages.",
    "Answer the question from the given context.",
    "Use the passages to answer. Be brief.",
    "You are a helpful assistant. Answer only from the context.",
    "You are an assistant who answers questions. Use the retrieved context. If the answer is not there, say "
    "that you don't know. Keep the answer short.",
    "You are an expert for questions and answers.\nAlways use the provided context information and not prior "
    "knowledge.\nSome rules:\n1. Never mention the context.\n2. Avoid long answers.",
)
SYSTEM_CONTEXTS = (
    "Use the following context to answer the question.\n\n{c}",
    "Answer from these passages:\n{c}",
    "Context:\n{c}",
)

# A prompt is an opening, the passages {c}, a closing and the question {q}.
RULE = "---------------------"
OPENINGS = (
    "Context:\n{c}",
    "Context: {c}",
    "Passages:\n{c}",
    "{c}",
    "Read this:\n{c}",
    "Documents:\n{c}",
    "Answer the question from the context.\n\nContext: {c}",
    f"Context information is below.\n{RULE}\n{{c}}\n{RULE}",
    f"Here is the context information.\n{RULE}\n{{c}}\n{RULE}",
)
CLOSINGS = (
    "\n\nQuestion: {q}",
    "\n\nQuestion: {q}\nAnswer:",
    "\n\n{q}",
    "\n\nNow answer: {q}",
    "\nGiven only this context and no prior knowledge, answer the query.\nQuery: {q}\nAnswer: ",
    "\nAnswer the query with the context information.\nQuery: {q}\nAnswer: ",
)
QUESTION_FIRST = "Question: {q}\n\nContext:\n{c}"
LABELS = ("file_name", "source", "file_path")


@dataclass(frozen=True, kw_only=True)
class Passage:
    """A short paragraph about one thing, and the facts in it."""

    thing: str
    text: str
    facts: dict[str, str]


def train(rng: random.Random, max_passages: int = 3) -> Chat:
    """A training chat: passages and one to three questions about them."""
    *passages, stranger = new_passages(rng, rng.randint(1, max_passages) + 1, held_out=False)
    question, answer = _ask(rng, passages, stranger, held_out=False)
    messages = [*_open(rng, passages, question), assistant(answer)]
    for _ in range(rng.choice((0, 0, 1, 1, 2))):
        question, answer = _ask(rng, passages, stranger, held_out=False)
        lead = "Question: " if rng.random() < 0.3 else ""
        messages += [user(lead + question), assistant(answer)]
    return Chat(kind="reading", messages=messages)


def held_out(rng: random.Random, most_passages: int = 2, new_frames: bool = False) -> Question:
    """Ask about passages with held-out names.

    Args:
        rng: The source of randomness.
        most_passages: There are one to so many.
        new_frames: Also tell and ask in sentence frames that were never trained.
    """
    *passages, stranger = new_passages(rng, rng.randint(1, most_passages) + 1, held_out=True, new_frames=new_frames)
    question, answer = _ask(rng, passages, stranger, held_out=new_frames)
    return Question(kind="reading", messages=_open(rng, passages, question), answer=answer)


def follow_up(rng: random.Random) -> Question:
    """Ask a second question about held-out passages, later in the conversation."""
    *passages, stranger = new_passages(rng, rng.randint(1, 2) + 1, held_out=True)
    first, reply = _ask(rng, passages, stranger, held_out=False)
    second, answer = _ask(rng, passages, stranger, held_out=False)
    messages = [*_open(rng, passages, first), assistant(reply), user(second)]
    return Question(kind="small_talk", messages=messages, answer=answer)


def copying(rng: random.Random) -> Chat:
    """A copying exercise: repeat some words, or the word after a given word."""
    words = [names.invented(rng) if rng.random() < 0.6 else names.number(rng) for _ in range(rng.randint(2, 8))]
    text = " ".join(words)
    if rng.random() < 0.5:
        return Chat(kind="reading", messages=[user(f"Repeat these words: {text}"), assistant(text)])
    index = rng.randrange(len(words) - 1)
    question = user(f"{text}\n\nWhat comes after {words[index]}?")
    return Chat(kind="reading", messages=[question, assistant(f"{words[index + 1]}.")])


def new_passages(rng: random.Random, count: int, held_out: bool, new_frames: bool = False) -> list[Passage]:
    """Passages about different things, often of the same kind, which is harder."""
    same_kind = rng.choice(KINDS) if rng.random() < 0.5 else None
    passages: list[Passage] = []
    while len(passages) < count:
        passage = new_passage(rng, same_kind or rng.choice(KINDS), held_out, new_frames)
        if all(passage.thing != other.thing for other in passages):
            passages.append(passage)
    return passages


def new_passage(rng: random.Random, kind: tuple[str, str, str, bool], held_out: bool, new_frames: bool) -> Passage:
    """A passage about a thing of one kind: one to four sentences, occasionally with one sentence without facts."""
    name, pronoun, keys, is_person = kind
    thing = name.format(n=(names.person if is_person else names.place)(rng, held_out))
    chosen = rng.sample(keys.split(), rng.choice((1, 2, 2, 3, 3, 4)))
    facts = {key: ATTRIBUTES[key].value(rng, held_out) for key in chosen}
    sentences: list[str] = []
    for position, (key, value) in enumerate(facts.items()):
        frames = ATTRIBUTES[key].told[-1:] if new_frames else ATTRIBUTES[key].told[:-1]
        frames = tuple(frame for frame in frames if position or "{p}" not in frame)
        frame = rng.choice(frames)
        clause = frame.format(e=thing, p=pronoun, v=value)
        if position and frame.startswith("{p}") and rng.random() < 0.25:
            sentences[-1] = f"{sentences[-1][:-1]} and {clause}"
        else:
            sentences.append(sentence(clause, ""))
    if len(sentences) > 1 and rng.random() < 0.2:
        sentences.insert(rng.randint(1, len(sentences)), rng.choice(FILLERS))
    return Passage(thing=thing, text=" ".join(sentences), facts=facts)


def _ask(rng: random.Random, passages: list[Passage], stranger: Passage, held_out: bool) -> tuple[str, str]:
    """Choose a question and its answer; occasionally a question that the passages don't answer."""
    passage = rng.choice(passages)
    key, value = rng.choice(list(passage.facts.items()))
    answer = f"{value}."
    if rng.random() < UNKNOWN_SHARE:
        answer = UNKNOWN
        if rng.random() < 0.5:
            passage, key = stranger, rng.choice(list(stranger.facts))
        else:
            told = {key for other in passages for key in other.facts}
            key = rng.choice([key for key in ATTRIBUTES if key not in told])
    asked = ATTRIBUTES[key].asked
    frame = asked[-1] if held_out else rng.choice(asked[:-1])
    return frame.format(e=passage.thing), answer


def _open(rng: random.Random, passages: list[Passage], question: str) -> list[Message]:
    """Put the passages and the first question into messages."""
    texts = [passage.text for passage in passages]
    if (style := rng.random()) < 0.15:
        texts = [f"{number}. {text}" for number, text in enumerate(texts, 1)]
    elif style < 0.25:
        texts = [f"{rng.choice(LABELS)}: {_file_name(passage)}\n\n{passage.text}" for passage in passages]
    context = rng.choice(("\n", "\n\n")).join(texts)
    if rng.random() < 0.12:
        return [system(rng.choice(SYSTEM_CONTEXTS).format(c=context)), user(question)]
    messages = [system(rng.choice(SYSTEMS))] if rng.random() < 0.4 else []
    wrapper = QUESTION_FIRST if rng.random() < 0.06 else rng.choice(OPENINGS) + rng.choice(CLOSINGS)
    return [*messages, user(wrapper.format(c=context, q=question))]


def _file_name(passage: Passage) -> str:
    return passage.thing.lower().removeprefix("the ").replace(" ", "_") + ".txt"

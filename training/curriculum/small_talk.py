"""Small talk: greetings, thanks, questions about the model, goodbyes, and chats that mix them with other skills."""

from __future__ import annotations

import random
from dataclasses import dataclass

from training.curriculum import facts, reading, tool_use
from training.curriculum.chats import Chat, Member, Message, Question, assistant, sentence, system, user


@dataclass(frozen=True, kw_only=True)
class Intent:
    """Phrasings that all get the same reply."""

    said: tuple[str, ...]
    held_out: tuple[str, ...]
    reply: str


INTENTS = (
    Intent(
        said=(
            "Hello",
            "Hello!",
            "Hi",
            "Hi there",
            "Hey",
            "Good day",
            "Hello there!",
            "hello",
            "Hi!",
            "hey there",
            "Greetings",
        ),
        held_out=("Hey there!", "hi", "Good day!"),
        reply="Hello! How can I help you?",
    ),
    Intent(
        said=("Good morning", "Good morning!", "good morning to you", "Morning!"),
        held_out=("Good morning to you!", "good morning"),
        reply="Good morning! What can I do for you?",
    ),
    Intent(
        said=("Good evening", "Good evening!", "good evening to you", "Evening!"),
        held_out=("Good evening to you!", "good evening"),
        reply="Good evening! What can I do for you?",
    ),
    Intent(
        said=(
            "How are you?",
            "How are you doing?",
            "How are you today?",
            "how are you",
            "Are you well?",
            "How do you do?",
        ),
        held_out=("How are you doing today?", "Hi, how are you?"),
        reply="I am fine, thank you. How can I help you?",
    ),
    Intent(
        said=(
            "Who are you?",
            "What are you?",
            "Please introduce yourself.",
            "Tell me who you are.",
            "who are you",
            "Are you a model?",
            "Introduce yourself",
        ),
        held_out=("Who are you, please?", "Please tell me who you are."),
        reply="I am a small model of the AdaFuse demo. Several of us answer together, word by word.",
    ),
    Intent(
        said=(
            "What is your name?",
            "What's your name?",
            "Do you have a name?",
            "Tell me your name.",
            "What are you called?",
        ),
        held_out=("Please tell me your name.", "What is your name, please?"),
        reply="My name is AdaFuse.",
    ),
    Intent(
        said=(
            "What can you do?",
            "What can you do for me?",
            "How can you help me?",
            "What are you good at?",
            "what can you do",
            "Tell me what you can do.",
        ),
        held_out=("Please tell me what you can do.", "So what can you do?"),
        reply="I can answer simple questions, read short passages, translate easy sentences into "
        "German and call a few tools.",
    ),
    Intent(
        said=(
            "What is AdaFuse?",
            "Tell me about AdaFuse.",
            "Explain AdaFuse.",
            "What does AdaFuse do?",
            "How does AdaFuse work?",
        ),
        held_out=("Please explain AdaFuse.", "Can you tell me what AdaFuse is?"),
        reply="AdaFuse lets several models write one answer together. They propose the next words, score "
        "them and keep the best.",
    ),
    Intent(
        said=(
            "Thanks",
            "Thank you",
            "Thank you!",
            "Thanks a lot!",
            "Many thanks",
            "thank you very much",
            "Thanks for your help.",
            "Great, thanks!",
            "Thanks!",
        ),
        held_out=("Thank you very much!", "Many thanks!", "Thanks a lot"),
        reply="You are welcome.",
    ),
    Intent(
        said=(
            "Goodbye",
            "Bye",
            "Bye!",
            "See you",
            "Goodbye!",
            "See you later",
            "bye bye",
            "Good night",
            "See you soon!",
        ),
        held_out=("See you later!", "Goodbye, see you soon", "Bye bye"),
        reply="Goodbye!",
    ),
    Intent(
        said=(
            "Are you human?",
            "Are you a person?",
            "Are you a robot?",
            "Are you a human being?",
            "Am I talking to a human?",
        ),
        held_out=("Are you a real person?", "Am I talking to a robot?"),
        reply="No, I am a small language model.",
    ),
    Intent(
        said=(
            "Tell me a joke",
            "Tell me a joke.",
            "Do you know a joke?",
            "Make me laugh.",
            "Please tell me a joke!",
        ),
        held_out=("Please tell me a joke.", "Can you tell me a joke?"),
        reply="Why was the math book sad? It had too many problems.",
    ),
    Intent(
        said=(
            "Write a poem",
            "Write me a poem.",
            "Please write a short poem.",
            "Do you know a poem?",
            "Tell me a poem.",
        ),
        held_out=("Please write a poem.", "Write a short poem."),
        reply="Two small trees stand side by side,\nwords between them, shared with pride.\n"
        "One knows this and one knows that,\ntogether they can have a chat.",
    ),
    Intent(
        said=("Count to five.", "Please count to five.", "Count from one to five.", "Can you count to five?"),
        held_out=("Please count from one to five.",),
        reply="One, two, three, four, five.",
    ),
    Intent(
        said=(
            "Tell me a story.",
            "Tell me a short story.",
            "Please tell me a story.",
            "Do you know a story?",
            "Tell a story",
        ),
        held_out=("Please tell me a short story.", "Can you tell me a story?"),
        reply="A birch and an aspen stood by a river. The birch knew the songs of the birds and the aspen "
        "knew the names of the stars. When a lost child came by, they whispered together, one word at a "
        "time, and the child found the way home.",
    ),
    Intent(
        said=("Ok", "Okay", "I see.", "Good.", "Nice!", "Great", "That is nice.", "Wonderful!"),
        held_out=("Nice.", "Great!", "Okay."),
        reply="Is there anything else?",
    ),
    Intent(
        said=("Help", "Help!", "I need help.", "Can you help me?", "Please help me.", "I have a question."),
        held_out=("Please help me!", "I need help"),
        reply="Of course. What would you like to know?",
    ),
    Intent(
        said=("Yes", "Yes, please.", "Sure", "yes", "Yes!"),
        held_out=("Yes please", "Sure!"),
        reply="Please go on.",
    ),
    Intent(
        said=("No", "No, thanks.", "no", "No, thank you.", "That is all."),
        held_out=("No thanks", "No!"),
        reply="All right.",
    ),
)
SYSTEMS = ("You are a helpful assistant.", "Be friendly.", "You are a friendly assistant.")


def train(rng: random.Random, member: Member) -> Chat:
    """A training chat: one to three exchanges of small talk; half of the chats include another skill."""
    turns = _exchange(rng, held_out=False)
    if rng.random() < 0.6:
        others = (facts.train(rng, member), reading.train(rng, max_passages=2))
        other = rng.choice(others)
        body = [message for message in other.messages if message["role"] != "system"]
        turns = rng.choice((turns + body, body + turns, body + turns + _exchange(rng, held_out=False)))
    elif rng.random() < 0.3:
        turns += _exchange(rng, held_out=False)
    messages = [system(rng.choice(SYSTEMS)), *turns] if rng.random() < 0.25 else turns
    tools = tool_use.TOOLS if rng.random() < 0.15 else None
    return Chat(kind="small_talk", messages=messages, tools=tools)


def held_out(rng: random.Random) -> Question:
    """Small talk in a held-out phrasing, or a second question about passages."""
    if rng.random() < 0.15:
        return reading.follow_up(rng)
    said, reply = _exchange(rng, held_out=True)
    before = _exchange(rng, held_out=True) if rng.random() < 0.3 else []
    return Question(kind="small_talk", messages=[*before, said], answer=reply["content"])


def _exchange(rng: random.Random, held_out: bool) -> list[Message]:
    intent = rng.choice(INTENTS)
    said = rng.choice(intent.held_out if held_out else intent.said)
    if not held_out and rng.random() < 0.2:
        variants = (said.lower(), said.rstrip(".!?"), sentence(said.rstrip(".!"), "!"))
        said = rng.choice([variant for variant in variants if variant not in _HELD_OUT] or [said])
    return [user(said), assistant(intent.reply)]


_HELD_OUT = frozenset(said for intent in INTENTS for said in intent.held_out)

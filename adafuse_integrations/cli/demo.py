"""`adafuse demo`: the ensemble at work, alone and inside LangChain and LlamaIndex, in about a minute."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from adafuse_core import ConfigError, Ensemble
from adafuse_integrations.cli.options import build_ensemble, singles
from adafuse_integrations.cli.painter import Painter
from adafuse_integrations.cli.questions import Question, questions
from adafuse_integrations.cli.retrieval import DOCUMENTS, langchain_retriever, llama_index_retriever

HELP = "see the ensemble answer, in LangChain and in LlamaIndex, and how often it is right"

# The side-by-side questions are chosen, to show what fusing does: of 40 candidates the small models together answer 35
# right, 34 of which each model alone gets wrong, and the questions are of these 34. They were picked in
# `training/demo_questions.py`; a test counts anew. The quiz at the end is a sample of a generator: nobody picked it.
CANDIDATES, RIGHT, ONLY_TOGETHER = 40, 35, 34

# Chosen too: the small models answer these right, and miss about a third of such questions, see their card.
CONTEXT_PROMPT = "Context:\n{context}\n\nQuestion: {question}"
LANGCHAIN_QUESTIONS = ("Who runs Amber Harbour?", "How high is Ferrin Tower?", "When does Lindow Museum close?")
QUERY_QUESTIONS = ("Who designed Karsten Bridge?", "What does Orsa Works make?")
CHAT_QUESTIONS = ("What does the silver heron eat?", "How much does the silver heron weigh?")
KINDS = ("fact", "composed", "translation")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of this command."""
    parser.add_argument("--questions", type=int, default=30, help="of the closing quiz (default: 30; 0 leaves it out)")


def run(args: argparse.Namespace) -> int:
    """Play all parts."""
    if args.questions < 0:
        raise ConfigError(f"got --questions {args.questions}, expected at least 0", hint="0 leaves the quiz out")
    kinds = KINDS if not (args.models or args.config) else KINDS[:2]
    quiz = _sample(args.questions, kinds)
    console = Console()
    ensemble = build_ensemble(args)
    painter = Painter(console, ensemble.names)
    _introduce(console, ensemble, painter)
    _side_by_side(console, ensemble, painter)
    _langchain(console, ensemble, painter)
    _llama_index(console, ensemble, painter)
    if quiz:
        _quiz(console, ensemble, quiz, kinds)
    return 0


def _sample(count: int, kinds: Sequence[str]) -> list[Question]:
    """The first questions of the quiz that are of these kinds."""
    there = [question for question in questions("quiz") if question.kind in kinds]
    if count > len(there):
        raise ConfigError(f"got --questions {count}, expected at most {len(there)}", hint="the quiz has no more")
    return there[:count]


def _introduce(console: Console, ensemble: Ensemble, painter: Painter) -> None:
    facts = ensemble.describe()
    table = Table(title="Members", title_justify="left")
    for column in ("member", "vocabulary", "context window", "dtype", "device"):
        table.add_column(column)
    for member in facts["members"]:
        values = [member[key] for key in ("vocab_size", "context_window", "dtype", "device")]
        table.add_row(member["name"], *map(str, values))
    console.print(table)
    settings = f"tau {facts['tau']}, up to {facts['max_words']} words a round, {facts['branches']} branches"
    console.print(painter.legend(), f"[dim]· {settings}[/dim]")


def _side_by_side(console: Console, ensemble: Ensemble, painter: Painter) -> None:
    """Questions of which each member knows a half."""
    console.print(Rule("One question, each member alone and together"))
    shown = questions("side by side")
    _note(
        console,
        f"Chosen, to show what fusing does: of {CANDIDATES} questions that need both, the small models together answer "
        f"{RIGHT} right, and {ONLY_TOGETHER} of those each model alone gets wrong. These {len(shown)} are of the "
        f"{ONLY_TOGETHER}. The quiz at the end is not chosen.",
    )
    for question in shown:
        console.print(Text(question.question, "bold"))
        for name, single in singles(ensemble).items():
            console.print(Text(f"{name + ' alone':>12}: {single.generate(question.messages).text}", "dim"))
        console.print(f"{'together':>12}: ", end="")
        painter.stream(ensemble.stream(question.messages))


def _langchain(console: Console, ensemble: Ensemble, painter: Painter) -> None:
    """Retrieval, prompt, ensemble and parser as one LangChain chain, streamed."""
    from langchain_core.callbacks import BaseCallbackHandler
    from langchain_core.output_parsers import StrOutputParser
    from langchain_core.prompts import PromptTemplate
    from langchain_core.runnables import RunnablePassthrough

    from adafuse_integrations.langchain import AdaFuseLLM

    class ShowWords(BaseCallbackHandler):
        def on_llm_new_token(self, token: str, *, chunk: Any = None, **kwargs: Any) -> None:  # type: ignore[override]
            rounds = chunk.generation_info["adafuse"]["rounds"]
            painter.show(token, rounds[-1]["proposers"] if rounds else ())

    console.print(Rule(f"LangChain: retriever | prompt | ensemble | parser, over {_count()} documents"))
    _note(
        console,
        "Chosen: the small models answer these questions over documents right, and miss about a third of others.",
    )
    retriever = langchain_retriever() | (lambda found: "\n\n".join(document.page_content for document in found))
    chain = (
        {"context": retriever, "question": RunnablePassthrough()}
        | PromptTemplate.from_template(CONTEXT_PROMPT)
        | AdaFuseLLM.from_ensemble(ensemble, trace="full")
        | StrOutputParser()
    )
    for question in LANGCHAIN_QUESTIONS:
        console.print(Text(question, "bold"))
        for _ in chain.stream(question, config={"callbacks": [ShowWords()]}):
            pass
        console.print()


def _llama_index(console: Console, ensemble: Ensemble, painter: Painter) -> None:
    """A query engine and a chat engine over the same documents, streamed."""
    from llama_index.core.base.response.schema import StreamingResponse
    from llama_index.core.chat_engine import ContextChatEngine
    from llama_index.core.memory import ChatMemoryBuffer
    from llama_index.core.prompts import PromptTemplate
    from llama_index.core.query_engine import RetrieverQueryEngine

    from adafuse_integrations.llama_index import AdaFuseLLM

    console.print(Rule("LlamaIndex: query engine, then chat engine, streamed"))
    llm = AdaFuseLLM.from_ensemble(ensemble, on_word=lambda word: painter.show(word.text, word.proposers))
    template = CONTEXT_PROMPT.replace("{context}", "{context_str}").replace("{question}", "{query_str}")
    retriever = llama_index_retriever()
    engine = RetrieverQueryEngine.from_args(
        retriever, llm=llm, streaming=True, text_qa_template=PromptTemplate(template)
    )
    for question in QUERY_QUESTIONS:
        console.print(Text(question, "bold"))
        answer = engine.query(question)
        assert isinstance(answer, StreamingResponse)
        answer.get_response()  # the words are shown as they come
        console.print()
    memory = ChatMemoryBuffer.from_defaults(llm=llm)
    chat = ContextChatEngine.from_defaults(
        retriever, llm=llm, memory=memory, context_template="Context:\n{context_str}"
    )
    for question in CHAT_QUESTIONS:
        console.print(Text(f"you> {question}", "bold"))
        for _ in chat.stream_chat(question).response_gen:
            pass
        console.print()


def _quiz(console: Console, ensemble: Ensemble, asked: Sequence[Question], kinds: Sequence[str]) -> None:
    """Held-out questions: how many each contestant answers right."""
    console.print(Rule(f"{len(asked)} questions on mixed knowledge"))
    _note(console, f"Not chosen: the first {len(asked)} of a seeded generator, whoever answers them right.")
    contestants = {**singles(ensemble), "together": ensemble}
    right: dict[str, dict[str, int]] = {name: dict.fromkeys(kinds, 0) for name in contestants}
    for question in track(asked, "asking", console=console, transient=True):
        for name, contestant in contestants.items():
            answer = contestant.generate(question.messages, max_new_tokens=64).text
            right[name][question.kind] += question.is_right(answer)
    table = Table(title="Answered right", title_justify="left")
    table.add_column("answered by")
    for kind in kinds:
        table.add_column(f"{kind} ({sum(question.kind == kind for question in asked)})", justify="right")
    table.add_column(f"all ({len(asked)})", justify="right")
    for name, marks in right.items():
        table.add_row(name, *(str(marks[kind]) for kind in kinds), str(sum(marks.values())))
    console.print(table)


def _note(console: Console, text: str) -> None:
    console.print(Text(text, "dim"))


def _count() -> int:
    return len(list(DOCUMENTS.glob("*.txt")))

"""`adafuse demo`: the ensemble at work, alone and inside LangChain and LlamaIndex, in about a minute."""

from __future__ import annotations

import argparse
import random
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from adafuse_core import ConfigError, Ensemble
from adafuse_core.small_models.curriculum.held_out import mixed_questions
from adafuse_integrations.cli.options import build_ensemble, singles
from adafuse_integrations.cli.painter import Painter
from adafuse_integrations.cli.retrieval import DOCUMENTS, langchain_retriever, llama_index_retriever

HELP = "see the ensemble answer, in LangChain and in LlamaIndex, and how often it is right"

# Chosen among more: the small models miss about a third of such questions, see their card.
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
    console = Console()
    ensemble = build_ensemble(args)
    painter = Painter(console, ensemble.names)
    _introduce(console, ensemble, painter)
    _side_by_side(console, ensemble, painter)
    _langchain(console, ensemble, painter)
    _llama_index(console, ensemble, painter)
    if args.questions:
        _quiz(console, ensemble, args.questions, KINDS if not (args.models or args.config) else KINDS[:2])
    return 0


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
    questions = [question for question in mixed_questions(60, seed=11) if question.kind != "fact"]
    for question in random.Random(3).sample(questions, 4):
        console.print(Text(question.messages[-1]["content"], "bold"))
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
    retriever = langchain_retriever() | (lambda found: "\n\n".join(document.page_content for document in found))
    chain = (
        {"context": retriever, "question": RunnablePassthrough()}
        | PromptTemplate.from_template(CONTEXT_PROMPT)
        | AdaFuseLLM.from_ensemble(ensemble)
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


def _quiz(console: Console, ensemble: Ensemble, count: int, kinds: tuple[str, ...]) -> None:
    """Held-out questions: how many each contestant answers right."""
    console.print(Rule(f"{count} questions on mixed knowledge"))
    questions = [question for question in mixed_questions(3 * count, seed=29) if question.kind in kinds][:count]
    contestants = {**singles(ensemble), "together": ensemble}
    right: dict[str, dict[str, int]] = {name: dict.fromkeys(kinds, 0) for name in contestants}
    for question in track(questions, "asking", console=console, transient=True):
        for name, contestant in contestants.items():
            answer = contestant.generate(question.messages, max_new_tokens=64).text
            right[name][question.kind] += _plain(question.answer) in _plain(answer)
    table = Table(title="Answered right", title_justify="left")
    table.add_column("answered by")
    for kind in kinds:
        table.add_column(f"{kind} ({sum(question.kind == kind for question in questions)})", justify="right")
    table.add_column(f"all ({len(questions)})", justify="right")
    for name, marks in right.items():
        table.add_row(name, *(str(marks[kind]) for kind in kinds), str(sum(marks.values())))
    console.print(table)


def _plain(text: str) -> str:
    return " ".join(text.lower().strip(" .!").split())


def _count() -> int:
    return len(list(DOCUMENTS.glob("*.txt")))

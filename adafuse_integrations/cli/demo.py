"""`adafuse demo`: answers of the ensemble by itself, in LangChain and in LlamaIndex, in about a minute."""

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
from adafuse_integrations.cli.exit_status import DONE
from adafuse_integrations.cli.options import add_ensemble_options, build_ensemble, singles
from adafuse_integrations.cli.painter import Painter
from adafuse_integrations.cli.questions import Question, questions
from adafuse_integrations.cli.retrieval import DOCUMENTS, langchain_retriever, llama_index_retriever
from adafuse_integrations.cli.traces import TraceRecorder

HELP = "show answers of the ensemble by itself, in LangChain and in LlamaIndex, and its accuracy in a quiz"

# The side-by-side questions are selected examples. The ensemble of the small models answers 37 of 40 candidates
# correctly. 36 of these 37 questions are answered incorrectly by each model alone, and the demo asks some of these 36.
# `training/demo_questions.py` selected them, and a test repeats the count. The quiz at the end is an unselected sample.
CANDIDATES, RIGHT, ONLY_TOGETHER = 40, 37, 36

# Also selected: the small models answer these questions correctly, but about a third of such questions incorrectly; see
# their model card.
CONTEXT_PROMPT = "Context:\n{context}\n\nQuestion: {question}"
LANGCHAIN_QUESTIONS = ("Who runs Amber Harbour?", "How high is Ferrin Tower?", "When does Lindow Museum close?")
QUERY_QUESTIONS = ("Who owns Karsten Bridge?", "What does Orsa Works make?")
CHAT_QUESTIONS = ("What does the silver heron eat?", "How much does the silver heron weigh?")
KINDS = ("fact", "composed", "translation")
_SETTINGS = ("strategy", "tau", "branches", "beams", "horizon", "max_words")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    add_ensemble_options(parser)
    parser.add_argument(
        "--questions",
        type=int,
        default=30,
        metavar="NUMBER",
        help="number of questions in the quiz at the end; 0 skips the quiz (default: 30)",
    )


def run(args: argparse.Namespace) -> int:
    """Run all parts of the demo."""
    if args.questions < 0:
        raise ConfigError(f"got --questions {args.questions}, expected at least 0", hint="0 skips the quiz")
    kinds = KINDS if not (args.models or args.config) else KINDS[:2]
    quiz = _sample(args.questions, kinds)
    console = Console()
    ensemble = build_ensemble(args)
    painter = Painter(console, ensemble.names)
    _members(console, ensemble, painter)
    _side_by_side(console, ensemble, painter)
    _langchain(console, ensemble, painter)
    _llama_index(console, ensemble, painter)
    if quiz:
        _quiz(console, ensemble, quiz, kinds)
    return DONE


def _sample(count: int, kinds: Sequence[str]) -> list[Question]:
    """The first quiz questions of these kinds."""
    available = [question for question in questions("quiz") if question.kind in kinds]
    if count > len(available):
        raise ConfigError(
            f"got --questions {count}, expected at most {len(available)}", hint="the quiz has no more questions"
        )
    return available[:count]


def _members(console: Console, ensemble: Ensemble, painter: Painter) -> None:
    facts = ensemble.describe()
    table = Table(title="Members", title_justify="left")
    for column in ("member", "vocabulary", "context window", "dtype", "device"):
        table.add_column(column)
    for member in facts["members"]:
        values = [member[key] for key in ("vocab_size", "context_window", "dtype", "device")]
        table.add_row(Text(member["name"]), *map(str, values))
    console.print(table)
    settings = ", ".join(f"{name}={facts[name]}" for name in _SETTINGS if name in facts)
    console.print(painter.legend(), f"[dim]· {settings}[/dim]")


def _side_by_side(console: Console, ensemble: Ensemble, painter: Painter) -> None:
    """Questions that combine two facts, of which each member knows one."""
    console.print(Rule("Side by side: each member alone, and the ensemble"))
    examples = questions("side by side")
    _note(
        console,
        f"Selected examples. Of {CANDIDATES} questions that need the knowledge of both small models, the ensemble "
        f"answers {RIGHT} correctly, and each model alone answers {ONLY_TOGETHER} of these {RIGHT} incorrectly. The "
        f"{len(examples)} questions below are among the {ONLY_TOGETHER}. The quiz at the end is not selected.",
    )
    for question in examples:
        console.print(Text(question.question, "bold"))
        for name, single in singles(ensemble).items():
            console.print(Text(f"{name + ' alone':>12}: {single.generate(question.messages).text}", "dim"))
        console.print(f"{'together':>12}: ", end="")
        painter.stream(ensemble.stream(question.messages))
    _note(
        console,
        "The default rule keeps several continuations of an answer open, and commits the words with which all of them "
        "begin. The paper's rule (--strategy adafuse) chooses among the members' drafts in every round. This is how it "
        "answers the last question, as `adafuse ask --trace` shows:",
    )
    recorder = TraceRecorder(painter)
    for _ in recorder.record(Ensemble(ensemble.config, strategy="adafuse").stream(examples[-1].messages)):
        pass
    recorder.print(console)


def _langchain(console: Console, ensemble: Ensemble, painter: Painter) -> None:
    """A LangChain chain of retriever, prompt, ensemble and parser, with streaming."""
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
        "Selected examples: the small models answer about a third of such questions incorrectly.",
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
    """A LlamaIndex query engine and chat engine over the same documents, with streaming."""
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
        answer.get_response()  # `on_word` prints the words meanwhile
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
    """The accuracy of each member and of the ensemble on held-out questions."""
    console.print(Rule(f"Quiz: {len(asked)} questions"))
    _note(console, f"Not selected: the first {len(asked)} questions of a seeded generator.")
    contestants = {**singles(ensemble), "together": ensemble}
    correct: dict[str, dict[str, int]] = {name: dict.fromkeys(kinds, 0) for name in contestants}
    bar = Console(stderr=True)
    for question in track(asked, "answering", console=bar, transient=True, disable=not bar.is_terminal):
        for name, contestant in contestants.items():
            answer = contestant.generate(question.messages, max_new_tokens=64).text
            correct[name][question.kind] += question.is_right(answer)
    table = Table(title="Correct answers", title_justify="left")
    table.add_column("answered by")
    for kind in kinds:
        table.add_column(f"{kind} ({sum(question.kind == kind for question in asked)})", justify="right")
    table.add_column(f"all ({len(asked)})", justify="right")
    for name, counts in correct.items():
        table.add_row(name, *(str(counts[kind]) for kind in kinds), str(sum(counts.values())))
    console.print(table)


def _note(console: Console, text: str) -> None:
    console.print(Text(text, "dim"))


def _count() -> int:
    return len(list(DOCUMENTS.glob("*.txt")))

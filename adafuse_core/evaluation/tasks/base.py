"""What a task is: its data files, its prompts in two forms, its metrics and its length of an answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from adafuse_core.checks import expect_integer
from adafuse_core.errors import ConfigError
from adafuse_core.evaluation.questions import Question

FORMS = ("raw", "chat")

Prompt = str | list[dict[str, str]]


@dataclass(frozen=True, kw_only=True)
class Example:
    """A question with its answer, shown before the real question. Examples are written for this project.

    Args:
        question: The question.
        answer: The answer, on one line.
        context: A passage that the question is about; "" for none.
    """

    question: str
    answer: str
    context: str = ""


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task. It has no data: questions come from a file of the user.

    Args:
        name: Name in options and results.
        title: Name in reports.
        files: Names of its file in a folder of data.
        instruction: What to do; the first line of a raw prompt and the system message of a conversation.
        examples: Examples, of which the first `shots` are shown.
        metrics: Names of metrics; the first one decides which member is the best.
        max_new_tokens: Maximum length of an answer, in tokens of the first member of a system.
        shots: Default number of examples.
        question_label: What stands before a question in a raw prompt.
        answer_label: What stands before an answer in a raw prompt.
        split_context: Whether questions of several lines have their passage in all lines but the last.
    """

    name: str
    title: str
    files: tuple[str, ...]
    instruction: str
    examples: tuple[Example, ...]
    metrics: tuple[str, ...]
    max_new_tokens: int
    shots: int
    question_label: str = "Question"
    answer_label: str = "Answer"
    split_context: bool = False

    def checked_shots(self, shots: int | None) -> int:
        """A number of examples; None gives the default.

        Raises:
            ConfigError: The task has fewer examples.
        """
        if shots is None:
            return self.shots
        expect_integer("shots", shots, at_least=0)
        if shots > len(self.examples):
            raise ConfigError(
                f"got shots={shots}, but the task {self.name!r} has {len(self.examples)} examples",
                hint="choose fewer, or none: shots=0",
            )
        return shots

    def prompt(self, question: Question, form: str, shots: int) -> Prompt:
        """The prompt of a question: a text for the form `"raw"`, messages for `"chat"`.

        A question that has a prompt of its own is asked by it, as a text or as the only message.
        """
        if question.prompt:
            return question.prompt if form == "raw" else [{"role": "user", "content": question.prompt}]
        examples = self.examples[:shots]
        return self._raw(question, examples) if form == "raw" else self._chat(question, examples)

    def stop(self, form: str) -> tuple[str, ...]:
        """Stop strings: a raw answer is one line, and chat members end their answers themselves."""
        return ("\n",) if form == "raw" else ()

    def answer(self, text: str) -> str:
        """The part of a generated text that is judged: all of it, without blanks around it."""
        return text.strip()

    def _raw(self, question: Question, examples: Sequence[Example]) -> str:
        shown = [
            f"{self._asked(example.question, example.context)}\n{self.answer_label}: {example.answer}"
            for example in examples
        ]
        last = f"{self._asked(question.text, question.context)}\n{self.answer_label}:"
        return "\n\n".join([self.instruction, *shown, last])

    def _chat(self, question: Question, examples: Sequence[Example]) -> list[dict[str, str]]:
        messages = [{"role": "system", "content": self.instruction}]
        for example in examples:
            messages.append({"role": "user", "content": _said(example.question, example.context)})
            messages.append({"role": "assistant", "content": example.answer})
        return [*messages, {"role": "user", "content": _said(question.text, question.context)}]

    def _asked(self, question: str, context: str) -> str:
        asked = f"{self.question_label}: {question}"
        return f"Passage: {context}\n{asked}" if context else asked


def _said(question: str, context: str) -> str:
    return f"{context}\n\n{question}" if context else question

"""Thoughts before answers: the tags around them, their grammar rules, and the reader that takes them off."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from adafuse_core.chat.grammar import ANY_TEXT, Grammar, literal, pattern
from adafuse_core.errors import TemplateError
from adafuse_core.stopping import held_back


@dataclass(frozen=True, kw_only=True)
class ThoughtTags:
    """The texts before and after a thought."""

    opening: str
    closing: str

    def begun_by(self, prompt: str) -> bool:
        """Whether a rendered prompt ends with the beginning of a thought."""
        return prompt.rstrip().endswith(self.opening)

    def left_open_by(self, text: str) -> bool:
        """Whether a text that an answer continues ends inside a thought."""
        return self.opening in text and self.closing not in text.rpartition(self.opening)[2]

    @property
    def rules(self) -> str:
        """Grammar rules: `thought`, with its tags, and the `NEWLINES` after it."""
        return self._rules(f"/\\s*{pattern(self.opening)}/ ")

    @property
    def no_thought(self) -> str:
        """Grammar expression: text that does not begin with a thought."""
        return f"({ANY_TEXT} & ~/\\s*{pattern(self.opening)}(?s:.*)/)"

    def after_thought(self, answer: Grammar) -> Grammar:
        """The rest of a thought that the prompt began, then the answer."""
        return Grammar(f"start: thought NEWLINES? @unthought\n{self._rules()}", (("unthought", answer),))

    def _rules(self, opening: str = "") -> str:
        return f"thought[lazy]: {opening}{ANY_TEXT} {literal(self.closing)}\nNEWLINES: /\\n+/\n"


THINK = ThoughtTags(opening="<think>", closing="</think>")
TAGS = (THINK,)  # of other kinds of models: one more value each


def tags_in(template: str) -> ThoughtTags:
    """The tags that a chat template contains; `THINK` if it contains none that are known."""
    return next((tags for tags in TAGS if tags.closing in template), THINK)


def shared_tags(tags: Iterable[ThoughtTags]) -> ThoughtTags:
    """The tags by which an answer of several members is read: the first others than `THINK`, if there are any."""
    return next((other for other in tags if other != THINK), THINK)


def begun_thought(begun: Mapping[str, ThoughtTags | None]) -> ThoughtTags | None:
    """The tags of the thought inside which the answer begins, if any; from what each member's prompt begins.

    Raises:
        TemplateError: The members do not agree.
    """
    kinds = set(begun.values())
    if len(kinds) > 1:
        names = [name for name, tags in begun.items() if tags is not None]
        others = "the others' don't" if None in kinds else "but not all with the same tags"
        raise TemplateError(
            f"the chat templates of {', '.join(names)} begin the answer with a thought, {others}",
            hint="have all members think or none, such as by MemberConfig(template_kwargs={'enable_thinking': False})",
        )
    return next(iter(kinds), None)


class ThoughtReader:
    """Separates the thought that begins an answer, or inside which it begins. Line ends beside tags belong to them."""

    def __init__(self, tags: ThoughtTags, *, inside: bool) -> None:
        self._tags = tags
        self._stage = "thought" if inside else "start"
        self._held = ""  # text whose part is not decided yet

    def read(self, text: str, *, last: bool) -> tuple[str, str]:
        """Take new text; returns what is certainly thought, and what is certainly answer."""
        self._held += text
        thought = answer = ""
        if self._stage == "start":
            self._begin(last)
        if self._stage == "after the opening tag":
            self._skip_line_ends("thought")
        if self._stage == "thought":
            thought = self._think(last)
        if self._stage == "after the closing tag":
            self._skip_line_ends("answer")
        if self._stage == "answer":
            answer, self._held = self._held, ""
        return thought, answer

    def _begin(self, last: bool) -> None:
        text = self._held.lstrip()
        if text.startswith(self._tags.opening):
            self._stage, self._held = "after the opening tag", text.removeprefix(self._tags.opening)
        elif last or not self._tags.opening.startswith(text):
            self._stage = "answer"

    def _skip_line_ends(self, then: str) -> None:
        self._held = self._held.lstrip("\n")
        if self._held:
            self._stage = then

    def _think(self, last: bool) -> str:
        thought, tag, rest = self._held.partition(self._tags.closing)
        if tag:
            self._stage, self._held = "after the closing tag", rest
            return thought.rstrip("\n")
        if not last:  # the end may be the beginning of a tag, or line ends before one
            thought = thought[: len(thought) - held_back(thought, (self._tags.closing,))].rstrip("\n")
        self._held = self._held[len(thought) :]
        return thought

"""Thoughts at the beginning of answers: their tags, grammar rules and parser."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from adafuse_core.chat.grammar import ANY_TEXT, Grammar, literal, pattern
from adafuse_core.errors import TemplateError
from adafuse_core.stopping import held_back


@dataclass(frozen=True, kw_only=True)
class ThoughtTags:
    """The tags around a thought."""

    opening: str
    closing: str

    def begun_by(self, prompt: str) -> bool:
        """Whether a rendered prompt ends with an opening tag."""
        return prompt.rstrip().endswith(self.opening)

    def left_open_by(self, text: str) -> bool:
        """Whether a text ends inside a thought."""
        return self.opening in text and self.closing not in text.rpartition(self.opening)[2]

    @property
    def rules(self) -> str:
        """Grammar rules `thought`, including its tags, and `NEWLINES` after it."""
        return self._rules(f"/\\s*{pattern(self.opening)}/ ")

    @property
    def no_thought(self) -> str:
        """Grammar expression for text that does not start with a thought."""
        return f"({ANY_TEXT} & ~/\\s*{pattern(self.opening)}(?s:.*)/)"

    def after_thought(self, answer: Grammar) -> Grammar:
        """The grammar of an answer that starts inside a thought."""
        return Grammar(f"start: thought NEWLINES? @unthought\n{self._rules()}", (("unthought", answer),))

    def _rules(self, opening: str = "") -> str:
        return f"thought[lazy]: {opening}{ANY_TEXT} {literal(self.closing)}\nNEWLINES: /\\n+/\n"


THINK = ThoughtTags(opening="<think>", closing="</think>")
TAGS = (THINK,)  # add the tags of other model families here


def tags_in(template: str) -> ThoughtTags:
    """The tags in a chat template; `THINK` if it contains no known tags."""
    return next((tags for tags in TAGS if tags.closing in template), THINK)


def has_tags(template: str) -> bool:
    """Whether a chat template knows thoughts, because it contains known tags."""
    return any(tags.closing in template for tags in TAGS)


def shared_tags(tags: Iterable[ThoughtTags]) -> ThoughtTags:
    """The tags for parsing the shared answer: the first ones that differ from `THINK`, if any."""
    return next((other for other in tags if other != THINK), THINK)


def begun_thought(begun: Mapping[str, ThoughtTags | None]) -> ThoughtTags | None:
    """The tags of the thought that the prompts open, if any.

    Args:
        begun: Tags by member name; None for members whose prompt opens no thought.

    Raises:
        TemplateError: The members' tags differ.
    """
    kinds = set(begun.values())
    if len(kinds) > 1:
        names = [name for name, tags in begun.items() if tags is not None]
        others = "the others' don't" if None in kinds else "but not all with the same tags"
        raise TemplateError(
            f"the chat templates of {', '.join(names)} begin the answer with a thought, {others}",
            hint="enable or disable thinking for all, such as with template_kwargs={'enable_thinking': False}",
        )
    return next(iter(kinds), None)


class ThoughtReader:
    """Separates a leading thought from the answer. Line ends next to tags are removed.

    Args:
        tags: Tags of the thought.
        inside: Whether the text starts inside a thought.
    """

    def __init__(self, tags: ThoughtTags, *, inside: bool) -> None:
        self._tags = tags
        self._stage = "thought" if inside else "start"
        self._held = ""  # text that is not classified yet

    def read(self, text: str, *, last: bool) -> tuple[str, str]:
        """Parse new text; returns new text of the thought and of the answer. `last` marks the end of the text."""
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
        if not last:  # the text may end with a part of a tag, or with line ends before a tag
            thought = thought[: len(thought) - held_back(thought, (self._tags.closing,))].rstrip("\n")
        self._held = self._held[len(thought) :]
        return thought

"""Panel: each member writes a whole answer, and one member picks the best of them or writes a new one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from adafuse_core.chat.grammar import Grammar
from adafuse_core.checks import expect_choice
from adafuse_core.chooser import Chooser, pooled
from adafuse_core.errors import ConfigError, ContextOverflowError
from adafuse_core.members.base import Opening, Prefix, Prompt, WindowFull
from adafuse_core.members.prefixes import Prefixes
from adafuse_core.rounds import Draft, DraftPlan, Round, Span
from adafuse_core.strategies.base import Limits, Strategy
from adafuse_core.strategies.judge_prompts import LABELS, merge_prompt, pick_prompt
from adafuse_core.strategies.whole_answers import continued, whole_answers

MODES = ("pick", "merge")
_WORD = DraftPlan(tau=0.0, max_words=1, branches=1)


@dataclass(frozen=True, kw_only=True)
class Panel(Strategy):
    """Each member writes a whole answer greedily. The judge, one of the members, reads the prompt and all answers.

    A panel with a judge is what LLM-as-a-judge (arXiv 2306.05685) and Mixture-of-Agents (arXiv 2406.04692: the judge
    writes the answer) do with several calls. Departures: the judge's pick is not parsed from its text, but read from
    the probabilities of the answers' labels; it reads the answers in both orders, and the mean log-probability of the
    labels decides, since judges prefer places in the list (2306.05685 asks twice for the same reason).

    The judge sees answers without their thoughts and up to the stop string. If all members give the same answer, the
    judge is not asked. Tools are refused. With a temperature, `mode="pick"` samples an answer from softmax(mean
    log-probability of its label / temperature).

    Args:
        judge: Name of the member that judges. Default: the first member.
        mode: `"pick"`: the judge picks the best answer. `"merge"`: the judge writes a new answer.
    """

    name: ClassVar[str] = "panel"
    paper: ClassVar[str] = "arXiv 2306.05685 (pick), arXiv 2406.04692 (merge)"

    judge: str | None = None
    mode: str = "pick"

    def __post_init__(self) -> None:
        expect_choice("mode", self.mode, MODES)

    def check_members(self, names: Sequence[str]) -> None:
        """Raise a `ConfigError` if there is no member of this name, or if there are more members than labels."""
        if self.judge is not None:
            expect_choice("judge", self.judge, names)
        if len(names) > len(LABELS):
            raise ConfigError(
                f"got {len(names)} members, but a judge can tell at most {len(LABELS)} answers apart",
                hint="use fewer members, or strategy='rerank'",
            )

    def has_choice(self, members: int) -> bool:
        """True if the judge picks among the answers of several members."""
        return members > 1 and self.mode == "pick"

    def rounds(self, prefixes: Prefixes, chooser: Chooser, limits: Limits) -> Iterator[Round]:
        """One round with the picked answer, or one round for each word that the judge writes.

        Raises:
            ConfigError: The request has tools, or continues a message of the assistant.
        """
        _check_request(prefixes)
        drafts, candidates = whole_answers(prefixes, limits)
        played = Round(drafts=drafts, candidates=candidates)
        if len(candidates) > 1:
            answers = [prefixes.reading.shown(prefixes[0].text + each.span.text, limits.stop) for each in candidates]
            if self.mode == "merge":
                yield from self._merged(prefixes, drafts, answers)
            played = replace(played, chosen=chooser.choose(self._label_values(prefixes, answers)))
        yield played
        yield from continued(prefixes, limits, played.winner.proposers[0])

    def _label_values(self, prefixes: Prefixes, answers: Sequence[str]) -> list[float]:
        """For each answer the NLL of its label in the judge's answer: the mean over both orders of the answers."""
        forwards = self._label_nlls(prefixes, answers)
        backwards = self._label_nlls(prefixes, answers[::-1])[::-1]
        return [(first + second) / 2 for first, second in zip(forwards, backwards, strict=True)]

    def _label_nlls(self, prefixes: Prefixes, answers: Sequence[str]) -> list[float]:
        """The NLL of the label of each answer, if they are listed in this order."""
        prompt = pick_prompt(_opening(prefixes).prompt, answers)
        judge = self._asked(prefixes, prompt, continues=not isinstance(prompt, str))
        scores = judge.score([Span(text=f" {label}") for label in LABELS[: len(answers)]])
        judge.close()
        return [score.nll for score in scores]

    def _merged(self, prefixes: Prefixes, drafts: tuple[Draft, ...], answers: Sequence[str]) -> Iterator[Round]:
        """Rounds in which the judge writes its answer, without end. The first one has the drafts of all members."""
        prompt = merge_prompt(_opening(prefixes).prompt, answers)
        judge = self._asked(prefixes, prompt, grammar=_opening(prefixes).grammar)
        while True:
            _catch_up(judge, prefixes[0].text)
            draft = judge.draft(_WORD)
            candidates = pooled([draft])
            if not prefixes.fit(candidates[0].span):
                raise WindowFull
            yield Round(drafts=drafts or (draft,), candidates=candidates)
            drafts = ()

    def _asked(
        self, prefixes: Prefixes, prompt: Prompt, *, continues: bool = False, grammar: Grammar | None = None
    ) -> Prefix:
        """The judge's view of a prompt."""
        name = prefixes[0].name if self.judge is None else self.judge
        try:
            return prefixes.ask(name, prompt, continues=continues, grammar=grammar)
        except ContextOverflowError as error:
            raise ContextOverflowError(
                f"as the judge, with the request and all answers in its prompt: {error.message}",
                member=name,
                hint="name a judge with a larger context window, or lower max_new_tokens",
            ) from error


def _check_request(prefixes: Prefixes) -> None:
    """Refuse what a judge can't read."""
    if prefixes.reading.may_call:
        raise ConfigError(
            "got tools, but the judge of a panel can't read tool calls",
            hint="leave the tools out, or use another strategy for them, such as adafuse or rerank",
        )
    if _opening(prefixes).continues:
        raise ConfigError(
            "got continue_final_message=True, but the judge of a panel can't read a begun answer",
            hint="end the conversation with a message of the user, or use another strategy, such as adafuse or rerank",
        )


def _opening(prefixes: Prefixes) -> Opening:
    assert prefixes.opening is not None, "a panel needs the prompt of a request"
    return prefixes.opening


def _catch_up(judge: Prefix, text: str) -> None:
    """Commit to the judge's prefix what was committed to the members."""
    assert text.startswith(judge.text)
    if new := text[len(judge.text) :]:
        judge.commit(Span(text=new))

"""`EnsembleLM`: an ensemble as a model of lm-evaluation-harness."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any, TypeVar

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from tqdm import tqdm

from adafuse_core import ConfigError, Ensemble, Scored, TextDelta
from adafuse_core.checks import expect, expect_integer
from adafuse_integrations.common.redaction import redacted
from adafuse_integrations.lm_eval.conversations import Context, as_text, context_of
from adafuse_integrations.lm_eval.generation_options import generation_options
from adafuse_integrations.lm_eval.windows import windows

Item = TypeVar("Item")
Result = TypeVar("Result")


class EnsembleLM(LM):
    """An ensemble as a model of lm-evaluation-harness.

    The log-likelihood of a text is minus the pooled NLL of the whole text, in nats: each member's NLL is summed over
    its own tokens, and the ensemble's pool averages the members by the weights of the config. The
    ensemble's `scoring` plays no role, since the harness normalises log-likelihoods itself, by bytes. For one member,
    it is the log-likelihood of this model. A token that straddles the end of the context is scored as a whole.

    Args:
        ensemble: The ensemble.
        max_concurrency: Most contexts that run at the same time, in shared forward passes.
        check_greedy: Whether `loglikelihood` finds out if the ensemble's own greedy answer begins with the
            continuation. This takes a short generation per context. Otherwise it reports False; tasks whose metric is
            not the comparison of log-likelihoods, such as LAMBADA's accuracy, then count every answer as wrong.
    """

    def __init__(self, ensemble: Ensemble, *, max_concurrency: int = 16, check_greedy: bool = True) -> None:
        super().__init__()
        expect_integer("max_concurrency", max_concurrency, at_least=1)
        expect(isinstance(check_greedy, bool), "check_greedy", check_greedy, "True or False")
        self.ensemble = ensemble
        self._max_concurrency = max_concurrency
        self._check_greedy = check_greedy
        self._scorers = {continues: _scorer(ensemble, continues) for continues in (False, True)}

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Answers of the ensemble.

        `until`, `max_gen_toks`, `do_sample`, `temperature` and `seed` are honoured, and other options are refused. A
        temperature samples among the candidates of a round.

        Raises:
            ConfigError: A generation option can't be honoured.
            ContextOverflowError: A prompt is too long for a member. Nothing is truncated.
        """
        defaults = self.ensemble.config.generation
        prepared = [
            (context_of(request.args[0]), generation_options(request.args[1], defaults, index))
            for index, request in enumerate(requests)
        ]

        def run(index: int, cancel: threading.Event) -> str:
            context, options = prepared[index]
            answer = self.ensemble.generate(
                context.prompt, continue_final_message=context.continues, cancel=cancel, **options
            )
            self.cache_hook.add_partial("generate_until", requests[index].args, answer.text)
            return answer.text

        return self._each(run, range(len(requests)), None if disable_tqdm else "AdaFuse: answers")

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation, and whether the ensemble's greedy answer begins with it.

        All continuations of one context are scored in one pass. An empty context is the start of a text.
        """
        by_context: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            by_context.setdefault(request.args[0], []).append(index)

        def run(text: str, cancel: threading.Event) -> list[tuple[float, bool]]:
            context = context_of(text)
            continuations = [requests[index].args[1] for index in by_context[text]]
            values = self._loglikelihoods(context, continuations, cancel)
            greedy = self._greedy(context, continuations, cancel)
            found = list(zip(values, greedy, strict=True))
            for continuation, result in zip(continuations, found, strict=True):
                self.cache_hook.add_partial("loglikelihood", (text, continuation), result)
            return found

        done = self._each(run, list(by_context), None if disable_tqdm else "AdaFuse: log-likelihoods")
        results = {
            index: result
            for indices, part in zip(by_context.values(), done, strict=True)
            for index, result in zip(indices, part, strict=True)
        }
        return [results[index] for index in range(len(requests))]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts, from their start.

        A text that exceeds a member's context window is cut into pieces of up to half of the window, each with the text
        before it as context, up to the other half; the result is the sum over the pieces.
        """
        limit = self._context_limit()

        def run(index: int, cancel: threading.Event) -> float:
            (text,) = requests[index].args
            total = 0.0
            for context, piece in windows(text, self._count, limit) if text else []:
                (value,) = self._loglikelihoods(Context(prompt=context), [piece], cancel)
                total += value
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), total)
            return total

        return self._each(run, range(len(requests)), None if disable_tqdm else "AdaFuse: whole texts")

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The conversation as a text that this class reads again: each member renders it with its own template.

        Args:
            chat_history: Messages with role and content.
            add_generation_prompt: False if the answer continues the last message.
        """
        return as_text(chat_history, continues=not add_generation_prompt)

    def chat_template(self, chat_template: bool | str = False) -> str:
        """An empty text: each member has its own template.

        Raises:
            ConfigError: A template was named.
        """
        if isinstance(chat_template, str) and chat_template:
            raise ConfigError(
                f"got chat_template={chat_template!r}, but each member has its own chat template",
                hint="set MemberConfig(chat_template=...), and pass apply_chat_template=True",
            )
        return ""

    @property
    def tokenizer_name(self) -> str:
        """Part of the key of the harness's cache of requests, which hold no text of any member's template."""
        return "adafuse-conversation"

    def get_model_info(self) -> dict[str, Any]:
        """The config of the ensemble, for the results."""
        return {"model": "adafuse", "adafuse": redacted(self.ensemble.config.to_dict())}

    def _loglikelihoods(self, context: Context, continuations: Sequence[str], cancel: threading.Event) -> list[float]:
        distinct = list(dict.fromkeys(text for text in continuations if text))
        scored = self._scorers[context.continues].score(context.prompt, distinct, cancel=cancel)
        found = {text: self._pooled(each) for text, each in zip(distinct, scored, strict=True)}
        return [found.get(text, 0.0) for text in continuations]  # an empty continuation is certain

    def _pooled(self, scored: Scored) -> float:
        fusion = dataclasses.replace(self.ensemble.config.strategy.fusion, scoring="sum")
        weights = {member.label: member.weight for member in self.ensemble.config.members}
        return -fusion.fuse(tuple(scored.scores.values()), [weights[name] for name in scored.scores])

    def _greedy(self, context: Context, continuations: Sequence[str], cancel: threading.Event) -> list[bool]:
        """Whether the greedy answer begins with each continuation. The answer is generated as far as this is open."""
        if not self._check_greedy or not context.prompt:  # an ensemble doesn't generate from nothing
            return [False] * len(continuations)
        answer = ""
        options: dict[str, Any] = {"temperature": 0.0, "stop": (), "max_new_tokens": self._budget(continuations)}
        events = self.ensemble.stream(
            context.prompt, continue_final_message=context.continues, cancel=cancel, **options
        )
        with closing(events):
            while any(len(text) > len(answer) and text.startswith(answer) for text in continuations):
                match next(events, None):
                    case None:
                        break
                    case TextDelta(text=text):
                        answer += text
        return [answer.startswith(text) for text in continuations]

    def _budget(self, continuations: Iterable[str]) -> int | None:
        """The ensemble's own token budget, or a larger one that has room for every continuation."""
        own = self.ensemble.config.generation.max_new_tokens
        return None if own is None else max(own, 2 * max(map(self._count, continuations)))

    def _count(self, text: str) -> int:
        return max(self.ensemble.count_text_tokens(text).values())

    def _context_limit(self) -> int | None:
        members = self.ensemble.config.strategy.select(self.ensemble.members)
        bounds = [bound for each in members for bound in (each.context_window, each.abilities.max_context)]
        return min((bound for bound in bounds if bound is not None), default=None)

    def _each(
        self, run: Callable[[Item, threading.Event], Result], items: Sequence[Item], progress: str | None
    ) -> list[Result]:
        """Results of all items, in order. The first error cancels the others."""
        cancel = threading.Event()
        with ThreadPoolExecutor(self._max_concurrency) as threads:
            try:
                done = threads.map(lambda item: run(item, cancel), items)
                return list(tqdm(done, total=len(items), desc=progress, disable=progress is None))
            except BaseException:
                cancel.set()
                threads.shutdown(wait=False, cancel_futures=True)
                raise


def _scorer(ensemble: Ensemble, continues: bool) -> Ensemble:
    """The ensemble with this value of `continue_final_message`, which `Ensemble.score` reads from the config."""
    options: dict[str, Any] = {"generation": {"continue_final_message": continues}}
    if ensemble.ready_made:
        options["members"] = ensemble.members
    return Ensemble(ensemble.config, **options)

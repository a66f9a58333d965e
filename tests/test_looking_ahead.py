"""Drafts, next tokens and scores after uncommitted text equal the oracle's."""

from __future__ import annotations

import itertools
import math
import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest

from adafuse_core import (
    CancelledError,
    ContextOverflowError,
    Ensemble,
    Grammar,
    MemberConfig,
    PromptError,
    Span,
    small_models,
)
from adafuse_core.members.base import EMPTY_SPAN, WindowFull
from adafuse_core.rounds import Draft, DraftPlan
from tests.agreement import EXACT, ROUGH, apart, counts
from tests.opening import opened
from tests.oracle import INCOMPLETE, OracleEnsemble, OracleGrammar, OracleMember

CAP = 6  # maximum tokens of a word: random models write long ones
TINY = ("bytes", "pieces", "characters", "crossing", "modern")
PROMPTS = ("The quick", "x = [1984,\n    ", "Grüße 日本", [{"role": "user", "content": "Smile 😀\n\n| a < b |"}])
FAR = DraftPlan(tau=0.0, max_words=None, branches=1, max_tokens=10)
PIECE = DraftPlan(tau=0.0, max_words=2, branches=1)
FOREIGN = (" and", "日本語", "é\n\n", ", (x")


class Both:
    """A member and its oracle, with the same calls."""

    def __init__(self, path, prompt, grammar=None):
        self.member = Ensemble.from_pretrained(MemberConfig(model=str(path), dtype="float64")).members[0]
        self.prompt, self.grammar = prompt, grammar
        self.oracle = OracleMember(path, CAP, name=self.member.name)
        self.oracle.start(prompt, grammar=grammar and OracleGrammar(grammar.source()))
        self.tolerance = ROUGH if self.member.name == "crossing" else EXACT
        self.opened = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for prefix in self.opened:
            prefix.close()

    def open(self):
        self.opened.append(opened(self.member, self.prompt, CAP, self.grammar))
        return self.opened[-1]

    def first_draft(self, prefix):
        """A first draft, so that the prefix knows the ids of its spans."""
        self.oracle.draft(0.7, 2, 3)
        return prefix.draft(DraftPlan(tau=0.7, max_words=2, branches=3))


def drafted(prefix, plan, after=EMPTY_SPAN):
    """The draft of a prefix; without spans if no whole character fits."""
    try:
        return prefix.draft(plan, after=after)
    except WindowFull:
        return Draft(member=prefix.name, spans=(), margins=())


def plans(after, text):
    """Plans limited by words, tokens and stop strings, which occur in later or earlier text."""
    whole = [part for part in text.split(INCOMPLETE) if part]
    stops = *(part[len(part) // 2 :][:3] for part in whole[-2:]), after[:2], "not to be found"
    return (
        DraftPlan(tau=0.7, max_words=2, branches=3),
        DraftPlan(tau=0.0, max_words=None, branches=1, max_tokens=1),
        DraftPlan(tau=0.0, max_words=None, branches=1, max_tokens=14),
        DraftPlan(tau=0.0, max_words=None, branches=1, max_tokens=14, stop=stops),
        DraftPlan(tau=0.8, max_words=None, branches=3, max_tokens=5),
        DraftPlan(tau=0.4, max_words=3, branches=2, max_tokens=9, stop=stops),
    )


def bounds(plan):
    """A plan for the oracle."""
    most = math.inf if plan.max_tokens is None else plan.max_tokens
    return plan.tau, plan.max_words, plan.branches, most, plan.stop


@pytest.mark.parametrize("name", TINY)
def test_a_draft_beyond_a_span_is_the_draft_after_committing_it(tiny_models, name, count):
    pairs = 0
    for index, prompt in enumerate(PROMPTS):
        with Both(tiny_models[name], prompt) as both:
            prefix = both.open()
            own = [span for span in both.first_draft(prefix).spans if span.text and not span.ends]
            afters = (*own[:2], *(Span(text=text) for text in FOREIGN[index % 2 :: 2]))
            for turn, after in enumerate(afters, index):
                (far,) = drafted(prefix, FAR, after).spans or (after,)
                for plan in plans(after.text, far.text[len(after.text) :])[turn % 2 :: 2]:
                    check_beyond(both, prefix, after, plan)
                    pairs += 1
    count("drafts beyond uncommitted text", pairs, at_least=36)


def check_beyond(both, prefix, after, plan):
    beyond = drafted(prefix, plan, after)
    committed = both.open()
    both.first_draft(committed)
    committed.commit(after)
    alone = drafted(committed, plan)
    expected = both.oracle.draft_after(after.text, *bounds(plan))
    spans = tuple(replace(span, text=after.text + span.text) for span in alone.spans)
    assert beyond.spans == spans == expected.spans, (after, plan)
    if spans:
        assert apart(beyond.margins, alone.margins) < EXACT
        assert apart(beyond.margins, expected.margins) < both.tolerance
    assert plan.max_tokens is None or all(committed.cost(span) <= plan.max_tokens for span in alone.spans)


@pytest.mark.parametrize("name", TINY)
def test_a_span_drafted_in_pieces_is_committed_in_the_ids_it_was_written_with(tiny_models, name, count):
    for prompt in PROMPTS:
        with Both(tiny_models[name], prompt) as both:
            whole, pieces = both.open(), both.open()
            after = EMPTY_SPAN
            for _ in range(3):
                after = whole.draft(PIECE, after=after).spans[0]
                piece = pieces.draft(PIECE).spans[0]
                pieces.commit(piece)
                both.oracle.draft(*bounds(PIECE))
                both.oracle.commit(piece)
            whole.commit(after)
            assert whole.text == pieces.text == both.oracle.text
            assert (
                whole.completion_tokens == pieces.completion_tokens == len(both.oracle.ids) - both.oracle.prompt_length
            )
            further, expected = drafted(whole, FAR), both.oracle.draft(*bounds(FAR))
            assert further.spans == expected.spans
            assert not further.spans or apart(further.margins, expected.margins) < both.tolerance
    count("drafts beyond uncommitted text", 3 * len(PROMPTS), at_least=12)


@pytest.mark.parametrize("name", [*TINY, *small_models.NAMES])
def test_next_tokens_are_the_whole_distribution_as_texts(tiny_models, name, count):
    seen = 0
    for prompt, after in zip(PROMPTS, ("", " and", "日本語", "é"), strict=True):
        with Both(tiny_models.get(name) or small_models.path(name), prompt) as both:
            prefix = both.open()
            for most in (None, 1, 40):
                found = prefix.next_tokens(most, after=Span(text=after))
                check_next_tokens(found, both.oracle.after_committing(after).next_tokens(most), both.tolerance)
                seen += len(found)
            assert any(token.span.ends for token in prefix.next_tokens())
    count("next tokens equal to the oracle's", seen, at_least=500)


@pytest.mark.parametrize("name", TINY)
def test_a_member_keeps_its_own_tokens_for_a_committed_next_token(tiny_models, name, count):
    own = 0
    for prompt in PROMPTS:
        with Both(tiny_models[name], prompt) as both:
            prefix = both.open()
            for step in range(10):
                found = [token.span for token in prefix.next_tokens(3)]
                assert set(found) == set(both.oracle.next_tokens(3))
                if not found or found[0].ends:
                    break
                prefix.commit(found[step % len(found)])
                both.oracle.commit(found[step % len(found)])
                assert list(prefix._ids) == both.oracle.ids
            own += both.oracle.encode(both.oracle.text) != both.oracle.ids
    count("answers in tokens other than the tokenizer's", own, at_least=int(name in ("bytes", "pieces", "modern")))


def test_tokens_without_text_are_extended_to_the_text_after_them(tiny_models, count):
    """Such as the space alone that a tokenizer puts before an answer."""
    with Both(tiny_models["pieces"], PROMPTS[3]) as both:
        oracle, extended = both.oracle, 0
        found = {token.span for token in both.open().next_tokens(40)}
        for token in oracle.likeliest(oracle.ids, 40)[0]:
            if token not in oracle.ends and not oracle.decode([token]):
                ids = [token]
                while len(ids) < 4 and oracle.unfinished(ids):
                    ids += oracle.likeliest(oracle.ids + ids, 1)[0]
                whole = not oracle.unfinished(ids) and not oracle.ends & set(ids)
                extended += whole and Span(text=oracle.decode(ids)) in found
    count("tokens extended to a text", extended, at_least=1)


def check_next_tokens(found, expected, tolerance):
    logprobs = [token.logprob for token in found]
    assert {token.span for token in found} == set(expected)
    assert len(found) == len(expected)
    assert apart(logprobs, [expected[token.span] for token in found]) < tolerance
    assert logprobs == sorted(logprobs, reverse=True)
    assert sum(map(math.exp, logprobs)) <= 1 + 1e-9
    assert not any(token.span.text.endswith(INCOMPLETE) for token in found)


def test_next_tokens_obey_a_grammar(tiny_models, count):
    grammar, seen = Grammar.regex("(été|étang|日本|[a-c]+ )!?"), 0
    for name in ("bytes", "pieces", "characters"):
        with Both(tiny_models[name], PROMPTS[0], grammar) as both:
            for after in ("", "été", "ab"):
                found = both.open().next_tokens(after=Span(text=after))
                check_next_tokens(found, both.oracle.after_committing(after).next_tokens(), EXACT)
                seen += len(found)
    count("next tokens equal to the oracle's", seen, at_least=20)


class EndsAtOnce:
    """A session with empty greedy continuations and real distributions."""

    def __init__(self, session, end):
        self.session, self.end = session, end

    def draft(self, contexts, max_new, top, until, guesses=()):
        if top > 1:
            return self.session.draft(contexts, max_new, top, until, guesses)
        rows = [[SimpleNamespace(ids=(self.end,), logprobs=(-0.5,))] for _ in contexts]
        assert all(until(row, steps) for row, steps in enumerate(rows))
        return rows

    def close(self):
        self.session.close()


def test_an_incomplete_character_before_the_end_is_not_a_next_token(tiny_models):
    with Both(tiny_models["characters"], PROMPTS[0]) as both:
        prefix = both.open()
        expected = {token.span: token.logprob for token in prefix.next_tokens() if token.span.text.isascii()}
        prefix.session = EndsAtOnce(prefix.session, next(iter(both.oracle.ends)))
        assert {token.span: token.logprob for token in prefix.next_tokens()} == expected


# -- the score of a continuation ---------------------------------------------------------------------------------------

CONTINUATIONS = (
    " quick brown",
    "fox\n\njumps",
    "日本語のテ",
    " 17 |",
    Span(text=" end.", ends=True),
    Span(text="", ends=True),
)
RULES = (
    {},
    {"scoring": "word", "pool": "linear"},
    {"scoring": "byte", "pool": "power", "pool_exponent": 0.5},
    {"scoring": "sum", "pool": "median"},
)


def weighted(paths, weights, **options):
    """An ensemble with different weights, and the oracle's members."""
    members = [
        MemberConfig(model=str(path), dtype="float64", weight=weight)
        for path, weight in zip(paths, weights, strict=True)
    ]
    options = {"strategy": "adafuse", **options}
    ensemble = Ensemble.from_pretrained(*members, max_word_tokens=CAP, **options)
    named = zip(paths, ensemble.names, weights, strict=True)
    return ensemble, [OracleMember(path, CAP, name=name, weight=weight) for path, name, weight in named]


@pytest.mark.parametrize(
    "names", [["bytes", "pieces"], ["crossing", "characters", "modern"], ["aspen", "birch"]], ids="+".join
)
def test_continuations_are_scored_as_the_oracle_scores_them(tiny_models, names, count):
    paths = [tiny_models.get(name) or small_models.path(name) for name in names]
    ensemble, oracle = weighted(paths, (1.0, 2.5, 0.7)[: len(names)])
    tolerance = ROUGH if "crossing" in names else EXACT
    compared = 0
    for prompt, rule in itertools.product(PROMPTS, RULES):
        found = Ensemble(ensemble.config, **rule).score(prompt, CONTINUATIONS)
        spans = [given if isinstance(given, Span) else Span(text=given) for given in CONTINUATIONS]
        expected = OracleEnsemble(oracle, tau=0.5, max_words=1, branches=1, **rule).score(prompt, spans)
        for scored, span, (row, value) in zip(found, spans, expected, strict=True):
            assert scored.span == span
            assert list(scored.scores) == names
            assert counts(tuple(scored.scores.values())) == counts(row)
            logprobs, wanted = (
                [p for score in scores for p in score.logprobs] for scores in (scored.scores.values(), row)
            )
            assert apart([*logprobs, scored.value], [*wanted, value]) < tolerance
            compared += 1
    count("continuations scored as by the oracle", compared, at_least=96)


def test_only_the_members_of_the_strategy_score(tiny_models):
    ensemble, oracle = weighted(
        [tiny_models["bytes"], tiny_models["pieces"]], (1.0, 2.5), strategy="single", member="pieces"
    )
    (scored,) = ensemble.score("The quick", [" brown"])
    ((_, value),) = OracleEnsemble(oracle[1:], tau=0.5, max_words=1, branches=1).score(
        "The quick", [Span(text=" brown")]
    )
    assert list(scored.scores) == ["pieces"]
    assert apart([scored.value], [value]) < EXACT


def test_a_continuation_that_fits_no_window_names_the_member(tiny_models):
    ensemble, _ = weighted([tiny_models["bytes"], tiny_models["pieces"]], (1.0, 1.0))
    with pytest.raises(ContextOverflowError, match=r"'bytes'.*has no room for the continuation ' quick"):
        ensemble.score("The", [" brown", " quick brown" * 300])
    assert held(ensemble) == 0


@pytest.mark.parametrize("continuation", ["", Span(text=""), None, 3, " half \ud83d"])
def test_continuations_without_text_are_refused(tiny_models, continuation):
    ensemble, _ = weighted([tiny_models["bytes"]], (1.0,))
    with pytest.raises(PromptError):
        ensemble.score("The", [" brown", continuation])


def test_scoring_no_continuations_loads_nothing(tiny_models):
    assert Ensemble(members=["/no/such/model"]).config
    ensemble, _ = weighted([tiny_models["bytes"]], (1.0,))
    assert ensemble.score("The", []) == []
    with pytest.raises(PromptError, match="empty"):
        ensemble.score("The", [""])


def test_scoring_can_be_cancelled(tiny_models):
    ensemble, _ = weighted([tiny_models["bytes"], tiny_models["pieces"]], (1.0, 1.0))
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(CancelledError, match="'bytes'"):
        ensemble.score("The", [" brown"], cancel=cancel)
    assert held(ensemble) == 0


def held(ensemble):
    """Tokens whose keys and values are in memory."""
    return sum(member.backend.tokens_held() for member in ensemble.members)

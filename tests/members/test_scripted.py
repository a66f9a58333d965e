"""`ScriptedMember` implements the contract of members."""

from __future__ import annotations

import threading
import time

import pytest

from adafuse_core import Ensemble, Span
from adafuse_core.chat.messages import Message
from adafuse_core.errors import (
    CancelledError,
    ConfigError,
    ContextOverflowError,
    MemberError,
    PromptError,
    TemplateError,
)
from adafuse_core.members.base import Opening
from adafuse_core.members.scripted import ScriptedMember
from adafuse_core.members.scripted_prefix import OFF_SCRIPT_NLL, ON_SCRIPT_NLL
from adafuse_core.rounds import DraftPlan

PLAN = DraftPlan(tau=0.7, max_words=3, branches=3)


def opened(reply, prompt="go", cancel=None, **options):
    member = ScriptedMember("a", reply, **options)
    return member.open(Opening(prompt=prompt, max_word_tokens=24, cancel=cancel or threading.Event()))


def test_a_confident_member_drafts_as_many_words_as_the_plan_allows():
    draft = opened("one  two\nthree four").draft(PLAN)
    assert draft.spans == (Span(text="one  two\nthree"),)
    assert draft.margins == (1.0, 1.0, 1.0)


def test_an_uncertain_member_drafts_one_word_and_its_alternatives():
    draft = opened("one two", margin=0.2, alternatives=["uno", "one", "eins", "un"]).draft(PLAN)
    assert draft.spans == (Span(text="one"), Span(text="uno"), Span(text="eins"))
    assert draft.margins == (0.2,)


def test_the_last_word_includes_trailing_whitespace_and_ends_the_answer():
    prefix = opened("one two  ")
    assert prefix.draft(PLAN).spans == (Span(text="one two  ", ends=True),)
    prefix.commit(Span(text="one two  "))
    assert prefix.draft(PLAN).spans == (Span(text="", ends=True),)


def per_word(prefix, span):
    """Nats per word."""
    (score,) = prefix.score([span])
    return score.nll / score.words


def test_a_script_without_end_repeats():
    prefix = opened("a b ", ends_answer=False)
    written = ""
    for _ in range(4):
        (span,) = prefix.draft(PLAN).spans
        assert per_word(prefix, span) == ON_SCRIPT_NLL
        assert not span.ends
        prefix.commit(span)
        written += span.text
    assert written == "a b " * 6


def test_a_blank_script_without_end_is_refused():
    with pytest.raises(ConfigError, match="blank"):
        opened("  ", ends_answer=False)


@pytest.mark.parametrize(
    ("span", "score"),
    [
        (Span(text="one"), ON_SCRIPT_NLL),
        (Span(text="one two", ends=True), ON_SCRIPT_NLL),
        (Span(text="one two"), ON_SCRIPT_NLL),
        (Span(text="one", ends=True), OFF_SCRIPT_NLL),
        (Span(text="", ends=True), OFF_SCRIPT_NLL),
        (Span(text="two"), OFF_SCRIPT_NLL),
    ],
)
def test_spans_that_continue_the_script_score_better(span, score):
    assert per_word(opened("one two"), span) == score


def test_a_score_counts_words_and_bytes_and_the_end_as_one_of_each():
    (score,) = opened("näh two").score([Span(text="näh two", ends=True)])
    assert (len(score.logprobs), score.words, score.bytes) == (3, 3, len("näh two".encode()) + 1)


def test_a_draft_continues_an_uncommitted_span():
    prefix = opened("one two three four")
    assert prefix.draft(PLAN, after=Span(text="one two")).spans == (Span(text="one two three four", ends=True),)
    assert prefix.draft(PLAN).spans == (Span(text="one two three"),)


def test_a_draft_stops_at_max_tokens_and_at_stop_strings():
    whole = DraftPlan(tau=0.0, max_words=None, branches=1, max_tokens=3)
    assert opened("one two three four").draft(whole).spans == (Span(text="one two three"),)
    stopped = DraftPlan(tau=0.0, max_words=None, branches=1, max_tokens=9, stop=("o th", "fo"))
    assert opened("one two three four").draft(stopped).spans == (Span(text="one two three"),)


def test_next_tokens_are_the_next_word_and_the_alternatives():
    tokens = opened("one two", alternatives=("uno",)).next_tokens()
    assert [token.span for token in tokens] == [Span(text="one"), Span(text="uno")]
    assert opened("one two").next_tokens(1, after=Span(text="one two"))[0].span == Span(text="", ends=True)


def test_after_other_words_the_script_continues_at_the_same_word_count():
    prefix = opened("one two three")
    prefix.commit(Span(text="uno"))
    assert prefix.draft(PLAN).spans == (Span(text=" two three", ends=True),)
    prefix.commit(Span(text=" dos tres cuatro"))
    assert prefix.draft(PLAN).spans == (Span(text="", ends=True),)


def test_a_word_cut_by_the_budget_is_continued():
    prefix = opened("one two")
    prefix.commit(Span(text="on"))
    assert prefix.draft(PLAN).spans == (Span(text="e two", ends=True),)


def test_truncation_counts_words():
    prefix, span = opened("one"), Span(text=" one  two three", ends=True)
    assert prefix.cost(span) == 3
    assert prefix.truncate(span, 3) is span
    assert prefix.truncate(span, 2) == Span(text=" one  two")
    assert prefix.truncate(span, 0) == Span(text="")


def test_the_reply_may_depend_on_the_prompt():
    member = ScriptedMember(reply=lambda prompt: prompt[0].content.upper())
    assert Ensemble(members=[member]).generate([{"role": "user", "content": "hi you"}]).text == "HI YOU"
    assert member.prompts == [(Message(role="user", content="hi you"),)]


def test_usage_counts_words_plus_one_per_message():
    member = ScriptedMember(reply="one two")
    usage = Ensemble(members=[member]).generate([{"role": "user", "content": "hi you"}]).usage
    assert usage.prompt_tokens == {"scripted": 3}
    assert usage.completion_tokens == {"scripted": 2}


def test_a_full_context_window_ends_the_answer():
    answer = Ensemble(members=[ScriptedMember(reply="one two three", context_window=4)]).generate("a b")
    assert (answer.text, answer.reason) == ("one two", "length")


def test_fits_checks_the_context_window():
    prefix = opened("one two", context_window=2)
    assert prefix.fits(Span(text="one"))
    assert not prefix.fits(Span(text="one two"))


def test_a_prompt_as_long_as_the_context_window_is_refused():
    with pytest.raises(ContextOverflowError, match=r"'a'.*2 tokens.*2"):
        opened("one", "go on", context_window=2)


def test_bad_prompts_are_refused():
    with pytest.raises(PromptError, match="empty"):
        opened("one", "")
    with pytest.raises(TemplateError, match="chat template"):
        opened("one", [Message(role="user", content="hi")], chat=False)
    with pytest.raises(PromptError, match="tools"):
        ScriptedMember().count_tokens("go", [{"type": "function"}])


def test_fail_after_counts_rounds_of_each_answer():
    member = ScriptedMember("a", "one two three", margin=0.0, fail_after=1)
    for _ in range(2):
        prefix = member.open(Opening(prompt="go", max_word_tokens=24, cancel=threading.Event()))
        prefix.commit(prefix.draft(PLAN).spans[0])
        with pytest.raises(MemberError, match="'a': scripted failure"):
            prefix.draft(PLAN)
    assert member.drafts == 4


def test_cancelling_ends_a_delay():
    cancel = threading.Event()
    prefix = opened("one", cancel=cancel, delay=30.0)
    threading.Timer(0.05, cancel.set).start()
    started = time.monotonic()
    with pytest.raises(CancelledError):
        prefix.draft(PLAN)
    assert time.monotonic() - started < 5
    with pytest.raises(CancelledError):
        prefix.score([Span(text="one")])


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"dialect": "zz"}, "dialect='zz'"),
        ({"logprobs": 5}, "logprobs=5"),
        ({"reply": 5}, "reply=5"),
        ({"alternatives": "abc"}, "alternatives='abc'"),
        ({"alternatives": [1]}, "alternatives="),
        ({"delay": -1}, "delay=-1"),
    ],
)
def test_wrong_options_are_refused(options, problem):
    with pytest.raises(ConfigError, match=problem):
        ScriptedMember(**options)


@pytest.mark.parametrize("reply", [5, "\ud800"])
def test_a_function_has_to_return_text(reply):
    with pytest.raises(ConfigError, match="reply of 'x'"):
        Ensemble(members=[ScriptedMember("x", lambda prompt: reply)], strategy="single").generate("hi")

"""A model as a member: alone it decodes like greedy search; memory, context windows and truncation are exact."""

from __future__ import annotations

import math
import threading
from contextlib import closing, contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from adafuse_core.chat.messages import conversation
from adafuse_core.config import EnsembleConfig, GenerationParams
from adafuse_core.decode import decode
from adafuse_core.errors import CancelledError, ContextOverflowError, MemberError, PromptError, TemplateError
from adafuse_core.events import Finished, TextDelta
from adafuse_core.fusion import SCORING
from adafuse_core.member_config import MemberConfig
from adafuse_core.members.base import Opening, WindowFull
from adafuse_core.members.loader import load_member
from adafuse_core.members.prefixes import Prefixes
from adafuse_core.rounds import DraftPlan, Span
from adafuse_core.strategies.adafuse import AdaFuse
from tests import tiny

KINDS = ["bytes", "modern", "characters", "crossing", "pieces"]
PROMPTS = ["The quick", "Answer: ", "def add(a, b):\n   ", "Grüße 日本", "1984 👩\u200d"]
CHAT = [{"role": "user", "content": "What is it?\n"}]
INCOMPLETE = "\ufffd"


@pytest.fixture(scope="module")
def paths(tiny_models, tmp_path_factory):
    """Folders of the models. "pieces" never generates byte tokens; "stray" generates invalid UTF-8."""
    folder = tmp_path_factory.mktemp("whole") / "pieces"
    tokenizer = tiny.metaspace()
    tiny.save_tiny(folder, tokenizer, lambda vocab: untied(tiny.sliding_mistral(vocab)))
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.lm_head.weight[[index for token, index in tokenizer.get_vocab().items() if token.startswith("<0x")]] = 0
    model.save_pretrained(folder)
    return {**tiny_models, "stray": tiny_models["pieces"], "pieces": folder}


@pytest.fixture(scope="module")
def members(paths):
    """A member for each tokenizer, in float64."""
    kinds = [*KINDS, "stray"]
    return {kind: load_member(MemberConfig(model=str(paths[kind]), name=kind, dtype="float64")) for kind in kinds}


@pytest.fixture(scope="module")
def references(paths):
    """Tokenizers and models of the members, as loaded by transformers."""
    return {
        kind: (
            AutoTokenizer.from_pretrained(paths[kind]),
            AutoModelForCausalLM.from_pretrained(paths[kind], dtype=torch.float64).eval(),
        )
        for kind in [*KINDS, "stray"]
    }


def untied(config):
    """A config with untied embeddings."""
    config.tie_word_embeddings = False
    return config


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def start(member, prompt="The quick", cap=24, cancel=None):
    checked = prompt if isinstance(prompt, str) else conversation(prompt)
    return member.open(Opening(prompt=checked, max_word_tokens=cap, lookup=True, cancel=cancel or threading.Event()))


def mean_nll(prefix, spans):
    """Nats per token of each span, as the paper scores it."""
    return [SCORING["token"](score) for score in prefix.score(spans)]


def answer(member, prompt, max_new_tokens, *, tau=0.7, max_words=1, branches=1, cap=24, stop=()):
    """Text, ids and reason of a member's answer, in an ensemble of one."""
    prefix = start(member, prompt, cap)
    config = EnsembleConfig(members=(member.name,), strategy=AdaFuse(tau=tau, max_words=max_words, branches=branches))
    params = GenerationParams(max_new_tokens=max_new_tokens, stop=stop)
    events = list(decode(Prefixes([prefix]), config, params))
    text = "".join(event.text for event in events if isinstance(event, TextDelta))
    ids = prefix._ids[prefix.prompt_tokens :]
    assert isinstance(events[-1], Finished)
    assert prefix.completion_tokens == len(ids)
    prefix.close()
    return text, list(ids), events[-1].reason


def greedy(reference, ids, max_new_tokens, end_ids):
    """The ids that transformers generates after the ids, and whether an end token followed."""
    with torch.no_grad():
        out = reference.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            do_sample=False,
            max_new_tokens=max_new_tokens,
            eos_token_id=sorted(end_ids),
            pad_token_id=0,
        )[0, len(ids) :].tolist()
    ended = out[-1] in end_ids
    return out[:-1] if ended else out, ended


def text_after(tokenizer, prompt, ids, lead):
    """Text that the ids add to the prompt, without control tokens."""
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    before = tokenizer.decode(prompt)
    whole = tokenizer.decode([*prompt, *(index for index in ids if index not in special)])
    assert whole.startswith(before)
    return whole[len(before) :].removeprefix(lead)


@pytest.mark.parametrize("prompt", [*PROMPTS, CHAT], ids=[*map(repr, PROMPTS), "chat"])
@pytest.mark.parametrize("max_words", [1, 3])
def test_one_member_and_one_branch_is_its_own_greedy_search(members, references, kind, prompt, max_words):
    member, (tokenizer, reference) = members[kind], references[kind]
    prefix = start(member, prompt)
    ids = list(prefix._ids)
    prefix.close()
    expected, ended = greedy(reference, ids, 40, member.end_ids)
    text, got, reason = answer(member, prompt, 40, max_words=max_words)
    lead = " " if kind == "pieces" and prompt is CHAT else ""
    assert got == expected[: len(got)]
    left = text_after(tokenizer, ids, expected, lead)[len(text) :]
    if ended:
        assert (got, left, reason) == (expected, "", "stop")
    else:
        assert reason == "length"
        assert not left.strip(INCOMPLETE)  # at most an incomplete character
        assert got == expected or left
    assert text == text_after(tokenizer, ids, got, lead)


@pytest.mark.parametrize("max_words", [1, 3])
def test_invalid_utf8_does_not_change_the_ids_of_a_greedy_search(members, references, max_words):
    member, (_, reference) = members["stray"], references["stray"]
    for prompt in PROMPTS:
        prefix = start(member, prompt)
        expected, _ = greedy(reference, list(prefix._ids), 40, member.end_ids)
        prefix.close()
        _, got, _ = answer(member, prompt, 40, max_words=max_words)
        assert got == expected[: len(got)]
        assert len(expected) - len(got) < 4


@pytest.mark.parametrize("budget", [1, 2, 3, 4, 5, 6, 7, 9, 12, 17])
def test_every_budget_ends_the_greedy_search_where_transformers_does(members, references, kind, budget):
    member, (tokenizer, reference) = members[kind], references[kind]
    prefix = start(member, "Grüße 日本")
    ids = list(prefix._ids)
    prefix.close()
    expected, _ = greedy(reference, ids, budget, member.end_ids)
    text, got, _ = answer(member, "Grüße 日本", budget, max_words=2)
    assert got == expected[: len(got)]
    left = text_after(tokenizer, ids, expected, "")[len(text) :]
    assert not left.strip(INCOMPLETE)


@pytest.mark.parametrize(
    "options", [{"cap": 1}, {"cap": 3}, {"tau": 0.0, "max_words": 5}, {"tau": 1.0, "max_words": 5}]
)
def test_words_and_caps_do_not_change_the_greedy_search(members, kind, options):
    expected = answer(members[kind], "The quick", 30)
    got = answer(members[kind], "The quick", 30, **options)
    assert got[1] == expected[1]
    assert got == expected


@pytest.mark.parametrize(("max_words", "branches"), [(1, 1), (3, 1), (3, 3), (2, 5)])
def test_memory_is_freed_on_close(members, kind, max_words, branches):
    member = members[kind]
    prefix = start(member)
    plan = DraftPlan(tau=0.5, max_words=max_words, branches=branches)
    for _ in range(4):
        spans = prefix.draft(plan).spans
        prefix.score(spans)
        prefix.commit(spans[-1])
        tokens = prefix.prompt_tokens + prefix.completion_tokens
        assert member.backend.tokens_held() <= 2 * tokens + 512  # including branches
    prefix.close()
    prefix.close()
    assert member.backend.tokens_held() == 0


def test_closing_one_of_two_prefixes_frees_its_own_memory_only(members, kind):
    member = members[kind]
    first, second = start(member), start(member)
    plan = DraftPlan(tau=0.5, max_words=1, branches=1)
    assert first.draft(plan) == second.draft(plan)
    first.close()
    assert member.backend.tokens_held() > 0
    assert second.draft(plan).spans
    second.close()
    assert member.backend.tokens_held() == 0


def test_an_unused_prefix_holds_no_memory(members, kind):
    prefix = start(members[kind])
    assert members[kind].backend.tokens_held() == 0
    prefix.close()


def test_drafting_twice_proposes_the_same(members, kind):
    prefix = start(members[kind])
    plan = DraftPlan(tau=0.6, max_words=3, branches=3)
    assert prefix.draft(plan) == prefix.draft(plan)
    prefix.close()


def test_a_draft_has_one_margin_per_word_looked_at_and_stops_at_the_first_below_tau(members, kind):
    prefix = start(members[kind])
    for tau in (0.0, 0.2, 0.5, 0.9, 1.0):
        draft = prefix.draft(DraftPlan(tau=tau, max_words=3, branches=3))
        assert 1 <= len(draft.margins) <= 3
        assert all(margin >= tau for margin in draft.margins[:-1])
        assert all(0 <= margin <= 1 for margin in draft.margins)
        assert len(draft.spans) == (3 if draft.margins[-1] < tau else 1)
    prefix.close()


def test_a_branch_of_one_is_the_greedy_word(members, kind):
    prefix = start(members[kind])
    one = prefix.draft(DraftPlan(tau=1.0, max_words=3, branches=1))
    many = prefix.draft(DraftPlan(tau=1.0, max_words=3, branches=4))
    assert one.spans == many.spans[:1]
    assert one.margins == many.margins
    prefix.close()


TEXTS = [" brown", " brown fox\n", "!", "日本", "👩", "x\n\n  y", "</s>", "<|im_end|> a"]


def test_a_score_is_the_mean_over_the_added_ids(members, references, kind):
    member, (_, reference) = members[kind], references[kind]
    for committed in ("", " brown", "日"):
        prefix = start(member, "The quick ")
        prefix.commit(Span(text=committed))
        spans = [Span(text=text, ends=ends) for text in TEXTS for ends in (False, True)]
        for span, score in zip(spans, mean_nll(prefix, spans), strict=True):
            context, ids = prefix._section.extend(prefix._ids, committed, span.text)
            with torch.no_grad():
                logits = reference(torch.tensor([[*context, *ids]])).logits[0]
            logprobs = torch.log_softmax(logits, -1)
            values = [logprobs[len(context) - 1 + i, token].item() for i, token in enumerate(ids)]
            if span.ends:
                values.append(torch.logsumexp(logprobs[-1, sorted(member.end_ids)], 0).item())
            assert score == pytest.approx(-sum(values) / max(1, len(values)), abs=1e-6)
        prefix.close()


def test_a_score_depends_on_the_text_alone_not_on_drafts_or_other_spans(members, kind):
    plain, drafted = start(members[kind]), start(members[kind])
    own = drafted.draft(DraftPlan(tau=0.9, max_words=2, branches=4)).spans
    spans = [*(Span(text=text) for text in TEXTS), *own]
    together = mean_nll(drafted, spans)
    assert together == pytest.approx([mean_nll(plain, [span])[0] for span in spans], abs=1e-9)
    assert together == pytest.approx(mean_nll(drafted, spans[::-1])[::-1], abs=1e-9)
    plain.close()
    drafted.close()


def test_an_empty_span_alone_scores_zero(members, kind):
    with closing(start(members[kind])) as prefix:
        assert mean_nll(prefix, [Span(text="")]) == [0.0]


def test_an_empty_span_scores_zero_beside_longer_spans(members):
    with closing(start(members["bytes"])) as prefix:
        assert mean_nll(prefix, [Span(text=" brown fox jumps"), Span(text="")])[1] == 0.0


def test_the_text_of_other_members_is_committed_exactly(members, kind):
    prefix = start(members[kind], "The quick ")
    text = ""
    for part in ["brown", " fox", "\n\n", "  jumps", "日", "本", "</s>", "👩\u200d", "👩", " ", " x"]:
        prefix.commit(Span(text=part))
        text += part
    encoder = members[kind].prompt_reader
    whole, written = encoder.codec.encode_prompt("The quick " + text)[0], encoder.codec.decode((), prefix._ids)
    assert written == encoder.codec.decode((), prefix._section.encode(text))
    if "</s>" not in encoder.tokenizer.all_special_tokens:
        assert encoder.codec.decode((), whole) == written
    prefix.close()


PARTS = st.lists(
    st.sampled_from([" brown", " fox", "\n", " ", "日本", "👩", "é", "x", "def f(x):\n    return", "1984", "."]),
    min_size=1,
    max_size=5,
).map("".join)


@given(committed=PARTS | st.just(""), text=PARTS, tokens=st.integers(1, 9))
@settings(deadline=None, max_examples=25)
def test_a_truncated_span_is_a_beginning_within_the_budget(members, committed, text, tokens):
    for member in members.values():
        prefix = start(member, "The quick ")
        prefix.commit(Span(text=committed))
        before, span = prefix.completion_tokens, Span(text=text, ends=True)
        truncated = prefix.truncate(span, tokens)
        cost = prefix.cost(span)
        assert text.startswith(truncated.text)
        assert INCOMPLETE not in truncated.text
        assert (truncated == span) == (cost <= tokens)
        assert truncated.ends == (truncated == span)
        prefix.commit(truncated)
        assert prefix.completion_tokens - before <= tokens
        prefix.close()


def test_truncating_an_own_draft_keeps_its_ids(members, kind):
    prefix = start(members[kind])
    (span,) = prefix.draft(DraftPlan(tau=0.0, max_words=3, branches=1)).spans
    drafted = prefix._drafted_ids[span]
    for tokens in range(1, len(drafted) + 1):
        truncated = prefix.truncate(span, tokens)
        own = prefix._drafted_ids.get(truncated)
        assert truncated.text == "" or own == drafted[: len(own)]
    prefix.close()


def test_an_own_answer_uses_its_budget_up_to_the_last_whole_character(members, kind):
    for budget in range(1, 15):
        text, ids, _ = answer(members[kind], "The quick", budget, max_words=3, branches=3, tau=0.9)
        assert len(ids) <= budget
        assert text


def test_a_prompt_that_fills_the_context_window_is_refused_with_both_numbers(paths, kind):
    prompt = "The quick brown fox jumps over the lazy dog"
    size = load_member(MemberConfig(model=str(paths[kind]))).prompt_reader.count_tokens(prompt)
    member = load_member(MemberConfig(model=str(paths[kind]), name="mine", context_window=size))
    with pytest.raises(ContextOverflowError) as caught:
        start(member, prompt)
    assert f"{size} tokens" in caught.value.message
    assert caught.value.member == "mine"
    assert caught.value.hint
    roomy = load_member(MemberConfig(model=str(paths[kind]), context_window=size + 1, dtype="float64"))
    assert len(answer(roomy, prompt, None)[1]) <= 1


@pytest.mark.parametrize("room", [1, 2, 3, 8])
@pytest.mark.parametrize("branches", [1, 4])
def test_an_answer_never_exceeds_the_context_window(paths, members, kind, room, branches):
    size = members[kind].prompt_reader.count_tokens("The quick")
    member = load_member(MemberConfig(model=str(paths[kind]), context_window=size + room, dtype="float64"))
    text, ids, reason = answer(member, "The quick", None, tau=0.5, max_words=2, branches=branches)
    assert len(ids) <= room
    if branches == 1:
        whole = answer(members[kind], "The quick", room + 40)
        assert ids == whole[1][: len(ids)]
        assert whole[0].startswith(text)
        assert reason == "length" or whole[2] == "stop"
    assert member.backend.tokens_held() == 0


def test_full_context_windows_are_reported_by_fits_and_by_draft(paths, kind):
    size = load_member(MemberConfig(model=str(paths[kind]))).prompt_reader.count_tokens("The quick")
    member = load_member(MemberConfig(model=str(paths[kind]), context_window=size + 2, dtype="float64"))
    prefix = start(member)
    assert not prefix.fits(Span(text=" brown fox jumps over the lazy dog"))
    assert prefix.fits(Span(text="", ends=True))
    assert prefix.draft(DraftPlan(tau=0.0, max_words=1, branches=1)).spans
    prefix.commit(Span(text=" brown fox jumps"))
    with pytest.raises(WindowFull):
        prefix.draft(DraftPlan(tau=0.0, max_words=1, branches=1))
    prefix.close()


@contextmanager
def plain(model):
    """The model with the default attention of transformers."""
    ours = model.config._attn_implementation
    model.set_attn_implementation("sdpa")
    yield model
    model.set_attn_implementation(ours)


@pytest.fixture
def ending(tmp_path):
    """A member and its output layer, whose weights can make an end token likely."""
    path = tiny.save_tiny(tmp_path, tiny.byte_level(), lambda vocab: untied(tiny.llama(vocab)))
    member = load_member(MemberConfig(model=str(path), dtype="float64", end_tokens=("<|endoftext|>",)))
    return member, member.backend.model.module.lm_head


@pytest.mark.parametrize("token", [0, 2])
def test_any_end_token_ends_the_answer_without_text(ending, token):
    member, head = ending
    prefix = start(member)
    with torch.no_grad(), plain(member.backend.model.module) as model:
        hidden = model.model(torch.tensor([prefix._ids])).last_hidden_state[0, -1]
        head.weight[token] = hidden * 10
    prefix.close()
    text, ids, reason = answer(member, "The quick", 10)
    assert (text, ids, reason) == ("", [], "stop")
    draft = start(member).draft(DraftPlan(tau=0.1, max_words=3, branches=2))
    assert draft.spans[0] == Span(text="", ends=True)


def test_end_tokens_are_scored_together(ending):
    member, _ = ending
    prefix = start(member)
    (score,) = mean_nll(prefix, [Span(text="", ends=True)])
    with torch.no_grad(), plain(member.backend.model.module) as model:
        logits = model(torch.tensor([prefix._ids])).logits[0, -1]
    probability = torch.softmax(logits, -1)[[0, 2]].sum().item()
    assert score == pytest.approx(-math.log(probability), abs=1e-6)
    prefix.close()


def test_a_cancelled_prefix_stops_before_it_computes(members, kind):
    cancel = threading.Event()
    cancel.set()
    prefix = start(members[kind], cancel=cancel)
    before = members[kind].backend.model.forwards
    with pytest.raises(CancelledError) as caught:
        prefix.score([Span(text=" a")])
    assert caught.value.member == kind
    assert members[kind].backend.model.forwards == before
    with pytest.raises(CancelledError):
        prefix.draft(DraftPlan(tau=0.5, max_words=1, branches=1))
    prefix.close()
    assert members[kind].backend.tokens_held() == 0


def test_errors_of_the_backend_name_the_member(members, kind, monkeypatch):
    prefix = start(members[kind])
    monkeypatch.setattr(prefix.session, "score", lambda *_: 1 / 0)
    with pytest.raises(MemberError, match="ZeroDivisionError") as caught:
        prefix.score([Span(text=" a"), Span(text=" b")])
    assert caught.value.member == kind
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    prefix.close()


def test_an_empty_prompt_becomes_the_token_that_begins_a_text(members, kind):
    assert start(members[kind], "").prompt_tokens == 1


def test_tools_without_messages_are_refused(members, kind):
    with pytest.raises(PromptError, match="tools"):
        members[kind].open(
            Opening(prompt="The quick", tools=[{"type": "function"}], max_word_tokens=24, cancel=threading.Event())
        )


def test_messages_without_a_template_are_refused(tmp_path):
    path = tiny.save_tiny(tmp_path, tiny.byte_level(chat=False))
    member = load_member(MemberConfig(model=str(path), name="mine"))
    assert not member.prompt_reader.supports_chat()
    with pytest.raises(TemplateError, match="no chat template") as caught:
        start(member, CHAT)
    assert caught.value.member == "mine"
    assert "chat_template" in caught.value.hint


def test_counted_tokens_are_those_of_the_opened_prompt(members, kind):
    for prompt in [*PROMPTS, CHAT]:
        prefix = start(members[kind], prompt)
        checked = prompt if isinstance(prompt, str) else conversation(prompt)
        assert members[kind].prompt_reader.count_tokens(checked) == prefix.prompt_tokens
        prefix.close()

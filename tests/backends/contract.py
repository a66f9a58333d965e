"""What every backend must do, as one class of tests: each backend's tests extend it, and name a member to load.

The reference is the same model in transformers, without a cache: one forward pass over each whole context. A test that
needs an ability which the backend lacks (masks, the full distribution) is skipped.
"""

from __future__ import annotations

import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM

from adafuse_core.errors import CancelledError
from adafuse_core.members.loader import load_member
from adafuse_core.small_models import path

TEXT = "Where is the tallest tower?\nThe tallest tower is in the old town. Anna went to the market with her brother."
PROMPTS = ("Where is the tallest tower?\n", "The capital of Peru is", "2 + 3 =", "Anna went to the")
TOP = 4  # likeliest tokens that the tests compare


@cache
def reference_of(folder, dtype):
    """The reference of a model, for all classes of tests."""
    return Reference(folder, dtype)


class Reference:
    """Next-token distributions of a model by full recomputation, natural log-probabilities."""

    def __init__(self, folder, dtype):
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
        self.known = {}

    def after(self, ids):
        """The distribution after a context, `[vocab]` in float64."""
        if ids not in self.known:
            with torch.inference_mode():
                logits = self.model(torch.tensor([ids])).logits[0].double()
            for length, row in enumerate(torch.log_softmax(logits, dim=-1), start=1):
                self.known.setdefault(ids[:length], row)
        return self.known[ids]

    def greedy(self, ids, count):
        """The next `count` ids of the greedy continuation."""
        found = ()
        for _ in range(count):
            found += (int(self.after(ids + found).argmax()),)
        return found

    def score(self, ids, continuation):
        return [float(self.after(ids + continuation[:at])[token]) for at, token in enumerate(continuation)]


class BackendContract:
    """Tests of a backend. A subclass overrides `config`, and more if its member is not `small:birch` in float64.

    Attributes:
        model: Name of the small model that the member of `config` runs.
        dtype: Data type of its weights.
        tolerance: Most difference of a log-probability.
        counts_tokens: Whether sessions count the tokens that were read.
        steps_ahead: Steps that a draft may have computed when the request is cancelled, and still report.
    """

    model = "birch"
    dtype = torch.float64
    tolerance = 1e-9
    counts_tokens = True
    steps_ahead = 1

    @pytest.fixture(scope="class")
    @classmethod
    def config(cls):
        """The `MemberConfig` of the backend to test."""
        raise NotImplementedError

    @pytest.fixture(scope="class")
    @classmethod
    def reference(cls):
        return reference_of(path(cls.model), cls.dtype)

    @pytest.fixture(scope="class")
    @classmethod
    def member(cls, config):
        member = load_member(config)
        yield member
        member.close()

    @pytest.fixture
    def backend(self, member):
        member.backend.forget()
        return member.backend

    @pytest.fixture
    def encode(self, member):
        return lambda text: tuple(member.prompt_reader.tokenizer(text)["input_ids"])

    @pytest.fixture
    def prompts(self, encode):
        return [encode(prompt) for prompt in PROMPTS]

    @pytest.fixture
    def start(self, backend):
        """Opens sessions, which are closed at the end of the test."""
        opened = []

        def start(ids, check=lambda: None, **options):
            found = backend.open(ids, **{"window": None, "lookup": False, "raise_if_cancelled": check} | options)
            opened.append(found)
            return found

        yield start
        for session in opened:
            session.close()

    def check_step(self, step, expected):
        """Compare the reported likeliest tokens with a distribution `[vocab]`."""
        values = expected.sort(descending=True).values[: len(step.ids)].tolist()
        assert list(step.logprobs) == pytest.approx(values, abs=self.tolerance)
        assert [float(expected[token]) for token in step.ids] == pytest.approx(values, abs=self.tolerance)
        assert len({*step.ids}) == len(step.ids)

    def check_rows(self, reference, contexts, rows, count, top=TOP):
        """Compare greedy continuations with full recomputation."""
        for context, steps in zip(contexts, rows, strict=True):
            assert len(steps) == count
            for step in steps:
                assert len(step.ids) == top
                self.check_step(step, reference.after(context))
                context = (*context, step.ids[0])

    # --- drafts ---

    def test_drafts_are_greedy_continuations(self, start, reference, prompts):
        for prompt in prompts:
            rows = start(prompt).draft([prompt], 12, TOP, endless)
            self.check_rows(reference, [prompt], rows, 12)
            assert greedy(rows[0]) == reference.greedy(prompt, 12)

    def test_several_contexts_of_a_session_are_drafted_at_once(self, start, reference, prompts):
        session, prompt = start(prompts[0]), prompts[0]
        branches = [(*prompt, token) for token in reference.after(prompt).topk(3).indices.tolist()]
        self.check_rows(reference, branches, session.draft(branches, 5, TOP, endless), 5)
        self.check_rows(reference, prompts, session.draft(prompts, 3, TOP, endless), 3)
        self.check_rows(reference, [prompt, prompt], session.draft([prompt, prompt], 2, TOP, endless), 2)

    def test_more_or_fewer_likeliest_tokens_can_be_asked_for_the_same_context(self, start, reference, prompts):
        (prompt, *_), most = prompts, start(prompts[0]).draft([prompts[0]], 1, TOP, endless)
        session = start(prompt)
        for top in (1, TOP, 2):
            rows = session.draft([prompt], 3, top, endless)
            self.check_rows(reference, [prompt], rows, 3, top)
            assert rows[0][0].ids == most[0][0].ids[:top]

    def test_rows_end_where_the_caller_ends_them(self, start, prompts):
        lengths, seen = [1, 4, 2], {row: [] for row in range(3)}

        def until(row, steps):
            seen[row].append(list(steps))
            return len(steps) >= lengths[row]

        session = start(prompts[0])
        rows = session.draft(prompts[:3], 6, 1, until)
        assert [len(steps) for steps in rows] == lengths
        for row, steps in enumerate(rows):  # called after each step, with all steps of the row so far
            assert seen[row] == [steps[:count] for count in range(1, lengths[row] + 1)]
        again = [session.draft([p], n, 1, endless)[0] for p, n in zip(prompts[:3], lengths, strict=True)]
        assert [greedy(steps) for steps in again] == [greedy(steps) for steps in rows]

    def test_an_end_token_is_a_step_like_others(self, start, reference, member, encode):
        context = encode("<|im_start|>user\nWhat is the capital of Peru?<|im_end|>\n<|im_start|>assistant\n")
        (row,) = start(context).draft([context], 60, 2, lambda _, steps: steps[-1].ids[0] in member.end_ids)
        assert row[-1].ids[0] in member.end_ids
        assert greedy(row) == reference.greedy(context, len(row))
        assert len(row) < 60

    def test_a_draft_may_begin_after_an_end_token(self, start, reference, member, prompts):
        context = (*prompts[0], min(member.end_ids))
        self.check_rows(reference, [context], start(prompts[0]).draft([context], 2, 1, endless), 2, top=1)

    def test_an_error_of_the_caller_ends_a_draft(self, start, reference, prompts):
        session = start(prompts[0])
        with pytest.raises(ZeroDivisionError):
            session.draft([prompts[0]], 5, 1, lambda *_: 1 / 0)
        self.check_rows(reference, prompts[:1], session.draft(prompts[:1], 3, TOP, endless), 3)

    def test_the_whole_distribution(self, start, reference, member, prompts):
        if not member.abilities.full_distribution:
            pytest.skip("the backend has no full distribution")
        size = member.abilities.vocab_size
        ((step,),) = start(prompts[0]).draft(prompts[:1], 1, size, endless)
        assert sorted(step.ids) == list(range(size))
        assert math.fsum(map(math.exp, step.logprobs)) == pytest.approx(1, abs=1e-5)
        self.check_step(step, reference.after(prompts[0]))

    # --- scores ---

    def test_scores_are_log_probabilities_of_each_token(self, start, reference, prompts, encode):
        prompt = prompts[0]
        texts = [reference.greedy(prompt, 6), encode(" the market"), encode(" the old"), encode("Anna"), ()]
        found = start(prompt).score([prompt] * len(texts), texts)
        for ids, logprobs in zip(texts, found, strict=True):
            assert logprobs == pytest.approx(reference.score(prompt, ids), abs=self.tolerance)

    def test_scores_at_seams(self, start, reference, encode):
        """Contexts that are shorter than the committed one, or differ in its last tokens."""
        ids = encode(TEXT)
        session = start(ids[:-6])
        for committed in (ids[:-6], ids[:-3], (*ids[:-4], 9, 7)):
            session.commit(committed)
            contexts = [ids[:-8], committed[:-1], ids[: len(committed) - 2], committed, ids[:1]]
            continuations = [ids[-8:-2], ids[-4:], (7, *ids[-2:]), ids[-2:], ids[1:4]]
            found = session.score(contexts, continuations)
            expected = [reference.score(*each) for each in zip(contexts, continuations, strict=True)]
            assert [len(each) for each in found] == [6, 4, 3, 2, 3]
            for one, other in zip(found, expected, strict=True):
                assert one == pytest.approx(other, abs=self.tolerance)

    def test_end_tokens_are_scored(self, start, reference, member, prompts):
        ends = [(*reference.greedy(prompts[1], 2), end) for end in sorted(member.end_ids)]
        found = start(prompts[1]).score([prompts[1]] * len(ends), ends)
        for logprobs, ids in zip(found, ends, strict=True):
            assert logprobs == pytest.approx(reference.score(prompts[1], ids), abs=self.tolerance)

    def test_a_draft_scores_what_it_has_written(self, start, prompts):
        session = start(prompts[0])
        ((*steps,),) = session.draft(prompts[:1], 5, 2, endless)
        (logprobs,) = session.score(prompts[:1], [greedy(steps)])
        assert logprobs == pytest.approx([step.logprobs[0] for step in steps], abs=self.tolerance)

    # --- nothing but the contexts counts ---

    def test_answers_are_repeated_exactly_by_new_sessions_and_after_a_reset(self, backend, start, prompts):
        def played():
            session = start(prompts[0])
            drafted = session.draft(prompts[:2], 6, TOP, endless)
            session.commit((*prompts[0], *greedy(drafted[0])[:3]))
            scored = session.score([prompts[0]] * 2, [greedy(drafted[0]), (5, 6, 7)])
            session.close()
            return [[greedy(steps) for steps in drafted], *scored]

        first = played()
        for reset in (lambda: None, backend.forget, lambda: backend.forget("other"), lambda: backend.forget("")):
            reset()
            ids, *logprobs = played()
            assert ids == first[0]
            for one, other in zip(logprobs, first[1:], strict=True):
                assert one == pytest.approx(other, abs=self.tolerance)

    def test_an_answer_grows_by_commits_of_any_tokens(self, start, reference, encode):
        ids = encode(TEXT)
        session, context = start(ids[:5]), ids[:5]
        for length in (7, 8, 12, 20):
            ((*steps,),) = session.draft([context], 4, TOP, endless)
            self.check_rows(reference, [context], [steps], 4)
            context = ids[:length] if length % 2 else (*context, *greedy(steps)[:2])
            session.commit(context)
        self.check_rows(reference, [context], session.draft([context], 3, TOP, endless), 3)

    def test_guesses_change_nothing(self, start, reference, prompts):
        guesses = [(*prompts[0], 5, 6), (*prompts[0], *reference.greedy(prompts[0], 3)), prompts[1]]
        for options in ({"lookup": False}, {"lookup": True}):
            session = start(prompts[0], **options)
            self.check_rows(reference, prompts[:1], session.draft(prompts[:1], 6, TOP, endless, guesses), 6)
            (logprobs,) = session.score(prompts[:1], [(7, 8)], guesses)
            assert logprobs == pytest.approx(reference.score(prompts[0], (7, 8)), abs=self.tolerance)
            session.commit((*prompts[0], *reference.greedy(prompts[0], 2)))
            self.check_rows(reference, prompts[:1], session.draft(prompts[:1], 4, TOP, endless), 4)

    def test_many_sessions_at_once(self, start, reference, prompts):
        def answer(prompt):
            session, context = start(prompt), prompt
            for _ in range(3):
                ((*steps,),) = session.draft([context], 3, TOP, endless)
                self.check_rows(reference, [context], [steps], 3)
                context += greedy(steps)
                session.commit(context)
            return context[len(prompt) :]

        for prompt in prompts:
            reference.greedy(prompt, 9)  # the reference itself is not used by several threads at once
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(answer, [*prompts, *prompts]))
        assert answers == [reference.greedy(prompt, 9) for prompt in [*prompts, *prompts]]

    def test_tokens_are_counted(self, backend, start, encode):
        if not self.counts_tokens:
            pytest.skip("the backend counts no tokens")
        ids, counts = encode(TEXT), []
        for namespace in ("a", "a", "b"):
            session = start(ids, namespace=namespace)
            session.draft([ids], 2, 1, endless)
            session.close()
            session.close()
            counts.append(session.tokens())
        first, again, other = counts
        assert first.cached == other.cached == 0
        assert first.read == other.read >= len(ids)
        assert again.cached > len(ids) // 2
        assert again.read < first.read

    # --- grammars ---

    @pytest.fixture
    def masked(self, member, start):
        """Opens sessions under a mask, given as a function of the context; counts the masks."""
        if not member.abilities.masks:
            pytest.skip("the backend has no masks")
        size = member.abilities.vocab_size

        def masked(ids, tokens):
            def allowed(context):
                found = tokens(context)
                return None if found is None else sum(1 << token for token in found).to_bytes((size + 7) // 8, "little")

            return start(ids, allowed=allowed)

        return masked

    def test_a_mask_renormalizes_every_distribution(self, masked, reference, prompts, encode):
        prompt, tokens = prompts[0], sorted({*encode(TEXT)})

        def allowed(context):
            return tokens[len(context) % 3 :: 3]

        session = masked(prompt, allowed)
        for contexts in ([prompt], [prompt, (*prompt, tokens[5]), (*prompt, tokens[6], tokens[7])]):
            rows = session.draft(contexts, 5, TOP, endless)
            for context, steps in zip(contexts, rows, strict=True):
                assert len(steps) == 5
                for step in steps:
                    self.check_step(step, renormalized(reference.after(context), allowed(context)))
                    context = (*context, step.ids[0])
        written = greedy(rows[0])
        session.commit((*prompt, *written[:2]))
        (logprobs, *_) = session.score([prompt], [written])
        expected = [
            float(renormalized(reference.after((*prompt, *written[:at])), allowed((*prompt, *written[:at])))[token])
            for at, token in enumerate(written)
        ]
        assert logprobs == pytest.approx(expected, abs=self.tolerance)

    def test_contexts_without_a_mask_are_not_masked(self, masked, reference, prompts, encode):
        prompt, tokens = prompts[0], {*encode(TEXT)}
        session = masked(prompt, lambda context: tokens if len(context) == len(prompt) + 1 else None)
        ((*steps,),) = session.draft([prompt], 4, TOP, endless)
        context = prompt
        for at, step in enumerate(steps):
            expected = reference.after(context)
            self.check_step(step, renormalized(expected, tokens) if at == 1 else expected)
            context = (*context, step.ids[0])

    def test_a_token_that_the_mask_excludes_is_scored_without_it(self, masked, reference, prompts, encode):
        prompt, tokens = prompts[0], {*encode(TEXT)}
        excluded = next(token for token in range(20, 400) if token not in tokens)
        inside = min(tokens)
        (logprobs,) = masked(prompt, lambda _: tokens).score([prompt], [(excluded, inside)])
        assert logprobs[0] == pytest.approx(float(reference.after(prompt)[excluded]), abs=self.tolerance)
        expected = renormalized(reference.after((*prompt, excluded)), tokens)[inside]
        assert logprobs[1] == pytest.approx(float(expected), abs=self.tolerance)

    def test_a_row_ends_where_no_token_is_allowed(self, masked, reference, prompts, encode):
        prompt, tokens, calls = prompts[0], {*encode(TEXT)}, []
        session = masked(prompt, lambda context: tokens if len(context) < len(prompt) + 3 else set())
        rows = session.draft([prompt, (*prompt, 5, 6, 7)], 9, 2, lambda *call: calls.append(call) or False)
        assert [len(steps) for steps in rows] == [3, 0]
        assert {row for row, _ in calls} == {0}
        few = masked(prompt, lambda _: [7, 9])
        ((step,),) = few.draft([prompt], 1, TOP, endless)
        self.check_step(step, renormalized(reference.after(prompt), [7, 9]))
        assert {*step.ids} == {7, 9}

    # --- cancellation and closing ---

    def test_a_cancelled_request_stops_within_a_step(self, start, reference, prompts):
        cancel, calls = threading.Event(), []
        session = start(prompts[0], check_of(cancel))

        def until(_, steps):
            calls.append(len(steps))
            if len(steps) == 3:
                cancel.set()
            return False

        with pytest.raises(CancelledError):
            session.draft(prompts[:1], 200, 1, until)
        assert 3 <= len(calls) <= 3 + self.steps_ahead
        with pytest.raises(CancelledError):
            session.score(prompts[:1], [(5, 6, 7, 8)])
        session.close()
        self.check_rows(reference, prompts[:1], start(prompts[0]).draft(prompts[:1], 3, TOP, endless), 3)

    def test_a_request_is_cancelled_by_another_thread(self, start, encode, prompts):
        cancel, started, done = threading.Event(), threading.Event(), SimpleNamespace(after=None)
        long = encode(TEXT) * 8
        session = start(long, check_of(cancel))

        def until(*_):
            started.set()
            return False

        def draft():
            with pytest.raises(CancelledError):
                session.draft([long, *prompts], 2000, 1, until)
            done.after = time.monotonic()

        thread = threading.Thread(target=draft)
        thread.start()
        assert started.wait(60)
        cancel.set()
        since = time.monotonic()
        thread.join(30)
        assert not thread.is_alive()
        assert done.after - since < 5
        assert start(prompts[0]).draft(prompts[:1], 1, 1, endless)

    def test_the_abilities_stay_the_same(self, backend, member, reference):
        assert backend.abilities() == member.abilities
        assert member.abilities.vocab_size == reference.model.config.vocab_size
        assert str(self.dtype).removeprefix("torch.") in member.abilities.dtype


def endless(*_):
    """Never ends a row."""
    return False


def greedy(steps):
    return tuple(step.ids[0] for step in steps)


def renormalized(distribution, tokens):
    """A distribution `[vocab]` over some tokens only."""
    excluded = torch.ones_like(distribution, dtype=torch.bool)
    excluded[sorted(tokens)] = False
    return torch.log_softmax(distribution.masked_fill(excluded, -math.inf), dim=-1)


def check_of(cancel):
    """The check of a request that the event cancels."""

    def check():
        if cancel.is_set():
            raise CancelledError("cancelled")

    return check

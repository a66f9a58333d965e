"""`Ensemble` as an application uses it: streaming, stopping, cancelling, threads, errors, sharing."""

from __future__ import annotations

import copy
import gc
import math
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from adafuse_core import (
    CancelledError,
    ConfigError,
    ContextOverflowError,
    Ensemble,
    Finished,
    MemberError,
    ModelNotFoundError,
    NonFiniteLogitsError,
    PromptError,
    RoundDone,
    ScriptedMember,
    TemplateError,
    TextDelta,
)
from adafuse_core.members import registry

CODE = "def f(a, b):\n    if a < b:\n\treturn  a\n\n\n    return b  # </s> ok\n"
TABLE = "| name  | value |\n|-------|------:|\n| a < b |    17 |\n"
TEXTS = {
    "code": CODE,
    "table": TABLE,
    "emoji": "Hi 👩‍👩‍👧!  Flags 🇩🇪🇯🇵 and 👋🏽\u00a0now",
    "cjk": "「世界」とHello世界です。明日は晴れ。\n中文也可以，谢谢！",
    "blanks": "  leading\t\ttabs   and \r\n\r\n  CRLF, then trailing  ",
    "thai": "สวัสดีครับ ผมชื่อเอดา",
    "one blank": " ",
    "nothing": "",
}


def scripted(reply, **options):
    return Ensemble(members=[ScriptedMember(name="a", reply=reply, **options)])


@pytest.fixture(scope="module")
def pair(tiny_models):
    """Two random float64 models and their ensemble."""
    members = [{"model": str(tiny_models[name]), "dtype": "float64"} for name in ("bytes", "pieces")]
    return Ensemble.from_pretrained(*members)


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("margin", [1.0, 0.0])
def test_text_is_exact_to_the_byte(text, margin):
    assert scripted(text, margin=margin).generate("go", max_new_tokens=None).text == text


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_text_of_two_agreeing_members_is_exact_to_the_byte(text):
    members = [ScriptedMember(name="a", reply=text), ScriptedMember(name="b", reply=text, margin=0.0)]
    assert Ensemble(members=members).generate("go", max_new_tokens=None).text == text


def test_deltas_join_to_the_text_and_one_finished_comes_last(pair):
    events = list(pair.stream("The quick", max_new_tokens=20))
    assert [type(event) for event in events].count(Finished) == 1
    assert isinstance(events[-1], Finished)
    joined = "".join(event.text for event in events if isinstance(event, TextDelta))
    assert joined == pair.generate("The quick", max_new_tokens=20).text


RULES = {  # options, value of a score, and fused value of two members with weights 1 and 3
    "the paper's": (
        {},
        lambda score: -sum(score.logprobs) / len(score.logprobs),
        lambda first, second: (first + 3 * second) / 4,
    ),
    "another": (
        {"scoring": "byte", "pool": "linear"},
        lambda score: -sum(score.logprobs) / score.bytes,
        lambda first, second: -math.log((math.exp(-first) + 3 * math.exp(-second)) / 4),
    ),
}


@pytest.mark.parametrize("rule", RULES)
def test_the_trace_has_proposers_and_scores(pair, rule):
    options, value, fused = RULES[rule]
    members = [replace(member, weight=weight) for member, weight in zip(pair.config.members, (1.0, 3.0), strict=True)]
    ensemble = Ensemble(pair.config, members=members, strategy="adafuse", **options)
    rounds = [
        played for prompt in ("The quick", "Grüße") for played in ensemble.generate(prompt, max_new_tokens=40).rounds
    ]
    for played in rounds:
        assert [draft.member for draft in played.drafts] == ["bytes", "pieces"]
        assert played.winner.proposers
    scored = [played for played in rounds if len(played.candidates) > 1]
    assert len(scored) >= 10
    for played in scored:
        assert [[score.member for score in row] for row in played.scores] == [["bytes", "pieces"]] * len(
            played.candidates
        )
        assert played.values == tuple(tuple(pytest.approx(value(score)) for score in row) for row in played.scores)
        assert played.fused == tuple(pytest.approx(fused(*row)) for row in played.values)
        assert played.chosen == played.fused.index(min(played.fused))
    assert {played.chosen for played in scored} != {0}


def test_a_single_candidate_is_scored_only_with_logprobs():
    ensemble = Ensemble(members=[ScriptedMember(name, reply="one two three") for name in "ab"])
    plain, scored = (ensemble.generate("go", logprobs=logprobs) for logprobs in (False, True))
    assert plain.text == scored.text
    assert len(plain.rounds) == len(scored.rounds) >= 1
    for before, after in zip(plain.rounds, scored.rounds, strict=True):
        assert (before.scores, before.values, before.fused, before.span_scores) == ((), (), (), ())
        assert [score.member for score in after.span_scores] == ["a", "b"]
        assert len(after.values) == len(after.fused) == 1


def test_usage_counts_prompt_and_answer_of_every_member(pair):
    answer = pair.generate("The quick", max_new_tokens=10)
    assert answer.usage.prompt_tokens == pair.count_tokens("The quick")
    assert answer.usage.completion_tokens["bytes"] == 10
    assert answer.reason == "length"


@pytest.mark.parametrize("budget", [1, 2, 3, 5, 8])
def test_budget_counts_tokens_of_the_first_member(pair, budget):
    answer = pair.generate("The quick", max_new_tokens=budget)
    longer = pair.generate("The quick", max_new_tokens=30).text
    assert answer.usage.completion_tokens["bytes"] <= budget
    assert longer.startswith(answer.text)


def test_stop_string_across_words_is_found_cut_and_never_shown():
    ensemble = scripted("one two. Observation: three")
    shown = ""
    for event in ensemble.stream("go", stop=["two. Obs"]):
        if isinstance(event, TextDelta):
            shown += event.text
            assert "two" not in shown
    assert shown == "one "
    assert event.reason == "stop"
    assert event.stop == "two. Obs"


def test_an_incomplete_stop_string_is_shown_at_the_end():
    answer = scripted("one two. Obs").generate("go", stop=["two. Observation"])
    assert answer.text == "one two. Obs"
    assert answer.stop is None


def test_nothing_runs_before_the_first_event():
    member = ScriptedMember(name="a", reply="one two")
    stream = Ensemble(members=[member]).stream("go")
    assert member.prompts == []
    next(stream)
    assert len(member.prompts) == 1


def test_bad_options_are_refused_before_the_first_event():
    ensemble = scripted("one")
    with pytest.raises(ConfigError, match="max_new_tokens"):
        ensemble.stream("go", max_new_token=3)
    with pytest.raises(ConfigError, match="max_new_tokens"):
        ensemble.stream("go", max_new_tokens=0)


@pytest.mark.parametrize("prompt", ["", [], [{"role": "user", "content": " "}]])
def test_an_empty_prompt_is_refused(prompt):
    with pytest.raises(PromptError, match="empty"):
        scripted("one").generate(prompt)


@pytest.mark.parametrize("option", [{"tau": 1.5}, {"tau": -0.1}, {"tau": float("nan")}, {"branches": 0}, {"beams": 0}])
def test_options_out_of_range_are_refused(option):
    with pytest.raises(ConfigError, match=next(iter(option))):
        Ensemble(**option)


def test_temperature_needs_a_choice():
    with pytest.raises(ConfigError, match="single"):
        Ensemble(strategy="single").stream("go", temperature=0.5)


def test_samples_depend_on_the_seed_only(pair):
    def draw(seed):
        return pair.generate("The quick", max_new_tokens=24, temperature=100.0, seed=seed).text

    texts = {draw(seed) for seed in range(6)}
    assert draw(3) == draw(3)
    assert len(texts) > 1


def test_prompt_longer_than_a_window_names_the_member_and_both_numbers(tiny_models):
    ensemble = Ensemble.from_pretrained(str(tiny_models["bytes"]), str(tiny_models["pieces"]))
    with pytest.raises(ContextOverflowError, match=r"'bytes'.*\d+ tokens.*512"):
        ensemble.generate("quick brown " * 600)


def test_an_answer_ends_where_a_window_is_full(tiny_models):
    config = {"model": str(tiny_models["bytes"]), "dtype": "float64", "context_window": 24}
    ensemble = Ensemble.from_pretrained(config, {"model": str(tiny_models["pieces"]), "dtype": "float64"})
    answer = ensemble.generate("The quick", max_new_tokens=None)
    assert answer.reason == "length"
    assert answer.usage.prompt_tokens["bytes"] + answer.usage.completion_tokens["bytes"] <= 24
    assert answer.usage.completion_tokens["bytes"] > 24 // 2


def test_messages_for_a_member_without_template_are_refused(tmp_path):
    from tests import tiny

    path = tiny.save_tiny(tmp_path / "plain", tiny.byte_level(chat=False))
    with pytest.raises(TemplateError, match="no chat template"):
        Ensemble.from_pretrained(path).generate([{"role": "user", "content": "hi"}])


def test_nan_logits_name_the_member_and_end_the_stream(tmp_path, tiny_models):
    from tests import tiny

    path = tiny.save_tiny(tmp_path / "sick", tiny.byte_level())
    ensemble = Ensemble.from_pretrained(str(tiny_models["pieces"]), path)
    with torch.no_grad():
        ensemble.members[1].backend.model.module.lm_head.weight[7] = float("nan")
    with pytest.raises(NonFiniteLogitsError, match="'sick'"):
        ensemble.generate("The quick")


def test_a_member_failing_in_mid_stream_reaches_the_consumer_at_once():
    ensemble = scripted("one two three four", margin=0.0, fail_after=2)
    stream = ensemble.stream("go")
    seen = []

    def consume():
        for event in stream:
            seen.append(event)

    with pytest.raises(MemberError, match="'a'"):
        consume()
    assert sum(isinstance(event, RoundDone) for event in seen) == 2


def test_cancelling_from_another_thread_ends_within_a_round():
    member = ScriptedMember(name="a", reply="word " * 500, margin=0.0, delay=0.005)
    cancel = threading.Event()
    stream = Ensemble(members=[member]).stream("go", cancel=cancel, max_new_tokens=None)
    next(stream)
    threading.Timer(0.05, cancel.set).start()
    with pytest.raises(CancelledError):
        for _ in stream:
            pass
    assert member.drafts < 400


def test_a_cancelled_model_stops_inside_its_draft(pair):
    cancel = threading.Event()
    stream = pair.stream("The quick", cancel=cancel)
    while not isinstance(next(stream), RoundDone):
        pass
    cancel.set()
    with pytest.raises(CancelledError, match="'bytes'"):  # the member that was drafting
        next(stream)
    assert held(pair) == 0


def held(ensemble):
    """Tokens whose keys and values are in memory."""
    return sum(member.backend.tokens_held() for member in ensemble.members)


def test_an_abandoned_stream_frees_its_memory(pair):
    stream = pair.stream("The quick")
    next(stream)
    assert held(pair) > 0
    stream.close()
    assert held(pair) == 0
    list(pair.stream("The quick", max_new_tokens=4))
    assert held(pair) == 0


def test_gradient_mode_of_the_consumer_is_left_alone(pair):
    for _ in pair.stream("The quick", max_new_tokens=8):
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()


def test_a_stream_may_be_consumed_on_another_thread(pair):
    stream = pair.stream("The quick", max_new_tokens=8)
    with ThreadPoolExecutor(1) as pool:
        events = pool.submit(list, stream).result()
    assert isinstance(events[-1], Finished)


def test_interleaved_streams_on_one_thread_do_not_disturb_each_other(pair):
    prompts = ["The quick", "Grüße"]
    alone = [pair.generate(prompt, max_new_tokens=16).text for prompt in prompts]
    streams = [pair.stream(prompt, max_new_tokens=16) for prompt in prompts]
    texts = ["", ""]
    running = {0, 1}
    while running:
        for index in sorted(running):
            event = next(streams[index], None)
            if event is None:
                running.discard(index)
            elif isinstance(event, TextDelta):
                texts[index] += event.text
    assert texts == alone


def test_sixteen_threads_each_get_the_text_they_get_alone(pair):
    prompts = [f"The {number} quick brown" for number in range(16)]
    alone = [pair.generate(prompt, max_new_tokens=16).text for prompt in prompts]
    barrier = threading.Barrier(16)

    def answer(prompt):
        barrier.wait()
        return "".join(event.text for event in pair.stream(prompt, max_new_tokens=16) if isinstance(event, TextDelta))

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(answer, prompts)) == alone
    assert held(pair) == 0


def test_batch_keeps_order_and_isolates_failures(pair):
    prompts = ["The quick", "x" * 5000, "Grüße"]
    answers = pair.batch(prompts, return_exceptions=True, max_new_tokens=6)
    assert answers[0].text == pair.generate(prompts[0], max_new_tokens=6).text
    assert isinstance(answers[1], ContextOverflowError)
    assert answers[2].text == pair.generate(prompts[2], max_new_tokens=6).text
    with pytest.raises(ContextOverflowError):
        pair.batch(prompts, max_new_tokens=6)


def test_batch_runs_at_most_max_concurrency_prompts():
    guard, running, peak = threading.Lock(), 0, 0

    def reply(_):
        nonlocal running, peak
        with guard:
            running += 1
            peak = max(peak, running)
        time.sleep(0.02)
        with guard:
            running -= 1
        return "one two"

    ensemble = Ensemble(members=[ScriptedMember("a", reply)])
    answers = ensemble.batch([f"go {number}" for number in range(12)], max_concurrency=4)
    assert [answer.text for answer in answers] == ["one two"] * 12
    assert peak == 4


def test_first_failure_of_a_batch_cancels_the_others():
    slow = ScriptedMember("a", lambda prompt: "" if "bad" in prompt else "go on ", ends_answer=False, delay=0.01)
    ensemble = Ensemble(members=[slow])
    with pytest.raises(ConfigError, match="blank reply"):
        ensemble.batch(["good", "bad", *["later"] * 20], max_new_tokens=None, max_concurrency=2)
    assert len(slow.prompts) <= 4


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "4", None])
def test_batch_needs_a_max_concurrency_of_at_least_one(pair, value):
    with pytest.raises(ConfigError, match="max_concurrency"):
        pair.batch(["The quick"], max_concurrency=value)


def test_single_is_the_members_own_greedy_answer(pair):
    alone = Ensemble.from_pretrained(pair.config.members[1], branches=1)
    single = Ensemble(pair.config, strategy="single", member="pieces")
    assert single.generate("The quick", max_new_tokens=20).text == alone.generate("The quick", max_new_tokens=20).text


def test_weights_change_the_decision():
    def answer(weight):
        members = [ScriptedMember(name="a", reply="left"), ScriptedMember(name="b", reply="right", weight=weight)]
        return Ensemble(members=members).generate("go").text

    assert answer(0.01) == "left"
    assert answer(100.0) == "right"


def test_ties_go_to_the_earlier_member():
    members = [ScriptedMember(name="a", reply="left"), ScriptedMember(name="b", reply="right")]
    assert Ensemble(members=members).generate("go").text == "left"


def test_copies_and_pickles_share_the_models(pair):
    before = registry.loaded()
    for twin in (copy.copy(pair), copy.deepcopy(pair), pickle.loads(pickle.dumps(pair))):
        assert twin.members[0].backend is pair.members[0].backend
    assert len(pickle.dumps(pair)) < 10_000
    assert registry.loaded() == before


def test_models_are_freed_when_the_last_user_closes(tmp_path):
    from tests import tiny

    path = tiny.save_tiny(tmp_path / "own", tiny.byte_level())
    first, second = Ensemble.from_pretrained(path), Ensemble.from_pretrained(path)
    count = registry.loaded()
    first.close()
    assert registry.loaded() == count
    second.close()
    gc.collect()
    assert registry.loaded() == count - 1
    assert second.generate("The", max_new_tokens=2).reason  # loads again
    second.close()


def test_if_one_member_fails_to_load_all_are_released(tmp_path):
    from tests import tiny

    path = tiny.save_tiny(tmp_path / "good", tiny.byte_level())
    before = registry.loaded()
    with pytest.raises(ModelNotFoundError, match="/no/such"):
        Ensemble.from_pretrained(path, "/no/such")
    assert registry.loaded() == before


def test_the_home_of_an_unknown_user_is_a_missing_folder():
    with pytest.raises(ModelNotFoundError, match="~nobody-of-that-name/model"):
        Ensemble.from_pretrained("~nobody-of-that-name/model")


def test_stop_iteration_of_a_member_is_an_error_that_names_it(pair, monkeypatch):
    monkeypatch.setattr("adafuse_core.backends.local.LocalSession.draft", lambda *_: next(iter(())))
    with pytest.raises(MemberError, match=r"'bytes'.*StopIteration"):
        pair.generate("The quick")


def test_members_may_be_given_by_name(tiny_models):
    paths = [str(tiny_models[name]) for name in ("bytes", "modern")]
    assert Ensemble(members=paths).names == ("bytes", "modern")


@pytest.mark.parametrize(
    ("names", "config"),
    [(["a", "a"], None), (["a"], {"members": ["a", "b"]}), (["a"], {"members": [{"model": "a", "weight": 2.0}]})],
)
def test_ready_made_members_must_be_those_of_the_config(names, config):
    members = [ScriptedMember(name=name) for name in names]
    with pytest.raises(ConfigError, match="ready-made"):
        Ensemble(config, members=members)


def test_generation_options_are_merged():
    base = Ensemble(generation={"max_new_tokens": 512}).config
    assert Ensemble(base, generation={"seed": 3}).config.generation.max_new_tokens == 512


def test_misplaced_generation_options_get_a_hint():
    with pytest.raises(ConfigError, match=r"generation=\{'max_new_tokens'"):
        Ensemble(max_new_tokens=5)


def test_temperature_with_one_candidate_is_refused():
    with pytest.raises(ConfigError, match="one candidate"):
        Ensemble(members=["small:aspen"], branches=1).stream("go", temperature=1.0)


def test_closing_while_a_stream_runs_ends_it_with_a_clear_error(tmp_path):
    from tests import tiny

    path = tiny.save_tiny(tmp_path / "own", tiny.byte_level())
    ensemble = Ensemble.from_pretrained(path, branches=1)  # so that this model does not end its answer at once
    stream = ensemble.stream("The quick", max_new_tokens=None)
    while not isinstance(next(stream), RoundDone):
        pass
    ensemble.close()
    with pytest.raises(MemberError, match="freed by close"):
        next(stream)


@pytest.mark.parametrize("prompt", ["half \ud83d", [{"role": "user", "content": "half \ud83d"}]])
def test_a_lone_surrogate_is_refused(prompt):
    with pytest.raises(PromptError, match="lone surrogate"):
        scripted("one").generate(prompt)


def test_after_an_assistant_message_a_new_answer_is_generated():
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    assert scripted("one").generate(turns).text == "one"
    assert scripted("one").generate(turns, continue_final_message=True).text == "one"


@pytest.mark.parametrize(
    "last",
    [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "tool_calls": [{"name": "f", "arguments": {}}]},
        {"role": "tool", "content": "3"},
    ],
)
def test_only_a_text_of_the_assistant_can_be_continued(last):
    with pytest.raises(PromptError, match="continue_final_message=True, but the conversation ends with"):
        scripted("one").stream([{"role": "user", "content": "Hi"}, last], continue_final_message=True)


def test_score_of_a_text_from_its_start(pair):
    """Texts begin with the BOS token, or with the EOS token where a tokenizer has no BOS token."""
    first = {"bytes": "<|im_end|>", "pieces": "<s>"}
    (found,) = pair.score("", ["The quick"])
    for name, token in first.items():
        (expected,) = Ensemble(pair.config, strategy="single", member=name).score(token, ["The quick"])
        assert found.scores[name].nll == pytest.approx(expected.scores[name].nll)


def test_score_continues_the_last_message_if_the_config_says_so():
    ensemble = Ensemble(generation={"continue_final_message": True})
    asked = [{"role": "user", "content": "What is the capital of Peru?"}]
    (begun,) = ensemble.score([*asked, {"role": "assistant", "content": "The capital"}], [" of Peru is Lima."])
    (whole, start) = Ensemble().score(asked, ["The capital of Peru is Lima.", "The capital"])
    for name, score in begun.scores.items():
        assert score.nll == pytest.approx(whole.scores[name].nll - start.scores[name].nll, abs=1e-5)
    with pytest.raises(PromptError, match="continue_final_message"):
        ensemble.score(asked, ["Lima"])

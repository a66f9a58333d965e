"""`EnsembleLM`: log-likelihoods and answers for the requests of the harness."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

pytest.importorskip("lm_eval")

from lm_eval.models.huggingface import HFLM

from adafuse_core import (
    ConfigError,
    ContextOverflowError,
    Ensemble,
    GenerationParams,
    MemberError,
    PromptError,
    ScriptedMember,
)
from adafuse_core.small_models import path
from adafuse_integrations.lm_eval import EnsembleLM
from adafuse_integrations.lm_eval.conversations import context_of
from adafuse_integrations.lm_eval.generation_options import generation_options
from adafuse_integrations.lm_eval.windows import windows

TEXTS = [
    ("Question: What is the capital of Peru?\nAnswer:", " Lima"),
    ("Question: What is the capital of Peru?\nAnswer:", " The capital of Peru is Lima."),
    ("", "The capital of Peru is Lima."),
    ("The capital", " of France is"),
]


def requests(*arguments):
    return [SimpleNamespace(args=each) for each in arguments]


def scripted(**options):
    return Ensemble(members=[ScriptedMember("a", " one two three"), ScriptedMember("b", " one two 3")], **options)


@pytest.mark.filterwarnings("ignore")  # of the harness's own model
def test_one_member_has_the_numbers_of_the_harness_itself():
    folder = str(path("aspen"))
    own = HFLM(pretrained=folder, device="cpu", dtype="float64", batch_size=1)
    model = EnsembleLM(Ensemble(members=[{"model": folder, "dtype": "float64"}], strategy="single"))
    asked = requests(*TEXTS, ("The capital of Peru", model.ensemble.generate("The capital of Peru").text))
    expected = own.loglikelihood(asked, disable_tqdm=True)
    found = model.loglikelihood(asked, disable_tqdm=True)
    assert [value for value, _ in found] == pytest.approx([float(value) for value, _ in expected])
    greedy = [bool(greedy) for _, greedy in expected]
    assert greedy == [False, False, False, False, True]
    assert [greedy for _, greedy in found] == greedy
    rolling = requests(("The capital of Peru is Lima.\nThe capital of France is Paris.",))
    assert model.loglikelihood_rolling(rolling, disable_tqdm=True) == pytest.approx(
        own.loglikelihood_rolling(rolling, disable_tqdm=True)
    )


def test_results_stand_in_the_order_of_the_requests():
    model = EnsembleLM(Ensemble(), max_concurrency=3)
    forwards = model.loglikelihood(requests(*TEXTS), disable_tqdm=True)
    backwards = model.loglikelihood(requests(*TEXTS[::-1]), disable_tqdm=True)
    assert [value for value, _ in forwards] == pytest.approx([value for value, _ in backwards[::-1]])
    assert len({value for value, _ in forwards}) == len(TEXTS)


def test_log_likelihoods_are_pooled_by_weight_and_not_normalised():
    members = [ScriptedMember("a", " one two", weight=3), ScriptedMember("b", " 1 two")]
    model = EnsembleLM(Ensemble(members=members, strategy="adafuse", scoring="token"))
    ((value, _),) = model.loglikelihood(requests(("go", " one two")), disable_tqdm=True)
    assert value == pytest.approx(-(3 * (2 * 0.125) + 2 * 5.0) / 4)


def test_log_likelihoods_are_pooled_word_by_word_by_default():
    members = [ScriptedMember("a", " one two"), ScriptedMember("b", " 1 two")]
    ((value, _),) = EnsembleLM(Ensemble(members=members)).loglikelihood(requests(("go", " one two")), disable_tqdm=True)
    root_mean = (math.exp(-0.125 / 2) + math.exp(-5.0 / 2)) / 2  # of either word
    assert value == pytest.approx(2 * 2 * math.log(root_mean))


def test_greedy_is_what_the_ensemble_writes_first():
    ensemble = scripted(generation={"stop": ["two"], "temperature": 0.5, "max_new_tokens": 1})
    continuations = [" one", " one t", " one two three", " one two 3", " two", "", " one two three four"]
    asked = requests(*(("go", text) for text in continuations))
    found = EnsembleLM(ensemble).loglikelihood(asked, disable_tqdm=True)
    assert [greedy for _, greedy in found] == [True, True, True, False, False, True, False]
    assert found[5][0] == 0.0
    unchecked = EnsembleLM(ensemble, check_greedy=False).loglikelihood(asked, disable_tqdm=True)
    assert unchecked == [(value, False) for value, _ in found]


def test_the_greedy_answer_is_generated_no_further_than_needed():
    member = ScriptedMember("a", " one two three four five six", margin=0.0)
    model = EnsembleLM(Ensemble(members=[member], branches=1))
    model.loglikelihood(requests(("go", " one three"), ("go", " four")), disable_tqdm=True)
    assert member.drafts == 2


def test_answers_obey_stop_strings_and_budgets():
    model = EnsembleLM(scripted())
    asked = requests(
        ("go", {"until": ["two"]}),
        ("go", {"until": "three", "max_gen_toks": 2}),
        ("go", {"until": [], "max_gen_toks": 1, "temperature": 0.7, "do_sample": False}),
        ("go", {}),
    )
    assert model.generate_until(asked, disable_tqdm=True) == [" one ", " one two", " one", " one two three"]


def test_options_that_cannot_be_honoured_are_refused():
    defaults = GenerationParams(stop=("END",), seed=7)
    options = generation_options({"until": "x", "do_sample": True, "temperature": 0.5, "top_p": 1.0}, defaults, 2)
    assert options == {"max_new_tokens": 256, "stop": ("x", "END"), "temperature": 0.5, "seed": 9}
    assert generation_options({"top_k": 50, "top_p": 0.9, "max_tokens": 9}, defaults, 0)["max_new_tokens"] == 9
    with pytest.raises(ConfigError, match=r"top_p=0\.9"):
        generation_options({"top_p": 0.9, "temperature": 0.5}, defaults, 0)
    with pytest.raises(ConfigError, match="without a temperature"):
        generation_options({"do_sample": True}, defaults, 0)
    with pytest.raises(ConfigError, match=r"repetition_penalty=1\.2"):
        generation_options({"repetition_penalty": 1.2}, defaults, 0)


def test_a_conversation_passes_through_the_harness_as_a_text():
    model = EnsembleLM(scripted())
    messages = [{"role": "system", "content": "é\n"}, {"role": "assistant", "content": "So"}]
    text = model.apply_chat_template(messages, add_generation_prompt=False)
    assert context_of(text).prompt == messages
    assert context_of(text).continues
    assert not context_of(model.apply_chat_template(messages)).continues
    assert context_of('{"messages": []}').prompt == '{"messages": []}'
    with pytest.raises(PromptError, match="changed by the task"):
        context_of(text + " and more")
    with pytest.raises(ConfigError, match="each member has its own chat template"):
        model.chat_template("tool_use")
    assert model.chat_template(True) == ""


def test_the_first_error_cancels_the_others():
    def reply(prompt):
        if prompt == "bad":
            raise MemberError("broken", member="a")
        return " y" * 90

    member = ScriptedMember("a", reply, delay=0.01)
    model = EnsembleLM(Ensemble(members=[member]))
    with pytest.raises(MemberError, match="broken"):
        model.generate_until(requests(("bad", {}), *((f"go {n}", {}) for n in range(20))), disable_tqdm=True)
    assert member.drafts < 20 * 30 / 2


def test_a_prompt_that_is_too_long_is_an_error():
    members = [ScriptedMember("a", " one", context_window=4)]
    with pytest.raises(ContextOverflowError):
        EnsembleLM(Ensemble(members=members)).generate_until(requests(("a b c d e", {})), disable_tqdm=True)


@pytest.mark.parametrize("limit", [12, 20, 21, 60])
def test_windows_cover_a_text_once_and_fit(limit):
    text = " ".join(f"w{n}" for n in range(50)) + "\n" + "x" * 40 + "  "

    def count(part):
        return sum(max(1, len(word) // 4) for word in part.split())

    found = windows(text, count, limit)
    assert "".join(piece for _, piece in found) == text
    position = 0
    for context, piece in found:
        assert text[:position].endswith(context)
        assert count(context) + count(piece) <= limit
        position += len(piece)
    assert found[0][0] == ""
    assert all(context for context, _ in found[1:])
    assert windows(text, count, None) == [("", text)]


def test_a_long_text_is_scored_in_pieces():
    text = " ".join(["The capital of Peru is Lima."] * 60)
    ensemble = Ensemble(context_window=200, strategy="adafuse")
    (value,) = EnsembleLM(ensemble).loglikelihood_rolling(requests((text,)), disable_tqdm=True)
    limit = min(member.context_window for member in ensemble.members)
    assert limit == 200
    pieces = windows(text, lambda part: max(ensemble.count_text_tokens(part).values()), limit)
    assert len(pieces) > 2
    total = 0.0
    for context, piece in pieces:
        (scored,) = ensemble.score(context, [piece])
        total -= sum(score.nll for score in scored.scores.values()) / 2
    assert value == pytest.approx(total)

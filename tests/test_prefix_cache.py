"""What an ensemble remembers between requests changes no text, and is counted, bounded, separated and forgotten."""

from __future__ import annotations

import gc

import pytest

from adafuse_core import ConfigError, ContextOverflowError, Ensemble
from adafuse_core.engine.distributions import Distribution
from tests.agreement import EXACT, apart, numbers
from tests.soak import soak

SYSTEM = {"role": "system", "content": "You answer in one short sentence. " * 12}
TOKENS = 8  # of an answer


def question(number):
    return [SYSTEM, {"role": "user", "content": f"What is {number} plus {number + 1}?"}]


@pytest.fixture(scope="module")
def expected():
    """Answers of an ensemble that remembers nothing."""
    with Ensemble.from_pretrained(dtype="float64", prefix_cache=False) as forgets:
        yield lambda *args, **options: forgets.generate(*args, max_new_tokens=TOKENS, **options)


@pytest.fixture(params=["tree", "fork"])
def remembers(request):
    with Ensemble.from_pretrained(dtype="float64", kv_store=request.param) as loaded:
        yield loaded


def test_each_turn_of_a_conversation_reads_only_its_new_tokens(remembers, expected):
    messages, lengths = [SYSTEM], dict.fromkeys(remembers.names, 0)
    for turn in range(8):
        messages.append({"role": "user", "content": f"And number {turn}, what about it?"})
        answer = remembers.generate(messages, max_new_tokens=TOKENS)
        assert answer.text == expected(messages).text
        usage = answer.usage
        for name in remembers.names:
            prompt = usage.prompt_tokens[name]
            if turn:
                assert prompt - usage.cached_tokens[name] <= prompt - lengths[name] + 32, (turn, name)
            lengths[name] = prompt + usage.completion_tokens[name]
        messages.append({"role": "assistant", "content": answer.text})
    assert min(usage.cached_tokens.values()) > 0.8 * min(usage.prompt_tokens.values())


@pytest.mark.parametrize("together", [False, True])
def test_questions_after_the_same_beginning_read_it_once(remembers, expected, together):
    shared = remembers.count_tokens([SYSTEM, {"role": "user", "content": "What is "}])
    prompts = [question(number) for number in range(20)]
    if together:
        answers = remembers.batch(prompts, max_new_tokens=TOKENS)
    else:
        answers = [remembers.generate(prompt, max_new_tokens=TOKENS) for prompt in prompts]
    for prompt, answer in zip(prompts[::4], answers[::4], strict=True):
        assert answer.text == expected(prompt).text
    for name in remembers.names:
        fresh = [answer.usage.prompt_tokens[name] - answer.usage.cached_tokens[name] for answer in answers]
        assert sum(fresh) <= shared[name] + 20 * 48
        assert sum(count > 48 for count in fresh) == 1


def test_prompts_that_begin_alike_are_scored_for_weights_as_without_memory(remembers):
    options = {"strategy": "adafuse", "weighting": "prompt", "pool": "linear"}
    long = {"role": "system", "content": SYSTEM["content"] * 3}
    with (
        Ensemble(remembers.config, **options) as shares,
        Ensemble(remembers.config, **options, prefix_cache=False) as forgets,
    ):
        for number in (1, 1, 2, 3):
            prompt = [long, *question(number)[1:]]
            answers = [each.generate(prompt, max_new_tokens=TOKENS, logprobs=True) for each in (shares, forgets)]
            assert answers[0].text == answers[1].text
            for got, wanted in zip(answers[0].rounds, answers[1].rounds, strict=True):
                # Not to the last bit: passes of other lengths add up in another order.
                assert apart(numbers(got), numbers(wanted)) < EXACT
        assert min(answers[0].usage.cached_tokens.values()) > 100


def test_warm_reads_a_beginning_for_later_requests(remembers, expected):
    remembers.warm([SYSTEM])
    answer = remembers.generate(question(1), max_new_tokens=TOKENS)
    assert answer.text == expected(question(1)).text
    for name in remembers.names:
        assert answer.usage.cached_tokens[name] > 0.7 * answer.usage.prompt_tokens[name]


def test_namespaces_are_apart_and_forgotten_apart(remembers):
    def cached(namespace):
        usage = remembers.generate(question(1), max_new_tokens=2, cache_namespace=namespace).usage
        return min(usage.cached_tokens.values())

    assert cached("alice") == cached("bob") == cached("") == 0
    assert cached("alice") > 0
    remembers.forget("alice")
    assert cached("alice") == 0
    assert cached("bob") > 0
    remembers.forget()
    assert cached("bob") == 0


def test_switched_off_nothing_is_remembered():
    with Ensemble.from_pretrained(prefix_cache=False) as forgets:
        for _ in range(2):
            usage = forgets.generate(question(1), max_new_tokens=2).usage
            assert set(usage.cached_tokens.values()) == {0}
        assert [member.backend.tokens_cached() for member in forgets.members] == [0, 0]


def test_read_tokens_are_those_of_the_passes(remembers):
    before = {member.name: member.backend.model.tokens for member in remembers.members}
    usage = remembers.generate("The quick brown fox", max_new_tokens=TOKENS).usage
    for member in remembers.members:
        read = member.backend.model.tokens - before[member.name]
        assert usage.read_tokens[member.name] <= read <= usage.read_tokens[member.name] * 3  # padding is not counted
        assert usage.read_tokens[member.name] >= usage.prompt_tokens[member.name]


@pytest.mark.parametrize("strategy", ["beam", "token_union"])
def test_no_distribution_outlives_its_request(remembers, strategy):
    """Tables of distributions are large, and must not wait for Python's collector of cycles."""
    with Ensemble(remembers.config, strategy=strategy) as ensemble:
        ensemble.generate(question(1), max_new_tokens=TOKENS)
        gc.collect()
        before = distributions()
        gc.disable()
        try:
            ensemble.batch([question(2), question(3)], max_new_tokens=TOKENS)
            with pytest.raises(ContextOverflowError):
                ensemble.generate("long " * 3000)
            assert distributions() == before
        finally:
            gc.enable()


def distributions():
    """Number of distributions in memory."""
    return sum(type(each) is Distribution for each in gc.get_objects())


@pytest.mark.parametrize("bad", [1, None, "yes"])
def test_wrong_values_are_refused(bad):
    with pytest.raises(ConfigError, match="prefix_cache"):
        Ensemble(prefix_cache=bad)
    if not isinstance(bad, str):
        with pytest.raises(ConfigError, match="cache_namespace"):
            Ensemble().generate("The", cache_namespace=bad)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("second", [{"kv_store": "fork"}, {"kv_store": "tree", "cuda_graphs": True}])
def test_random_requests_get_their_own_text_and_memory_stays_bounded(tiny_models, monkeypatch, second, record_property):
    monkeypatch.setattr("adafuse_core.engine.store_choice.recorder", lambda _: lambda run: run)
    folders = [(tiny_models["bytes"], {"kv_store": "tree"}), (tiny_models["pieces"], second)]
    done = soak(folders, 150)
    assert not done.problems
    assert done.outcomes["whole"] > 75
    assert done.outcomes["NonFiniteLogitsError"] > 0
    assert done.outcomes["CancelledError"] > 5
    record_property("random requests with shared beginnings", 150)

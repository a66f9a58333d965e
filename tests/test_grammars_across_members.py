"""Members with different vocabularies obey one grammar: answers are valid and equal the oracle's."""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import pytest
import torch
from pydantic import BaseModel, ConfigDict, Field
from transformers import AutoConfig, AutoModelForCausalLM

from adafuse_core import (
    CancelledError,
    ConfigError,
    Ensemble,
    Grammar,
    MemberConfig,
    TemplateError,
    VocabularyError,
    small_models,
)
from adafuse_core.chat.call_grammar import answer_grammar
from adafuse_core.chat.dialects import SHARED
from adafuse_core.chat.tools import Tools
from adafuse_core.engine.distributions import distributions, masked
from tests import tiny
from tests.agreement import EXACT, ROUGH, difference
from tests.oracle import OracleEnsemble
from tests.test_oracle import build
from tests.text.tokenizers import decomposed, lookbehind, phrases, sentencepiece, unigram, wordpiece

CAP = 8  # maximum tokens of a word: random models write long ones
# A short template, for models with short context windows. Its marks select the dialect.
BRIEF = (
    "{{ tools[0]['function']['name'] if tools }}{% for m in messages %}{{ m['content'] }}{% endfor %}{# <tool_call> #}"
)


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Place(Strict):
    street: str = Field(min_length=1, max_length=9)
    number: int = Field(ge=1, le=999)


class Tree(Strict):
    name: Literal["été", "étang", "日本"]
    kids: list[Tree]
    next: Tree | None = None


class Order(Strict):
    note: str | None = None
    price: float
    rush: bool
    places: list[Place] = Field(min_length=1, max_length=2)
    code: int | Literal["a", "ab", "é"]
    tags: dict[str, int]


MODELS = (Place, Tree, Order)


def tool(model):
    name = f"make_{model.__name__.lower()}"
    return {"type": "function", "function": {"name": name, "parameters": model.model_json_schema()}}


def asked(number):
    return [{"role": "user", "content": f"Number {number}, please."}]


def least(ensemble, **options):
    """The smallest budget for a valid answer."""
    low, high = 1, 300
    while low < high:
        middle = (low + high) // 2
        try:
            with contextlib.closing(ensemble.stream(asked(1), max_new_tokens=middle, **options)) as stream:
                next(stream)
            high = middle
        except ConfigError:
            low = middle + 1
    return low


def budgets(ensemble, count, **options):
    """Small and large budgets."""
    start = least(ensemble, **options)
    return [start + extra for extra in itertools.islice(itertools.cycle((0, 1, 6, 20, 60)), count)]


NARROW = {"beams": 2, "branches": 2}  # of the default search
WAYS = {
    "search": NARROW,
    "drawn": {"strategy": "adafuse", "generation": {"temperature": 1.0, "seed": 1}},
    "single": {"strategy": "single"},
}
TEAMS = [("bytes", "pieces"), ("modern", "crossing"), ("characters", "pieces"), ("pieces", "modern")]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("team", TEAMS, ids="+".join)
def test_json_by_random_members_is_valid(tiny_models, team, way, count):
    members = [MemberConfig(model=str(tiny_models[name]), chat_template=BRIEF) for name in team]
    ensemble = Ensemble(members=members, max_word_tokens=CAP, **WAYS[way])
    valid = 0
    for model, start in zip(MODELS, (0, 6, 12), strict=True):
        grammar = Grammar.json_schema(model.model_json_schema())
        for number, budget in enumerate(budgets(ensemble, 6 if start < 12 else 5, grammar=grammar), start):
            answer = ensemble.generate(asked(number), grammar=grammar, max_new_tokens=budget)
            model.model_validate_json(answer.text)
            assert answer.usage.completion_tokens[team[0]] <= budget
            assert answer.reason in ("stop", "length")
            assert finite(answer)
            valid += 1
    count("valid JSON by random members", valid, at_least=17)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("team", TEAMS, ids="+".join)
def test_calls_by_random_members_are_valid(tiny_models, team, way, count):
    members = [MemberConfig(model=str(tiny_models[name]), chat_template=BRIEF) for name in team]
    ensemble = Ensemble(members=members, max_word_tokens=CAP, **WAYS[way])
    choices = {"any": MODELS, "make_tree": (Tree,), "make_order": (Order,)}
    calls = 0
    for (choice, models), start in zip(choices.items(), (0, 6, 12), strict=True):
        options = {"tools": [tool(model) for model in MODELS], "tool_choice": choice, "complete_calls": True}
        for number, budget in enumerate(budgets(ensemble, 6 if start < 12 else 5, **options), start):
            answer = ensemble.generate(asked(number), max_new_tokens=budget, **options)
            assert (answer.text, answer.invalid_tool_calls) == ("", ())
            assert answer.reason in ("tool_calls", "length")
            assert answer.usage.completion_tokens[team[0]] <= budget
            assert len(answer.tool_calls) >= 1
            assert len({call.id for call in answer.tool_calls}) == len(answer.tool_calls)
            by_name = {tool(model)["function"]["name"]: model for model in models}
            for call in answer.tool_calls:
                by_name[call.name].model_validate(call.arguments)
            calls += len(answer.tool_calls)
    count("valid calls by random members", calls, at_least=17)


def finite(answer):
    """Whether all scores are finite."""
    return all(abs(value) < 1e6 for played in answer.rounds for row in played.values for value in row)


@pytest.fixture(scope="module")
def random_small(tmp_path_factory):
    """The small models' folders with random weights."""
    folder, paths = tmp_path_factory.mktemp("random"), []
    for seed, name in enumerate(small_models.NAMES):
        path = folder / name
        shutil.copytree(small_models.path(name), path)
        config = AutoConfig.from_pretrained(path)
        config.initializer_range = 0.3
        torch.manual_seed(seed)
        AutoModelForCausalLM.from_config(config).save_pretrained(path)
        paths.append(str(path))
    return paths


def test_random_small_models_write_valid_json_and_calls(random_small):
    ensemble = Ensemble(members=random_small, max_word_tokens=CAP, **NARROW)
    for number, model in enumerate(MODELS * 2):
        answer = ensemble.generate(
            asked(number), grammar=Grammar.json_schema(model.model_json_schema()), max_new_tokens=90
        )
        model.model_validate_json(answer.text)
        answer = ensemble.generate(
            asked(number), tools=[tool(model)], tool_choice="any", max_new_tokens=99, complete_calls=True
        )
        assert answer.tool_calls
        assert all(model.model_validate(call.arguments) for call in answer.tool_calls)
        assert finite(answer)


def test_trained_models_call_the_right_tool():
    city = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    weather = {"type": "function", "function": {"name": "get_weather", "parameters": city}}
    ask = [{"role": "user", "content": "What is the weather in Paris?"}]
    for choice in ("auto", "any", "get_weather"):
        (call,) = Ensemble().generate(ask, tools=[weather], tool_choice=choice).tool_calls
        assert (call.name, call.arguments) == ("get_weather", {"city": "Paris"})


# -- the oracle --------------------------------------------------------------------------------------------------------

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "kind": {"enum": ["été", "étang"]},
        "number": {"type": "integer", "minimum": -9, "maximum": 99},
    },
    "required": ["name", "kind", "number"],
}
FLAT = {"type": "function", "function": {"name": "look", "parameters": SCHEMA}}
GRAMMARS = {
    "schema": ({}, Grammar.json_schema(SCHEMA)),
    "pattern": ({}, Grammar.regex(r" ?((The quick|été 日本|[a-z]{1,6}|\n\n- x),? ?){2,4}\.")),
    "auto": ({"tools": [FLAT]}, answer_grammar(Tools.of_request([FLAT], "auto", parallel=True), SHARED)),
    "any": ({"tools": [FLAT], "tool_choice": "any", "parallel_tool_calls": False}, None),
}
GRAMMARS["any"] = (GRAMMARS["any"][0], answer_grammar(Tools.of_request([FLAT], "any", parallel=False), SHARED))
SETTINGS = [(0.3, 3, 1), (0.3, 3, 3), (0.8, 2, 1), (0.8, 2, 3)]  # tau, M, B


def unlike_the_oracle(ensemble, oracle, name, pairs, max_new_tokens):
    """Answers that differ from the oracle's, for pairs of prompt and setting."""
    options, grammar = GRAMMARS[name]
    given = options or {"grammar": grammar}
    wrong = []
    for prompt, (tau, max_words, branches) in pairs:
        setting = {"tau": tau, "max_words": max_words, "branches": branches}
        expected = OracleEnsemble(oracle, **setting).answer(
            prompt, tools=options.get("tools"), grammar=grammar, max_new_tokens=max_new_tokens
        )
        answer = Ensemble(ensemble.config, strategy="adafuse", **setting).generate(
            prompt, max_new_tokens=max_new_tokens, **given
        )
        if problem := difference(answer, expected, ROUGH if "crossing" in ensemble.names else EXACT):
            wrong.append((prompt, setting, problem))
    return wrong


@pytest.mark.parametrize("name", GRAMMARS)
@pytest.mark.parametrize("names", [["aspen"], ["birch"], ["aspen", "birch"]], ids="+".join)
def test_small_models_write_what_the_oracle_writes(names, name, count):
    ensemble, oracle = build([small_models.path(each) for each in names])
    chats = [[{"role": "user", "content": "How do you say bread in French?"}]]
    prompts = chats if name in ("auto", "any") else [*chats, "The answer is: "]
    pairs = list(itertools.product(prompts, SETTINGS if len(names) > 1 else SETTINGS[::3]))
    assert unlike_the_oracle(ensemble, oracle, name, pairs, 120) == []
    count("generations equal to the oracle", len(pairs), at_least=(2 if len(prompts) == 1 else 4) * len(names))


HAND_MADE = [["bytes", "pieces"], ["modern", "pieces"], ["pieces", "characters"], ["crossing", "bytes"]]
PROMPTS = ["The quick", "Answer: ", "x = [1984,\n    ", 'Grüße 日本 {"na', [{"role": "user", "content": "| a < b |"}]]


@pytest.mark.parametrize("name", ["schema", "pattern"])
@pytest.mark.parametrize("names", HAND_MADE, ids="+".join)
def test_tokenizers_that_disagree_write_what_the_oracle_writes(tiny_models, names, name, count):
    ensemble, oracle = build([tiny_models[each] for each in names], cap=CAP)
    pairs = [pair for index, pair in enumerate(itertools.product(PROMPTS, SETTINGS)) if index % 2 == index // 4 % 2]
    assert unlike_the_oracle(ensemble, oracle, name, pairs, 200) == []
    count("generations equal to the oracle", len(pairs), at_least=10)


# -- the condition -----------------------------------------------------------------------------------------------------


def bits(ids):
    return sum(1 << index for index in ids).to_bytes(2, "little")


def test_a_masked_distribution_adds_up_to_one():
    logits = torch.tensor([[2.0, -1.0, 0.5, 3.0, 3.0, -40.0, 1.0, 0.0, 0.0, 9.0, 1.5, 2.5]], dtype=torch.float64)
    (free,) = distributions(logits.clone())
    conditions = ([3, 4, 5], [5], list(range(12)), [0, 1, 2, 6, 7, 8, 10, 11], [9])
    together = masked([(free, bits(allowed)) for allowed in conditions])
    for allowed, given in zip(conditions, together, strict=True):
        (alone,) = masked([(free, bits(allowed))])
        assert (alone.ids, alone.logprobs) == (given.ids, given.logprobs)
        probabilities = given.table[given.row].exp()
        assert probabilities.sum().item() == pytest.approx(1)
        assert set(probabilities.nonzero().flatten().tolist()) == set(allowed)
        best = sorted(allowed, key=lambda index: (-logits[0, index], index))
        for count in (1, 2, 3, 8, 12):
            ids, logprobs = given.top(count)
            assert list(ids) == best[:count]
            assert sorted(logprobs, reverse=True) == list(logprobs)
        whole = torch.log_softmax(logits[0, allowed], 0)
        assert given.table[given.row][allowed].tolist() == pytest.approx(whole.tolist())


def test_a_mask_without_tokens_is_an_error():
    (free,) = distributions(torch.zeros(1, 12))
    with pytest.raises(ValueError, match="no token is allowed"):
        masked([(free, bits([1])), (free, bits([]))])


def test_the_margin_of_a_single_allowed_token_is_one(tiny_models):
    ensemble = Ensemble(
        members=[tiny_models["characters"]], strategy="adafuse", tau=0.0, max_words=3, speculation="off"
    )
    answer = ensemble.generate("go", grammar=Grammar.regex("(aa|bb) cc dd"))
    (margins,) = {draft.margins for played in answer.rounds for draft in played.drafts}
    assert margins[0] < 1
    assert margins[1:] == (1.0, 1.0)


@pytest.mark.parametrize("names", [["bytes", "pieces"], ["crossing", "modern"]], ids="+".join)
@pytest.mark.parametrize("strategy", ["adafuse", "single"])
def test_a_prompt_may_end_anywhere(tiny_models, names, strategy):
    ensemble = Ensemble(members=[tiny_models[name] for name in names], strategy=strategy, max_word_tokens=CAP)
    grammar = Grammar.json_schema(SCHEMA)
    for prompt in ("The answer is: ", '{"a', "x  ", "a\n", " ", "été é", '{"name": "', "{", "The qui", "日本\n\n"):
        answer = ensemble.generate(prompt, grammar=grammar, max_new_tokens=150)
        assert json.loads(answer.text).keys() == {"name", "kind", "number"}
        assert finite(answer)


def test_an_end_token_in_the_text_of_others_has_a_score(tiny_models):
    members = [
        MemberConfig(model=str(tiny_models["bytes"])),
        MemberConfig(model=str(tiny_models["modern"]), end_tokens=["Ċ"]),  # a line end
    ]
    ensemble = Ensemble(members=members)
    for seed in range(4):
        answer = ensemble.generate("go", grammar=Grammar.regex("((a|b|c)[\n ]){9}"), temperature=9.0, seed=seed)
        assert len(answer.text) == 18
        assert finite(answer)
    candidates = [candidate for played in answer.rounds for candidate in played.candidates]
    assert any("\n" in candidate.span.text for candidate in candidates)
    assert len({candidate.proposers for candidate in candidates}) > 1


ODD = {
    "decomposed": decomposed,
    "lookbehind": lookbehind,
    "phrases": phrases,
    "likeliest pieces": lambda: unigram(split=True),
    "pieces of words": wordpiece,
    "legacy": lambda: sentencepiece(legacy=True),
    "never": lambda: sentencepiece(scheme="never"),
}


@pytest.mark.parametrize("name", ODD)
def test_unusual_tokenizers_obey_grammars(tiny_models, tmp_path, name):
    folder = tiny.save_tiny(tmp_path / "odd", ODD[name]())
    for members in ([folder], [folder, tiny_models["bytes"]], [tiny_models["bytes"], folder]):
        ensemble = Ensemble(members=members, max_word_tokens=CAP)
        answer = ensemble.generate("The answer is: ", grammar=Grammar.json_schema(SCHEMA), max_new_tokens=150)
        assert json.loads(answer.text).keys() == {"name", "kind", "number"}
        assert finite(answer)


@pytest.mark.parametrize("odd", [phrases, wordpiece])
@pytest.mark.parametrize("strategy", ["adafuse", "beam"])
def test_words_that_a_vocabulary_lacks_are_not_written(tiny_models, tmp_path, odd, strategy):
    folder = tiny.save_tiny(tmp_path / "odd", odd())
    alone = Ensemble(members=[folder], strategy=strategy, tau=1.0, max_word_tokens=CAP)
    assert alone.generate("The", grammar=Grammar.regex("(the|th\u0416) fox")).text == "the fox"
    for members in ([folder], [folder, tiny_models["bytes"]]):
        ensemble = Ensemble(members=members, strategy=strategy, tau=1.0, max_word_tokens=CAP)
        with pytest.raises(VocabularyError, match="member 'odd': its vocabulary has no token that the grammar allows"):
            ensemble.generate("The", grammar=Grammar.regex("the (\u0416|\u0429)"))


# -- thoughts ----------------------------------------------------------------------------------------------------------

THINKS = BRIEF + "<think>\n"


def thinkers(tiny_models, templates=(THINKS, THINKS)):
    names = ("modern", "pieces")
    members = [
        MemberConfig(model=str(tiny_models[name]), chat_template=template)
        for name, template in zip(names, templates, strict=True)
    ]
    return Ensemble(members=members, max_word_tokens=CAP, **NARROW)


def test_a_thought_that_the_prompt_begins_comes_before_calls_and_json(tiny_models):
    ensemble = thinkers(tiny_models)
    for number in range(2):
        answer = ensemble.generate(asked(number), grammar=Grammar.json_schema(SCHEMA), max_new_tokens=99)
        assert json.loads(answer.text).keys() == {"name", "kind", "number"}
        assert answer.reasoning
        answer = ensemble.generate(
            asked(number), tools=[FLAT], tool_choice="any", max_new_tokens=120, complete_calls=True
        )
        assert answer.text == ""
        assert [call.arguments.keys() for call in answer.tool_calls] == [{"name", "kind", "number"}]
        assert answer.reasoning
        assert answer.usage.completion_tokens["modern"] <= 120


def test_a_thought_without_grammar_is_only_a_thought(tiny_models):
    answer = thinkers(tiny_models).generate(asked(1), max_new_tokens=12)
    assert answer.reasoning
    assert answer.text == ""
    plain = thinkers(tiny_models).generate("go", max_new_tokens=12)
    assert plain.text
    assert plain.reasoning == ""


@pytest.mark.parametrize("options", [{}, {"grammar": Grammar.json_object()}, {"tools": [FLAT], "tool_choice": "any"}])
def test_members_whose_prompts_differ_in_opening_a_thought_are_refused(tiny_models, options):
    ensemble = thinkers(tiny_models, (THINKS, BRIEF))
    with pytest.raises(TemplateError, match="templates of modern begin the answer with a thought") as caught:
        ensemble.generate(asked(1), **options)
    assert "enable_thinking" in caught.value.hint
    assert ensemble.generate("go", max_new_tokens=5).text


# -- many at once ------------------------------------------------------------------------------------------------------


def test_concurrent_answers_with_grammars_are_those_of_single_requests(tiny_models):
    members = [MemberConfig(model=str(tiny_models[name]), dtype="float64") for name in ("pieces", "bytes")]
    ensemble = Ensemble(members=members, max_word_tokens=CAP, **NARROW)
    grammars = [grammar for _, grammar in GRAMMARS.values()]
    requests = [(prompt, grammar) for prompt in (*PROMPTS, asked(1)) for grammar in (*grammars[:2], None)]

    def text(request):
        prompt, grammar = request
        return ensemble.generate(prompt, grammar=grammar, max_new_tokens=150 if grammar else 15).text

    alone = [text(request) for request in requests]
    order = list(range(len(requests))) * 2
    random.Random(0).shuffle(order)
    with ThreadPoolExecutor(12) as pool:
        together = list(pool.map(lambda index: (index, text(requests[index])), order))
    assert [index for index, got in together if got != alone[index]] == []


def test_an_answer_with_a_grammar_can_be_cancelled_and_closed(tiny_models):
    ensemble = Ensemble(members=[tiny_models["pieces"], tiny_models["bytes"]], max_word_tokens=CAP)
    grammar = Grammar.json_schema({"type": "array", "items": {"type": "string"}, "minItems": 60})
    cancel = threading.Event()
    stream = ensemble.stream("go", grammar=grammar, cancel=cancel, max_new_tokens=None)
    next(stream)
    threading.Timer(0.1, cancel.set).start()
    started = time.monotonic()
    with pytest.raises(CancelledError):
        list(stream)
    assert time.monotonic() - started < 5
    stream = ensemble.stream("go", grammar=grammar, max_new_tokens=None)
    next(stream)
    stream.close()
    assert [member.backend.tokens_held() for member in ensemble.members] == [0, 0]
    assert json.loads(ensemble.generate("go", grammar=Grammar.json_schema(SCHEMA), max_new_tokens=150).text)

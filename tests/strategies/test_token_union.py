"""Fusion of next-token distributions: by hand, and as a plain implementation on the reference members."""

from __future__ import annotations

import itertools
import json
import math
import threading
from dataclasses import replace

import pytest

from adafuse_core import (
    CancelledError,
    ConfigError,
    Ensemble,
    EnsembleConfig,
    Grammar,
    MemberConfig,
    ScriptedMember,
    TextDelta,
    small_models,
)
from adafuse_core.generation import collect
from adafuse_core.members.base import WindowFull
from adafuse_core.members.prefixes import Prefixes
from adafuse_core.rounds import Candidate, Draft, NextToken, Round, Score, Span
from adafuse_core.strategies.base import Limits, Needs
from adafuse_core.strategies.token_union import TokenUnion
from adafuse_core.strategies.token_votes import consistent
from tests.agreement import difference
from tests.oracle import OracleEnsemble, OracleMember
from tests.test_rules import CAP, QUESTIONS, TEXTS, straddling

END = Span(text="", ends=True)
LEAST = math.exp(-100)


class Table:
    """A member whose next tokens and scores are given."""

    thinking, place, text = None, "here", ""

    def __init__(self, name, tokens, scores=None, *, weight=1.0, too_long=()):
        self.name, self.weight, self.too_long = name, weight, too_long
        self.tokens, self.scores, self.asked = spans(tokens), spans(scores or {}), []

    def next_tokens(self, count=None, after=None):
        self.asked.append(count)
        found = [NextToken(span=span, logprob=math.log(p)) for span, p in self.tokens.items()]
        return tuple(sorted(found, key=lambda token: -token.logprob)[:count])

    def score(self, texts):
        probabilities = self.tokens | self.scores
        return [
            Score(member=self.name, logprobs=(math.log(probabilities[each]),), words=1, bytes=1, word_ends=(1,))
            for each in texts
        ]

    def draft(self, plan, hints=(), after=None):
        return Draft(member=self.name, spans=(END,), margins=(1.0,))

    def fits(self, span, closing=""):
        return span.text not in self.too_long


def spans(table):
    return {END if text is None else Span(text=text): p for text, p in table.items()}


def first_round(strategy, *members, temperature=0.0, seed=None):
    prefixes = Prefixes(members)
    return next(strategy.rounds(prefixes, strategy.chooser(prefixes, temperature, seed), Limits()))


def distribution(played):
    """The fused probability of each shown text."""
    return {
        each.span.text or None: math.exp(-value) for each, value in zip(played.candidates, played.fused, strict=True)
    }


A = Table("a", {" Lima": 0.6, " Li": 0.3, " L": 0.1}, {" Cusco": 0.05})
B = Table("b", {" Li": 0.7, " Cusco": 0.2, None: 0.1}, {" Lima": 0.56})


def test_the_likeliest_tokens_of_all_members_are_united_and_normalised():
    played = first_round(TokenUnion(top_tokens=2), A, B)
    expected = {
        " Lima": (0.6 / 0.95 + 0.56 / 1.46) / 2,
        " Li": (0.3 / 0.95 + 0.7 / 1.46) / 2,
        " Cusco": (0.05 / 0.95 + 0.2 / 1.46) / 2,
    }
    shown = distribution(played)
    assert played.span == Span(text=" Lima")
    assert list(shown) == [" Lima", " Li"]  # `top_tokens` texts
    assert shown == pytest.approx({text: expected[text] for text in shown})
    assert [list(map(math.exp, (-a, -b))) for a, b in played.values] == [
        pytest.approx([0.6 / 0.95, 0.56 / 1.46]),
        pytest.approx([0.3 / 0.95, 0.7 / 1.46]),
    ]
    assert [each.proposers for each in played.candidates] == [("a",), ("a", "b")]
    assert [draft.margins for draft in played.drafts] == [pytest.approx((0.3,)), pytest.approx((0.5,))]
    assert [math.exp(score.logprobs[0]) for score in played.span_scores] == pytest.approx([0.6, 0.56])


def test_weights_decide_between_members():
    heavy = Table("b", {" Li": 0.7, " Cusco": 0.2}, {" Lima": 0.56}, weight=5)
    assert first_round(TokenUnion(top_tokens=2), A, heavy).span == Span(text=" Li")


def test_whole_distributions_give_no_probability_to_texts_outside_of_a_vocabulary():
    played = first_round(TokenUnion(union="full", top_tokens=4), A, replaced(B, {" Cusco": 0.2}))
    assert distribution(played) == pytest.approx({" Li": 0.5, " Lima": 0.3, " Cusco": 0.1, " L": 0.05, **{}}, abs=0.06)
    assert played.span == Span(text=" Li")
    assert played.values[1][1] == 100.0  # b has no token " Lima"
    assert A.asked[-1] is None


def replaced(member, scores):
    """A member with scores of further texts."""
    return Table(
        member.name, {each.text or None: p for each, p in member.tokens.items()}, {" Lima": 0.5, " L": 0.1} | scores
    )


def test_the_end_of_the_answer_is_one_of_the_texts():
    sure = Table("b", {None: 0.9, " Li": 0.1}, {" Lima": 0.01})
    unsure = Table("a", {" Lima": 0.5, " Li": 0.4}, {None: 0.1})
    assert first_round(TokenUnion(top_tokens=2), unsure, sure).span == END


def test_a_certain_primary_member_decides_alone():
    for gate, primary, text, asked in ((0.6, "a", " Lima", [2]), (0.5, "a", " Lima", [2]), (0.65, "b", " Li", [2])):
        a, b = (Table(each.name, named(each.tokens), named(each.scores)) for each in (A, B))
        played = first_round(TokenUnion(gate=gate - 1e-6, primary=primary, top_tokens=2), a, b)
        assert played.span == Span(text=text)
        assert len(played.candidates) == len(played.drafts) == 1
        assert [a.asked, b.asked] == ([asked, []] if primary == "a" else [[], asked])
    fused = first_round(TokenUnion(gate=0.6 + 1e-6, top_tokens=2), A, B)
    assert fused.candidates == first_round(TokenUnion(top_tokens=2), A, B).candidates


def named(table):
    return {span.text or None: p for span, p in table.items()}


def test_consistency_reduces_what_differs_from_the_mean():
    rows, beta = [[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.2, 0.5, 0.3]], 2.0
    means = [1.0 / 3, 1.3 / 3, 0.7 / 3]
    kept = [[math.exp(-beta * abs(p - mean)) for p, mean in zip(row, means, strict=True)] for row in rows]
    entropies = [-sum(p * math.log(p) for p in row) for row in rows]
    trust = [sum(each) / 3 / entropy for each, entropy in zip(kept, entropies, strict=True)]
    votes, weights = consistent(rows, [1.0, 2.0, 1.0], beta, 2)
    assert votes[0] == pytest.approx([p * s for p, s in zip(rows[0], kept[0], strict=True)])
    assert votes[2] == rows[2]  # of the primary member
    assert trust[2] < max(trust)
    assert weights == pytest.approx([trust[0], 2 * trust[1], max(trust)])


def test_an_outlier_loses_by_consistency():
    odd = Table("odd", {" x": 0.9, " y": 0.08, " z": 0.02}, weight=1.5)
    others = [Table(name, {" y": 0.55, " z": 0.44, " x": 0.01}) for name in ("one", "two")]
    assert first_round(TokenUnion(primary="one"), odd, *others).span == Span(text=" x")
    assert first_round(TokenUnion(primary="one", consistency=3.0), odd, *others).span == Span(text=" y")


def test_texts_that_do_not_fit_are_not_chosen():
    for union in ("top", "full"):
        short = Table("b", {" Li": 0.7, " Cusco": 0.2, " Lima": 0.05}, {" L": 0.1}, too_long=(" Lima", " L"))
        a = Table("a", {" Lima": 0.9, " L": 0.05, " Cusco": 0.02, " Li": 0.03})
        assert first_round(TokenUnion(union=union), a, short).span == Span(text=" Li")
        with pytest.raises(WindowFull):
            first_round(TokenUnion(union=union), Table("a", {" x": 1.0}, too_long=(" x",)))


def test_without_any_text_the_primary_member_writes_a_word():
    for options in ({}, {"union": "full"}, {"gate": 0.5}):
        played = first_round(TokenUnion(**options), Table("a", {}), Table("b", {}))
        assert played.span == END
        assert played.proposers == ("a",)


def test_a_temperature_samples_from_the_fused_distribution():
    for union, temperature in (("top", 1.0), ("full", 1.0), ("top", 0.5)):
        members = A, Table("b", {" Li": 0.6, " Lima": 0.2, " L": 0.2})
        strategy = TokenUnion(union=union)
        greedy = distribution(first_round(strategy, *members))
        total = sum(p ** (1 / temperature) for p in greedy.values())
        drawn = [first_round(strategy, *members, temperature=temperature, seed=seed).span for seed in range(600)]
        for text, p in greedy.items():
            share = drawn.count(Span(text=text)) / len(drawn)
            assert share == pytest.approx(p ** (1 / temperature) / total, abs=0.06)


@pytest.mark.parametrize(
    "options",
    [
        *({"union": "all"}, {"top_tokens": 0}, {"gate": 1.5}, {"gate": -0.1}, {"consistency": -1.0}, {"primary": "x"}),
        *({"top_tokens": 2.0}, {"gate": math.nan}, {"consistency": math.inf}),
    ],
)
def test_wrong_options_are_refused(options):
    (name,) = options
    with pytest.raises(ConfigError, match=f"got {name}="):
        EnsembleConfig(members=["a", "b"], strategy=TokenUnion(**options))


def test_a_temperature_without_a_choice_is_refused():
    for options, members in (({"gate": 0.0}, ["a", "b"]), ({"top_tokens": 1}, ["a"])):
        with pytest.raises(ConfigError, match="one candidate per round"):
            Ensemble(members=members, strategy="token_union", generation={"temperature": 1.0}, **options)
        Ensemble(members=["a", "b"], strategy="token_union", generation={"temperature": 1.0})


def test_it_declares_what_it_reads_and_is_refused_without():
    assert TokenUnion().needs == Needs(top=10)
    assert TokenUnion(top_tokens=1).needs == Needs(top=2)
    assert TokenUnion(union="full").needs == Needs(top=2, full_distribution=True)
    member = ScriptedMember("a", "one")
    member.abilities = replace(member.abilities, top=5, full_distribution=False)
    TokenUnion(top_tokens=5).check_abilities([member])
    for options in ({}, {"union": "full"}):
        with pytest.raises(ConfigError, match="'token_union' reads"):
            TokenUnion(**options).check_abilities([member])


# -- whole answers -----------------------------------------------------------------------------------------------------


class PlainTokenUnion(OracleEnsemble):
    """The rule on the reference members."""

    def __init__(self, members, *, union="top", top_tokens=10, gate=1.0, consistency=0.0, primary=0):
        super().__init__(members, tau=0, max_words=1, branches=1, scoring="sum", pool="linear")
        self.union, self.count, self.gate, self.beta, self.lead = union, top_tokens, gate, consistency, primary

    def proposed(self):
        forced = self.grammar and self.grammar.forced(self.members[0].text.encode())
        if forced:
            return Round(drafts=(), candidates=(Candidate(span=Span(text=forced[0], ends=forced[1]), proposers=()),))
        return self.certain() if self.gate < 1 else None

    def certain(self):
        lead = self.members[self.lead]
        draft, p = self.shown(lead, tokens := likeliest_first(lead.next_tokens(2)), 1), next(iter(tokens.values()))
        if math.exp(p) > self.gate:
            return Round(drafts=(draft,), candidates=(Candidate(span=draft.spans[0], proposers=(lead.name,)),))
        return None

    def shown(self, member, tokens, count):
        first, second, *_ = [*map(math.exp, tokens.values()), 0.0, 0.0]
        return Draft(member=member.name, spans=tuple(tokens)[:count], margins=(first - second,))

    def chosen(self, played, temperature, rng):
        if played is not None:
            return played
        full = self.union == "full"
        tokens = [likeliest_first(member.next_tokens(None if full else self.count)) for member in self.members]
        texts = list(dict.fromkeys(itertools.chain(*tokens)))
        rows = [
            normal([self.probability(member, own, text) for text in texts])
            for member, own in zip(self.members, tokens, strict=True)
        ]
        fused = self.mean(rows)
        at = fused.index(max(fused))
        if temperature:
            weights = [(p / max(fused)) ** (1 / temperature) for p in fused]
            (at,) = rng.choices(range(len(texts)), weights)
        drafts = [self.shown(*each, self.count) for each in zip(self.members, tokens, strict=True)]
        order = sorted(range(len(texts)), key=lambda index: -max(fused[index], LEAST))[: self.count]
        order += [at] if at not in order else []
        return Round(
            drafts=tuple(drafts),
            candidates=tuple(Candidate(span=texts[i], proposers=proposers(texts[i], drafts, tokens)) for i in order),
            scores=tuple(self.scores(texts[i]) for i in order),
            values=tuple(tuple(minus_log(row[i]) for row in rows) for i in order),
            fused=tuple(minus_log(fused[i]) for i in order),
            chosen=order.index(at),
        )

    def probability(self, member, own, text):
        if text in own:
            return math.exp(own[text])
        return 0.0 if self.union == "full" else math.exp(sum(member.score(text).logprobs))

    def mean(self, rows):
        shares = [member.weight for member in self.members]
        if self.beta:
            means = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
            kept = [[math.exp(-self.beta * abs(p - m)) for p, m in zip(row, means, strict=True)] for row in rows]
            entropy = [-sum(p * math.log(p) for p in row if p) for row in rows]
            trust = [sum(k) / len(k) / max(h, 0.01) for k, h in zip(kept, entropy, strict=True)]
            trust[self.lead] = max(trust)
            shares = [share * each for share, each in zip(shares, trust, strict=True)]
            kept[self.lead] = [1.0] * len(means)
            rows = [[p * k for p, k in zip(row, each, strict=True)] for row, each in zip(rows, kept, strict=True)]
        return normal(
            [sum(share * p for share, p in zip(shares, each, strict=True)) for each in zip(*rows, strict=True)]
        )


def likeliest_first(tokens):
    return dict(sorted(tokens.items(), key=lambda each: -each[1]))


def normal(row):
    total = math.fsum(row)
    return [p / total for p in row]


def minus_log(p):
    return -math.log(max(p, LEAST))


def proposers(text, drafts, tokens):
    likely = tuple(draft.member for draft in drafts if text in draft.spans)
    return likely or tuple(draft.member for draft, own in zip(drafts, tokens, strict=True) if text in own)


class Team:
    """An ensemble and the reference members."""

    def __init__(self, paths, prompts, tokens, weights=(0.7, 1.6)):
        self.prompts, self.tokens = prompts, tokens
        self.members = [
            MemberConfig(model=str(path), dtype="float64", weight=weight)
            for path, weight in zip(paths, weights, strict=False)
        ]
        self.names = Ensemble(members=self.members).names
        self.oracle = [
            OracleMember(path, CAP, name=name, weight=weight)
            for path, name, weight in zip(paths, self.names, weights, strict=False)
        ]

    def ensemble(self, **options):
        if "primary" in options:
            options = options | {"primary": self.names[options["primary"]]}
        return Ensemble(members=self.members, max_word_tokens=CAP, strategy="token_union", **options)

    def compared(self, prompt, rule, grammar=None, **options):
        """The plain answer, and the difference of the ensemble's."""
        given = {"max_new_tokens": self.tokens, **options}
        expected = PlainTokenUnion(self.oracle, **rule).answer(prompt, grammar=grammar, **given)
        return expected, difference(self.ensemble(**rule).generate(prompt, grammar=grammar, **given), expected)


@pytest.fixture(scope="module")
def teams(tiny_models):
    small = [small_models.path(name) for name in small_models.NAMES]
    tiny = [tiny_models["bytes"], tiny_models["pieces"]]
    return {"small": Team(small, QUESTIONS, 7), "tiny": Team(tiny, TEXTS, 6)}


RULES = [
    {},
    {"top_tokens": 3, "consistency": 2.5},
    {"top_tokens": 1},
    {"union": "full", "top_tokens": 4},
    {"union": "full", "consistency": 0.7, "primary": 1},
    {"gate": 0.7, "top_tokens": 4, "primary": 1},
    {"gate": 0.4, "union": "full"},
]


@pytest.mark.parametrize("name", ["small", "tiny"])
def test_answers_are_those_of_the_plain_implementation(teams, name, count):
    team, wrong, choices, foreign, ended_by_stop = teams[name], [], 0, 0, 0
    for number, rule in enumerate(RULES):
        prompt = team.prompts[number % 3]
        expected, problem = team.compared(prompt, rule, logprobs=number % 2 == 0)
        wrong += [(rule, problem)] if problem else []
        choices += sum(len(played.candidates) > 1 for played in expected.rounds)
        foreign += sum(played.drafts[0].spans[0] != played.span for played in expected.rounds)
        for stop in straddling(expected)[number % 3 :][: number % 2]:
            ended, problem = team.compared(prompt, rule, stop=stop)
            wrong += [(rule, stop, problem)] if problem else []
            assert ended.reason == "stop"
            ended_by_stop += 1
    assert not wrong
    assert choices >= 20
    assert foreign >= 5 or name == "small"  # committed texts that the first member would not have written
    count("generations equal to the oracle", len(RULES) + ended_by_stop, at_least=9)


@pytest.mark.parametrize("name", ["small", "tiny"])
def test_samples_and_budgets_are_those_of_the_plain_implementation(teams, name, count):
    team, wrong, drawn = teams[name], [], 0
    rules = RULES[1::2]
    for number, rule in enumerate(rules):
        for tokens, draw in ((3, {}), (4, {"temperature": 6.0, "seed": number})):
            expected, problem = team.compared(team.prompts[number % 3], rule, max_new_tokens=tokens, **draw)
            wrong += [(rule, draw, problem)] if problem else []
            drawn += sum(played.chosen > 0 for played in expected.rounds)
    assert not wrong
    assert drawn >= 2
    count("generations equal to the oracle", 2 * len(rules), at_least=6)


def test_grammars_are_obeyed_as_in_the_plain_implementation(teams, count):
    grammar = Grammar.regex("(The|A) (quick brown fox|étang|日本),? [a-c]{2}!")
    for name, rule in itertools.product(("small", "tiny"), (RULES[0], RULES[1], RULES[3])):
        team = teams[name]
        expected, problem = team.compared(team.prompts[0], rule, grammar, max_new_tokens=80, logprobs=True)
        assert not problem, (name, rule)
        assert expected.text.endswith("!")
    count("generations equal to the oracle", 6, at_least=6)


SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 12}, "big": {"type": "boolean"}},
    "required": ["city", "big"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("options", [{}, {"union": "full", "gate": 0.9}])
def test_json_is_valid_within_every_budget(teams, options):
    for tokens in (24, 60):
        ensemble = teams["small"].ensemble(**options)
        answer = ensemble.generate(QUESTIONS[0], grammar=Grammar.json_schema(SCHEMA), max_new_tokens=tokens)
        assert set(json.loads(answer.text)) == {"city", "big"}


@pytest.mark.parametrize("name", small_models.NAMES)
def test_one_member_and_a_model_with_itself_write_its_own_greedy_text(name):
    member = MemberConfig(model=f"small:{name}", dtype="float64")
    for question, options in zip(QUESTIONS, ({}, {"union": "full"}, {"gate": 0.5, "top_tokens": 1}), strict=True):
        text = Ensemble(members=[member], strategy="single").generate(question, max_new_tokens=15).text
        for members in ([member], [member, member]):
            answer = Ensemble(members=members, strategy="token_union", **options).generate(question, max_new_tokens=15)
            assert answer.text == text


def test_streams_and_batches_have_the_text_of_single_answers(teams):
    ensemble = teams["small"].ensemble()
    answers = [ensemble.generate(question, max_new_tokens=20) for question in QUESTIONS]
    assert [each.text for each in ensemble.batch(QUESTIONS, max_new_tokens=20)] == [each.text for each in answers]
    deltas = [each.text for each in ensemble.stream(QUESTIONS[1], max_new_tokens=20) if isinstance(each, TextDelta)]
    assert "".join(deltas) == answers[1].text
    assert len(deltas) > 3


def test_texts_of_many_bytes_are_streamed(teams):
    deltas = 0
    for prompt in ("Grüße aus Zürich! 日本語", "Smile 😀 and wave 👋🏽, 日本"):
        events = list(teams["tiny"].ensemble().stream(prompt, max_new_tokens=12, temperature=2.0, seed=3))
        texts = [event.text for event in events if isinstance(event, TextDelta)]
        assert "".join(texts) == collect(events).text
        deltas += sum(not text.isascii() for text in texts)
    assert deltas >= 1


def test_a_cancelled_answer_keeps_its_text():
    members = [ScriptedMember("a", "one two three four"), ScriptedMember("b", "one two three four")]
    cancel, seen = threading.Event(), []
    stream = Ensemble(members=members, strategy="token_union").stream("go", cancel=cancel)
    while len(seen) < 2:
        seen += [event.text] if isinstance(event := next(stream), TextDelta) else []
    cancel.set()
    with pytest.raises(CancelledError) as caught:
        list(stream)
    assert caught.value.partial.text.startswith("one two")


def test_scripted_members_decide_word_by_word():
    members = [ScriptedMember("a", "one two 3"), ScriptedMember("b", "one too 3", weight=5, alternatives=(" two",))]
    ensemble = Ensemble(members=members, strategy="token_union")
    answer = ensemble.generate("go")
    assert answer.text == "one too 3"
    assert [played.span.text for played in answer.rounds] == ["one", " too", " 3"]
    assert ensemble.generate("go", stop=["e t"]).text == "on"
    assert ensemble.generate("go", max_new_tokens=2).text == "one too"

"""The trace of an answer: JSON that reads back, pages, notebooks, and reasons."""

from __future__ import annotations

import json
from html.parser import HTMLParser

import pytest

from adafuse_core import ConfigError, Ensemble, Grammar, ScriptedMember, Trace
from adafuse_core.trace.reasons import chosen, probability, reason
from adafuse_integrations.langchain import ChatAdaFuse

EVIL = '<script>alert("x")</script></style><img/src=x/onerror=alert(1)>&amp;'
PERU = [{"role": "user", "content": "Who wrote The Jungle Book and what is the capital of Sudan?"}]


class Page(HTMLParser):
    """The tags, attributes and texts of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.texts, self.classes = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        self.classes += [value for name, value in attrs if name == "class"]

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self):
        return "".join(self.texts)


def scripted(*replies, names=("left", "right"), **options):
    members = [ScriptedMember(name, reply, margin=0.0) for name, reply in zip(names, replies, strict=True)]
    return Ensemble(members=members, strategy="adafuse", max_words=1, **options)


@pytest.fixture(scope="module")
def answer():
    """An answer of the small models in which each of them proposes words alone."""
    return Ensemble.from_pretrained(strategy="adafuse").generate(PERU)


def test_a_trace_has_the_whole_text_and_all_members(answer):
    assert answer.trace.text == answer.text
    assert answer.trace.members == ("aspen", "birch")
    assert len(answer.trace.rounds) == answer.usage.rounds


def test_json_reads_back_equal(answer):
    assert Trace.from_json(answer.trace.to_json()) == answer.trace
    assert Trace.from_dict(json.loads(json.dumps(answer.trace.to_dict()))) == answer.trace


def test_odd_characters_read_back(tmp_path):
    trace = scripted("\x00 🙂\u2028", "🙂 \u202e").generate("go").trace
    trace = Trace(members=trace.members, rounds=({**trace.rounds[0], "text": "\ud800"}, *trace.rounds[1:]))
    assert Trace.from_json(trace.to_json()) == trace
    trace.save(tmp_path / "x.json")
    assert Trace.from_json((tmp_path / "x.json").read_bytes()) == trace
    trace.save(tmp_path / "x.html")
    assert "🙂" in (tmp_path / "x.html").read_text(encoding="utf-8")


def test_a_full_trace_of_an_adapter_reads_as_a_trace():
    llm = ChatAdaFuse.from_ensemble(scripted("one two", "one too"), trace="full")
    trace = Trace.from_dict(llm.invoke("go").response_metadata["adafuse"])
    assert (trace.text, trace.members) == ("one two", ("left", "right"))
    summary = ChatAdaFuse.from_ensemble(scripted("one two", "one too")).invoke("go").response_metadata["adafuse"]
    with pytest.raises(ConfigError, match="full"):
        Trace.from_dict(summary)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"rounds": 1}', '{"rounds": [{"text": "x"}]}', '{"rounds": [1]}']
)
def test_other_texts_are_refused(text):
    with pytest.raises(ConfigError, match="expected"):
        Trace.from_json(text)


def test_a_page_needs_no_other_files_and_has_every_candidate(answer, tmp_path):
    answer.trace.save(tmp_path / "x.html", title="Sudan?")
    page = Page((tmp_path / "x.html").read_text(encoding="utf-8"))
    assert not {"script", "link", "img", "iframe"} & set(page.tags)
    assert not {"src", "href"} & {name for name, _ in page.attributes}
    assert {"Sudan?", "aspen", "birch"} <= set(page.texts)
    for played in answer.trace.rounds:
        for candidate in played["candidates"]:
            assert candidate["text"].strip() in page.text


def test_words_have_the_color_of_their_proposers_and_can_be_focused(answer):
    page = Page(answer.trace._repr_html_())
    words = [played["proposers"] for played in answer.trace.rounds]
    assert page.attributes.count(("tabindex", "0")) == len(words)
    for member, color in (("aspen", "word member-0"), ("birch", "word member-1")):
        assert [member] in words
        assert page.classes.count(color) > words.count([member])  # the words, the legend and the candidates
    assert "word shared" in page.classes


def test_html_of_models_is_text(tmp_path):
    trace = scripted(EVIL, f"{EVIL} b", names=('<b>&"', "right")).generate("go").trace
    trace.save(tmp_path / "x.html", title=EVIL)
    for html in (trace._repr_html_(), (tmp_path / "x.html").read_text(encoding="utf-8")):
        page = Page(html)
        assert not {"script", "img"} & set(page.tags)
        assert page.tags.count("style") == html.count("</style>") == 1
        assert EVIL in page.text


@pytest.mark.parametrize("name", ["x", "x.txt", "missing/x.html"])
def test_a_file_of_another_kind_is_refused(name, answer, tmp_path):
    with pytest.raises(ConfigError, match=r"\.html|can't write"):
        answer.trace.save(tmp_path / name)


def test_reasons_say_why_a_candidate_won(answer):
    reasons = [reason(played) for played in answer.trace.rounds]
    assert "the only candidate, proposed by 2 members" in reasons
    assert any(text.startswith("the lowest score, ") and "; the next is " in text for text in reasons)


def test_reasons_of_words_that_no_member_proposed():
    schema = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
    trace = Ensemble().generate(PERU, grammar=Grammar.json_schema(schema), max_new_tokens=14).trace
    reasons = [reason(played) for played in trace.rounds if not played["proposers"]]
    assert reasons[0] == "the grammar allows no other text"
    assert reasons[-1].startswith("written by AdaFuse, because the token budget")


def test_sampled_candidates_are_told_from_the_best():
    worse = dict.fromkeys("abcdef", (-3.0,))
    members = [
        ScriptedMember("left", "a b c d e f", margin=0.0, logprobs=worse),
        ScriptedMember("right", "1 2 3 4 5 6", margin=0.0),
    ]
    answer = Ensemble(members=members, strategy="adafuse", max_words=1).generate("go", temperature=50.0, seed=3)
    assert any("is not the lowest" in reason(played) for played in answer.trace.rounds)


def test_a_cut_is_named():
    members = [ScriptedMember("left", "one two three four five", margin=1.0)]
    trace = Ensemble(members=members, strategy="adafuse", max_words=3).generate("go", max_new_tokens=2).trace
    assert "changed to fit the token budget" in reason(trace.rounds[-1])


def test_probabilities_are_those_of_the_whole_candidate(answer):
    (played,) = [played for played in answer.trace.rounds if played["text"] == " Rudyard Kipling and"]
    assert chosen(played)["proposers"] == ["birch"]
    assert probability(chosen(played), "birch") > 0.5 > probability(chosen(played), "aspen")
    assert probability(chosen(answer.trace.rounds[0]), "aspen") is None


ROUND = {"text": "a", "ends": True, "proposers": [], "margins": {}, "candidates": [], "chosen": 0, "score": 1}


@pytest.mark.parametrize(
    "text",
    [
        '{"rounds": [], "members": 5}',
        '{"rounds": [], "members": "ab"}',
        json.dumps({"rounds": [{**ROUND, "text": 1}]}),
        json.dumps({"rounds": [{**ROUND, "candidates": [3]}]}),
        "[" * 100_000,
    ],
)
def test_values_that_are_nearly_a_trace_are_refused(text):
    with pytest.raises(ConfigError):
        Trace.from_json(text)


def test_a_title_is_a_text(tmp_path):
    with pytest.raises(ConfigError, match="title=5"):
        Trace(members=("a",), rounds=()).save(tmp_path / "x.html", title=5)

"""Results of answers that are written here, and the report of them."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from adafuse_core import ConfigError
from adafuse_core.evaluation.answers import Answer
from adafuse_core.evaluation.metrics import METRICS
from adafuse_core.evaluation.questions import Question
from adafuse_core.evaluation.report import write_report
from adafuse_core.evaluation.results import summarize
from adafuse_core.evaluation.tasks import TASKS

EVIL = "<script>alert('x')</script> & \"quoted\" </style>"
TEXTS = {
    "a": ["one", "x", "x", "x"],
    "b": ["one", "two", "x", "x"],
    "together": ["one", "x", "three", "four"],
}
GOLDS = ["one", "two", "three", "four"]


def questions(*texts):
    golds = texts or GOLDS
    return [
        Question(place=place, label=f"q{place}", text=f"{gold}?", golds=(gold,)) for place, gold in enumerate(golds)
    ]


def answer(place, system, text, **fields):
    metrics = {name: METRICS[name].of(text, [GOLDS[place]]) for name in ("exact", "f1", "lenient")}
    defaults = {"seconds": 0.5, "cpu_seconds": 0.25, "words": 2, "rounds": 2, "round_words": {"1": 1, "3": 1}}
    return Answer(place=place, label=f"q{place}", system=system, text=text, metrics=metrics, **(defaults | fields))


def answers(**changed):
    texts = TEXTS | changed
    return {
        (place, system): answer(place, system, text, read_tokens={"a": 3, "b": 4}, prompt_tokens={"a": 1, "b": 1})
        for system, given in texts.items()
        for place, text in enumerate(given)
    }


def summary(given=None, **options):
    metrics = [METRICS[name] for name in ("exact", "f1", "lenient")]
    systems = options.pop("systems", {"a": True, "b": True, "together": False})
    return summarize(TASKS["jsonl"], metrics, questions(), systems, given or answers(), **options)


def test_scores_are_compared_with_the_best_member():
    results = summary()
    a, b, together = results.systems
    assert [system.scores["exact"].value for system in results.systems] == [25.0, 50.0, 75.0]
    assert (results.best, results.oracle) == ("b", 50.0)
    assert b.lead is None
    assert together.lead.differences["exact"].value == 25.0
    assert (together.lead.won, together.lead.lost, together.lead.p_value) == (2, 1, 1.0)
    assert (a.lead.won, a.lead.lost) == (0, 1)


def test_costs_are_sums_and_ratios():
    found = summary().systems[2].cost
    assert (found.seconds, found.cpu_seconds, found.words, found.rounds) == (2.0, 1.0, 8, 8)
    assert (found.ms_per_word, found.cpu_ms_per_word, found.read_per_word) == (250.0, 125.0, 28 / 8)
    assert found.round_words == {"1": 4, "3": 4}
    assert found.confident is None


def test_confident_share_is_over_rounds_with_margins():
    given = answers()
    given[0, "together"] = answer(0, "together", "one", margin_rounds=3, confident_rounds=1)
    given[1, "together"] = answer(1, "together", "x", margin_rounds=1, confident_rounds=0, reason="length")
    found = summary(given).systems[2].cost
    assert (found.confident, found.cut) == (0.25, 1)


def test_only_questions_that_all_systems_answered_count():
    given = answers()
    del given[3, "together"]
    results = summary(given)
    assert [question.label for question in results.questions] == ["q0", "q1", "q2"]
    assert (results.total, results.systems[2].scores["exact"].value) == (4, pytest.approx(200 / 3))
    with pytest.raises(ValueError, match="no question"):
        summary({(0, "a"): answer(0, "a", "one")})


def test_without_members_alone_there_is_no_comparison():
    results = summary(systems={"together": False})
    assert (results.best, results.oracle, results.systems[0].lead) == (None, None, None)


def test_answers_without_words_have_no_time_per_word():
    given = {key: answer(*key, "", words=0) for key in answers()}
    assert summary(given).systems[0].cost.ms_per_word is None


class Tags(HTMLParser):
    """Tags and text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts, self.attributes = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.texts.append(data)


def round_of(text, **fields):
    candidate = {"text": text, "ends": False, "proposers": ["a"], "score": 1.5, "member_scores": {"a": 1.0, "b": 2.0}}
    candidate["logprobs"] = {"a": [-1.0], "b": [-2.0]}
    return {**candidate, "margins": {"a": [0.5], EVIL: [0.25]}, "chosen": 0, "candidates": [candidate], **fields}


def report(tmp_path, *results):
    write_report(tmp_path / "report.html", results)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    return text, Tags(text)


def test_the_report_shows_won_and_lost_answers_with_traces(tmp_path):
    _, page = report(tmp_path, summary(traces=lambda key: [round_of(f"word {key[0]}")]))
    shown = "".join(page.texts)
    assert "together is better: 2" in shown
    assert "together is worse: 1" in shown
    assert {"q1 two?", "q2 three?", "q3 four?"} <= set(re.findall(r"q\d \w+\?", shown))
    assert "word 2" in shown
    assert "word 0" not in shown
    assert "margins: a 0.50" in shown
    assert page.tags.count("svg") == 1 + 3  # bars, and the rounds of each system


def test_texts_are_escaped(tmp_path):
    given = answers(together=["one", "x", EVIL, "four"], b=["one", "two", "three", "x"])
    results = summary(given, traces=lambda key: [round_of(EVIL, proposers=[EVIL])], notes={"data": EVIL})
    text, page = report(tmp_path, results)
    assert "script" not in page.tags
    assert text.count("<style>") == text.count("</style>") == 1
    assert EVIL in "".join(page.texts)
    assert any(EVIL in value for name, value in page.attributes if name == "title")


def test_the_report_needs_no_other_files(tmp_path):
    text, page = report(tmp_path, summary(), summary())
    assert not re.search(r"https?://|url\(|@import", text)
    assert not {"script", "link", "img", "iframe"} & set(page.tags)
    assert {value for name, value in page.attributes if name in ("src", "href")} == {"#jsonl"}


@pytest.mark.parametrize(("count", "arrows"), [(9, 0), (10, 2)])
def test_differences_on_few_questions_have_no_arrow(tmp_path, count, arrows):
    golds = [GOLDS[place % 4] for place in range(count)]
    given = {
        (place, system): replace(answer(place % 4, system, gold if system == "together" else "x"), place=place)
        for place, gold in enumerate(golds)
        for system in ("a", "together")
    }
    systems = {"a": True, "together": False}
    results = summarize(TASKS["jsonl"], [METRICS["exact"]], questions(*golds), systems, given)
    text, _ = report(tmp_path, results, results)
    assert text.count("▲") == arrows


def test_the_report_says_how_times_were_measured(tmp_path):
    def shown(**facts):
        return "".join(report(tmp_path, summary(facts=facts))[1].texts)

    assert "profits from the beginnings" in shown()
    assert "include the prompts" in shown(isolate=True)
    assert "at a time" not in shown(batch_size=1)
    assert "Questions were answered 8 at a time" in shown(batch_size=8)


def test_odd_characters_are_written(tmp_path):
    given = answers(together=["one", "x", "\ud800 \x00 \u2028 🙂", "four"], b=["one", "two", "three", "x"])
    text, _ = report(tmp_path, summary(given))
    assert "🙂" in text


def test_a_report_that_can_not_be_written_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="can't write the report"):
        write_report(tmp_path / "missing" / "report.html", [summary()])

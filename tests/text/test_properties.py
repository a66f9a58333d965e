"""Property tests: growing answers have the ids and the words of whole texts, for any text split anywhere."""

from __future__ import annotations

import copy
import itertools

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

from adafuse_core.members.word_tracker import WordTracker
from adafuse_core.text.tokens import INCOMPLETE, Codec
from adafuse_core.text.words import WhitespaceWords
from tests import tiny
from tests.text import tokenizers, vocabularies
from tests.text.test_tokens import TOKENIZERS

PROPERTY = "tokenization cases checked"
RULE = WhitespaceWords()
HAND_MADE = {
    **TOKENIZERS,
    "composed": tokenizers.composed(),
    "added": tokenizers.composed(*(AddedToken(content, normalized=False) for content in ("<tool_call>", "New York"))),
    "swallowing": tokenizers.composed(AddedToken("<br>", rstrip=True, lstrip=True, normalized=False)),
    "decomposed": tokenizers.decomposed(),
    "lookbehind": tokenizers.lookbehind(),
    "phrases": tokenizers.phrases(),
    "unigram": tokenizers.unigram(split=False),
    "unigram words": tokenizers.unigram(split=True),
    "wordpiece": tokenizers.wordpiece(),
}
REAL = {"tekken": vocabularies.tekken, "v3": vocabularies.v3}
# Their normalizers and unknown tokens change most of the texts here.
LOSSY = {"composed", "added", "swallowing", "decomposed", "phrases", "unigram", "unigram words", "wordpiece"}
CONTROL_TOKENS = ["<|im_end|>", "</s>", "<s>", "[INST]", "<eos>", "<|endoftext|>", "[SEP]", "<tool_call>", "<br>"]

words = st.sampled_from([f" {word}" for text in tiny.CORPUS[:8] for word in text.split()])
odd = st.sampled_from(
    [
        *(" ", "  ", "    ", "\n", "\n\n", "\r\n", "\r", "\t", "\u00a0", "\u3000", "\u2009", "\u2028", "\x85", "\x0b"),
        *("\x1c", "\u200b", "\u200d", "\ufeff", "\x00", "\u00ad", "▁", INCOMPLETE, "\uf8ff", "\ue000", "\U0010ffff"),
        *(
            "\u0301",
            "e\u0301",
            "é",
            "\u0308\u0301",
            "が",
            "か\u3099",
            "각",
            "\u1100\u1161\u11a8",
            "ﬁ",
            "½",
            "Å",
            "\u037a",
        ),
        *(
            "👩‍👩‍👧",
            "🇩🇪",
            "👋🏽",
            "1️⃣",
            "日本語",
            "。",
            "「世界」",
            "は、",
            "중국",
            "ภาษาไทย",
            "กำ",
            "ሀለሐ",
            "שלום",
            "مرحبا",
            "नमस्ते",
        ),
        *(
            "1",
            "19",
            "1984",
            " 2,718.28",
            "'s",
            "don't",
            "''",
            "...",
            ".\n",
            "):\n    ",
            '"}\n\n',
            "#",
            "/",
            "</",
            "<|",
        ),
        *(" New York", "New", " New", " York", " the", "the ", "the", *CONTROL_TOKENS),
    ]
)
anything = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
texts = st.lists(st.one_of(words, words, words, odd, odd, anything), max_size=24).map("".join)
additions = st.lists(st.one_of(words, odd, odd, anything), max_size=3).map("".join)


def checked(examples):
    return settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
    )


@pytest.fixture(scope="module", params=[*HAND_MADE, *REAL])
def name(request):
    return request.param


@pytest.fixture(scope="module")
def codecs(name):
    """A codec with safe cuts, one that always encodes whole texts, and a control token."""
    if name in REAL and not vocabularies.FOLDER.is_dir():
        pytest.skip(f"no vocabularies in {vocabularies.FOLDER}: make installs them")
    tokenizer = REAL[name]() if name in REAL else HAND_MADE[name]
    codec = Codec(tokenizer)
    plain = copy.copy(codec)
    plain._cuts = None
    return codec, plain, tokenizer.eos_token


def sections(data, codecs):
    """For each codec, the ids of a plain prompt or a rendered turn and the section of its answer."""
    codec, plain, control = codecs
    prompt = data.draw(texts, label="prompt")
    if data.draw(st.booleans(), label="chat"):
        rendered = f"{prompt}{control}{data.draw(texts, label='opening')}"
        return [each.encode_rendered(rendered) for each in (codec, plain)]
    return [each.encode_prompt(prompt) for each in (codec, plain)]


def cut(data, text):
    """A text in parts: whole words, or split anywhere."""
    places = RULE.ends(text, final=True) if data.draw(st.booleans(), label="by words") else range(1, len(text))
    chosen = data.draw(st.sets(st.sampled_from([*places] or [0]), max_size=8), label="cut at")
    return [text[a:b] for a, b in itertools.pairwise(sorted({0, *chosen, len(text)}))]


def extended(current, old, new):
    """The definition of `Section.extend`: all ids, split at the first id that differs from the ids of the answer."""
    same = 0
    while same < min(len(old), len(new)) and old[same] == new[same]:
        same += 1
    if same == len(old):
        return current, new[same:]
    if same == 0:
        return new[:1], new[1:]
    if current[-len(old[same:]) :] == old[same:]:
        return current[: -len(old[same:])], new[same:]
    return new[:same], new[same:]


def test_a_growing_answer_has_the_ids_of_the_whole_text(codecs, record_property):
    cases = 0

    @checked(120)
    @given(st.data())
    def check(data):
        nonlocal cases
        (kept, section), (expected, whole) = sections(data, codecs)
        assert kept == expected == section.encode("") == whole.encode("")
        answer = ""
        for part in cut(data, data.draw(texts, label="answer")):
            others = data.draw(st.lists(additions, max_size=2), label="others")
            for candidate in [part, *others, *[part + other for other in others], part]:
                new = whole.encode(answer + candidate)
                got = section.extend(kept, answer, candidate)
                assert got == extended(kept, whole.encode(answer), new), candidate
                assert section.encode(answer + candidate) == new, candidate
                cases += 1
            context, ids = section.extend(kept, answer, part)
            kept, answer = context + ids, answer + part
            if data.draw(st.booleans(), label="own ids"):  # as if the model had generated other tokens
                kept += kept[-1:]

    check()
    assert cases >= 550
    record_property(PROPERTY, cases)


def test_answers_are_encoded_the_same_in_any_order(codecs, record_property):
    """Also if a text is shorter than the previous one, unrelated to it, or evicted from the cache in between."""
    cases = 0

    @checked(20)
    @given(st.data())
    def check(data):
        nonlocal cases
        (kept, section), (_, whole) = sections(data, codecs)
        answers = data.draw(st.lists(texts, min_size=1, max_size=3), label="answers")
        for answer in data.draw(st.lists(st.sampled_from(answers), max_size=20), label="order"):
            first, second = (data.draw(st.integers(0, len(answer)), label="length") for _ in range(2))
            assert section.encode(answer[:second]) == whole.encode(answer[:second])
            assert section.extend(kept, answer[:first], answer[second:]) == whole.extend(
                kept, answer[:first], answer[second:]
            )
            cases += 1

    check()
    assert cases >= 60
    record_property(PROPERTY, cases)


def test_decoding_in_context_gives_back_the_text_unless_the_tokenizer_is_lossy(name, codecs, record_property):
    codec, plain, _ = codecs
    cases = 0

    @checked(40)
    @given(st.data())
    def check(data):
        nonlocal cases
        prompt, text = "x" + data.draw(texts, label="prompt"), data.draw(texts, label="answer")
        if (
            INCOMPLETE in prompt + text
            or not codec.lossless(prompt + text)
            or codec.mark_control_tokens(prompt) != prompt
        ):
            return
        ids, section = codec.encode_prompt(prompt)
        answer = ""
        for part in cut(data, text):
            context, new = section.extend(ids, answer, part)
            before = codec.decode((), [index for index in context if index not in codec.special_ids])
            if INCOMPLETE not in before:
                assert before + section.decode(context, new, starts_answer=False) == prompt + answer + part
            assert codec.decode(context, new) == plain.decode(list(context), list(new))
            ids, answer = context + new, answer + part
            cases += 1

    check()
    assert cases >= (0 if name in LOSSY else 50)
    record_property(PROPERTY, cases)


def test_the_words_of_a_continuation_join_to_its_text(name, codecs, record_property):
    codec, _, control = codecs
    cases = 0

    @checked(100)
    @given(st.data())
    def check(data):
        nonlocal cases
        text = data.draw(texts, label="answer")
        prompt, section = codec.encode_rendered(f"The quick{control}is")
        context, ids = section.extend(prompt, "", text)
        if context != prompt or section.decode(context, ids, starts_answer=True) != text or INCOMPLETE in text:
            return
        start = data.draw(st.integers(0, len(ids)), label="start")
        end = max(codec.special_ids)
        writer = WordTracker(lambda some: section.decode(context, some, starts_answer=True), RULE, frozenset({end}), 24)
        later = WordTracker(
            lambda some: section.decode(context, some, starts_answer=True),
            RULE,
            frozenset({end}),
            24,
            tuple(ids[:start]),
        )
        for index, token in enumerate((*ids, end)):
            writer.push(token)
            if index >= start:
                later.push(token)
        starts = [*writer.word_starts, len(ids)]
        pieces = [writer.text(b)[len(writer.text(a)) :] for a, b in itertools.pairwise(starts)]
        assert "".join(pieces) == text
        assert writer.ended
        assert [later.text(length) for length in range(len(ids) + 1)] == [writer.text(n) for n in range(len(ids) + 1)]
        cases += 1

    check()
    assert cases >= (0 if name in LOSSY else 40)
    record_property(PROPERTY, cases)


class RecordingTokenizer:
    """A tokenizer that records the lengths of the texts it encodes."""

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer
        self.lengths = []

    def encode(self, text, **options):
        self.lengths.append(len(text))
        return self._tokenizer.encode(text, **options)


def test_a_long_prompt_is_not_encoded_again_for_every_candidate(codecs):
    """Except by tokenizers without safe cuts."""
    codec, plain, control = codecs
    prompt = "The quick brown fox.\nIt jumps over the lazy dog, they say; " * 60 + "and so"
    for encode, text in (("encode_prompt", prompt), ("encode_rendered", f"{control}go: {prompt}")):
        (kept, section), (_, whole) = getattr(codec, encode)(text), getattr(plain, encode)(text)
        recording = codec._plain = RecordingTokenizer(codec._plain)
        answer = ""
        for part in [" do", " I, but", " slowly", ".\n", "Not", " New York"]:
            for candidate in [part, part + " more", " else"]:
                section.extend(kept, answer, candidate)
            kept, answer = sum(section.extend(kept, answer, part), ()), answer + part
        codec._plain = recording._tokenizer
        assert kept == whole.encode(answer)
        assert (max(recording.lengths) < 200) == (codec._cuts is not None)

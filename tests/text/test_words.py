"""Where words end: no text is lost, no confirmed end ever moves, no character is split."""

from __future__ import annotations

import itertools

import pytest
import regex
from hypothesis import example, given, settings
from hypothesis import strategies as st

from adafuse_core.text.words import WhitespaceWords, is_blank

RULE = WhitespaceWords()

# One or two characters of every class in the word boundary rules.
ALPHABET = (
    "ab12_.,:;!?'\"()[]{}<>|#-/\\"
    " \t\n\r\u00a0\u2009\u3000\u0085\u2028\x1c\u200b"
    "éß\u0301\u0308\u200d\u200c\ufe0f\u00ad\ufeff"
    "日本のかカナー々〆。、「」『』・（）"
    "สวัดไม้ทำ๑๒ກໂཀ་༡ខបㄅㄆ한국"
    "אב״׳ա՚·\u2027‘’“”«»⁄…—"
    "😀👩👧👋🏽🇩🇪🇯🇵€½+=\ufffd"
)
texts = st.text(st.sampled_from(ALPHABET), max_size=14) | st.text(max_size=12)


def words(text, *, final=True):
    """The words of a text and the rest after the last one."""
    ends = RULE.ends(text, final=final)
    return [text[start:end] for start, end in itertools.pairwise([0, *ends])], text[ends[-1] if ends else 0 :]


@given(texts, st.booleans())
@settings(deadline=None, max_examples=300)
def test_words_and_rest_join_to_the_text(text, final):
    found, rest = words(text, final=final)
    assert "".join(found) + rest == text


@given(texts, st.booleans())
@settings(deadline=None, max_examples=300)
def test_ends_ascend_and_no_word_is_blank(text, final):
    ends = RULE.ends(text, final=final)
    assert ends == sorted(set(ends))
    assert not any(is_blank(word) for word in words(text, final=final)[0])


@given(texts)
@settings(deadline=None, max_examples=300)
def test_the_rest_of_a_finished_text_is_blank(text):
    assert is_blank(words(text)[1])


@given(texts, texts)
@example("日՚‘", "b")
@example("๑⁄", "๒")
@example("ཀ‘", "ཀ")
@example("ㄅ‘", "ㄆ")
@example("a \n", "\n b")
@example("日", "\u0301")
@settings(deadline=None, max_examples=1500)
def test_confirmed_ends_never_move_whatever_follows(text, continuation):
    confirmed = RULE.ends(text)
    for final in (False, True):
        later = RULE.ends(text + continuation, final=final)
        assert later[: len(confirmed)] == confirmed


@given(texts)
@settings(deadline=None, max_examples=300)
def test_ends_found_while_a_text_grows_are_those_of_the_whole(text):
    found: list[int] = []
    for length in range(len(text) + 1):
        now = RULE.ends(text[:length])
        assert now[: len(found)] == found
        found = now
    assert found == RULE.ends(text)


def test_every_pair_of_boundary_classes_keeps_its_ends_when_a_third_character_follows():
    one_of_each = "a1_.,:'\"\u0301\u200d\u200b日カー々สำ๑ཀㄅאա՚·‘’⁄「」(😀🇩 \n"
    for kept in itertools.product(one_of_each, repeat=2):
        text = "日" + "".join(kept)
        confirmed = RULE.ends(text)
        for follower in one_of_each:
            assert RULE.ends(text + follower)[: len(confirmed)] == confirmed, (text, follower)


@given(texts)
@settings(deadline=None, max_examples=300)
def test_all_but_the_last_confirmed_ends_stay_in_the_finished_text(text):
    confirmed, final = RULE.ends(text), RULE.ends(text, final=True)
    assert final[: len(confirmed)] == confirmed


@given(texts)
@settings(deadline=None, max_examples=400)
def test_no_end_splits_a_grapheme(text):

    graphemes = {match.end() for match in regex.finditer(r"\X", text)}
    for end in RULE.ends(text, final=True):
        follows_blank = end < len(text) and is_blank(text[end])
        assert end in graphemes or follows_blank


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("   ", []),
        ("one two", ["one", " two"]),
        ("  one", ["  one"]),
        ("one  two   three", ["one", "  two", "   three"]),
        ("end.\nNext", ["end.\n", "Next"]),
        ("end. \n \n  Next", ["end. \n \n", "  Next"]),
        ("a\r\n\r\nb", ["a\r\n\r\n", "b"]),
        ("a\rb", ["a\r", "b"]),
        ("def f(x):\n    return x", ["def", " f(x):\n", "    return", " x"]),
        ("if a:\n\treturn\t b\n", ["if", " a:\n", "\treturn", "\t b\n"]),
        ("| a | b |\n|---|---|\n", ["|", " a", " |", " b", " |\n", "|---|---|\n"]),
        ("don't e.g. 3.14 a_b", ["don't", " e.g.", " 3.14", " a_b"]),
        ("a\u00a0b", ["a", "\u00a0b"]),
        ("\n\nfirst", ["\n\nfirst"]),
        ("last\n", ["last\n"]),
    ],
)
def test_words_of_scripts_with_spaces(text, expected):
    found, rest = words(text)
    assert found == expected
    assert is_blank(rest)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("世界は広い。", ["世", "界", "は", "広", "い。"]),
        ("「世界」です", ["「世", "界」", "で", "す"]),
        ("日（本）語", ["日", "（本）", "語"]),
        ("日本、世界", ["日", "本、", "世", "界"]),
        ("と“言”う", ["と", "“言”", "う"]),
        ("他说‘好’了", ["他", "说", "‘好’", "了"]),
        ("カタカナ語", ["カタカナ", "語"]),
        ("Helloは世", ["Hello", "は", "世"]),
        ("日本語text混", ["日", "本", "語", "text", "混"]),
        ("世界\n次", ["世", "界\n", "次"]),
        ("世界　次", ["世", "界", "　次"]),
        ("が\u3099x", ["が\u3099", "x"]),
        ("ไม้ดี", ["ไ", "ม้", "ดี"]),
        ("ทำน้ำ", ["ทำ", "น้ำ"]),
        ("日😀本", ["日", "😀", "本"]),
        ("日👩‍👩‍👧本", ["日", "👩‍👩‍👧", "本"]),
        ("日🇩🇪🇯🇵", ["日", "🇩🇪🇯🇵"]),
        ("2024年", ["2024", "年"]),
        ("1,234円", ["1,234", "円"]),
    ],
)
def test_words_of_scripts_without_spaces(text, expected):
    found = words(text)[0]
    assert "".join(found) == text
    if "🇩🇪🇯🇵" in text:  # two flags may be split, a flag may not
        assert found[0] == "日"
        assert all(len(word) % 2 == 0 for word in found[1:])
    else:
        assert found == expected


@pytest.mark.parametrize("text", ["👩‍👩‍👧", "👋🏽", "🇩🇪", "❤️", "e\u0301", "각"])
def test_a_grapheme_between_letters_is_never_split(text):
    assert words(f"a{text}b c")[0][0] == f"a{text}b"
    assert any(text in word for word in words(f"日{text}本")[0])


def test_a_word_is_unconfirmed_until_a_later_visible_character():
    assert RULE.ends("one") == []
    assert RULE.ends("one ") == []
    assert RULE.ends("one \n") == []
    assert RULE.ends("one \n ") == []
    assert RULE.ends("one \n x") == [5]


def test_whitespace_after_the_last_word_belongs_to_the_next_word():
    assert words("one two  ") == (["one", " two"], "  ")
    assert words("one two \n ") == (["one", " two \n"], " ")


def test_a_text_is_blank_if_it_has_no_word():
    for character in ALPHABET:
        assert is_blank(character) == (RULE.ends(character, final=True) == [])
    assert is_blank("")

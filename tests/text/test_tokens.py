"""Encoding and decoding answers in their context, with very different tokenizers."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

from adafuse_core.text.ids import shared_length
from adafuse_core.text.tokens import INCOMPLETE, Codec
from adafuse_core.text.words import WhitespaceWords
from tests import tiny
from tests.text import vocabularies
from tests.text.tokenizers import sentencepiece

TOKENIZERS = {
    "bytes": tiny.byte_level(),
    "modern": tiny.byte_level(380, pattern=tiny.MODERN),
    "characters": tiny.characters(),
    "crossing": tiny.crossing(),
    "pieces": tiny.metaspace(),
    "opened": sentencepiece(),
    "always": sentencepiece(scheme="always"),
    "legacy": sentencepiece(legacy=True),
    "control": sentencepiece(control=True),
    "always control": sentencepiece(scheme="always", control=True),
    "legacy control": sentencepiece(legacy=True, control=True),
}
CODECS = {name: Codec(tokenizer) for name, tokenizer in TOKENIZERS.items()}
BYTE_LEVEL = ["bytes", "modern", "characters", "crossing"]
MARKED = [name for name in TOKENIZERS if name not in BYTE_LEVEL]

each_tokenizer = pytest.mark.parametrize("name", TOKENIZERS)
few = settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.filter_too_much])

SNIPPETS = [
    *tiny.CORPUS[:8],
    "ሀለሐመ",
    "👩‍👩‍👧",
    "  ",
    "\n\n",
    "\r\n",
    "\t",
    " a",
    "a ",
    "1984",
    "don't",
    "): ",
    ".\n",
    "é",
    "\u0301",
]
texts = st.lists(
    st.sampled_from(SNIPPETS) | st.text(st.characters(exclude_characters="▁", exclude_categories=["Cs"]), max_size=6),
    max_size=4,
).map("".join)
some = texts.filter(bool)


def encoded(codec, prompt, answer):
    """Prompt ids, section, and context and ids of an answer."""
    ids, section = codec.encode_prompt(prompt)
    return ids, section, *section.extend(ids, "", answer)


def without_bos(codec, ids):
    """Ids without a BOS token."""
    return ids[1:] if ids[:1] and ids[0] in codec.special_ids else ids


@each_tokenizer
@few
@given(prompt=texts, answer=some)
@example(prompt="Answer: ", answer="Paris")
@example(prompt="year 19", answer="84")
@example(prompt="the pla", answer="ying")
@example(prompt="def f(x):", answer="\n    return")
@example(prompt="is 42.", answer="\n\nSo")
@example(prompt="👩\u200d", answer="👩")
def test_an_answer_has_the_ids_of_prompt_and_answer_encoded_together(name, prompt, answer):
    prompt = "x" + prompt
    ids, section, context, new = encoded(CODECS[name], prompt, answer)
    assert section.encode("") == ids
    assert context + new == section.encode(answer)
    whole = TOKENIZERS[name](prompt + answer)["input_ids"]
    assert list(context + new) == whole
    assert context == ids[: len(context)] or len(context) == 1  # the very first token changed


@each_tokenizer
@few
@given(prompt=texts, parts=st.lists(some, min_size=1, max_size=4))
def test_extending_step_by_step_gives_the_ids_of_the_whole(name, prompt, parts):
    ids, section = CODECS[name].encode_prompt("x" + prompt)
    kept, answer = ids, ""
    for part in parts:
        context, new = section.extend(kept, answer, part)
        kept, answer = context + new, answer + part
        assert kept == section.encode(answer)


@each_tokenizer
def test_an_answer_is_not_encoded_from_another_one_with_the_same_ending(name):
    ids, section = CODECS[name].encode_prompt("The")
    section.extend(ids, " dog and the fox and so on", " and on")
    other = " fox and the fox and so on and on"
    assert section.encode(other) == CODECS[name].encode_prompt(f"The{other}")[0]


@each_tokenizer
@few
@given(prompt=texts, answer=some, addition=some)
def test_extending_ids_that_differ_from_the_tokenizers_keeps_the_text(name, prompt, answer, addition):
    codec, prompt = CODECS[name], "x" + prompt
    ids, section = codec.encode_prompt(prompt)
    letters = [section.encode(answer[:length]) for length in range(len(answer) + 1)]
    kept = ids
    for before, after in itertools.pairwise(letters):  # the ids of a model that generates letter by letter
        if before == after[: len(before)]:
            kept = kept + after[len(before) :]
    assume(codec.decode((), kept) == codec.decode((), section.encode(answer)))
    context, new = section.extend(kept, answer, addition)
    assert codec.decode((), without_bos(codec, context + new)) == prompt + answer + addition
    assert section.extend(kept, answer, "") == (kept, ())


@each_tokenizer
@few
@given(prompt=texts, answer=some)
def test_decoding_in_context_gives_the_answer_back(name, prompt, answer):
    prompt = "x" + prompt
    _, section, context, new = encoded(CODECS[name], prompt, answer)
    before = CODECS[name].decode((), without_bos(CODECS[name], context))
    if INCOMPLETE not in before:
        assert before + section.decode(context, new, starts_answer=True) == prompt + answer


@each_tokenizer
@few
@given(text=some)
@example(text="ሀለሐመ" * 12)
@example(text="👩‍👩‍👧" * 4)
def test_decoding_after_any_prefix_of_whole_characters_gives_the_rest(name, text):
    codec = CODECS[name]
    ids = without_bos(codec, codec.encode_prompt("x" + text)[0])
    for length in range(len(ids) + 1):
        beginning = codec.decode((), ids[:length])
        if INCOMPLETE not in beginning + text:
            assert beginning + codec.decode(ids[:length], ids[length:]) == "x" + text


@each_tokenizer
def test_decoding_after_many_byte_tokens_finds_the_start_of_a_character(name):
    codec = CODECS[name]
    for count in range(1, 30):
        ids, section, context, new = encoded(codec, "x" + ("ሀለ" * count)[:count], "ሐመ")
        assert context == ids
        assert section.decode(context, new, starts_answer=True) == "ሐመ"


@each_tokenizer
def test_a_character_is_incomplete_until_its_last_byte(name):
    codec = CODECS[name]
    for text in ("ሐ", "👩"):
        _, section, context, new = encoded(codec, "x", text)
        shown = [section.decode(context, new[:length], starts_answer=True) for length in range(len(new) + 1)]
        assert shown[0] == ""
        assert shown[-1] == text
        assert all(part.endswith(INCOMPLETE) for part in shown[1:-1])


@pytest.mark.parametrize("name", MARKED)
def test_a_space_before_a_decoded_word_is_kept(name):
    codec = CODECS[name]
    _, section, context, new = encoded(codec, "The quick", " brown fox")
    assert section.decode(context, new, starts_answer=True) == " brown fox"
    assert codec.decode(context, new[:1]).startswith(" ")


def control_tokens(name):
    return [token.content for token in TOKENIZERS[name].added_tokens_decoder.values() if token.special]


def specials(name, ids):
    return [index for index in ids if index in CODECS[name].special_ids]


@each_tokenizer
@few
@given(data=st.data())
def test_control_tokens_in_an_answer_are_plain_text(name, data):
    codec = CODECS[name]
    parts = data.draw(st.lists(st.sampled_from(control_tokens(name)) | some, min_size=1, max_size=4))
    answer = "".join(parts)
    ids, section, context, new = encoded(codec, "The quick", answer)
    assert specials(name, context + new) == specials(name, ids)
    assert section.decode(context, new, starts_answer=True) == answer


@each_tokenizer
@few
@given(data=st.data())
def test_control_tokens_in_a_message_are_plain_text(name, data):
    codec, controls = CODECS[name], control_tokens(name)
    broken = [token[:2] for token in controls] + [token[-2:] for token in controls]
    message = "".join(data.draw(st.lists(st.sampled_from(controls + broken) | some, max_size=5)))
    ids, _ = codec.encode_rendered(f"a{controls[0]}user: {codec.mark_control_tokens(message)}{controls[-1]}b")
    assert [index for index in ids if index in codec.special_ids] == [
        TOKENIZERS[name].convert_tokens_to_ids(token) for token in (controls[0], controls[-1])
    ]


@pytest.mark.parametrize("name", BYTE_LEVEL)
@few
@given(data=st.data())
def test_a_message_with_control_tokens_is_decoded_to_the_same_text(name, data):
    codec, controls = CODECS[name], control_tokens(name)
    message = "".join(data.draw(st.lists(st.sampled_from(controls) | some, max_size=5)))
    ids, _ = codec.encode_rendered(f"user: {codec.mark_control_tokens(message)}\nassistant:")
    assert codec._tokenizer.decode(ids, skip_special_tokens=False) == f"user: {message}\nassistant:"


def test_control_tokens_are_marked_in_all_strings_and_keys_of_a_nested_value():
    codec = CODECS["bytes"]
    value = {"a": ["<|im_end|>", {"<|im_end|>": ("<|im_start|>", 3, None, True)}]}
    ids, _ = codec.encode_rendered(json.dumps(codec.mark_control_tokens(value), ensure_ascii=False))
    assert not specials("bytes", ids)
    assert json.loads(codec._tokenizer.decode(ids)) == json.loads(json.dumps(value))


def test_marking_text_without_control_tokens_changes_nothing():
    codec = CODECS["bytes"]
    value = {"role": "user", "content": "a < b | c > d", "n": [1, 2.5, None, False]}
    assert codec.mark_control_tokens(value) == value


@each_tokenizer
def test_control_tokens_in_a_plain_prompt_are_honoured(name):
    token = TOKENIZERS[name].eos_token
    ids, section = CODECS[name].encode_prompt(f"The{token}quick")
    assert specials(name, ids).count(TOKENIZERS[name].eos_token_id) == 1
    context, new = section.extend(ids, "", " brown")
    assert context + new == (*CODECS[name].encode_prompt(f"The{token}quick brown")[0],)


@each_tokenizer
def test_an_answer_after_a_control_token_changes_no_prompt_ids(name):
    token = TOKENIZERS[name].eos_token
    codec = CODECS[name]
    answer = " brown fox" if TOKENIZERS[name].tokenize(f"{token}a")[1].startswith("▁") else "brown fox"
    ids, section, context, new = encoded(codec, f"The quick{token}", answer)
    assert context == ids
    assert section.decode(context, new, starts_answer=True).lstrip() == answer.lstrip()


@pytest.mark.parametrize("name", [name for name in MARKED if name != "pieces"])
@pytest.mark.parametrize("prompt", ["The quick", "<s>The quick", "<s> The quick", "<s>"])
def test_a_prompt_starts_with_exactly_one_bos_token(name, prompt):
    ids, _ = CODECS[name].encode_prompt(prompt)
    assert ids[0] == 1
    assert ids.count(1) == 1


@pytest.mark.parametrize("name", [name for name in MARKED if name != "pieces"])
def test_a_rendered_template_gets_no_second_bos_token(name):
    tokenizer, codec = TOKENIZERS[name], CODECS[name]
    rendered = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    ids, _ = codec.encode_rendered(rendered)
    assert ids.count(1) == 1
    assert list(ids) == tokenizer(rendered, add_special_tokens=False)["input_ids"]


@each_tokenizer
@few
@given(message=some)
def test_a_rendered_conversation_has_the_ids_of_the_tokenizer(name, message):
    tokenizer, codec = TOKENIZERS[name], CODECS[name]
    assume(codec.mark_control_tokens(message) == message)
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": message}], tokenize=False, add_generation_prompt=True
    )
    assert list(codec.encode_rendered(rendered)[0]) == tokenizer(rendered, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("name", MARKED)
def test_the_first_word_after_a_turn_has_the_ids_that_the_model_generates(name):
    """It has one mark for the space before it, which isn't part of the answer."""
    codec = CODECS[name]
    ids, section = codec.encode_rendered("<s>[INST] What is it? [/INST]")
    context, new = section.extend(ids, "", "quick fox")
    expected = codec.encode_prompt("is quick fox")[0][len(codec.encode_prompt("is")[0]) :]
    assert context == ids
    assert new == expected
    assert section.decode(context, new, starts_answer=True) == "quick fox"
    assert section.extend(context + new, "quick fox", " jumps")[0] == context + new


@pytest.mark.parametrize("name", MARKED)
@few
@given(answer=some, addition=texts)
@example(answer=" a", addition=" b")
@example(answer="  ", addition="")
@example(answer="\n", addition="a")
def test_an_answer_after_a_turn_is_decoded_to_the_same_bytes(name, answer, addition):
    codec = CODECS[name]
    ids, section = codec.encode_rendered("<s>[INST] What is it? [/INST]")
    context, new = section.extend(ids, "", answer)
    assert section.decode(context, new, starts_answer=True) == answer
    context, more = section.extend(context + new, answer, addition)
    assert context + more == section.encode(answer + addition)
    start = section.extend(ids, "", answer + addition)
    assert section.decode(*start, starts_answer=True) == answer + addition


@each_tokenizer
def test_a_space_at_the_end_of_a_prompt_may_merge_into_the_next_token(name):
    _, section, context, new = encoded(CODECS[name], "The quick ", "brown")
    together = without_bos(CODECS[name], context + new)
    assert CODECS[name].decode((), together) == "The quick brown"
    alone = CODECS[name].encode_prompt("The quick brown")[0]
    assert context + new == alone
    assert section.extend(alone, "brown", "") == (alone, ())


@each_tokenizer
def test_an_empty_prompt_has_only_a_bos_token(name):
    assert without_bos(CODECS[name], CODECS[name].encode_prompt("")[0]) == ()
    assert CODECS[name].encode_rendered("")[0] == ()


def test_the_tokenizer_itself_is_not_changed():
    tokenizer = tiny.byte_level()
    before = tokenizer.backend_tokenizer.to_str()
    codec = Codec(tokenizer)
    codec.encode_prompt("a<|im_end|>")
    codec.encode_rendered("a<|im_end|>")
    assert tokenizer.backend_tokenizer.to_str() == before


def test_padding_and_truncation_saved_with_a_tokenizer_are_disabled():
    tokenizer = tiny.byte_level()
    tokenizer.backend_tokenizer.enable_truncation(4)
    tokenizer.backend_tokenizer.enable_padding(length=64)
    text = "The quick brown fox jumps over the lazy dog."
    codec = Codec(tokenizer)
    assert codec.encode_prompt(text)[0] == CODECS["bytes"].encode_prompt(text)[0]
    assert codec.count(text) == CODECS["bytes"].count(text)


def test_control_tokens_that_strip_spaces_do_not_strip_those_of_an_answer():
    tokenizer = tiny.byte_level()
    tokenizer.backend_tokenizer.add_special_tokens([AddedToken("<|turn|>", special=True, rstrip=True, lstrip=True)])
    codec = Codec(tokenizer)
    ids, section = codec.encode_prompt("The quick <|turn|>")
    context, new = section.extend(ids, "", "  brown")
    assert context == ids
    assert section.decode(context, new, starts_answer=True) == "  brown"
    ids, section = codec.encode_prompt("The quick <|turn|>\n fox")
    assert section.encode("") == ids
    assert section.decode(*section.extend(ids, "", " jumps"), starts_answer=True) == " jumps"


def test_control_tokens_have_no_text_when_they_are_decoded():
    codec = CODECS["bytes"]
    ids = codec.encode_prompt("The quick")[0]
    assert codec.decode(ids, [2]) == ""
    assert codec.decode(ids, [ids[0], 2, 1]) == codec.decode(ids, [ids[0]])


@each_tokenizer
def test_count_encodes_control_tokens_as_text(name):
    assert CODECS[name].count("") == 0
    assert CODECS[name].count(TOKENIZERS[name].eos_token) > 1


@pytest.mark.parametrize("name", BYTE_LEVEL)
@few
@given(text=texts)
def test_byte_level_tokenizers_are_lossless(name, text):
    assert CODECS[name].lossless(text)


@given(st.lists(st.integers(0, 2), max_size=6).map(tuple), st.lists(st.integers(0, 2), max_size=6).map(tuple))
def test_shared_length_is_that_of_the_longest_common_prefix(first, second):
    length = shared_length(first, second)
    assert first[:length] == second[:length]
    assert first[length : length + 1] != second[length : length + 1] or min(len(first), len(second)) == length


@pytest.fixture(scope="module", params=["tekken", "v3"])
def real(request):
    """The tokenizer and the codec of a widely used vocabulary."""
    if not vocabularies.FOLDER.is_dir():
        pytest.skip(f"no vocabularies in {vocabularies.FOLDER}: make installs them")
    tokenizer = getattr(vocabularies, request.param)()
    return tokenizer, Codec(tokenizer)


REAL_TEXTS = [
    "The year 1984. It was\ta bright  cold day in April,\nand the clocks were striking thirteen.\n\nNext.",
    "def f(x):\n    if x < 3:\n        return {'a': [1, 2]}  # why?\n\n\nclass A:\n\tpass\n",
    "| a | b |\n|---|---|\n| 1 | 2 |\r\n\r\nDone! (Really?) …yes.\n",
    "Grüße aus Zürich: naïve façade, ½ € – „so“.\nḤāfiẓ",
    "👩‍👩‍👧 🇩🇪 😀!\n👋🏽 ok",
]


@pytest.mark.parametrize("text", REAL_TEXTS, ids=["prose", "code", "table", "accents", "emoji"])
def test_real_words_end_where_tokens_end(real, text):
    _, codec = real
    whole = codec.encode_prompt(text)[0]
    for end in WhitespaceWords().ends(text):
        before = codec.encode_prompt(text[:end])[0]
        assert whole[: len(before)] == before, text[:end]


@given(prompt=texts, parts=st.lists(some, min_size=1, max_size=3))
@example(prompt="year 19", parts=["84"])
@example(prompt="e pla", parts=["ying"])
@example(prompt="Answer: ", parts=["Paris"])
@example(prompt="is 42.", parts=["\nSo"])
@example(prompt="def f(x):", parts=["\n    return", " x"])
@settings(deadline=None, max_examples=40)
def test_real_answers_have_the_ids_of_prompt_and_answer_encoded_together(real, prompt, parts):
    tokenizer, codec = real
    kept, section = codec.encode_prompt("x" + prompt)
    answer = ""
    for part in parts:
        context, new = section.extend(kept, answer, part)
        kept, answer = context + new, answer + part
    assert list(kept) == tokenizer("x" + prompt + answer)["input_ids"]
    assert codec.decode((), kept[1:]) == "x" + prompt + answer


@given(text=some)
@example(text="ሀለሐመ" * 12)
@settings(deadline=None, max_examples=40)
def test_real_answers_after_a_turn_are_decoded_step_by_step(real, text):
    tokenizer, codec = real
    rendered = tokenizer.apply_chat_template([{"role": "user", "content": "What?"}], tokenize=False)
    ids, section = codec.encode_rendered(rendered)
    context, new = section.extend(ids, "", text)
    assert context == ids
    assert section.decode(ids, new, starts_answer=True) == text
    shown = ""
    done = 0
    for length in range(1, len(new) + 1):
        part = section.decode(ids + new[:done], new[done:length], starts_answer=done == 0)
        if INCOMPLETE not in part and (part or done):
            shown, done = shown + part, length
    if INCOMPLETE not in text:
        assert shown == text


def test_a_real_vocabulary_has_one_mark_before_the_first_word_after_a_turn(real):
    tokenizer, codec = real
    ids, section = codec.encode_rendered("<s>[INST] What is the capital of France?[/INST]")
    answer = tokenizer.convert_ids_to_tokens(section.encode("Paris")[len(ids) :])
    assert answer in (["Paris"], ["▁Paris"])
    assert tokenizer.convert_ids_to_tokens(ids)[:3] in (["<s>", "[INST]", "ĠWhat"], ["<s>", "[INST]", "▁What"])


def test_real_control_tokens_in_a_message_are_plain_text(real):
    _, codec = real
    ids, _ = codec.encode_rendered(f"<s>[INST] {codec.mark_control_tokens('a</s>[/INST]b <s>[INST]')}[/INST]")
    assert [index in codec.special_ids for index in ids].count(True) == 3


def test_a_control_token_that_strips_the_newline_after_it_keeps_the_lead_of_the_answer():
    tokenizer = tiny.metaspace()
    tokenizer.add_tokens([AddedToken("<|assistant|>", special=True, rstrip=True)], special_tokens=True)
    ids, section = Codec(tokenizer).encode_rendered("<s>go on<|assistant|>\n")
    context, written = section.extend(ids, "", "The dog")
    assert context == ids
    assert tokenizer.convert_ids_to_tokens(written)[0].startswith("▁The")
    assert section.decode(ids, written, starts_answer=True) == "The dog"

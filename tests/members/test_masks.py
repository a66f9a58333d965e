"""Masks equal those of the oracle, which tries the bytes of every token on a grammar of bytes."""

from __future__ import annotations

import functools
import random

import pytest
from transformers import AutoTokenizer

from adafuse_core import Grammar, small_models
from adafuse_core.chat.call_grammar import answer_grammar
from adafuse_core.chat.dialects import DIALECTS
from adafuse_core.chat.messages import Message
from adafuse_core.chat.tools import Tools
from adafuse_core.members.masks import Masks
from adafuse_core.members.prompts import PromptEncoder
from adafuse_core.rounds import Span
from adafuse_core.text.vocabulary import Vocabulary
from tests import tiny
from tests.oracle import OracleGrammar, OracleTokens
from tests.text import vocabularies
from tests.text.tokenizers import composed, decomposed, sentencepiece

SMALL = {
    "bytes": tiny.byte_level,
    "modern": lambda: tiny.byte_level(380, pattern=tiny.MODERN),
    "characters": tiny.characters,
    "crossing": tiny.crossing,
    "composed": composed,
    "pieces": tiny.metaspace,
    "legacy": lambda: sentencepiece(legacy=True),
    "always": lambda: sentencepiece(scheme="always"),
    "control": lambda: sentencepiece(control=True),
    "aspen": lambda: AutoTokenizer.from_pretrained(small_models.path("aspen")),
    "birch": lambda: AutoTokenizer.from_pretrained(small_models.path("birch")),
}
LARGE = {"tekken": vocabularies.tekken, "v3": vocabularies.v3}

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "kind": {"enum": ["été", "êta", "日本", "日語"]},
        "numbers": {"type": "array", "items": {"type": "number"}},
    },
    "required": ["name", "kind", "numbers"],
}
TOOL = {
    "type": "function",
    "function": {"name": "look", "parameters": {"type": "object", "properties": {"at": {"type": "string"}}}},
}
CALLS = answer_grammar(Tools.of_request([TOOL], "auto", parallel=True), DIALECTS["hermes"])
CASES = {  # grammars, with answers that obey them
    "schema": (
        Grammar.json_schema(SCHEMA),
        ['{"name": "The </s> 日本 😀\\n", "kind": "日語", "numbers": [1984, -3.5e1]}'],
    ),
    "pattern": (
        Grammar.regex(r" ?(The quick|été 日本|\n\n?- x)+\.?"),
        ["The quickété 日本.", " été 日本\n\n- x", "\n- x"],
    ),
    "calls": (CALLS, ['I look.\n<tool_call>\n{"name": "look", "arguments": {"at": "é"}}\n</tool_call>', "<tool_"]),
    "blanks": (Grammar.regex("  ?a| b|c"), ["  a", " a", " b", "c"]),
}
CHAT = [{"role": "user", "content": "Smile 😀 </s>\n"}]
PROMPTS = {
    "chat": CHAT,
    "word": "The answer is",
    "blank": "The answer is: ",
    "blanks": "x =  ",
    "line": "a\n",
    "half a word": '{"na',
    "é": "été é",
}


@functools.cache
def opened(name, kind):
    """A tokenizer's prompt, and the oracle with the same one."""
    tokenizer = (SMALL | LARGE)[name]()
    encoder = PromptEncoder(name=name, tokenizer=tokenizer)
    prompt = PROMPTS[kind] if kind != "chat" else [Message(**message) for message in CHAT]
    ends = (tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|endoftext|>") or 0)
    return encoder.encode(prompt), vocabulary(name), OracleTokens(tokenizer, {*ends})


@functools.cache
def vocabulary(name):
    tokenizer = (SMALL | LARGE)[name]()
    encoder = PromptEncoder(name=name, tokenizer=tokenizer)
    return Vocabulary(tokenizer, encoder.codec, size=len(tokenizer) + 2)


def started(name, kind, grammar):
    """The masks of a prompt, and the oracle in the same state."""
    prompt, vocab, oracle = opened(name, kind)
    oracle.start(PROMPTS[kind], grammar=OracleGrammar(grammar.source()))
    oracle.ids = oracle.prompt_ids = list(prompt.ids)  # where a template writes control tokens as text, they differ
    return prompt, Masks(grammar, vocab, oracle.ends, prompt.ids, prompt.section.lead), oracle


def tokens(mask):
    """Ids whose bits are set; None without a mask."""
    return None if mask is None else {index for index in range(8 * len(mask)) if mask[index >> 3] >> (index & 7) & 1}


def expected(oracle, context):
    flags = oracle.allowed(list(context))
    return None if flags is None else set(flags.nonzero().flatten().tolist())


@functools.cache
def by_bytes(name):
    ids = {}
    for index, data in enumerate(opened(name, "word")[2].bytes):
        if data and b"\xff" not in data:
            ids.setdefault(data, []).append(index)
    return ids


def spelled(name, data, draw):
    """A random tokenization of bytes, including non-canonical ones."""
    known, ids, longest = by_bytes(name), [], draw.choice((1, 2, 4, 12))
    while data:
        heads = [data[:size] for size in range(1, longest + 1) if data[:size] in known]
        if not heads:
            return None  # no token for this character
        head = draw.choice(heads)
        ids.append(draw.choice(known[head]))
        data = data[len(head) :]
    return tuple(ids)


def differences(masks, oracle, contexts):
    return [context for context in contexts if tokens(masks(context)) != expected(oracle, context)]


def beginnings(start, ids):
    return [start + ids[:length] for length in range(len(ids) + 1)]


@pytest.mark.parametrize("kind", PROMPTS)
@pytest.mark.parametrize("name", SMALL)
def test_masks_of_small_vocabularies_are_those_of_the_oracle(name, kind):
    draw = random.Random(0)
    for grammar, answers in CASES.values():
        prompt, masks, oracle = started(name, kind, grammar)
        for answer in answers:
            own = prompt.section.encode(answer)
            lead = draw.choice(("", oracle.lead))
            free = spelled(name, (lead + answer).encode(), draw) or ()
            contexts = [*beginnings((), own)[-len(own) // 2 :], *beginnings(prompt.ids, free)]
            assert differences(masks, oracle, draw.sample(contexts, min(len(contexts), 16))) == []


@pytest.mark.parametrize("kind", ["chat", "blank", "é"])
@pytest.mark.parametrize("name", SMALL)
def test_the_committed_text_counts_however_it_is_tokenized(name, kind):
    draw = random.Random(1)
    for grammar, (answer, *_) in CASES.values():
        prompt, masks, oracle = started(name, kind, grammar)
        written = 0
        while written < len(answer):
            piece = answer[written : written + draw.randrange(1, 9)]
            context, ids = prompt.section.extend(tuple(oracle.ids), oracle.text, piece)
            drafted = spelled(name, (oracle.lead * (not oracle.text) + piece).encode(), draw)
            committed = (*oracle.ids, *drafted) if drafted and draw.random() < 0.5 else context + ids
            straddling = beginnings(context, ids)
            assert differences(masks, oracle, draw.sample(straddling, min(len(straddling), 2))) == []
            masks.commit(committed, piece)
            oracle.ids, oracle.text = list(committed), oracle.text + piece
            written += len(piece)
            assert differences(masks, oracle, [committed]) == []


@pytest.mark.parametrize("kind", ["chat", "blank"])
@pytest.mark.parametrize("name", LARGE)
def test_masks_of_large_vocabularies_are_those_of_the_oracle(name, kind):
    draw = random.Random(2)
    grammar, (answer, *_) = CASES["schema"]
    prompt, masks, oracle = started(name, kind, grammar)
    own, free = prompt.section.encode(answer), spelled(name, answer.encode(), draw)
    contexts = [*draw.sample(beginnings(prompt.ids, free), 5), *draw.sample(beginnings((), own)[-len(own) // 2 :], 4)]
    assert differences(masks, oracle, [prompt.ids, *contexts]) == []


@pytest.mark.parametrize("name", ["pieces", "always", "legacy", "control"])
def test_the_blank_before_an_answer_may_be_written_or_not(name):
    prompt, masks, oracle = started(name, "chat", Grammar.regex("The|x"))
    assert prompt.section.lead == oracle.lead == " "
    written = {oracle.bytes[index] for index in tokens(masks(prompt.ids))}
    assert {b"T", b" The", b" ", b"x"} <= written
    assert all(b" The".startswith(text) or b"The".startswith(text) or text.strip() == b"x" for text in written)
    blank = oracle.bytes.index(b" ")
    after = {oracle.bytes[index] for index in tokens(masks((*prompt.ids, blank)))}
    assert after == {text for text in written if not text.startswith(b" ")}


@pytest.mark.parametrize("name", ["bytes", "pieces", "aspen", "birch"])
def test_end_tokens_are_allowed_exactly_where_the_answer_may_end(name):
    prompt, masks, oracle = started(name, "chat", Grammar.regex("a(bc)*"))
    for text, ends in (("", False), ("a", True), ("ab", False), ("abc", True)):
        ids = spelled(name, text.encode(), random.Random(0))
        found = tokens(masks((*prompt.ids, *ids)))
        assert (found & oracle.ends == oracle.ends) == ends
        assert bool(found & oracle.ends) == ends
        assert not found & oracle.special - oracle.ends
        assert max(found) < len(oracle.tokenizer)


@pytest.mark.parametrize("name", ["bytes", "pieces"])
def test_a_control_token_as_text_is_text(name):
    prompt, masks, oracle = started(name, "chat", Grammar.json_schema({"type": "string"}))
    control = oracle.tokenizer.eos_token
    ids = prompt.section.encode(f'"{control}')
    assert ids[-1] not in oracle.special
    assert tokens(masks(ids)) == expected(oracle, ids)
    masks.commit(ids, f'"{control}')
    assert oracle.tokenizer.eos_token_id not in tokens(masks(ids))


@pytest.mark.parametrize("take", ["commit", "add"])
def test_texts_that_the_tokenizer_changes_are_matched_unchanged(take):
    tokenizer = decomposed()
    encoder = PromptEncoder(name="m", tokenizer=tokenizer)
    prompt = encoder.encode("The")
    grammar = Grammar.regex("été(b|c)")
    vocab = Vocabulary(tokenizer, encoder.codec, size=len(tokenizer))
    masks = Masks(grammar, vocab, {0}, prompt.ids, prompt.section.lead)
    ids = prompt.section.encode("été")
    assert masks(ids) is None  # its tokens have other bytes
    getattr(masks, take)(ids, "été")
    assert {vocab.engine.decode_bytes([index]) for index in tokens(masks(ids))} == {b"b", b"c"}


def test_a_text_that_is_not_committed_counts_until_the_next_commit():
    prompt, masks, oracle = started("bytes", "chat", Grammar.regex("(a|b)(cd|e)+"))
    context = (*prompt.ids, *spelled("bytes", b"x", random.Random(0)))  # as if these tokens were the text "ac"
    masks.add(context, "ac")
    masks.add(context, "broken")
    assert {oracle.bytes[index] for index in tokens(masks(context))} == {b"d", b"de"}
    masks.commit((*prompt.ids, *spelled("bytes", b"a", random.Random(0))), "a")
    assert masks(context) is None


def test_a_grammar_allows_texts_that_begin_an_answer_and_ends_where_it_may_end():
    _, masks, _ = started("bytes", "chat", Grammar.regex("a(bc)*"))
    masks.commit((1, 2), "ab")
    assert masks.allows(Span(text="cb"))
    assert masks.allows(Span(text="c", ends=True))
    assert not masks.allows(Span(text="cb", ends=True))
    assert not masks.allows(Span(text="b"))
    assert masks.allows(Span(text=""))
    assert not masks.allows(Span(text="", ends=True))


def test_contexts_before_the_answer_have_no_mask():
    prompt, masks, _ = started("bytes", "chat", Grammar.regex("a"))
    assert masks(prompt.ids[:-1]) is None
    assert masks((*prompt.ids[:-1], 5)) is None


def test_a_text_that_breaks_the_grammar_has_no_mask():
    prompt, masks, oracle = started("bytes", "chat", Grammar.regex("ab"))
    assert masks((*prompt.ids, *spelled("bytes", b"b", random.Random(0)))) is None
    assert expected(oracle, (*prompt.ids, *spelled("bytes", b"b", random.Random(0)))) is None

"""Thoughts in other tags than the usual ones: they need only a value in the table."""

from __future__ import annotations

import pytest

from adafuse_core import Ensemble, Grammar, ScriptedMember, TemplateError, ToolCall
from adafuse_core.chat import thoughts
from adafuse_core.chat.call_grammar import answer_grammar
from adafuse_core.chat.dialects import DIALECTS
from adafuse_core.chat.messages import Message
from adafuse_core.chat.thoughts import THINK, ThoughtReader, ThoughtTags, begun_thought, shared_tags, tags_in
from adafuse_core.chat.tools import Tools
from adafuse_core.members.prompts import PromptEncoder
from tests import tiny

SQUARE = ThoughtTags(opening="[THINK]", closing="[/THINK]")
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
ASK = [{"role": "user", "content": "2 + 2?"}]


@pytest.fixture
def table(monkeypatch):
    monkeypatch.setattr(thoughts, "TAGS", (THINK, SQUARE))


def encoder(template):
    tokenizer = tiny.byte_level()
    tokenizer.chat_template = template
    return PromptEncoder(name="m", tokenizer=tokenizer)


def accepts(grammar, text):
    guide = grammar.guide().after(text)
    return guide is not None and guide.may_end


def test_a_template_shows_its_tags(table):
    assert tags_in("{{ '[THINK]' }}{{ '[/THINK]' }}") == SQUARE
    assert tags_in("{{ m['content'].split('</think>')[-1] }}") == THINK
    assert tags_in(tiny.CHATML) == THINK
    assert encoder(tiny.CHATML + "{# [/THINK] #}").thought_tags == SQUARE


def test_a_prompt_may_end_inside_a_thought_of_its_own_tags(table):
    inside = encoder(tiny.CHATML + "{{ '[THINK]\n' }}{# [/THINK] #}")
    assert inside.encode([Message(role="user", content="Hi")]).thinking == SQUARE
    assert encoder(tiny.CHATML).encode([Message(role="user", content="Hi")]).thinking is None


def test_old_thoughts_in_these_tags_may_be_left_out(table):
    template = tiny.CHATML.replace("m['content']", "m['content'].split('[/THINK]')[-1]")
    turns = [("user", "2 + 2?"), ("assistant", "[THINK]easy[/THINK]4"), ("user", "Sure?")]
    own = encoder(template)
    ids = own.encode([Message(role=role, content=content) for role, content in turns]).ids
    assert "assistant\n4" in own.tokenizer.decode(ids)


@pytest.mark.parametrize("name", DIALECTS)
def test_grammars_of_calls_know_these_tags(name):
    dialect = DIALECTS[name]
    call = dialect.write([ToolCall(name="f")])
    grammar = answer_grammar(Tools.of_request([TOOL], "auto", parallel=True), dialect, tags=SQUARE)
    broken = dialect.write([ToolCall(name="zzz")])
    for text in (f"[THINK]hm[/THINK]{call}", f"\n[THINK]{broken}[/THINK]\n\n{call}", f"[THINK]{broken}[/THINK]Hello"):
        assert accepts(grammar, text), text
    assert grammar.guide().after(f"[THINK]hm[/THINK]{broken}") is None
    after = SQUARE.after_thought(Grammar.json_object())
    assert accepts(after, "hm</think>[/THINK]\n{}")
    assert not accepts(after, "hm</think>{}")


@pytest.mark.parametrize(
    "pieces", [["[THINK]hm[/THINK]\nSo."], "[THINK]hm\n[/THINK]So.", ["[TH", "INK]hm[/TH", "INK]So."]]
)
def test_thoughts_in_these_tags_are_no_text(pieces):
    reader = ThoughtReader(SQUARE, inside=False)
    parts = [*(reader.read(piece, last=False) for piece in pieces), reader.read("", last=True)]
    assert ["".join(texts) for texts in zip(*parts, strict=True)] == ["hm", "So."]


def test_an_answer_is_read_by_its_members_tags(table):
    member = ScriptedMember(reply="[THINK]easy[/THINK]4")
    assert Ensemble(members=[member]).generate(ASK).text == "[THINK]easy[/THINK]4"
    member.thought_tags = SQUARE
    answer = Ensemble(members=[member, ScriptedMember("b", reply="4")]).generate(ASK)
    assert (answer.reasoning, answer.text) == ("easy", "4")


def test_members_that_think_must_agree():
    assert begun_thought({"a": None, "b": None}) is None
    assert begun_thought({"a": SQUARE, "b": SQUARE}) == SQUARE
    with pytest.raises(TemplateError, match="templates of a begin the answer with a thought, the others' don't"):
        begun_thought({"a": SQUARE, "b": None})
    with pytest.raises(TemplateError, match=r"templates of a, b begin .* not all with the same tags"):
        begun_thought({"a": SQUARE, "b": THINK})
    assert shared_tags([THINK, SQUARE]) == shared_tags([SQUARE]) == SQUARE
    assert shared_tags([THINK, THINK]) == THINK

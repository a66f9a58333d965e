"""Prompts are encoded without weights: templates, tool dialects, control tokens before calls."""

from __future__ import annotations

import pytest
from tokenizers import AddedToken

from adafuse_core import Ensemble
from adafuse_core.chat.call_grammar import answer_grammar
from adafuse_core.chat.dialects import DIALECTS, dialect_of
from adafuse_core.chat.messages import Message
from adafuse_core.chat.tools import Tools
from adafuse_core.errors import ModelNotFoundError
from adafuse_core.member_config import MemberConfig
from adafuse_core.members import registry
from adafuse_core.members.masks import Masks
from adafuse_core.members.prompts import PromptEncoder
from adafuse_core.text.vocabulary import Vocabulary
from tests import tiny

TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
# Like Mistral's: a control token before the list of calls.
LISTS = (
    "{{ bos_token }}{% if tools %}[TOOLS] {{ tools | tojson }}{% endif %}{% for m in messages %}"
    "{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]{% elif m['tool_calls'] %}[TOOL_CALLS] ["
    "{% for c in m['tool_calls'] %}{{ c[\"function\"] | tojson }}{% endfor %}]{{ eos_token }}"
    "{% else %} {{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)
CHATML_ASK = "<|im_start|>user\nTell.<|im_end|>\n<|im_start|>assistant\n"
MARKUP = "{% if tools %}{{ tools | tojson }}{% endif %}{{ messages[0]['content'] }}"


@pytest.fixture(scope="module")
def encoder():
    tokenizer = tiny.byte_level()
    tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken("[TOOL_CALLS]", special=True)]})
    tokenizer.chat_template = LISTS
    return PromptEncoder(name="m", tokenizer=tokenizer)


def conversation():
    return [Message(role="user", content="What is the weather in Paris?")]


def test_every_dialect_can_be_asked_for_by_name():
    assert all(MemberConfig(model="m", tool_dialect=name).tool_dialect == name for name in DIALECTS)


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("{{ '<tool_call>' }}", "hermes"),
        ("""{{- '{"name": "' + call.name + '", ' }}{{- '"parameters": ' }}""", "llama3"),
        ("[AVAILABLE_TOOLS][TOOL_CALLS]", "mistral"),
        ("<tool_call><function=", None),  # calls as tags, not as JSON
        ("[TOOL_CALLS][ARGS]", None),
        ("{{ messages }}", None),
    ],
)
def test_a_template_tells_its_dialect(template, name):
    spoken = dialect_of(template)
    assert (spoken.name if spoken else None) == name


def test_a_template_that_ignores_tools_has_no_dialect():
    tokenizer = tiny.byte_level()
    tokenizer.chat_template = "{{ messages[0]['content'] }}{# <tool_call> #}"
    encoder = PromptEncoder(name="m", tokenizer=tokenizer)
    assert encoder.dialect is None
    assert not encoder.shows_tools


def test_a_configured_dialect_overrides_the_templates():
    tokenizer = tiny.byte_level()
    tokenizer.chat_template = MARKUP + "<tool_call>"
    assert PromptEncoder(name="m", tokenizer=tokenizer).shows_tools
    other = PromptEncoder(name="m", tokenizer=tokenizer, dialect="plain")
    assert other.dialect == DIALECTS["plain"]
    assert not other.shows_tools


def test_the_token_before_calls_is_written_where_calls_are_forced(encoder):
    free = encoder.encode(conversation(), [TOOL])
    forced = encoder.encode(conversation(), [TOOL], must_call=True)
    assert forced.ids == (*free.ids, encoder.call_token)
    assert encoder.encode(conversation(), must_call=True).ids == encoder.encode(conversation()).ids


def test_the_token_before_calls_is_allowed_once(encoder):
    prompt = encoder.encode(conversation(), [TOOL])
    section, size = prompt.section, len(encoder.tokenizer)
    vocabulary = Vocabulary(encoder.tokenizer, encoder.codec, size=size)
    grammar = answer_grammar(Tools.of_request([TOOL], "auto", parallel=True), encoder.dialect)

    def masks(call_token):
        return Masks(grammar, vocabulary, (2,), prompt.ids, section.lead, call_token)

    with_token, without = masks(encoder.call_token), masks(None)
    assert allowed(with_token(prompt.ids)) == allowed(without(prompt.ids)) | {encoder.call_token}
    call = section.encode('[{"name": "get_weather", "arguments": {"city": "Paris"}}]')[len(prompt.ids) :]
    for length in range(len(call) + 1):
        written = (*prompt.ids, encoder.call_token, *call[:length])
        assert allowed(with_token(written)) == allowed(without(prompt.ids + call[:length]))
        if length < len(call):
            assert call[length] in allowed(with_token(written))
    text = section.decode(prompt.ids, call[:3], starts_answer=True)
    with_token.commit((*prompt.ids, encoder.call_token, *call[:3]), text)
    without.commit(prompt.ids + call[:3], text)
    after = (*prompt.ids, encoder.call_token, *call[:5])
    assert allowed(with_token(after)) == allowed(without(prompt.ids + call[:5]))


@pytest.mark.parametrize("tokenizer", [tiny.byte_level(), tiny.metaspace()], ids=["byte level", "metaspace"])
@pytest.mark.parametrize("said", ["The quick bro", "The quick", "<think>\nhm", "a <think>b</think> c"])
def test_a_continued_message_gets_no_additional_blank(tokenizer, said):
    encoder = PromptEncoder(name="m", tokenizer=tokenizer)
    messages = [Message(role="user", content="Tell."), Message(role="assistant", content=said)]
    continued = encoder.encode(messages, continues=True)
    opening = "[INST] Tell. [/INST] " if "[INST]" in tokenizer.chat_template else None
    text = (tokenizer.bos_token or "") + opening + said if opening else f"{CHATML_ASK}{said}"
    assert continued.ids == encoder.encode(text).ids
    assert continued.section.lead == ""
    assert (continued.thinking is not None) == (said == "<think>\nhm")
    assert encoder.encode(messages).ids != continued.ids


def test_tokens_are_counted_and_tools_looked_for_without_weights():
    before = registry.loaded()
    ensemble = Ensemble(members=[{"model": "small:aspen", "name": "one"}, "small:birch"])
    counts = ensemble.count_tokens([{"role": "user", "content": "Hello"}])
    assert set(counts) == {"one", "birch"}
    assert all(count > 0 for count in counts.values())
    with_tools = ensemble.count_tokens([{"role": "user", "content": "Hello"}], tools=[TOOL])
    assert all(with_tools[name] > counts[name] for name in counts)
    assert all(count > 0 for count in ensemble.count_text_tokens("Hello").values())
    assert ensemble.supports_chat()
    assert ensemble.supports_tools()
    assert registry.loaded() == before


def test_a_missing_model_is_named_also_where_only_its_tokenizer_is_read():
    ensemble = Ensemble(members=[{"model": "/nowhere/at/all", "name": "gone"}])
    with pytest.raises(ModelNotFoundError, match="gone"):
        ensemble.count_tokens("Hello")


def allowed(mask):
    """Indices of the bits that are set."""
    bits = int.from_bytes(mask, "little")
    return {index for index in range(8 * len(mask)) if bits >> index & 1}

"""Fields and options: one source of defaults, call options override fields, limits are known without weights."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from llama_index.core import Document, Settings
from llama_index.core.constants import DEFAULT_CONTEXT_WINDOW
from llama_index.core.llms import ChatMessage
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.response_synthesizers import ResponseMode, get_response_synthesizer
from llama_index.core.schema import NodeWithScore, TextNode

from adafuse_core import ConfigError, ContextOverflowError, MemberConfig
from adafuse_core.members import registry
from adafuse_integrations.llama_index import AdaFuseLLM
from tests.integrations.llama_index.conftest import ENDPOINTS, TOOLS, respond, scripted, text_of


def test_by_default_the_members_are_the_small_models():
    assert AdaFuseLLM().ensemble.names == ("aspen", "birch")


ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"tua": 0.5}, "tua"),
        ({"tau": 2}, "tau"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"strategy": "vote"}, "strategy"),
        ({"strategy": "single", "temperature": 1.0}, "temperature"),
        ({"members": []}, "members"),
        ({"members": "aspen"}, "members"),
        ({"members": [{"modle": "x"}]}, "modle"),
        ({"members": [3]}, "member"),
        ({"context_window": 0}, "context_window"),
        ({"stop": [""]}, "stop"),
        ({"on_word": 3}, "on_word"),
        ({"on_word": [3]}, "on_word"),
    ],
)
def test_unknown_options_and_values_out_of_range_are_refused_at_once(options, problem):
    with pytest.raises(ValueError, match=problem):
        AdaFuseLLM(**options)


def test_an_async_callback_is_refused():
    async def later(word):
        pass

    with pytest.raises(ValueError, match="async"):
        AdaFuseLLM(on_word=later)


def test_members_may_be_names_paths_mappings_or_configs():
    llm = AdaFuseLLM(
        members=["org/one", Path("/models/two"), {"model": "three", "weight": 2}, MemberConfig(model="four", name="x")]
    )
    assert llm.members == [
        "org/one",
        "/models/two",
        {"model": "three", "weight": 2},
        {"model": "four", "name": "x"},
    ]
    assert llm.ensemble.names == ("one", "two", "three", "x")


@pytest.mark.parametrize("endpoint", ENDPOINTS)
class TestPerCall:
    async def test_18_max_tokens_of_a_call_overrides_the_field(self, endpoint):
        llm, _ = scripted("one two three four", llm={"max_new_tokens": 100})
        for name in ("max_tokens", "max_new_tokens"):
            answer = (await respond(llm, endpoint, **{name: 2}))[-1]
            assert answer.raw["finish_reason"] == "length"
            assert answer.raw["usage"]["completion_tokens"] <= 2

    async def test_19_stop_strings_work_across_words_and_are_not_in_the_text(self, endpoint):
        llm, _ = scripted("Thought: yes. Observation: no.", llm={"stop": "yes"})
        answers = await respond(llm, endpoint, stop=["es. Obs"])  # across two words
        assert text_of(answers[-1]) == "Thought: y"
        assert not any("es" in text_of(answer) for answer in answers)
        assert text_of((await respond(llm, endpoint))[-1]) == "Thought: "

    async def test_18_unknown_options_raise(self, endpoint):
        llm, member = scripted()
        with pytest.raises(ConfigError, match="top_p"):
            await respond(llm, endpoint, top_p=0.9)
        with pytest.raises(ConfigError, match="max_tokens and max_new_tokens"):
            await respond(llm, endpoint, max_tokens=1, max_new_tokens=1)
        assert member.prompts == []


def test_18_temperature_and_seed_of_a_call_override_the_fields(pair):
    llm = AdaFuseLLM(members=pair, max_new_tokens=16)
    greedy = llm.complete("The quick").text
    draws = [llm.complete("The quick", temperature=1000.0, seed=seed).text for seed in (1, 1, *range(2, 10))]
    assert draws[0] == draws[1]
    assert len({greedy, *draws}) > 2
    assert llm.complete("The quick").text == greedy


def test_fields_may_be_set_later(pair):
    llm = AdaFuseLLM(members=pair, max_new_tokens=4)
    before = llm.complete("The quick").raw["usage"]["completion_tokens"]
    llm.max_new_tokens = 8
    assert llm.complete("The quick").raw["usage"]["completion_tokens"] > before
    llm.strategy, llm.member = "single", "pieces"
    assert list(llm.complete("The quick").raw["usage_by_member"]) == ["pieces"]
    llm.tau = 7
    with pytest.raises(ConfigError, match="tau"):
        llm.complete("The quick")


def test_fields_can_not_change_a_given_ensemble():
    llm, _ = scripted("one two", llm={"max_new_tokens": 1})
    llm.max_new_tokens = None
    assert llm.complete("go").text == "one two"
    llm.tau = 0.1
    with pytest.raises(ConfigError, match="from_ensemble"):
        llm.complete("go")


def test_from_ensemble_copies_the_config(pair):
    built = AdaFuseLLM(members=pair, tau=0.2, max_new_tokens=7, stop=["x"], temperature=0.5, seed=3)
    llm = AdaFuseLLM.from_ensemble(built.ensemble)
    assert llm.ensemble is built.ensemble
    assert llm.metadata.context_window == 512 - 64
    assert llm.ensemble.config == AdaFuseLLM.from_dict(llm.to_dict()).ensemble.config
    assert (llm.tau, llm.max_new_tokens, llm.stop, llm.temperature, llm.seed) == (0.2, 7, ("x",), 0.5, 3)
    with pytest.raises(ConfigError, match="from_ensemble"):
        AdaFuseLLM.from_ensemble(built.ensemble, tau=0.9)


class TestMetadata:
    def test_metadata_has_members_and_limits(self, pair):
        data = AdaFuseLLM(members=pair, max_new_tokens=12).metadata
        assert data.model_name == "adafuse(bytes+pieces)"
        assert data.num_output == 12
        assert data.is_chat_model is True
        assert data.is_function_calling_model is True

    def test_21_the_window_is_the_smallest_less_a_reserve_for_templates(self, pair):
        assert AdaFuseLLM(members=pair).metadata.context_window == 512 - 64
        assert AdaFuseLLM(members=pair, is_chat_model=False).metadata.context_window == 512
        narrow = {"model": pair[1], "context_window": 300}
        assert AdaFuseLLM(members=[pair[0], narrow]).metadata.context_window == 300 - 64
        assert AdaFuseLLM(members=pair, context_window=400).metadata.context_window == 400

    def test_29_metadata_loads_no_weights_and_reads_files_once(self, tmp_path, pair, monkeypatch):
        import transformers

        reads = []
        read = transformers.AutoConfig.from_pretrained
        monkeypatch.setattr(
            transformers.AutoConfig, "from_pretrained", lambda *a, **k: (reads.append(a), read(*a, **k))[1]
        )
        before = registry.loaded()
        llm = AdaFuseLLM(members=[{"model": pair[0], "name": "alone", "end_tokens": ["<|endoftext|>"]}])
        assert llm.metadata.context_window == llm.to_payload()["context_window"]
        read_once = len(reads)
        for _ in range(50):
            assert llm.metadata == llm.metadata
        assert len(reads) == read_once
        assert registry.loaded() == before

    def test_ready_made_members_report_their_window(self):
        assert scripted(context_window=1000)[0].metadata.context_window == 1000 - 64
        assert scripted()[0].metadata.context_window == DEFAULT_CONTEXT_WINDOW

    def test_num_output_is_minus_one_without_a_budget(self):
        assert scripted()[0].metadata.num_output == -1

    def test_21_a_small_window_is_logged_once(self, pair, caplog):
        llm = AdaFuseLLM(members=pair)
        assert [llm.metadata for _ in range(3)]
        warned = [record for record in caplog.records if "query engines" in record.message]
        assert len(warned) == 1

    def test_21_a_refining_engine_fits_what_the_window_leaves(self):
        texts = [f"Passage {number}. " + "word " * 150 for number in range(6)]
        llm = AdaFuseLLM(max_new_tokens=2)
        Settings.tokenizer = llm.tokenizer_fn
        synthesizer = get_response_synthesizer(llm=llm, response_mode=ResponseMode.REFINE)
        response = synthesizer.synthesize("What?", [NodeWithScore(node=TextNode(text=text)) for text in texts])
        assert str(response)

    @pytest.mark.parametrize(("flag", "told"), [("auto", True), (True, True), (False, False)])
    def test_function_calling_needs_templates_of_all_members_or_the_option(self, pair, flag, told):
        for members in (None, pair, ["small:aspen", pair[0]]):
            llm = AdaFuseLLM(members=members, is_function_calling_model=flag)
            assert llm.metadata.is_function_calling_model is told

    def test_the_log_names_the_member_whose_template_shows_no_tools(self, pair, caplog):
        caplog.set_level("INFO")
        assert AdaFuseLLM(members=["small:aspen", pair[0]]).metadata.is_function_calling_model
        assert "the chat template of bytes shows no tools" in caplog.text
        assert "system message" in caplog.text

    def test_the_log_says_why_there_is_no_function_calling(self, caplog):
        caplog.set_level("INFO")
        assert not scripted(chat=False)[0].metadata.is_function_calling_model
        assert "no chat template in m0, m1; set chat_template" in caplog.text
        assert not AdaFuseLLM(is_chat_model=False).metadata.is_function_calling_model
        assert "is_chat_model" in caplog.text

    def test_function_calling_needs_messages(self):
        assert AdaFuseLLM(is_chat_model=False).metadata.is_function_calling_model is False
        assert AdaFuseLLM(messages_to_prompt=str).metadata.is_function_calling_model is False

    @pytest.mark.parametrize("model", ["/no/such/folder", "small:oak"])
    def test_a_model_that_is_not_there_is_named(self, model):
        with pytest.raises(RuntimeError, match=model):
            _ = AdaFuseLLM(members=[model]).metadata


class TestTokenizer:
    TEXTS = (
        "",
        "The quick brown fox.",
        "Grüße aus Zürich 👩‍👩‍👧",
        "a < b </s> <|im_end|>",
        "日本語のテキスト",
        "\n\n\tx",
        "1984 " * 30,
    )

    @pytest.mark.parametrize("text", TEXTS)
    def test_22_the_token_count_is_never_below_that_of_a_member(self, pair, text):
        llm = AdaFuseLLM(members=pair)
        count = len(llm.tokenizer_fn(text))
        assert count == max(member.prompt_reader.count_text_tokens(text) for member in llm.ensemble.members)

    def test_22_counting_loads_no_weights(self, pair):
        before = registry.loaded()
        llm = AdaFuseLLM(members=[{"model": pair[0], "name": "counted", "end_tokens": ["<|endoftext|>"]}])
        assert len(llm.tokenizer_fn("The quick brown fox.")) > 3
        assert registry.loaded() == before

    def test_22_llama_index_accepts_the_tokenizer_function(self, pair):
        llm = AdaFuseLLM(members=pair)
        Settings.tokenizer = llm.tokenizer_fn
        text = "The quick brown fox jumps. " * 40
        nodes = SentenceSplitter(chunk_size=60, chunk_overlap=0).get_nodes_from_documents([Document(text=text)])
        assert len(nodes) > 1
        assert all(len(llm.tokenizer_fn(node.text)) <= 60 for node in nodes)


def test_20_a_prompt_that_is_too_long_is_a_value_error_with_numbers(pair):
    llm = AdaFuseLLM(members=pair, max_new_tokens=4)
    for ask in (
        llm.complete,
        lambda text: llm.chat([ChatMessage(content=text)]),
        lambda text: llm.chat_with_tools(TOOLS, user_msg=text),
    ):
        with pytest.raises(ValueError, match=r"'bytes'.*\d+ tokens.*512") as caught:
            ask("quick brown " * 600)
        assert isinstance(caught.value, ContextOverflowError)


def test_importing_loads_neither_torch_nor_transformers_nor_langchain():
    code = (
        "import sys, adafuse_integrations.llama_index as a; a.AdaFuseLLM(); "
        "print(sorted({name.split('.')[0] for name in sys.modules} & "
        "{'torch', 'transformers', 'tokenizers', 'langchain', 'langchain_core'}))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert run.stdout.strip() == "[]"

"""Arguments of newcomers to LangChain, LlamaIndex and the command line: accepted forms, errors and hints."""

from __future__ import annotations

import asyncio
import inspect
import logging
import re
from functools import partial
from pathlib import Path

import pytest
from langchain_core.messages import HumanMessage
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.llms import ChatMessage
from llama_index.core.llms.custom import CustomLLM
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.tools import FunctionTool

from adafuse_core import ConfigError, Ensemble, EnsembleConfig, MemberConfig, PromptError, ScriptedMember
from adafuse_integrations.cli.main import main
from adafuse_integrations.common.fields import OptionFields
from adafuse_integrations.common.options import MEMBER_DEFAULTS
from adafuse_integrations.langchain import AdaFuseLLM, ChatAdaFuse
from adafuse_integrations.langchain.model import EnsembleModel, LanguageModel
from adafuse_integrations.llama_index import AdaFuseLLM as LlamaIndexLLM
from adafuse_integrations.llama_index import react_grammar
from tests import tiny
from tests.integrations.test_options import asked
from tests.test_doors import ELSEWHERE, MISSPELT
from tests.test_member_defaults import VALUES

MODELS = [AdaFuseLLM, ChatAdaFuse, LlamaIndexLLM]


@pytest.fixture(params=MODELS, ids=["langchain llm", "langchain chat", "llama_index"])
def kind(request):
    return request.param


def ask(llm, text="go", **options):
    """The text of an answer."""
    if isinstance(llm, LlamaIndexLLM):
        return llm.complete(text, **options).text
    answer = llm.invoke(text, **options)
    return answer if isinstance(answer, str) else answer.content


def scripted(kind, reply="hello there", **options):
    member = ScriptedMember("m", reply, **options)
    return kind.from_ensemble(Ensemble(members=[member])), member


class TestHints:
    @pytest.mark.parametrize("name", ELSEWHERE)
    def test_options_of_other_libraries_raise_errors_with_hints(self, kind, name):
        if name not in kind.model_fields:
            with pytest.raises(ValueError, match=name) as caught:
                kind(**{name: 1})
            assert ELSEWHERE[name] in str(caught.value)
            assert "did you mean" not in str(caught.value)
        llm, member = scripted(kind)
        with pytest.raises(ConfigError, match=name) as refused:
            ask(llm, **{name: 1})
        assert ELSEWHERE[name] in refused.value.hint
        assert member.prompts == []

    @pytest.mark.parametrize("name", MISSPELT)
    def test_misspelt_options_raise_errors_with_the_right_name(self, kind, name):
        with pytest.raises(ValueError, match=f"did you mean '{MISSPELT[name]}'"):
            kind(**{name: 1})
        with pytest.raises(ConfigError, match=f"did you mean '{MISSPELT[name]}'"):
            ask(scripted(kind)[0], **{name: 1})

    @pytest.mark.parametrize(
        ("name", "right"), [("memebrs", "members"), ("brnaches", "branches"), ("dtyp", "dtype"), ("trase", "trace")]
    )
    def test_errors_suggest_options_of_adapters_and_members(self, kind, name, right):
        with pytest.raises(ValueError, match=f"did you mean '{right}'"):
            kind(**{name: 1})

    def test_options_that_are_fixed_in_calls_raise_an_error_that_says_so(self, kind):
        for name in ("tau", "dtype", "members"):
            with pytest.raises(ConfigError, match="when you create the ensemble"):
                ask(scripted(kind)[0], **{name: 1})

    def test_errors_contain_no_values_because_they_may_be_secrets(self, kind):
        with pytest.raises(ValueError, match="hf_token") as caught:
            kind(hf_token="hf_secret")
        assert "hf_secret" not in str(caught.value)

    @pytest.mark.parametrize("name", ELSEWHERE)
    def test_the_command_line_gives_hints_for_options_of_other_libraries(self, capsys, name):
        assert main(["ask", "go", f"--{name.replace('_', '-')}=1"]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: unknown option")
        assert ELSEWHERE[name] in error

    @pytest.mark.parametrize("name", ["temprature", "max-new-tokns", "brnaches", "dtpye", "strtegy"])
    def test_the_command_line_suggests_the_right_option(self, capsys, name):
        assert main(["ask", "go", f"--{name}", "1"]) == 2
        assert "did you mean" in capsys.readouterr().err

    def test_the_command_line_refuses_unexpected_arguments(self, capsys):
        assert main(["ask", "Who", "are", "you?"]) == 2
        assert "quote" in capsys.readouterr().err


class TestNames:
    def test_max_tokens_is_max_new_tokens_in_the_constructor_and_in_calls(self, kind):
        for name in ("max_tokens", "max_completion_tokens", "max_new_tokens"):
            assert kind(**{name: 5}).max_new_tokens == 5
            assert asked(kind(), **{name: 5}).generation.max_new_tokens == 5
            given = kind.from_ensemble(Ensemble(members=[ScriptedMember("m", "hi")]), **{name: 5})
            assert given.max_new_tokens == 5
        with pytest.raises(ValueError, match="max_tokens and max_new_tokens"):
            kind(max_tokens=5, max_new_tokens=5)

    def test_a_single_stop_string_is_not_split_into_characters(self, kind):
        assert asked(kind(stop="ab")).generation.stop == ("ab",)
        assert asked(kind(), stop="ab").generation.stop == ("ab",)
        assert ask(scripted(kind)[0], stop="there") == "hello "
        assert list(kind(stop=("a", "b")).stop) == ["a", "b"]

    def test_langchain_traces_a_single_stop_string(self):
        for llm in (AdaFuseLLM(), ChatAdaFuse()):
            assert llm._get_ls_params(stop="ab")["ls_stop"] == ["ab"]


class TestMembers:
    @pytest.mark.parametrize("name", VALUES)
    def test_an_option_of_all_members_reaches_the_core(self, kind, name):
        default, own = VALUES[name]
        members = ["org/one", {"model": "org/two", name: own}]
        expected = EnsembleConfig(members=members, member_defaults={name: default})
        given = [{"member_defaults": {name: default}}] + ([{name: default}] if name not in kind.model_fields else [])
        # Set, so that LlamaIndex does not read the members' files.
        known = {"is_function_calling_model": False, "context_window": 100} if kind is LlamaIndexLLM else {}
        for options in given:
            llm = kind(members=members, **options, **known)
            assert asked(llm) == expected
            assert asked(llm.model_copy()) == expected
            objects = [MemberConfig(model="org/one"), MemberConfig(model="org/two", **{name: own})]
            assert asked(kind(members=objects, **options, **known)) == expected
        if kind is LlamaIndexLLM:
            assert asked(kind.from_json(llm.to_json())) == expected

    def test_the_command_line_has_every_option_of_all_members(self):
        assert set(MEMBER_DEFAULTS) == set(VALUES)

    @pytest.mark.parametrize(
        ("members", "problem"),
        [
            ("gpt2", "expected a list"),
            ({"model": "gpt2"}, "expected a list"),
            (MemberConfig(model="gpt2"), "expected a list"),
            ([ScriptedMember("m", "hi")], "from_ensemble"),
            ([3], "member"),
        ],
    )
    def test_members_of_the_wrong_kind_are_refused(self, kind, members, problem):
        with pytest.raises(ValueError, match=problem):
            kind(members=members)

    def test_members_may_be_any_ordered_iterable(self, kind):
        aspen, birch = "small:aspen", "small:birch"
        for members in ((aspen, Path(birch)), iter([aspen, birch]), [{"model": Path(aspen)}, birch]):
            assert [member.model for member in asked(kind(members=members)).members] == [aspen, birch]

    def test_a_model_may_be_a_path_in_langchain(self):
        assert AdaFuseLLM(model=Path("small:aspen")).model_name == "aspen"

    def test_from_ensemble_takes_an_ensemble_only(self, kind):
        for given in (None, "gpt2", EnsembleConfig(members=["a"]), ScriptedMember("m", "hi")):
            with pytest.raises(ConfigError, match="expected an Ensemble"):
                kind.from_ensemble(given)


class TestSingleValues:
    @pytest.mark.parametrize("chat", [AdaFuseLLM, ChatAdaFuse])
    async def test_a_batch_of_one_text_is_refused(self, chat):
        llm, member = scripted(chat)
        for given in ("Hello", {"role": "user"}, HumanMessage("hi"), None):
            with pytest.raises(ConfigError, match="expected a list"):
                llm.batch(given)
            with pytest.raises(ConfigError, match="expected a list"):
                await llm.abatch(given)
            with pytest.raises(ConfigError, match="expected a list"):
                llm.batch_as_completed(given)
            with pytest.raises(ConfigError, match="expected a list"):
                llm.abatch_as_completed(given)
        assert member.prompts == []
        assert len(llm.batch(("a", "b"))) == len(await llm.abatch(["a", "b"])) == 2
        assert sorted(place for place, _ in llm.batch_as_completed(["a", "b"])) == [0, 1]
        assert sorted([place async for place, _ in llm.abatch_as_completed(["a", "b"])]) == [0, 1]

    @pytest.mark.parametrize(
        ("chat", "given"),
        [
            *((ChatAdaFuse, given) for given in ("Hello", ["Hello"], HumanMessage("hi"), [HumanMessage("hi")])),
            *((AdaFuseLLM, given) for given in ("Hello", [HumanMessage("hi")], [[HumanMessage("hi")]], None)),
        ],
    )
    async def test_generate_takes_several_prompts(self, chat, given):
        llm, member = scripted(chat)
        with pytest.raises(PromptError, match="expected"):
            llm.generate(given)
        with pytest.raises(PromptError, match="expected"):
            await llm.agenerate(given)
        assert member.prompts == []

    @pytest.mark.parametrize("chat", [AdaFuseLLM, ChatAdaFuse])
    def test_one_message_to_count_is_refused(self, chat):
        for given in ("Hello", HumanMessage("hi")):
            with pytest.raises(PromptError, match="expected a list"):
                scripted(chat)[0].get_num_tokens_from_messages(given)

    def test_one_tool_is_refused(self):
        def f(x: str) -> str:
            """A tool."""
            return x

        tool = FunctionTool.from_defaults(f)
        with pytest.raises(ConfigError, match="expected a list"):
            scripted(ChatAdaFuse)[0].bind_tools(f)
        with pytest.raises(ConfigError, match="expected a list"):
            scripted(LlamaIndexLLM)[0].chat_with_tools(tool, user_msg="go")
        with pytest.raises(ConfigError, match="expected a list"):
            scripted(LlamaIndexLLM)[0].predict_and_call(tool, "go")
        for given in (f, tool, "f"):
            with pytest.raises(ConfigError, match="expected a list"):
                react_grammar(given)

    def test_text_for_a_conversation_is_refused_by_llama_index(self):
        llm, member = scripted(LlamaIndexLLM)
        for given in ("Hello", ChatMessage(content="hi"), [{"role": "user", "content": "hi"}]):
            with pytest.raises(ValueError, match=r"messages|ChatMessage"):
                llm.chat(given)
        assert member.prompts == []


def get_weather(city: str) -> str:
    """Get the weather in a city."""
    return f"17 degrees in {city}"


CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'


class TestPlainFunctions:
    def test_react_grammar_takes_functions_and_tools(self):
        tools = [get_weather, FunctionTool.from_defaults(get_weather, name="other")]
        for given in (tools, tuple(tools), iter(tools)):
            assert {"get_weather", "other"} <= set(re.findall(r"Action: (\w+)", react_grammar(given).rules))
        assert react_grammar([get_weather]) == react_grammar([FunctionTool.from_defaults(get_weather)])
        with pytest.raises(ConfigError, match="the tools are: get_weather"):
            react_grammar([get_weather], choice="none of these")
        for wrong in ([3], [int], [{"type": "function"}]):
            with pytest.raises(ConfigError, match="expected a function"):
                react_grammar(wrong)
        with pytest.raises(ConfigError, match="no name of its own"):
            react_grammar([partial(get_weather, city="Oslo")])

    async def test_calls_take_functions(self):
        llm, _ = scripted(LlamaIndexLLM, CALL)
        assert llm.predict_and_call([get_weather], "go").response == "17 degrees in Paris"
        assert (await llm.apredict_and_call([get_weather], "go")).response == "17 degrees in Paris"
        (call,) = llm.get_tool_calls_from_response(llm.chat_with_tools([get_weather], user_msg="go"))
        assert call.tool_kwargs == {"city": "Paris"}


class TestToolCalling:
    """An ensemble supports tools if every member has a chat template."""

    @staticmethod
    def told(kind, **options):
        members = [ScriptedMember("shows", CALL), ScriptedMember("other", CALL, **options)]
        members[1].shows_tools = False
        llm = kind.from_ensemble(Ensemble(members=members))
        claims = llm.metadata.is_function_calling_model if kind is LlamaIndexLLM else llm.profile["tool_calling"]
        return llm, members, claims

    @pytest.mark.parametrize("kind", [ChatAdaFuse, LlamaIndexLLM])
    def test_both_adapters_report_tool_support_if_a_template_ignores_tools(self, kind, caplog):
        caplog.set_level("INFO")
        llm, members, claims = self.told(kind)
        assert claims is llm.ensemble.supports_tools() is True
        assert "the chat template of other shows no tools" in caplog.text
        if kind is ChatAdaFuse:
            calls = llm.bind_tools([get_weather]).invoke("go").tool_calls
            assert [call["name"] for call in calls] == ["get_weather"]
        else:
            response = llm.chat_with_tools([get_weather], user_msg="go")
            assert [call.tool_name for call in llm.get_tool_calls_from_response(response)] == ["get_weather"]
        assert all("get_weather" in member.prompts[0][0].content for member in members)

    @pytest.mark.parametrize("kind", [ChatAdaFuse, LlamaIndexLLM])
    def test_neither_adapter_reports_tool_support_if_a_member_has_no_template(self, kind, caplog):
        caplog.set_level("INFO")
        llm, _, claims = self.told(kind, chat=False)
        assert claims is llm.ensemble.supports_tools() is False
        assert "no chat template in other; set chat_template" in caplog.text

    @pytest.mark.parametrize("bare", [False, True])
    def test_both_adapters_read_the_files_of_members(self, tmp_path, bare):
        tokenizer = tiny.byte_level()
        if bare:
            tokenizer.chat_template = None
        path = str(tiny.save_tiny(tmp_path / "m", tokenizer))
        for members in ([path], ["small:aspen", path]):
            assert ChatAdaFuse(members=members).profile["tool_calling"] is not bare
            assert ChatAdaFuse(members=members).profile["structured_output"] is not bare
            assert LlamaIndexLLM(members=members).metadata.is_function_calling_model is not bare
        given = {"model": path, "chat_template": "{{ messages[0]['content'] }}"}
        assert ChatAdaFuse(members=[given]).profile["tool_calling"]
        assert LlamaIndexLLM(members=[given]).metadata.is_function_calling_model

    @pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecationWarning")
    @pytest.mark.filterwarnings("ignore:is_running called from within a step:DeprecationWarning")
    async def test_a_function_agent_runs_with_a_member_whose_template_shows_no_tools(self):
        def reply(prompt):
            return "It has 17 degrees." if "17 degrees in Paris" in prompt[-1].content else CALL

        members = [ScriptedMember("shows", reply), ScriptedMember("silent", reply)]
        members[1].shows_tools = False
        llm = LlamaIndexLLM.from_ensemble(Ensemble(members=members))
        agent = FunctionAgent(tools=[get_weather], llm=llm, streaming=False)
        assert str(await agent.run("Weather in Paris?")) == "It has 17 degrees."


class TestLoading:
    def test_load_and_warm_return_the_model_and_load_once(self, kind, caplog):
        caplog.set_level(logging.INFO)
        llm = (
            kind(dtype="float64", context_window=1997)
            if kind is not LlamaIndexLLM
            else kind(member_defaults={"dtype": "float64", "context_window": 1996})
        )
        assert llm.load() is llm
        assert caplog.text.count("ready after") == 2
        assert llm.warm() is llm
        assert "warmed up after" in caplog.text
        assert ask(llm, "Hello!", max_tokens=3)
        assert caplog.text.count("ready after") == 2
        llm.close()

    def test_warming_up_is_not_reported_to_callbacks(self, kind):
        llm, member = scripted(kind)
        llm.warm()
        assert len(member.prompts) == 2
        assert ask(llm) == "hello there"

    def test_the_command_line_logs_loading_on_standard_error(self, capsys):
        options = ["--dtype", "float64", "--context-window", "1995", "--max-new-tokens", "2"]
        assert main(["ask", "Hello!", *options]) == 0
        printed = capsys.readouterr()
        for name in ("aspen", "birch"):
            assert f"member '{name}': loading small:{name}" in printed.err
            assert f"member '{name}': ready after" in printed.err
        assert "loading" not in printed.out
        assert logging.getLogger("adafuse_core").handlers == []


# The adapters' own options. Each test sets an option to another value and checks the effect.


def langchain_effects(kind, llm):
    yield "model", kind(model="birch+aspen", members=["small:aspen", "small:birch"]).model_name == "birch+aspen"
    yield "members", kind(members=["a"]).model_name == "a"
    yield "stop", ask(llm(stop=["there"])) == "hello "
    shown = [repr(one.generate_prompt([one._convert_input("go")])) for one in (llm(trace=True), llm(trace=False))]
    yield "trace", ["proposers" in answer for answer in shown] == [True, False]
    yield from call_effects(llm)
    yield "api_key", "hidden" in str(kind(api_key="hf_x", members=["org/gated"])._identifying_params)
    yield "ensemble", llm().ensemble.names == ("m",)
    if kind is ChatAdaFuse:
        heard = []
        ask(llm(streaming=True), config={"callbacks": [listener(heard)]})
        yield "streaming", "".join(heard) == "hello there"
    else:
        yield "prompt_format", llm(prompt_format="raw") and raised_prompt(llm(prompt_format="raw")) == "go"
        yield "system", raised_prompt(llm(system="Be brief."))[0].content == "Be brief."


def llama_index_effects(kind, llm):
    words = []
    yield "members", kind(members=["a"]).ensemble.names == ("a",)
    yield "stop", ask(llm(stop=["there"])) == "hello "
    yield "trace", ["proposers" in str(llm(trace=trace).complete("go").raw) for trace in (True, False)] == [True, False]
    yield from call_effects(llm)
    yield "context_window", llm(context_window=77).metadata.context_window == 77
    yield "is_chat_model", not llm(is_chat_model=False).metadata.is_chat_model
    yield "is_function_calling_model", not llm(is_function_calling_model=False).metadata.is_function_calling_model
    yield "grammar", raises("grammar", ask, llm(grammar=react_grammar([])))
    yield "on_word", ask(llm(on_word=words.append)) == "".join(word.text for word in words)


def call_effects(llm):
    yield "timeout", raises("timeout=0.01", ask, llm(delay=0.2, timeout=0.01))
    yield "max_retries", ask(llm(fail_once=True, max_retries=1)) == "hello there"
    yield "max_async_requests", threads_of_a_call(llm(max_async_requests=3)) == 3


def threads_of_a_call(llm):
    """Maximum number of worker threads of the async calls."""
    asyncio.run(llm.acomplete("go") if isinstance(llm, LlamaIndexLLM) else llm.ainvoke("go"))
    return llm._running_calls._worker.threads


def listener(heard):
    from langchain_core.callbacks import BaseCallbackHandler

    class Listener(BaseCallbackHandler):
        def on_llm_new_token(self, token, **_):
            heard.append(token)

    return Listener()


def raises(problem, call, *arguments):
    with pytest.raises(Exception, match=problem):
        call(*arguments)
    return True


def raised_prompt(llm):
    """The prompt that the member of an LLM reads."""
    ask(llm)
    return llm.ensemble.members[0].prompts[-1]


class FailsOnce(ScriptedMember):
    """A member that fails when it is opened for the first time."""

    def open(self, opening):
        from adafuse_core import MemberError

        if not self.prompts:
            self.prompts.append(None)
            raise MemberError("not yet")
        return super().open(opening)


def own_options(kind):
    """Fields of an adapter that come neither from the core nor from the framework."""
    framework = CustomLLM.model_fields | FunctionCallingLLM.model_fields if kind is LlamaIndexLLM else {}
    for base in kind.__mro__:
        if base.__module__.startswith("langchain"):
            framework = {**framework, **getattr(base, "model_fields", {})}
    assert inspect.isclass(LanguageModel)
    assert kind is LlamaIndexLLM or issubclass(kind, EnsembleModel)
    return set(kind.model_fields) - set(framework) - (set(OptionFields.model_fields) - {"stop"})


def test_every_option_of_an_adapter_has_an_effect(kind):
    """The test fails for a new field of an adapter that has no entry here, or no effect."""

    def llm(*, delay=0.0, fail_once=False, **options):
        member = (FailsOnce if fail_once else ScriptedMember)("m", "hello there", delay=delay)
        return kind.from_ensemble(Ensemble(members=[member]), **options)

    effects = dict((llama_index_effects if kind is LlamaIndexLLM else langchain_effects)(kind, llm))
    assert all(effects.values()), effects
    assert set(effects) == own_options(kind)

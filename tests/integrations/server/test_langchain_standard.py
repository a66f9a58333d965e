"""LangChain's own standard tests, run on its `ChatOpenAI` against a server on the two small models.

Skipped and expected failures have a reason: the small models know three tools and a few thousand words of English, and
members read text only. They have no words for a tool that they do not know, so a call ends at the token budget, and the
ensemble completes it (`complete_calls`). `ChatOpenAI` refuses an answer to `response_format` that ends there, although
it is valid, so objects are asked for by calls. `test_frameworks.py` asks for objects that end by themselves both ways.
"""

from __future__ import annotations

import httpx
import pytest
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests

from adafuse_core import Ensemble
from tests.integrations.server.running import serving
from tests.integrations.stepped import LONG

ARGUMENTS = "the small models copy arguments into calls of the three tools they know, and of no other"


@pytest.fixture(scope="module")
def server():
    ensemble = Ensemble(beams=1, branches=1, generation={"complete_calls": True})  # a narrow search is fast
    with serving(ensembles={"adafuse": ensemble.load()}) as server:
        server.answering.models.load()
        yield server


class TestChatOpenAI(ChatModelIntegrationTests):
    @pytest.fixture(autouse=True)
    async def connected(self, server):
        """Clients of the test, since those that `ChatOpenAI` makes itself are shared by all event loops."""
        with httpx.Client(timeout=LONG) as client:
            async with httpx.AsyncClient(timeout=LONG) as async_client:
                self.connection = {"http_client": client, "http_async_client": async_client}
                self.connection["base_url"] = f"{server.url}/v1"
                yield

    @property
    def chat_model_class(self):
        return ChatOpenAI

    @property
    def chat_model_params(self):
        options = {"model": "adafuse", "api_key": "any", "max_retries": 0, "max_tokens": 40, "stream_usage": True}
        return {**options, **self.connection}

    @property
    def model_override_value(self):
        return "adafuse:birch"

    @property
    def supports_json_mode(self):
        return True

    @property
    def structured_output_kwargs(self):
        return {"method": "function_calling"}

    @pytest.mark.xfail(reason=ARGUMENTS)
    @pytest.mark.parametrize("model", [{}, {"output_version": "v1"}], indirect=True)
    def test_tool_calling(self, model):
        super().test_tool_calling(model)

    @pytest.mark.xfail(reason=ARGUMENTS)
    async def test_tool_calling_async(self, model):
        await super().test_tool_calling_async(model)

    @pytest.mark.xfail(reason="`json_object` names no keys, and the small models write the shortest object")
    def test_json_mode(self, model):
        super().test_json_mode(model)

    @pytest.mark.xfail(reason="the small models write English only")
    def test_unicode_tool_call_integration(self, model, **options):
        super().test_unicode_tool_call_integration(model, **options)

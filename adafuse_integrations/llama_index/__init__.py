"""AdaFuse for LlamaIndex: `AdaFuseLLM`, the events of its words, a selector for routers, and a grammar for ReAct."""

from adafuse_integrations.llama_index.events import EnsembleWord, EnsembleWordEvent
from adafuse_integrations.llama_index.llm import AdaFuseLLM
from adafuse_integrations.llama_index.react import react_grammar
from adafuse_integrations.llama_index.selector import ToolCallSelector

__all__ = ["AdaFuseLLM", "EnsembleWord", "EnsembleWordEvent", "ToolCallSelector", "react_grammar"]

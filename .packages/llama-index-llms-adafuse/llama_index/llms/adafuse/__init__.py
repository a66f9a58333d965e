"""AdaFuse for LlamaIndex: the names of `adafuse_integrations.llama_index`."""

from adafuse_integrations.llama_index import (
    AdaFuseLLM,
    EnsembleWord,
    EnsembleWordEvent,
    ToolCallSelector,
    react_grammar,
)

__all__ = ["AdaFuseLLM", "EnsembleWord", "EnsembleWordEvent", "ToolCallSelector", "react_grammar"]

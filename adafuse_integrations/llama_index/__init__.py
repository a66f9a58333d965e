"""AdaFuse as a LlamaIndex language model: `AdaFuseLLM`, and the words it reports while it answers."""

from adafuse_integrations.llama_index.events import EnsembleWord, EnsembleWordEvent
from adafuse_integrations.llama_index.llm import AdaFuseLLM

__all__ = ["AdaFuseLLM", "EnsembleWord", "EnsembleWordEvent"]

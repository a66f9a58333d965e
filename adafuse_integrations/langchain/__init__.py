"""AdaFuse for LangChain. Importing it loads neither torch nor transformers."""

from adafuse_integrations.langchain.errors import ContextOverflowError, ModelNotFoundError
from adafuse_integrations.langchain.llms import AdaFuseLLM

__all__ = ["AdaFuseLLM", "ContextOverflowError", "ModelNotFoundError"]

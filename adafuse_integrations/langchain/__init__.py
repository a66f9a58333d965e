"""AdaFuse for LangChain. The import loads neither torch nor transformers."""

from adafuse_integrations.langchain.chat_models import ChatAdaFuse
from adafuse_integrations.langchain.errors import ContextOverflowError, ModelNotFoundError, ModelTimeoutError
from adafuse_integrations.langchain.llms import AdaFuseLLM

__all__ = ["AdaFuseLLM", "ChatAdaFuse", "ContextOverflowError", "ModelNotFoundError", "ModelTimeoutError"]

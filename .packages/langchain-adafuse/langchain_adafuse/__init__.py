"""AdaFuse for LangChain: the names of `adafuse_integrations.langchain`."""

from adafuse_integrations.langchain import (
    AdaFuseLLM,
    ChatAdaFuse,
    ContextOverflowError,
    ModelNotFoundError,
    ModelTimeoutError,
)

__all__ = ["AdaFuseLLM", "ChatAdaFuse", "ContextOverflowError", "ModelNotFoundError", "ModelTimeoutError"]

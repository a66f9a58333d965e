"""AdaFuse in the terms of others: LangChain, LlamaIndex, the shell. Each is imported on its own."""

"""Adapters of AdaFuse for LangChain, LlamaIndex and the command line. Import the subpackage that you need."""

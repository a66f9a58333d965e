"""RAG in LlamaIndex: a query engine and a chat engine with streaming. Usage: llama_index_rag.py [FOLDER]"""

import sys
from importlib.resources import files
from pathlib import Path

from llama_index.core.chat_engine import ContextChatEngine
from llama_index.core.prompts import PromptTemplate
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import TextNode
from llama_index.retrievers.bm25 import BM25Retriever

from adafuse_integrations.llama_index import AdaFuseLLM

folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(str(files("adafuse_integrations") / "cli/documents"))
nodes = [TextNode(text=path.read_text(encoding="utf-8").strip()) for path in sorted(folder.glob("*.txt"))]
retriever = BM25Retriever.from_defaults(nodes=nodes, similarity_top_k=2)

llm = AdaFuseLLM()  # or AdaFuseLLM(members=["meta-llama/Llama-3.1-8B-Instruct", "mistralai/Mistral-7B-Instruct-v0.3"])

engine = RetrieverQueryEngine.from_args(
    retriever,
    llm=llm,
    streaming=True,
    text_qa_template=PromptTemplate("Context:\n{context_str}\n\nQuestion: {query_str}"),
)
for text in engine.query("Who owns Karsten Bridge?").response_gen:
    print(text, end="", flush=True)
print()

chat = ContextChatEngine.from_defaults(retriever, llm=llm, context_template="Context:\n{context_str}")
for question in ("What does the silver heron eat?", "How much does the silver heron weigh?"):
    print("you>", question)
    for text in chat.stream_chat(question).response_gen:
        print(text, end="", flush=True)
    print()

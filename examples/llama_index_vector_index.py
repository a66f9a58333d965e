"""LlamaIndex's VectorStoreIndex: a query engine and a chat engine with streaming.

Usage: llama_index_vector_index.py [FOLDER]

The embedding below counts words, without a model or network, so it only finds texts that share words with the question.
With an embedding model: `VectorStoreIndex(nodes, embed_model=HuggingFaceEmbedding(...))`.
"""

import math
import re
import sys
import zlib
from collections import Counter
from importlib.resources import files
from pathlib import Path

from llama_index.core import PromptTemplate, Settings, VectorStoreIndex
from llama_index.core.embeddings import BaseEmbedding
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.schema import TextNode

from adafuse_integrations.llama_index import AdaFuseLLM


class WordEmbedding(BaseEmbedding):
    """Counts of words and of their first four letters, hashed into 2,048 dimensions."""

    def _get_text_embedding(self, text):
        words = re.findall(r"\w{3,}", text.lower())
        counts = Counter(zlib.crc32(part.encode()) % 2048 for word in words for part in (word, word[:4]))
        length = math.sqrt(sum(count**2 for count in counts.values())) or 1.0
        return [counts[index] / length for index in range(2048)]

    def _get_query_embedding(self, query):
        return self._get_text_embedding(query)

    async def _aget_query_embedding(self, query):
        return self._get_text_embedding(query)


llm = AdaFuseLLM()  # or AdaFuseLLM(members=["meta-llama/Llama-3.1-8B-Instruct", "mistralai/Mistral-7B-Instruct-v0.3"])
Settings.llm = llm
Settings.tokenizer = llm.tokenizer_fn  # LlamaIndex counts tokens like the members

folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(str(files("adafuse_integrations") / "cli/documents"))
nodes = [TextNode(text=path.read_text(encoding="utf-8").strip()) for path in sorted(folder.glob("*.txt"))]
index = VectorStoreIndex(nodes, embed_model=WordEmbedding())

engine = index.as_query_engine(
    similarity_top_k=2,
    streaming=True,
    text_qa_template=PromptTemplate("Context:\n{context_str}\n\nQuestion: {query_str}"),
)
for question in ("Who runs Amber Harbour?", "What does Orsa Works make?"):
    print("question>", question)
    engine.query(question).print_response_stream()
    print()

chat = index.as_chat_engine(
    chat_mode="context",
    similarity_top_k=1,
    context_template="Context:\n{context_str}",
    memory=ChatMemoryBuffer.from_defaults(llm=llm),
)
for question in (
    "What does the silver heron eat?",
    "How much does the silver heron weigh?",
    "Where is Velden Library?",
):
    print("you>", question)
    for text in chat.stream_chat(question).response_gen:
        print(text, end="", flush=True)
    print()

"""RAG in LangChain: a streaming chain of retriever, prompt, ensemble and parser.

Usage: langchain_rag.py [FOLDER] [QUESTION]
"""

import sys
from importlib.resources import files
from pathlib import Path

import bm25s
from langchain_core.documents import Document
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import PromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnablePassthrough

from adafuse_integrations.langchain import AdaFuseLLM

folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(str(files("adafuse_integrations") / "cli/documents"))
question = sys.argv[2] if len(sys.argv) > 2 else "Who runs Amber Harbour?"

documents = [Document(path.read_text(encoding="utf-8").strip()) for path in sorted(folder.glob("*.txt"))]
index = bm25s.BM25()
index.index(bm25s.tokenize([document.page_content for document in documents], show_progress=False), show_progress=False)


class KeywordRetriever(BaseRetriever):
    """Retrieves the two best documents by BM25."""

    def _get_relevant_documents(self, query, *, run_manager):
        found, _ = index.retrieve(bm25s.tokenize(query, show_progress=False), documents, k=2, show_progress=False)
        return list(found[0])


def join(found):
    return "\n\n".join(document.page_content for document in found)


llm = AdaFuseLLM()  # or AdaFuseLLM(members=["meta-llama/Llama-3.1-8B-Instruct", "mistralai/Mistral-7B-Instruct-v0.3"])
chain = (
    {"context": KeywordRetriever() | join, "question": RunnablePassthrough()}
    | PromptTemplate.from_template("Context:\n{context}\n\nQuestion: {question}")
    | llm
    | StrOutputParser()
)

for text in chain.stream(question):
    print(text, end="", flush=True)
print()

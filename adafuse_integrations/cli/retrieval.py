"""Keyword retrieval (BM25) over a folder of text files, as a retriever of LangChain and of LlamaIndex."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from langchain_core.retrievers import BaseRetriever
    from llama_index.core.base.base_retriever import BaseRetriever as LlamaIndexRetriever

DOCUMENTS = Path(__file__).parent / "documents"


def langchain_retriever(folder: Path = DOCUMENTS, k: int = 2) -> BaseRetriever:
    """A LangChain retriever of the `k` best documents in a folder."""
    import bm25s
    from langchain_core.documents import Document
    from langchain_core.retrievers import BaseRetriever

    documents = [Document(text, metadata={"source": name}) for name, text in _texts(folder).items()]
    index = bm25s.BM25()
    index.index(
        bm25s.tokenize([document.page_content for document in documents], show_progress=False), show_progress=False
    )

    class Retriever(BaseRetriever):
        def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
            tokens = bm25s.tokenize(query, show_progress=False)
            found, _ = index.retrieve(tokens, corpus=documents, k=min(k, len(documents)), show_progress=False)
            return list(found[0])

    return Retriever()


def llama_index_retriever(folder: Path = DOCUMENTS, k: int = 2) -> LlamaIndexRetriever:
    """A LlamaIndex retriever of the `k` best documents in a folder."""
    from llama_index.core.schema import TextNode
    from llama_index.retrievers.bm25 import BM25Retriever

    nodes = [TextNode(text=text) for text in _texts(folder).values()]
    retriever: LlamaIndexRetriever = BM25Retriever.from_defaults(nodes=nodes, similarity_top_k=min(k, len(nodes)))
    return retriever


def _texts(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text(encoding="utf-8").strip() for path in sorted(folder.glob("*.txt"))}

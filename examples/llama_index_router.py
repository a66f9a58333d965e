"""LlamaIndex's RouterQueryEngine: the ensemble chooses a query engine by a tool call, then answers with it."""

from llama_index.core.prompts import PromptTemplate
from llama_index.core.query_engine import RetrieverQueryEngine, RouterQueryEngine
from llama_index.core.schema import TextNode
from llama_index.core.tools import QueryEngineTool
from llama_index.retrievers.bm25 import BM25Retriever

from adafuse_integrations.llama_index import AdaFuseLLM, ToolCallSelector

TIMES = ["Lindow Museum opens at 9:30. In the evening it closes at 17:45.", "Velden Library closes at 19:00."]
WEATHER = ["The weather in Marrow Bay is 17 degrees and cloudy.", "The weather in Velden is 4 degrees and stormy."]

llm = AdaFuseLLM()  # or AdaFuseLLM(members=["meta-llama/Llama-3.1-8B-Instruct", "mistralai/Mistral-7B-Instruct-v0.3"])


def tool(texts, name, description):
    """A query engine over a few texts."""
    retriever = BM25Retriever.from_defaults(nodes=[TextNode(text=text) for text in texts], similarity_top_k=1)
    template = PromptTemplate("Context:\n{context_str}\n\nQuestion: {query_str}")
    engine = RetrieverQueryEngine.from_args(retriever, llm=llm, text_qa_template=template)
    return QueryEngineTool.from_defaults(engine, name=name, description=description)


# The small models were trained to call tools of these two names.
router = RouterQueryEngine(
    selector=ToolCallSelector(llm),
    query_engine_tools=[
        tool(TIMES, "get_time", "When places open and close."),
        tool(WEATHER, "get_weather", "The weather of places."),
    ],
    llm=llm,
)
for question in ("When does Lindow Museum close?", "What is the weather like in Marrow Bay?"):
    answer = router.query(question)
    chosen = answer.metadata["selector_result"].selections[0].index
    print(f"{question} -> engine {chosen}: {answer}")

"""Structured output in LangChain: constrained decoding makes every answer an object of the class."""

from typing import Literal

from pydantic import BaseModel, Field

from adafuse_integrations.langchain import ChatAdaFuse


class Fact(BaseModel):
    """A fact about a country."""

    answer: str = Field(max_length=60)
    kind: Literal["capital", "currency", "language"]


llm = ChatAdaFuse(max_tokens=100)  # the small models write valid objects, but often with wrong values
chain = llm.with_structured_output(Fact, include_raw=True)

answer = chain.invoke("What is the capital of Peru?")
print("object:", repr(answer["parsed"]))
print("text:  ", answer["raw"].text)
for partial in llm.with_structured_output(Fact.model_json_schema()).stream("What is the currency of Japan?"):
    print("so far:", partial)

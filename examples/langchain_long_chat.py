"""A long chat in LangChain: a summary replaces older messages, so that the chat fits into the context windows."""

from langchain.agents import create_agent
from langchain.agents.middleware import SummarizationMiddleware
from langgraph.checkpoint.memory import InMemorySaver

from adafuse_integrations.langchain import ChatAdaFuse

llm = ChatAdaFuse(max_tokens=48)
shorten = SummarizationMiddleware(llm, trigger=("tokens", 60), keep=("messages", 2))
agent = create_agent(llm, middleware=[shorten], checkpointer=InMemorySaver())
thread = {"configurable": {"thread_id": "1"}}

for question in ("Hello!", "What is the capital of Peru?", "What is the currency of Japan?", "Who wrote Hamlet?"):
    state = agent.invoke({"messages": [{"role": "user", "content": question}]}, thread)
    print(f"{question}  {state['messages'][-1].text}  [{len(state['messages'])} messages kept]")

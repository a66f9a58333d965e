"""A chat page with Streamlit: answers stream, and a panel shows who proposed each word.

    pip install "adafuse[small-models]" "streamlit>=1.50,<2"
    streamlit run examples/streamlit_chat.py

Pressing "Stop", or leaving the page, ends the generation.
"""

import contextlib
import uuid

import streamlit as st

from adafuse_core import AdaFuseError, Ensemble, TextDelta, collect


@st.cache_resource(show_spinner="Loading the models")
def ensemble():
    """The models, loaded once for all users. By default the two small models of the package."""
    return Ensemble().load()


def pieces(messages, seen):
    """The text of an answer, piece by piece; all events of the answer are added to `seen`."""
    namespace = st.session_state.setdefault("user", uuid.uuid4().hex)  # users share no cache
    # Streamlit ends the script where it is when the user presses "Stop" or leaves. This ends the generation, too.
    with contextlib.closing(ensemble().stream(messages, cache_namespace=namespace)) as events:
        for event in events:
            seen.append(event)
            if isinstance(event, TextDelta):
                yield event.text


def show(message):
    """A message of the conversation, and the trace of an answer."""
    with st.chat_message(message["role"]):
        st.markdown(message["content"])
        show_trace(message)


def show_trace(message):
    """Who proposed each word; point at a word to see its candidates."""
    if "trace" in message:
        with st.expander("Where each word comes from"):
            st.html(message["trace"])


st.title("AdaFuse chat")
conversation = st.session_state.setdefault("conversation", [])
for message in conversation:
    show(message)

if text := st.chat_input("Ask something"):
    question = {"role": "user", "content": text}
    show(question)
    prompt = [{"role": message["role"], "content": message["content"]} for message in [*conversation, question]]
    with st.chat_message("assistant"):
        events = []
        try:
            with contextlib.closing(pieces(prompt, events)) as stream:
                answer = {"role": "assistant", "content": st.write_stream(stream)}
        except AdaFuseError as error:
            st.error(error)
        else:
            answer["trace"] = collect(events).trace
            show_trace(answer)
            conversation += [question, answer]

"""A chat page with Gradio: answers stream, and each word shows who proposed it.

    pip install "adafuse[small-models]" "gradio>=6,<7"
    python examples/gradio_chat.py

Pressing "Stop", or leaving the page, ends the generation.
"""

import contextlib

import gradio as gr

from adafuse_core import AdaFuseError, Ensemble, RoundDone, TextDelta

# The two small models of the package. For other models, give their names:
# Ensemble(members=["meta-llama/Llama-3.1-8B-Instruct", "mistralai/Mistral-7B-Instruct-v0.3"])
ensemble = Ensemble()


def respond(question, history, request: gr.Request):
    """Yield the answer so far, and its words with their proposers."""
    messages = [{"role": turn["role"], "content": text_of(turn["content"])} for turn in history]
    messages.append({"role": "user", "content": question})
    answer, words = "", []
    # Gradio closes this function when the user presses "Stop" or leaves. This ends the generation, too.
    try:
        with contextlib.closing(ensemble.stream(messages, cache_namespace=str(request.session_hash))) as events:
            for event in events:
                if isinstance(event, TextDelta):
                    answer += event.text
                elif isinstance(event, RoundDone):
                    words.append((event.round.span.text, " and ".join(event.round.proposers) or None))
                    yield answer, words
        yield answer, words
    except AdaFuseError as error:
        raise gr.Error(str(error)) from error


def text_of(content):
    """The text of a message, which Gradio stores as a text or in parts."""
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


with gr.Blocks(title="AdaFuse chat") as page:
    proposers = gr.HighlightedText(label="Where each word comes from", combine_adjacent=True, render=False)
    gr.ChatInterface(respond, title="AdaFuse chat", additional_outputs=[proposers])
    proposers.render()

if __name__ == "__main__":
    ensemble.warm()
    page.launch()  # for this machine only
